//! From what was typed after `--model` to files: once, before any rank starts.
//!
//! A name is, in this order: the embedded demo model (`nano-chat`, or nothing typed); a folder; a checkpoint file with
//! its configuration and tokenizer beside it; a short name of the GPT-2 family; a Hugging Face hub id (`org/name`,
//! or `org/name:Q4_K_M` and `org/name:file.gguf` for one of its GGUF files, `org/name:folder` for one of nanochat's).
//! Reads names and shapes of the weights, and samples of them, to know what the configuration leaves open.

mod access;
mod demo;
mod error;
mod files;
mod gguf;
mod hub;
mod nanochat;
mod tokenizer_files;
mod unpack;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nanoinfer_checkpoint::{Checkpoint, CheckpointError, TokenizerFiles};
use nanoinfer_shared::ModelShape;

use self::{access::Freshness, error::SHORT_NAMES, files::CONFIG};
pub use self::{
    access::{Caches, HubAccess},
    error::{DEMO_MODEL, ModelError},
    gguf::Unclear,
    hub::{HubError, Refusal},
    nanochat::NoCheckpoint,
    tokenizer_files::has_tokenizer,
    unpack::UnpackError,
};
use crate::{closest, private_folder, utf8};

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
    /// Digest of which files they are.
    pub files: u64,
}

/// Which of the versions that there are of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version<'a> {
    /// Branch, tag or commit of the hub; `main`.
    pub revision: Option<&'a str>,
    /// Of its training, where several checkpoints of nanochat lie together; the last.
    pub step: Option<u64>,
}

impl<'a> From<Option<&'a str>> for Version<'a> {
    /// The last step of a revision.
    fn from(revision: Option<&'a str>) -> Self {
        Self { revision, step: None }
    }
}

/// Finds `name`, downloading or unpacking it where needed, and reads its configuration.
///
/// # Errors
/// Says what is missing, what was tried, and what may have been meant.
pub fn resolve<'a>(
    name: Option<&str>,
    version: impl Into<Version<'a>>,
    caches: &Caches,
) -> Result<ResolvedModel, ModelError> {
    read(name, locate(name, version.into(), caches, Freshness::Cached)?, caches, true)
}

/// As [`resolve`], but asks the hub whether it has something newer.
///
/// # Errors
/// As [`resolve`].
pub fn pull<'a>(name: &str, version: impl Into<Version<'a>>, caches: &Caches) -> Result<ResolvedModel, ModelError> {
    read(Some(name), locate(Some(name), version.into(), caches, Freshness::Newest)?, caches, true)
}

/// As [`resolve`], but without a tokenizer it is a model too: to look at, and to convert.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_checkpoint<'a>(
    name: Option<&str>,
    version: impl Into<Version<'a>>,
    caches: &Caches,
) -> Result<ResolvedModel, ModelError> {
    read(name, locate(name, version.into(), caches, Freshness::Cached)?, caches, false)
}

/// Finds the files of the weights of `name` only, for a rank that was told its own copy.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_weights<'a>(
    name: &str,
    version: impl Into<Version<'a>>,
    caches: &Caches,
) -> Result<Vec<PathBuf>, ModelError> {
    locate(Some(name), version.into(), caches, Freshness::Cached)?.weights()
}

