//! From what was typed after `--model` to files: once, before any rank starts.
//!
//! A name is, in this order: the embedded demo model (`nano-chat`, or nothing typed); a folder; a checkpoint file with
//! its configuration and tokenizer beside it; a short name of the GPT-2 family; a Hugging Face hub id (`org/name`).
//! Reads names and shapes of the weights, and samples of them, to know what the configuration leaves open.

mod demo;
mod hub;
mod weights;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nanoinfer_checkpoint::{Checkpoint, CheckpointError};
use nanoinfer_shared::{ModelShape, ShapeError};

pub use self::{
    demo::DemoError,
    hub::{HubError, Refusal},
};
use crate::{closest, private_folder, proxy::Proxies, utf8};

/// Name of the model that is built in.
pub const DEMO_MODEL: &str = "nano-chat";

/// Names without an organisation, and where the hub has them.
const SHORT_NAMES: [(&str, &str); 5] = [
    ("gpt2", "openai-community/gpt2"),
    ("gpt2-medium", "openai-community/gpt2-medium"),
    ("gpt2-large", "openai-community/gpt2-large"),
    ("gpt2-xl", "openai-community/gpt2-xl"),
    ("distilgpt2", "distilbert/distilgpt2"),
];
const CONFIG: &str = "config.json";

/// A model that is there to be loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedModel {
    /// What was typed; `nano-chat` if nothing was.
    pub name: String,
    /// Configuration and tokenizer are here.
    pub folder: PathBuf,
    /// Files of the checkpoint, or its index, which stands for them.
    pub weights: Vec<PathBuf>,
    /// Sizes, from `config.json` or the checkpoint itself; the checkpoint agrees with them.
    pub shape: ModelShape,
    /// Digest of the checkpoint: names, types, shapes, and samples of every tensor.
    pub fingerprint: u64,
}

/// Where models are looked up and kept. Filled by the command line from the environment.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Folders for the extracted demo model, by preference; the first that can be written is taken.
    pub demo: Vec<PathBuf>,
    /// The Hugging Face hub.
    pub hub: HubAccess,
}

impl Caches {
    /// Nothing is kept, and nothing is asked for.
    pub fn nowhere() -> Self {
        Self { demo: Vec::new(), hub: HubAccess::offline(PathBuf::new()) }
    }
}

/// The Hugging Face hub, or a mirror, and its local cache in the layout that all Hugging Face tools share.
#[derive(Clone)]
pub struct HubAccess {
    /// Holds `models--org--name` folders; `$HF_HOME/hub`.
    pub cache: PathBuf,
    /// Scheme and host, without a trailing slash; `$HF_ENDPOINT`.
    pub endpoint: String,
    /// Sent to that scheme, host and port only, wherever it redirects to; `$HF_TOKEN`.
    pub token: Option<String>,
    /// Use what the cache has and never ask the hub; `$HF_HUB_OFFLINE`.
    pub offline: bool,
    /// How long an answer may not move before it counts as lost; `$HF_HUB_DOWNLOAD_TIMEOUT`.
    pub patience: Duration,
    /// On the way to the hub.
    pub proxies: Proxies,
}

impl HubAccess {
    /// To a cache only.
    pub fn offline(cache: PathBuf) -> Self {
        let proxies = Proxies::default();
        Self { cache, endpoint: String::new(), token: None, offline: true, patience: Self::PATIENCE, proxies }
    }

    /// Unless the environment says another.
    pub const PATIENCE: Duration = Duration::from_secs(30);
}

impl std::fmt::Debug for HubAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cache, endpoint, token, offline, .. } = self;
        // The token itself must not reach a log.
        let token = token.as_ref().map(|_| "…");
        write!(f, "HubAccess {{ cache: {cache:?}, endpoint: {endpoint:?}, token: {token:?}, offline: {offline}, … }}")
    }
}

/// Why there is no such model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Neither a path nor a name that is known.
    #[error(
        "no model `{name}`{}\n  hint: --model takes a folder, a checkpoint file, a hub id (org/name), a short name ({}), or {DEMO_MODEL}, which is built in",
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
    #[error("{} is missing, of which other parts are there\n  hint: fetch it, and the index (model.safetensors.index.json) too", .path.display())]
    MissingPart {
        /// Where it should be.
        path: PathBuf,
    },
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
    /// The embedded model could not be unpacked.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// The hub has no such model, or cannot be reached.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// Finds `name`, downloading or unpacking it where needed, and reads its configuration.
///
/// # Errors
/// Says what is missing, what was tried, and what may have been meant.
pub fn resolve(name: Option<&str>, revision: Option<&str>, caches: &Caches) -> Result<ResolvedModel, ModelError> {
    read(name, locate(name, revision, caches, Freshness::Cached)?, true)
}

/// As [`resolve`], but asks the hub whether it has something newer.
///
/// # Errors
/// As [`resolve`].
pub fn pull(name: &str, revision: Option<&str>, caches: &Caches) -> Result<ResolvedModel, ModelError> {
    read(Some(name), locate(Some(name), revision, caches, Freshness::Newest)?, true)
}

/// As [`resolve`], but without a tokenizer it is a model too: to look at, and to convert.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_checkpoint(
    name: Option<&str>,
    revision: Option<&str>,
    caches: &Caches,
) -> Result<ResolvedModel, ModelError> {
    read(name, locate(name, revision, caches, Freshness::Cached)?, false)
}

/// Finds the files of the weights of `name` only, for a rank that was told its own copy.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_weights(name: &str, revision: Option<&str>, caches: &Caches) -> Result<Vec<PathBuf>, ModelError> {
    locate(Some(name), revision, caches, Freshness::Cached)?.weights()
}

