//! Architectures, and forms of weights, that are not served: by which tensor or `model_type` they are known, and what sets them apart.

const FUSED_GATE: &str = "gate and up of its MLP are one matrix, and some of its layers attend to a window";
const NORMS: &str = "norms stand behind attention and MLP too";
const EXPERTS: &str = "its MLPs are experts, of which each token chooses some";
const GPT_NEO: &str = "every other layer attends to 256 tokens only, and scores are not scaled";
const GPT_J: &str = "positions are rotations, and attention and MLP run side by side";
const TRIAL: &str = "its values are mixed in a way that was given up the same day";
const OPT: &str = "queries, keys and values are separate, and positions are offset";
const BIGCODE: &str = "all heads share one pair of keys and values";
const QUANTISED: &str =
    "weights are small numbers with scales\n  hint: take the model that it was made of, or a GGUF of that";

/// Tensors by which other architectures are known (any name that contains the text), and what sets them apart.
const TENSORS: [(&str, &str, &str); 19] = [
    (".qweight", "GPTQ- or AWQ-quantised", QUANTISED),
    (".absmax", "bitsandbytes-quantised", QUANTISED),
    (".SCB", "bitsandbytes-quantised", QUANTISED),
    (".weight_scale", "FP8- or otherwise quantised", QUANTISED),
    (".scales", "MLX-quantised", QUANTISED),
    ("attn.attention.q_proj.weight", "GPT-Neo", GPT_NEO),
    (".attn.q_proj.weight", "GPT-J", GPT_J),
    ("bigram_embed.", "nanochat of January 27 and 28, 2026,", "it embeds pairs of tokens"),
    ("v0_lambdas", "trial nanochat of January 16, 2026,", TRIAL),
    ("value_embed.weight", "trial nanochat of January 16, 2026,", TRIAL),
    ("value_embed_A.weight", "trial nanochat of January 16, 2026,", TRIAL),
    ("self_attn.qkv_proj.weight", "Phi-like", FUSED_GATE),
    ("mlp.experts.", "mixture-of-experts", EXPERTS),
    ("block_sparse_moe.", "Mixtral", EXPERTS),
    ("post_feedforward_layernorm.weight", "Gemma 2 or 3, or OLMo 2", NORMS),
    ("attention.query_key_value.weight", "GPT-NeoX or Bloom", "positions are rotations or biases"),
    ("decoder.layers.", "decoder of fairseq or OPT", "its layers are laid out differently"),
    ("encoder.layer.", "BERT-like", "it encodes, and cannot continue a text"),
    ("relative_attention_bias", "T5-like", "it translates from an encoder's output"),
];

/// An architecture that is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint is a {family} model (tensor `{tensor}`), which is not served: {why}")]
pub struct NotServed {
    /// What it is called.
    pub family: &'static str,
    /// The tensor by which it is known.
    pub tensor: String,
    /// What sets it apart.
    pub why: &'static str,
}

impl NotServed {
    /// The architecture that a tensor of this name belongs to, if that is known for another than ours.
    pub fn by_tensor(name: &str) -> Option<Self> {
        let &(_, family, why) = TENSORS.iter().find(|(part, ..)| name.contains(part))?;
        Some(Self { family, tensor: name.to_owned(), why })
    }

    /// One head of keys and values for all queries, as `tensor` shows.
    pub(super) fn one_kv_head(tensor: String) -> Self {
        Self { family: "gpt_bigcode", tensor, why: BIGCODE }
    }
}

/// Why a model of another type cannot run.
pub(super) fn what_sets_apart(model_type: &str) -> &'static str {
    match model_type {
        "gpt_neo" => GPT_NEO,
        "gpt_bigcode" => BIGCODE,
        "gptj" => GPT_J,
        "gpt_neox" | "phi" => "positions are rotations",
        "bloom" | "mpt" => "positions are biases of attention",
        "opt" => OPT,
        "phi3" => FUSED_GATE,
        "gemma" => "norms multiply by one more than their gain, and embeddings are scaled",
        "gemma2" | "gemma3" | "gemma3_text" | "olmo2" => NORMS,
        "olmo" => "norms have no gain",
        "mixtral" | "qwen2_moe" | "qwen3_moe" => EXPERTS,
        _ => "only GPT-2, Llama, nanochat and their like are served",
    }
}
