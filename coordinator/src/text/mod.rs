//! Between strings and token ids: tokenizer, chat template, streaming text, and the generation of whole answers.
//!
//! Reading order: [`tokenizer`], [`detokenizer`] and [`stop`] turn ids into text and back; [`chat`] turns messages into a
//! prompt; [`prompt`] decides what fits; [`text_engine`] runs a [`generate_request`] through the engine as a [`generation`]. Nothing here knows HTTP.

pub(crate) mod answer_memory;
mod bad_words;
pub mod chat;
mod choice;
pub mod defaults;
mod decoder;
pub mod detokenizer;
pub mod generate_request;
pub mod generation;
mod jinja;
mod python_json;
pub mod prompt;
pub mod stop;
pub mod text_engine;
pub mod tokenizer;
mod tokenizer_config;
mod tokenizer_files;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use nanoinfer_shared::{ModelShape, json};

use crate::utf8;

pub use self::{
    chat::{ChatFormat, ChatLayout, Ending, Message, Role},
    defaults::GenerationDefaults,
    detokenizer::Detokenizer,
    generate_request::{GenerateError, GenerateRequest},
    generation::{Chunk, Generation},
    prompt::{KeepLast, MaxTokens, Prompt, Room},
    stop::StopFinder,
    text_engine::TextEngine,
    tokenizer::{Specials, Tokenizer},
};

/// Everything of a model that has to do with text.
#[derive(Debug)]
pub struct ModelText {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt.
    pub chat: ChatFormat,
    /// What the model's makers recommend.
    pub defaults: GenerationDefaults,
}

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

/// Why a text has no token ids.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the model's tokenizer cannot encode this text: {reason}")]
pub struct EncodeError {
    reason: String,
}

impl EncodeError {
    fn new(reason: impl ToString) -> Self {
        Self { reason: reason.to_string() }
    }
}

impl ModelText {
    /// Reads tokenizer, chat template and `generation_config.json` from a model's folder.
    ///
    /// # Errors
    /// When a file is missing, unreadable, malformed, or belongs to another model.
    pub fn load(folder: &Path, shape: &ModelShape) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::load(folder, shape.vocab_size)?;
        let chat = ChatFormat::load(folder, &tokenizer)?;
        let defaults = GenerationDefaults::load(folder, shape.vocab_size)?;
        Ok(Self { tokenizer, chat, defaults })
    }
}

/// Largest file of a tokenizer: those with a million tokens have 60 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The text of a file, if it is not larger than any of its kind.
fn read_file(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(io::Error::other(format!("it is larger than {} MB", MAX_FILE_BYTES >> 20))),
        false => utf8::read(&bytes[..]),
    }
}

/// A JSON file, if it is there.
fn read_json(path: &Path) -> Result<Option<serde_json::Value>, TextError> {
    let text = match read_file(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TextError::Read { path: path.to_owned(), source }),
    };
    json::parse(text.as_bytes()).map(Some).map_err(|error| invalid(path, error))
}

fn invalid(path: &Path, reason: impl ToString) -> TextError {
    TextError::Invalid { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
#[path = "golden_tests.rs"]
mod golden_tests;
#[cfg(test)]
#[path = "files_tests.rs"]
mod files_tests;
