//! A pickle as data: what Python's `pickle` would build, without running any of it.
//!
//! The program of a pickle is carried out on an arena of values ([`machine`]); a call is written down as a call. Knows nothing of tensors
//! or tokenizers but the names that may stand in their files. Invariant: memory stays within a
//! multiple of the pickle's own length, and no recursion depends on its content.
//! Reference: `Lib/pickletools.py` of CPython; what torch allows is in `torch/_weights_only_unpickler.py`.

mod content;
mod value;
mod machine;

use self::machine::Machine;
pub(super) use self::value::{Id, Value};
pub use self::{content::Content, value::PickleError};

/// Longest pickle: that of gpt2-xl with its optimizer has half a megabyte.
pub(super) const MAX_PICKLE_BYTES: usize = 16 << 20;

/// What a pickle builds.
#[derive(Debug)]
pub(super) struct Pickle {
    /// All values, in the order in which they were made.
    pub(super) values: Vec<Value>,
    pub(super) root: Id,
    /// Bytes that the pickle takes.
    pub(super) len: usize,
}

impl Pickle {
    /// Reads the pickle that `bytes` begin with, which is to hold this.
    pub(super) fn read(bytes: &[u8], content: Content) -> Result<Self, PickleError> {
        let bytes = &bytes[..bytes.len().min(MAX_PICKLE_BYTES)];
        let (root, values, len) = match Machine::new(bytes, content).run() {
            Err(PickleError::Truncated(_)) if bytes.len() == MAX_PICKLE_BYTES => {
                return Err(PickleError::TooLarge { limit: MAX_PICKLE_BYTES, unit: "bytes" });
            }
            other => other?,
        };
        Ok(Self { root, len, values })
    }

    /// A value by its index.
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// The value of `key` in a dictionary.
    pub(super) fn lookup(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(pairs) = self.get(dict) else { return None };
        // The last of equal keys counts, as in Python.
        pairs.iter().rev().find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        let Value::Text(text) = self.get(id) else { return None };
        Some(text)
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        let Value::Int(value) = self.get(id) else { return None };
        Some(*value)
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        let Value::Tuple(items) = self.get(id) else { return None };
        Some(items)
    }
}
