//! Why there is no such model, in words that say what to do; and the names that are known.

use std::{
    io,
    path::{Path, PathBuf},
};

use nanoinfer_checkpoint::CheckpointError;
use nanoinfer_shared::ShapeError;

use super::{gguf::Unclear, hub::HubError, nanochat::NoCheckpoint, unpack::UnpackError};

/// Name of the model that is built in.
pub const DEMO_MODEL: &str = "nano-chat";

/// Names without an organisation, and where the hub has them.
pub(super) const SHORT_NAMES: [(&str, &str); 5] = [
    ("gpt2", "openai-community/gpt2"),
    ("gpt2-medium", "openai-community/gpt2-medium"),
    ("gpt2-large", "openai-community/gpt2-large"),
    ("gpt2-xl", "openai-community/gpt2-xl"),
    ("distilgpt2", "distilbert/distilgpt2"),
];
/// Why there is no such model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Neither a path nor a name that is known.
    #[error(
        "no model `{name}`{}\n  hint: --model takes a folder, a checkpoint file, a hub id (org/name, org/name:Q4_K_M), a short name ({}), or {DEMO_MODEL}, which is built in",
        did_you_mean(.suggestion), SHORT_NAMES.map(|(short, _)| short).join(", ")
    )]
    Unknown {
        /// What was typed.
        name: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A path to nothing.
    #[error("there is no file or folder {}{}", .path.display(), did_you_mean(.suggestion))]
    NoSuchPath {
        /// What was typed.
        path: PathBuf,
        /// A neighbour with nearly this name.
        suggestion: Option<String>,
    },
    /// A part of the model is not there.
    #[error("{} has no {file}\n  hint: {hint}", if *.folder == Path::new(".") { "the current folder".into() } else { .folder.display().to_string() })]
    MissingFile {
        /// Where it should be.
        folder: PathBuf,
        /// What is missing.
        file: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A file is there but cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a GPT-2 that this server runs.
    #[error("{}: {source}", .path.display())]
    Shape {
        /// Its `config.json`.
        path: PathBuf,
        /// What is wrong in it.
        source: ShapeError,
    },
    /// The checkpoint is none, or not what its configuration says.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A part of a split checkpoint is not there.
    #[error("{} is missing, of which other parts are there\n  hint: fetch it, and the index (model.safetensors.index.json) too", .0.display())]
    MissingPart(PathBuf),
    /// Only the hub has revisions.
    #[error("--revision {revision} is for models of the hub; `{name}` is not one")]
    Revision {
        /// What was typed.
        name: String,
        /// What else was typed.
        revision: String,
    },
    /// The cache lies in a folder that somebody else could put models into.
    #[error("cannot use the cache in {}: {source}\n  hint: set HF_HOME to a folder of yours", .folder.display())]
    SharedCache {
        /// The folder.
        folder: PathBuf,
        /// Who, or how.
        source: io::Error,
    },
    /// The embedded model, or a tokenizer, could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A folder with several GGUF models.
    #[error("{} {unclear}\n  hint: name one: --model FOLDER/FILE.gguf", .folder.display())]
    Unclear {
        /// Which.
        folder: PathBuf,
        /// What it has.
        unclear: Unclear,
    },
    /// It is not clear which of nanochat's checkpoints is meant.
    #[error("{place} {reason}\n  hint: {}", .reason.hint(.place, '/'))]
    NoCheckpoint {
        /// What was typed.
        place: String,
        /// What it has.
        reason: NoCheckpoint,
    },
    /// The hub has no such model, or cannot be reached.
    #[error(transparent)]
    Hub(#[from] HubError),
}

impl ModelError {
    pub(super) fn missing(folder: &Path, file: &'static str, hint: &'static str) -> Self {
        Self::MissingFile { folder: folder.into(), file, hint }
    }
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or(String::new(), |name| format!("; did you mean `{name}`?"))
}
