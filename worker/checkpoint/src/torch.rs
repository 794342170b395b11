//! Files of `torch.save`: the state dict in them, each tensor where it lies in the file.
//!
//! ```text
//! zip, since torch 1.6                        legacy
//!   <root>/data.pkl      the object             pickles: magic, protocol version, system, the object, list of keys
//!   <root>/byteorder     little                 per key: number of elements (i64), elements
//!   <root>/data/<key>    one storage
//! the object   {name: tensor}, or that under `model` (nanoGPT, NanoInfer), `state_dict` (Lightning), `module` (DeepSpeed)
//! a tensor     _rebuild_tensor_v2((storage), offset, size, stride, …)
//! ```
//! Does not know which tensors GPT-2 has. Reference: `torch/serialization.py`, `_save`, `_legacy_save`, `_load`,
//! `_legacy_load`.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use safetensors::Dtype;

use super::{
    archive::Archive,
    pickle::{Content, Id, Pickle, PickleError, Value},
    shown::shown,
    tensor::{ElementType, MAX_DIMENSIONS, Stored, element_bytes},
};

/// Begins every legacy file: a pickle of the number 0x1950a86a20f9469cfc6c.
pub(super) const LEGACY_MAGIC: [u8; 15] =
    [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
/// Begins every zip archive.
pub(super) const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";
/// Where a state dict may be in a checkpoint.
const WRAPPERS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];
/// Where nanoGPT and the Python NanoInfer keep sizes.
const CONFIGS: [&str; 2] = ["model_args", "config"];
/// How deep a tensor may be wrapped: a Parameter of a subclass of a tensor is 3.
const MAX_WRAPPING: usize = 4;
/// Longest name of a storage: torch numbers them, and each tensor is looked up by one.
const MAX_KEY_BYTES: usize = 256;

/// What a file holds.
#[derive(Debug)]
pub(super) struct Contents {
    /// Tensors by name; `file` is left 0.
    pub(super) tensors: Vec<(String, Stored)>,
    /// Sizes that stand in the file itself, as the text of a `config.json`.
    pub(super) config: Option<String>,
    /// Where elements lie: of these, and of what else a program wrote with them.
    pub(super) elements: Vec<Range<usize>>,
}

impl Contents {
    /// Of a file with nothing but tensors.
    pub(super) fn of(tensors: Vec<(String, Stored)>) -> Self {
        let elements = tensors.iter().map(|(_, stored)| stored.extent()).collect();
        Self { tensors, config: None, elements }
    }
}

/// Why a torch file is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum TorchError {
    #[error(transparent)]
    Pickle(#[from] PickleError),
    #[error("{0}")]
    Malformed(String),
}

impl From<String> for TorchError {
    fn from(reason: String) -> Self {
        Self::Malformed(reason)
    }
}

/// Reads a zip archive of torch.save.
pub(super) fn read_zip(bytes: &[u8]) -> Result<Contents, TorchError> {
    let archive = Archive::read(bytes)?;
    if let Some(order) = archive.entry("byteorder")
        && &bytes[order.clone()] != b"little"
    {
        return Err(TorchError::Malformed("its numbers are big-endian".into()));
    }
    let object = archive.entry("data.pkl").ok_or_else(|| String::from("it has no data.pkl"))?;
    let pickle = Pickle::read(&bytes[object], Content::StateDict)?;
    let place = |key: &str| archive.entry(&format!("data/{key}"));
    state_dict(&pickle, &place, archive.below("data/").collect())
}