fn read(name: Option<&str>, place: Place, needs_tokenizer: bool) -> Result<ResolvedModel, ModelError> {
    let path = place.folder.join(CONFIG);
    let parse = |path: &Path, text: &str| {
        ModelShape::from_config_json(text).map_err(|source| ModelError::Shape { path: path.into(), source })
    };
    let beside = match utf8::read_file(&path) {
        Ok(text) => Some(parse(&path, &text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(ModelError::Read { path, source }),
    };
    let no_config = || missing(&place.folder, CONFIG, "a model is a folder as Hugging Face publishes it");
    let weights = match place.weights() {
        // The first thing to say of a folder that holds no model at all.
        Err(ModelError::MissingFile { .. }) if beside.is_none() => return Err(no_config()),
        other => other,
    };
    let weights = weights?;
    let checkpoint = Checkpoint::open(&weights)?;
    // What a checkpoint says of itself cannot belong to another one.
    let shape = match checkpoint.config() {
        Some(text) => parse(&weights[0], text)?,
        None => beside.ok_or_else(no_config)?,
    };
    let mut shape = checkpoint.refine(shape);
    shape.keep_known_ends();
    checkpoint.check(&shape)?;
    if needs_tokenizer && !has_tokenizer(&place.folder) {
        return Err(missing(
            &place.folder,
            "tokenizer.json (or vocab.json and merges.txt)",
            "copy the tokenizer that the model was trained with there; GPT-2's own is in the folder that `nanoinfer pull gpt2` prints",
        ));
    }
    let name = name.unwrap_or(DEMO_MODEL).to_string();
    Ok(ResolvedModel { name, folder: place.folder, weights, shape, fingerprint: checkpoint.fingerprint() })
}

/// Whether what the cache has of a hub model is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    /// Yes.
    Cached,
    /// Only if the hub has nothing newer.
    Newest,
}

/// A folder, and a file in it where one was typed.
struct Place {
    folder: PathBuf,
    file: Option<PathBuf>,
}

fn locate(
    name: Option<&str>,
    revision: Option<&str>,
    caches: &Caches,
    freshness: Freshness,
) -> Result<Place, ModelError> {
    let folder = |folder| Place { folder, file: None };
    let local = |name: &str| match revision {
        Some(revision) => Err(ModelError::Revision { name: name.into(), revision: revision.into() }),
        None => Ok(()),
    };
    let Some(name) = name else {
        local(DEMO_MODEL)?;
        return Ok(folder(demo::extract(&caches.demo)?));
    };
    let path = Path::new(name);
    if path.is_dir() {
        local(name)?;
        return Ok(folder(path.to_path_buf()));
    }
    if path.is_file() {
        local(name)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Ok(Place { folder: parent.to_path_buf(), file: Some(path.to_path_buf()) });
    }
    if name == DEMO_MODEL {
        local(name)?;
        return Ok(folder(demo::extract(&caches.demo)?));
    }
    let id = match SHORT_NAMES.iter().find(|(short, _)| *short == name) {
        Some((_, id)) => id,
        None if is_hub_id(name) && !is_in_a_local_folder(path) => name,
        None if name.contains('/') => {
            let suggestion = hub_id_of_address(name).or_else(|| similar_neighbour(path));
            return Err(ModelError::NoSuchPath { path: path.into(), suggestion });
        }
        None => {
            let known = SHORT_NAMES.iter().map(|(short, _)| *short).chain([DEMO_MODEL]);
            // Ollama's names end in a tag, as in gpt2:latest.
            let suggestion = closest(name.split(':').next().unwrap_or(name), known)
                .map(String::from)
                .or_else(|| similar_neighbour(path));
            return Err(ModelError::Unknown { name: name.into(), suggestion });
        }
    };
    // Without a home the cache lies where the demo model does, below a folder that all users share.
    if let Some(root) = caches.demo.iter().find(|root| caches.hub.cache.starts_with(root)) {
        private_folder::make(root).map_err(|source| ModelError::SharedCache { folder: root.clone(), source })?;
    }
    Ok(folder(hub::fetch(id, revision.unwrap_or("main"), &caches.hub, freshness)?))
}

impl Place {
    fn weights(&self) -> Result<Vec<PathBuf>, ModelError> {
        match &self.file {
            Some(file) => weights::of_file(file),
            None => weights::in_folder(&self.folder),
        }
    }
}

/// Whether a folder has what a tokenizer is made of.
pub fn has_tokenizer(folder: &Path) -> bool {
    let has = |file: &str| folder.join(file).exists();
    has("tokenizer.json") || (has("vocab.json") && has("merges.txt"))
}

fn missing(folder: &Path, file: &'static str, hint: &'static str) -> ModelError {
    ModelError::MissingFile { folder: folder.into(), file, hint }
}

/// `org/name` with the characters that the hub allows.
fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        let mut chars = part.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// The id in a hub address that was copied from a browser.
fn hub_id_of_address(name: &str) -> Option<String> {
    let bare = name.trim_start_matches("https://");
    let id = bare.strip_prefix("huggingface.co/").or_else(|| bare.strip_prefix("hf.co/"))?.trim_end_matches('/');
    is_hub_id(id).then(|| id.to_owned())
}

/// Whether `path` looks like a slip in a path: its parent is a folder here, so nobody means the hub.
fn is_in_a_local_folder(path: &Path) -> bool {
    path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir())
}

/// A file or folder beside `path` with nearly its name.
fn similar_neighbour(path: &Path) -> Option<String> {
    let parent = path.parent()?;
    let listed = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let names: Vec<String> =
        fs::read_dir(listed).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let typed = path.file_name()?.to_str()?;
    let near = closest(typed, names.iter().map(String::as_str))?;
    Some(parent.join(near).display().to_string())
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or(String::new(), |name| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests;
