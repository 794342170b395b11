//! What pickles are read for, and which names may be in each.

/// What a pickle is to hold: that says which names may be in it. All are data to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A checkpoint of torch.
    StateDict,
    /// A tokenizer of tiktoken.
    Encoding,
}

impl Content {
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::StateDict => &STATE_DICT,
            Self::Encoding => &[ENCODING],
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::StateDict => "a state dict",
            Self::Encoding => "a tokenizer",
        }
    }

    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::StateDict => {
                "if you trust the file, load it in Python and save `model.state_dict()` with safetensors"
            }
            Self::Encoding => "a tokenizer.pkl is what nanochat's scripts.tok_train writes; take it from there",
        }
    }
}

const STATE_DICT: [&str; 22] = [
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch.Size",
    "torch.device",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.DoubleStorage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
];
/// The one class whose attributes are read.
pub(super) const ENCODING: &str = "tiktoken.core.Encoding";