/// Reads a file as torch before 1.6 wrote it.
pub(super) fn read_legacy(bytes: &[u8]) -> Result<Contents, TorchError> {
    let mut at = LEGACY_MAGIC.len();
    let mut next = || {
        let pickle = Pickle::read(&bytes[at..], Content::StateDict)?;
        at += pickle.len;
        Ok::<_, PickleError>(pickle)
    };
    let (_version, system, object, keys) = (next()?, next()?, next()?, next()?);
    let little = system.lookup(system.root, "little_endian").map(|id| system.get(id) == &Value::Bool(true));
    if little != Some(true) {
        return Err(TorchError::Malformed("its numbers are not said to be little-endian".into()));
    }
    let mut sizes = HashMap::new();
    for value in &object.values {
        if let Value::Persistent(id) = value {
            let storage = Storage::parse(&object, *id)?;
            sizes.insert(storage.key, storage);
        }
    }
    let Value::List(keys_in_order) = keys.get(keys.root) else {
        return Err(TorchError::Malformed("its list of storages is none".into()));
    };
    let mut places = HashMap::new();
    for key in keys_in_order.iter().filter_map(|&id| keys.text(id)) {
        let unknown = || format!("storage {} belongs to no tensor", shown(key));
        let storage = sizes.get(key).ok_or_else(unknown)?;
        let count = bytes.get(at..at + 8).ok_or_else(|| String::from("its end is missing"))?;
        let count = u64::from_le_bytes(count.try_into().expect("8 bytes"));
        let len = usize::try_from(count).ok().and_then(|count| count.checked_mul(element_bytes(storage.dtype)));
        let end = len.and_then(|len| (at + 8).checked_add(len)).filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| format!("storage {} is cut short", shown(key)))?;
        places.insert(key, at + 8..end);
        at = end;
    }
    state_dict(&object, &|key| places.get(key).cloned(), places.values().cloned().collect())
}

/// A storage as a pickle names it.
struct Storage<'a> {
    dtype: Dtype,
    key: &'a str,
    /// First element, where the name is of a view into a storage.
    offset: usize,
}

impl<'a> Storage<'a> {
    /// `('storage', torch.FloatStorage, key, location, elements[, None | (key, offset, elements)])`.
    fn parse(pickle: &'a Pickle, name: Id) -> Result<Self, TorchError> {
        let wrong = || TorchError::Malformed("it names a storage in an unknown way".into());
        let parts = pickle.tuple(name).filter(|parts| parts.len() >= 5).ok_or_else(wrong)?;
        let number = |id| pickle.int(id).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong);
        let Value::Global(class) = pickle.get(parts[1]) else { return Err(wrong()) };
        let offset = match parts.get(5).and_then(|&view| pickle.tuple(view)) {
            Some(&[_, offset, _]) => number(offset)?,
            _ => 0,
        };
        let key = pickle.text(parts[2]).filter(|key| key.len() <= MAX_KEY_BYTES).ok_or_else(wrong)?;
        Ok(Self { dtype: dtype_of(class).ok_or_else(wrong)?, key, offset })
    }
}

