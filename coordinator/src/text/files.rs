//! The files that say how a model writes: read within bounds, and named where something is wrong.
//!
//! Does not know what stands in them.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use nanoinfer_shared::json;

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
pub(super) fn read_file(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(io::Error::other(format!("it is larger than {} MB", MAX_FILE_BYTES >> 20))),
        false => utf8::read(&bytes[..]),
    }
}

/// A JSON file, if it is there.
pub(super) fn read_json(path: &Path) -> Result<Option<serde_json::Value>, TextError> {
    let text = match read_file(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TextError::Read { path: path.to_owned(), source }),
    };
    json::parse(text.as_bytes()).map(Some).map_err(|error| invalid(path, error))
}

pub(super) fn invalid(path: &Path, reason: impl ToString) -> TextError {
    TextError::Invalid { path: path.to_owned(), reason: reason.to_string() }
}
