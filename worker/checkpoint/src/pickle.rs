//! A pickle as data: what Python's `pickle` would build, without running any of it.
//!
//! The program of a pickle is carried out on an arena of values ([`machine`]); a call is written down as a call. Knows nothing of tensors. Invariant: memory stays within a
//! multiple of the pickle's own length, and no recursion depends on its content.
//! Reference: `Lib/pickletools.py` of CPython; what torch allows is in `torch/_weights_only_unpickler.py`.

mod machine;

use self::machine::Machine;

/// Longest pickle: that of gpt2-xl with its optimizer has half a megabyte.
pub(super) const MAX_PICKLE_BYTES: usize = 16 << 20;
/// Why a pickle is not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It names what is no data.
    #[error(
        "refused: the file asks for `{global}`, which is no part of a state dict; nothing of it was run\n  hint: if you trust the file, load it in Python and save `model.state_dict()` with safetensors"
    )]
    Refused {
        /// Module and name.
        global: String,
    },
    /// It ends too early.
    #[error("the pickle is cut short at byte {at}")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// An instruction that no checkpoint needs.
    #[error("the pickle has instruction {opcode:#04x} at byte {at}, which is not read")]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Where.
        at: usize,
    },
    /// Its instructions do not fit together.
    #[error("the pickle is broken at byte {at}: {what}")]
    Broken {
        /// Where.
        at: usize,
        /// How.
        what: &'static str,
    },
    /// It is larger than any checkpoint's.
    #[error("the pickle has more than {limit} {unit}")]
    TooLarge {
        /// The bound.
        limit: usize,
        /// Of what.
        unit: &'static str,
    },
}

/// Index of a value.
pub(super) type Id = u32;

/// A value; parts are other values.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Bytes and whole numbers beyond 64 bits: nothing here looks into them.
    Opaque,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A name from the list.
    Global(&'static str),
    /// A function or class, and its arguments.
    Call(Id, Id),
    /// What the pickle's owner knows by this name.
    Persistent(Id),
}

/// What a pickle builds.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    pub(super) root: Id,
    /// Bytes that the pickle takes.
    pub(super) len: usize,
}

impl Pickle {
    /// Reads the pickle that `bytes` begin with.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PickleError> {
        let bytes = &bytes[..bytes.len().min(MAX_PICKLE_BYTES)];
        let mut machine = Machine::new(bytes);
        let root = match machine.run() {
            Err(PickleError::Truncated { .. }) if bytes.len() == MAX_PICKLE_BYTES => {
                return Err(PickleError::TooLarge { limit: MAX_PICKLE_BYTES, unit: "bytes" });
            }
            other => other?,
        };
        let (values, len) = machine.into_parts();
        Ok(Self { root, len, values })
    }

    /// A value by its index.
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// All values, in the order in which they were made.
    pub(super) fn values(&self) -> &[Value] {
        &self.values
    }

    /// The value of `key` in a dictionary.
    pub(super) fn lookup(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(pairs) = self.get(dict) else { return None };
        // The last of equal keys counts, as in Python.
        pairs.iter().rev().find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }
}
