//! nanochat's checkpoints: which step of which folder is meant, and where its tokenizer lies.
//!
//! ```text
//! chatsft_checkpoints/d20/   model_000483.pt  meta_000483.json  optim_000483_rank0.pt, which is not looked at
//! tokenizer/                 tokenizer.pkl    two levels up from a model; as people upload it, beside it or in a folder there
//! ```
//! Knows names of files, here or of a repository; does not know what is in them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::tokenizer_files::{TOKENIZER, has_tokenizer};

/// A pickled encoding of tiktoken.
pub(super) const PICKLE: &str = "tokenizer.pkl";
/// In words, the file with a model's sizes.
pub(super) const META: &str = "meta_*.json";
/// What to do where none is found.
pub(super) const HINT: &str =
    "copy it from where the model was trained, ~/.cache/nanochat/tokenizer/tokenizer.pkl, and lay it beside the model";
/// Folders of tokenizers, from that of a model.
const PLACES: [&str; 3] = [".", "tokenizer", "../../tokenizer"];

/// Why it is not clear which checkpoint is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCheckpoint {
    /// Of nanochat's.
    #[error("has nanochat's checkpoints in several folders: {}", .0.join(", "))]
    Folders(Vec<String>),
    /// Of the step that was asked for.
    #[error("has no checkpoint of step {step}{}", steps(.there))]
    Step {
        /// What was asked for.
        step: u64,
        /// What there is.
        there: Vec<u64>,
    },
}

fn steps(there: &[u64]) -> String {
    if there.is_empty() {
        return ": only nanochat's have steps, in their names, as model_000650.pt".into();
    }
    format!("; there are {}", there.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
}

impl NoCheckpoint {
    /// What to do; `place` is what was typed, `joint` what stands before a folder in it.
    pub(super) fn hint(&self, place: &str, joint: char) -> String {
        match self {
            Self::Folders(folders) => format!("name one: --model {place}{joint}{}", folders[0]),
            Self::Step { there, .. } if there.is_empty() => "leave --step out".into(),
            Self::Step { .. } => "leave --step out to take the last".into(),
        }
    }
}

/// The step of a checkpoint by the name of its file: `model_000650.pt`.
pub(super) fn step_of(file: &str) -> Option<u64> {
    let digits = file.strip_prefix("model_")?.strip_suffix(".pt")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The file beside it with its sizes.
pub(super) fn meta_of(model: &str) -> String {
    let (folder, file) = split(model);
    join(folder, &file.replace("model_", "meta_").replace(".pt", ".json"))
}

/// The name that the checkpoint after this one would have, if there were one in a repository of one folder: that there is none is noted
/// by this name.
pub(super) fn later(model: &str) -> String {
    let (folder, file) = split(model);
    let step = step_of(file).map_or(0, |step| step.saturating_add(1));
    join(folder, &format!("model_{step:06}.pt"))
}

/// Whether a file is such a checkpoint: others may be called so, and have a configuration beside them.
pub(super) fn is_checkpoint(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| step_of(name).is_some() && path.with_file_name(meta_of(name)).exists())
}

/// The checkpoint among `names` that is meant: the last, or the one of a step; in the only folder, or the one that is `wanted` (or it
/// itself is). None where there is none and no step was asked for.
pub(super) fn chosen(
    names: impl IntoIterator<Item = String>,
    wanted: Option<&str>,
    step: Option<u64>,
) -> Result<Option<String>, NoCheckpoint> {
    let mut folders: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    for name in names {
        let (folder, file) = split(&name);
        let is_wanted = |wanted: &str| {
            let before = folder.strip_suffix(wanted);
            name == wanted || before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
        };
        if let Some(step) = step_of(file).filter(|_| wanted.is_none_or(is_wanted)) {
            folders.entry(folder.to_owned()).or_default().insert(step, name);
        }
    }
    // What lies deeper is of others.
    let steps = match folders.remove("") {
        Some(steps) => steps,
        None if folders.len() > 1 => return Err(NoCheckpoint::Folders(folders.into_keys().collect())),
        None => folders.pop_first().map(|(_, steps)| steps).unwrap_or_default(),
    };
    match step {
        None => Ok(steps.into_values().next_back()),
        Some(step) if steps.contains_key(&step) => Ok(steps.get(&step).cloned()),
        Some(step) => Err(NoCheckpoint::Step { step, there: steps.into_keys().collect() }),
    }
}

/// The tokenizer of the model `model` by its name in a repository: a pickle, or a `tokenizer.json`.
pub(super) fn tokenizer_in(model: &str, has: impl Fn(&str) -> bool) -> Option<String> {
    let of = |file: &str| {
        let names = PLACES.iter().filter_map(|place| Some(join(&below(split(model).0, place)?, file)));
        names.into_iter().find(|name| has(name))
    };
    of(PICKLE).or_else(|| of(TOKENIZER))
}

/// The pickled tokenizer of a model in `folder`.
pub(super) fn pickle_for(folder: &Path) -> Option<PathBuf> {
    PLACES.iter().map(|place| folder.join(place).join(PICKLE)).find(|path| path.exists())
}

/// The folder with a tokenizer of another kind for a model in `folder`: somebody has converted it.
pub(super) fn folder_for(folder: &Path) -> Option<PathBuf> {
    PLACES.iter().map(|place| folder.join(place)).find(|folder| has_tokenizer(folder))
}

/// A folder by the way from another; none where that leads out of the repository.
fn below(folder: &str, way: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in way.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

fn join(folder: &str, file: &str) -> String {
    if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") }
}

#[cfg(test)]
mod tests;
