//! Why a model did not come from the hub, in words that say what to do.

use std::{io, path::PathBuf};

use nanoinfer_shared::ShapeError;

use crate::{
    model::{gguf::Unclear, nanochat::NoCheckpoint},
    proxy::ProxyError,
};

/// Why a model did not come from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Told not to ask, and the cache does not have it.
    #[error(
        "{id} is not in the cache {}{}, and HF_HUB_OFFLINE is set (or TRANSFORMERS_OFFLINE)\n  hint: unset it to download the model, or pass a folder: --model /path/to/model",
        .cache.display(), but_for(.lacks)
    )]
    Offline {
        /// Repository.
        id: String,
        /// What is missing of a snapshot that is there; empty if none is.
        lacks: Vec<&'static str>,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// A proxy on the way to it cannot be one.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// No answer, or none that can be used.
    #[error(
        "cannot download {id}: {url}: {reason}\n  the cache {} does not have it either\n  hint: try again, it goes on where it broke off; where there is no network, copy the model's files here and pass the folder: --model /path/to/model; for a mirror set HF_ENDPOINT",
        .cache.display()
    )]
    Unreachable {
        /// Repository.
        id: String,
        /// What was asked.
        url: String,
        /// What happened.
        reason: String,
        /// Where it was looked for first.
        cache: PathBuf,
    },
    /// The hub says no.
    #[error("{} ({url}: {status}{said})\n  hint: {}", .refusal.words(.id, .revision), .refusal.hint(.id, *.has_token))]
    Refused {
        /// Repository.
        id: String,
        /// Revision.
        revision: String,
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// The hub's own words, behind a comma; empty if it has none.
        said: String,
        /// To what.
        refusal: Refusal,
        /// Whether a token was shown.
        has_token: bool,
    },
    /// What answers is no hub, or one that means no good.
    #[error(
        "the answer of {url} is no listing of a repository: {reason}\n  hint: check HF_ENDPOINT, and proxies on the way"
    )]
    Listing {
        /// What was asked.
        url: String,
        /// What is wrong in it.
        reason: String,
    },
    /// The repository holds no model that this server reads.
    #[error("{id} has no {file} on the hub\n  hint: {hint}")]
    MissingFile {
        /// Repository.
        id: String,
        /// What is missing.
        file: String,
        /// What to do.
        hint: &'static str,
    },
    /// It is of no family that is served, by its configuration; its weights were not asked for.
    #[error("{id}: config.json: {source}")]
    Shape {
        /// Repository.
        id: String,
        /// What sets it apart.
        source: ShapeError,
    },
    /// Which of its GGUF files is meant.
    #[error("{id} {unclear}\n  hint: name one: --model {id}:Q4_K_M, or {id}:FILE.gguf")]
    Unclear {
        /// Repository.
        id: String,
        /// What it has.
        unclear: Unclear,
    },
    /// Which of nanochat's checkpoints is meant.
    #[error("{id} {reason}\n  hint: {}", .reason.hint(.id, ':'))]
    NoCheckpoint {
        /// Repository.
        id: String,
        /// What it has.
        reason: NoCheckpoint,
    },
    /// A part of a split GGUF is not listed.
    #[error("{id} has no {part} on the hub, of which it has other parts\n  hint: another revision may be complete")]
    MissingPart {
        /// Repository.
        id: String,
        /// File.
        part: String,
    },
    /// The list of a checkpoint's parts is broken.
    #[error("{id}: {index}: {reason}")]
    Index {
        /// Repository.
        id: String,
        /// The index.
        index: &'static str,
        /// What is wrong in it.
        reason: String,
    },
    /// What came is not what the hub announced.
    #[error(
        "{id}: {file} has {got}, but the hub announced {expected}; it was removed\n  hint: try again, or without the mirror or proxy on the way"
    )]
    Content {
        /// Repository.
        id: String,
        /// File.
        file: String,
        /// Announced: a size or a digest.
        expected: String,
        /// Come.
        got: String,
    },
    /// The cache could not be written.
    #[error("cannot write to the cache {}: {source}\n  hint: make room there, or set HF_HOME to a folder that can be written", .cache.display())]
    Cache {
        /// Where.
        cache: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nothing that a repository could have.
    #[error("--revision {0:?} is no branch, tag or commit")]
    Revision(String),
    /// A setting of the environment that cannot be used.
    #[error("{variable} is {reason}\n  hint: {hint}")]
    Setting {
        /// Which, without its value, which may be a secret.
        variable: &'static str,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
}

/// What the hub refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The repository: there is none, or it is private.
    Repository,
    /// One of its revisions.
    Revision,
    /// To hand it out before its owner has agreed.
    Gated,
    /// A file that it listed.
    File,
}

impl Refusal {
    fn words(self, id: &str, revision: &str) -> String {
        match self {
            Self::Repository => format!("the hub has no model {id} at revision {revision}, or not for you"),
            Self::Revision => format!("the hub has {id}, but no revision {revision} of it"),
            Self::Gated => format!("{id} is gated: the hub hands it out to accounts that its owner has admitted"),
            Self::File => format!("the hub lists a file of {id} that it does not have"),
        }
    }

    fn hint(self, id: &str, has_token: bool) -> String {
        match (self, has_token) {
            (Self::Repository, false) => "check the spelling; a private or gated model needs HF_TOKEN".into(),
            (Self::Repository, true) => "check the spelling, and that the token in use may read it".into(),
            (Self::Revision, _) => format!("https://huggingface.co/{id}/tree/main shows its branches and tags"),
            (Self::Gated, false) => {
                format!("ask for access at https://huggingface.co/{id}, then set HF_TOKEN to a token of that account")
            }
            (Self::Gated, true) => {
                format!("ask for access at https://huggingface.co/{id}; the account of the token in use has none")
            }
            (Self::File, _) => "try again; if it stays so, the mirror is incomplete".into(),
        }
    }
}

fn but_for(lacks: &[&str]) -> String {
    if lacks.is_empty() { String::new() } else { format!(" as a whole (it lacks {})", lacks.join(", ")) }
}