fn read(
    name: Option<&str>,
    mut place: Place,
    caches: &Caches,
    needs_tokenizer: bool,
) -> Result<ResolvedModel, ModelError> {
    let path = place.folder.join(CONFIG);
    let parse = |path: &Path, text: &str| {
        ModelShape::from_config_json(text).map_err(|source| ModelError::Shape { path: path.into(), source })
    };
    let weights = place.weights();
    let is_nanochat = weights.as_ref().is_ok_and(|files| nanochat::is_checkpoint(&files[0]));
    let is_gguf = match &weights {
        Ok(files) => files[0].extension() == Some("gguf".as_ref()),
        Err(error) => matches!(error, ModelError::Unclear { .. } | ModelError::NoCheckpoint { .. }),
    };
    // What lies beside these is of others, or says less than they say themselves.
    let beside = match utf8::read_file(&path) {
        _ if is_gguf || is_nanochat => None,
        Ok(text) => Some(parse(&path, &text).map(|shape| (text, shape))?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(ModelError::Read { path, source }),
    };
    let hint = match place.folder.join("adapter_config.json").exists() {
        true => "it holds an adapter of PEFT: merge that into its model first, `merge_and_unload()` does it",
        false => "a model is a folder as Hugging Face publishes it",
    };
    let no_config = || ModelError::missing(&place.folder, CONFIG, hint);
    let weights = match weights {
        // The first thing to say of a folder that holds no model at all.
        Err(ModelError::MissingFile { .. }) if beside.is_none() => return Err(no_config()),
        other => other,
    };
    let weights = weights?;
    let checkpoint = Checkpoint::open(&weights)?;
    // What a checkpoint says of itself cannot belong to another one.
    let (own, written) = (checkpoint.config(), beside.as_ref().map(|(text, _)| text.as_str()));
    let shape = match (own, &beside) {
        (Some(text), _) => parse(&weights[0], text)?,
        (None, Some((_, shape))) => shape.clone(),
        (None, None) => return Err(no_config()),
    };
    let (described, types) = (shape.model_type(), checkpoint.family().model_types);
    if !types.contains(&described) {
        return Err(CheckpointError::OtherFamily { described, tensors: types[0] }.into());
    }
    let mut shape = checkpoint.refine(shape);
    shape.keep_known_ends();
    checkpoint.check(&shape)?;
    if is_nanochat {
        // It may lie deeper than what was typed.
        place.folder = weights[0].parent().unwrap_or(Path::new(".")).into();
    }
    let pickle =
        nanochat::pickle_for(&place.folder).filter(|_| is_nanochat || !is_gguf && !has_tokenizer(&place.folder));
    let tokenizer = pickle.map(|path| TokenizerFiles::of_pickle(&path)).transpose()?;
    if let Some(tokenizer) = tokenizer.map_or_else(|| checkpoint.tokenizer(), |files| Ok(Some(files)))?
        && let Some(config) = own.or(written)
    {
        place.folder = unpack::tokenizer(config, &tokenizer, &caches.demo)?;
    } else if is_nanochat && let Some(folder) = nanochat::folder_for(&place.folder) {
        place.folder = folder;
    }
    if needs_tokenizer && !has_tokenizer(&place.folder) {
        let (file, hint) = match is_nanochat {
            true => (nanochat::PICKLE, nanochat::HINT),
            false => (
                "tokenizer.json (or vocab.json and merges.txt)",
                "copy the tokenizer that the model was trained with there; GPT-2's own is in the folder that `nanoinfer pull gpt2` prints",
            ),
        };
        return Err(ModelError::missing(&place.folder, file, hint));
    }
    let name = name.unwrap_or(DEMO_MODEL).to_string();
    let (fingerprint, files) = (checkpoint.fingerprint(), checkpoint.identity());
    Ok(ResolvedModel { name, folder: place.folder, weights, shape, fingerprint, files })
}

/// A folder, and a file in it where one was typed, or the step that it is of.
struct Place {
    folder: PathBuf,
    file: Option<PathBuf>,
    step: Option<u64>,
}

fn locate(
    name: Option<&str>,
    version: Version<'_>,
    caches: &Caches,
    freshness: Freshness,
) -> Result<Place, ModelError> {
    let Version { revision, step } = version;
    let folder = |folder| Place { folder, file: None, step };
    let (is_built_in, name) = (name.is_none(), name.unwrap_or(DEMO_MODEL));
    let path = Path::new(name);
    let is_there = !is_built_in && (path.is_dir() || path.is_file());
    if is_there || name == DEMO_MODEL {
        if let Some(revision) = revision {
            return Err(ModelError::Revision { name: name.into(), revision: revision.into() });
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Ok(match is_there {
            false => folder(demo::extract(&caches.demo)?),
            true if path.is_dir() => folder(path.into()),
            true => Place { folder: parent.into(), file: Some(path.into()), step },
        });
    }
    let of_hub = |name: &str| is_hub_id(name) && !is_in_a_local_folder(path);
    let (id, wanted) = match SHORT_NAMES.iter().find(|(short, _)| *short == name) {
        Some((_, id)) => (*id, None),
        None if of_hub(name) => (name, None),
        None if let Some((id, wanted)) =
            name.split_once(':').filter(|(id, wanted)| of_hub(id) && !wanted.is_empty()) =>
        {
            (id, Some(wanted))
        }
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
    let (folder, file) = hub::fetch(id, wanted, version, &caches.hub, freshness)?;
    // It was looked for by its step.
    Ok(Place { folder, file, step: None })
}

impl Place {
    fn weights(&self) -> Result<Vec<PathBuf>, ModelError> {
        match &self.file {
            Some(file) => files::of_file(file, self.step),
            None => files::in_folder(&self.folder, self.step),
        }
    }
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
    // Something of this name that is neither file nor folder is not what was meant.
    let near = closest(typed, names.iter().map(String::as_str).filter(|name| *name != typed))?;
    Some(parent.join(near).display().to_string())
}

#[cfg(test)]
mod tests;