fn dtype_of(storage_class: &str) -> Option<Dtype> {
    Some(match storage_class {
        "torch.FloatStorage" => Dtype::F32,
        "torch.HalfStorage" => Dtype::F16,
        "torch.BFloat16Storage" => Dtype::BF16,
        "torch.DoubleStorage" => Dtype::F64,
        "torch.LongStorage" => Dtype::I64,
        "torch.IntStorage" => Dtype::I32,
        "torch.ShortStorage" => Dtype::I16,
        "torch.CharStorage" => Dtype::I8,
        "torch.ByteStorage" => Dtype::U8,
        "torch.BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

/// Where the storage of a key lies.
type Place<'a> = &'a dyn Fn(&str) -> Option<Range<usize>>;

/// The state dict in an object, wherever the program that wrote it keeps that.
fn state_dict(pickle: &Pickle, place: Place<'_>, elements: Vec<Range<usize>>) -> Result<Contents, TorchError> {
    // Names stay the pickle's until it is known that no two are equal: one that is long may be given to any number of pairs.
    let tensors_of = |dict: Id| -> Result<Vec<(String, Stored)>, TorchError> {
        let Value::Dict(pairs) = pickle.get(dict) else { return Ok(Vec::new()) };
        let mut tensors = BTreeMap::new();
        for &(name, value) in pairs {
            if let (Some(name), Some(tensor)) = (pickle.text(name), tensor(pickle, value, place)?)
                && tensors.insert(name, tensor).is_some()
            {
                return Err(TorchError::Malformed(format!("it has tensor `{}` twice", shown(name))));
            }
        }
        Ok(tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect())
    };
    for inner in WRAPPERS.iter().filter_map(|name| pickle.lookup(pickle.root, name)).chain([pickle.root]) {
        let tensors = tensors_of(inner)?;
        if !tensors.is_empty() {
            let config = CONFIGS.iter().find_map(|name| config(pickle, pickle.lookup(pickle.root, name)?));
            return Ok(Contents { tensors, config, elements });
        }
    }
    Err(TorchError::Malformed("there is no state dict in it".into()))
}

/// nanoGPT's sizes as a `config.json` has them. Its GELU is the exact one.
fn config(pickle: &Pickle, dict: Id) -> Option<String> {
    let int = |name: &str| pickle.int(pickle.lookup(dict, name)?);
    let vocab_size = int("vocab_size")?;
    // Its tokenizer is GPT-2's, or of a few characters without an end of text.
    let eos = if vocab_size > 50256 { "50256" } else { "null" };
    Some(format!(
        r#"{{"model_type":"gpt2","n_layer":{},"n_head":{},"n_embd":{},"n_positions":{},"vocab_size":{vocab_size},"activation_function":"gelu","eos_token_id":{eos}}}"#,
        int("n_layer")?,
        int("n_head")?,
        int("n_embd")?,
        int("block_size")?,
    ))
}

/// The tensor that a value is, if it is one.
fn tensor(pickle: &Pickle, value: Id, place: Place<'_>) -> Result<Option<Stored>, TorchError> {
    let &Value::Call(mut function, mut arguments) = pickle.get(value) else { return Ok(None) };
    let wrong = || TorchError::Malformed("a tensor is made in an unknown way".into());
    for _ in 0..MAX_WRAPPING {
        let parts = pickle.tuple(arguments).ok_or_else(wrong)?;
        match (pickle.get(function), parts) {
            (Value::Global("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2"), parts) => {
                return rebuild(pickle, parts, place).map(Some);
            }
            (Value::Global("torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter"), &[data, ..]) => {
                let &Value::Call(inner, of) = pickle.get(data) else { return Err(wrong()) };
                (function, arguments) = (inner, of);
            }
            (Value::Global("torch._tensor._rebuild_from_type_v2"), &[inner, _, of, ..]) => {
                (function, arguments) = (inner, of);
            }
            _ => return Ok(None),
        }
    }
    Err(wrong())
}

/// `(storage, offset, size, stride, …)`, offset and strides in elements.
fn rebuild(pickle: &Pickle, parts: &[Id], place: Place<'_>) -> Result<Stored, TorchError> {
    let wrong = || TorchError::Malformed("a tensor is described in an unknown way".into());
    let &[storage, offset, size, stride, ..] = parts else { return Err(wrong()) };
    let Value::Persistent(name) = pickle.get(storage) else { return Err(wrong()) };
    let storage = Storage::parse(pickle, *name)?;
    let number = |id: Id| pickle.int(id).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong);
    let numbers = |id: Id| -> Result<Vec<usize>, TorchError> {
        let ids = pickle.tuple(id).filter(|ids| ids.len() <= MAX_DIMENSIONS).ok_or_else(wrong)?;
        ids.iter().map(|&id| number(id)).collect()
    };
    let (shape, strides) = (numbers(size)?, numbers(stride)?);
    if shape.len() != strides.len() {
        return Err(wrong());
    }
    let width = element_bytes(storage.dtype);
    let lost = || TorchError::Malformed(format!("storage {} is missing", shown(storage.key)));
    let range = place(storage.key).ok_or_else(lost)?;
    let start = number(offset)?.checked_add(storage.offset).and_then(|offset| offset.checked_mul(width));
    let start = start.and_then(|start| start.checked_add(range.start)).ok_or_else(wrong)?;
    let stored = Stored { file: 0, start, dtype: ElementType::Plain(storage.dtype), shape, strides, paired: None };
    if start > range.end || !stored.fits(range.end - start) {
        let shape = &stored.shape;
        let key = shown(storage.key);
        return Err(TorchError::Malformed(format!("a tensor of {shape:?} claims more than storage {key} holds")));
    }
    Ok(stored)
}
