//! Values that a pickle builds, and why one is not read.

use super::content::Content;

/// Why a pickle is not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It names what is no data.
    #[error(
        "refused: the file asks for `{name}`, which is no part of {}; nothing of it was run\n  hint: {}", .content.words(), .content.hint()
    )]
    Refused {
        /// What it names.
        name: String,
        /// As what it was read.
        content: Content,
    },
    /// It ends too early.
    #[error("the pickle is cut short at byte {0}")]
    Truncated(usize),
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
pub(crate) type Id = u32;

/// A value; parts are other values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// A whole number beyond 64 bits: nothing here looks into it.
    Opaque,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A name from the list.
    Global(&'static str),
    /// A function or class, and its arguments.
    Call(Id, Id),
    /// A tokenizer of tiktoken, with these attributes.
    Object(Id),
    /// What the pickle's owner knows by this name.
    Persistent(Id),
}
