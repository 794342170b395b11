//! The files that say how a model writes: read within bounds, and named where something is wrong.
//!
//! Does not know what stands in them.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use nanoinfer_shared::json;
use serde_json::Value;

use crate::utf8;

/// Why the text side of a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// No tokenizer at all.
    #[error("no tokenizer in {}; hint: it needs tokenizer.json, or vocab.json and merges.txt", folder.display())]
    Missing {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A file that is there cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what its name promises.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Tokenizer and model do not belong together.
    #[error(
        "{}: token `{token}` is {id}, but the model's vocabulary has {vocab_size} rows; hint: this tokenizer belongs \
         to another model",
        path.display()
    )]
    OutsideVocabulary {
        /// The tokenizer's file.
        path: PathBuf,
        /// Its last token.
        token: String,
        /// That token's id.
        id: u32,
        /// Rows of the model.
        vocab_size: usize,
    },
}

/// Largest file of a tokenizer: those with a million tokens have 60 MB.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;

/// The text of a file, if it is not larger than any of its kind.
pub(super) fn read(path: &Path) -> Result<String, TextError> {
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MAX_FILE_BYTES {
            true => Err(io::Error::other(format!("it is larger than {} MB", MAX_FILE_BYTES >> 20))),
            false => utf8::read(&bytes[..]),
        }
    };
    read().map_err(|source| TextError::Read { path: path.to_owned(), source })
}

/// The same, where there may be no such file.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, TextError> {
    match read(path) {
        Err(TextError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// A JSON file, if it is there.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>, TextError> {
    read_if_there(path)?.map(|text| parse(path, &text)).transpose()
}

/// What a file says in JSON.
pub(super) fn parse(path: &Path, text: &str) -> Result<Value, TextError> {
    json::parse(text.as_bytes()).map_err(|error| invalid(path, error))
}

/// The fields of a JSON file.
pub(super) struct Fields {
    pub(super) path: PathBuf,
    pub(super) value: Value,
}

impl Fields {
    /// A field as `read` has it; nothing where it is not there or null.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, TextError> {
        match &self.value[key] {
            Value::Null => Ok(None),
            value => read(value).map(Some).ok_or_else(|| self.wrong(key, expected, value)),
        }
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, got: &Value) -> TextError {
        invalid(&self.path, format!("`{key}` should be {expected}, got {}", json::show(got)))
    }
}

pub(super) fn invalid(path: &Path, reason: impl ToString) -> TextError {
    TextError::Invalid { path: path.to_owned(), reason: reason.to_string() }
}
