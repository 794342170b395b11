//! Which files of a folder a model is made of.
//!
//! Knows names of files; the index of a split checkpoint stands for its files. Does not know what is in the weights.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nanoinfer_checkpoint::Index;
pub(super) use nanoinfer_checkpoint::{is_index, parts};

use super::{error::ModelError, gguf, nanochat};

/// The configuration.
pub(super) const CONFIG: &str = "config.json";
/// By preference: as transformers looks for them, then nanoGPT's.
pub(super) const CANDIDATES: [&str; 5] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "ckpt.pt",
];
/// How the parts of a split checkpoint are called, around their numbers.
const SPLIT: [(&str, &str); 2] = [("model-", ".safetensors"), ("pytorch_model-", ".bin")];
/// What to do where none of them is.
pub(super) const HINT: &str = "weights are model.safetensors, pytorch_model.bin (each also split, with its index), ckpt.pt, nanochat's model_000650.pt or the only .gguf; any other name can be passed as a file: --model FOLDER/FILE";

/// The weights in a folder; with a `step`, the checkpoint of nanochat of that step.
pub(super) fn in_folder(folder: &Path, step: Option<u64>) -> Result<Vec<PathBuf>, ModelError> {
    if step.is_some() {
        return Ok(nanochat_in(folder, step)?.into_iter().collect());
    }
    match CANDIDATES.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
        Some(path) => of_file(&path, None),
        None => without_index(folder),
    }
}

fn nanochat_in(folder: &Path, step: Option<u64>) -> Result<Option<PathBuf>, ModelError> {
    match nanochat::chosen(names_below(folder), None, step) {
        Ok(name) => Ok(name.map(|name| folder.join(name))),
        Err(reason) => Err(ModelError::NoCheckpoint { place: folder.display().to_string(), reason }),
    }
}

/// Files of a folder, and of those in it and in these, by their names below it.
pub(super) fn names_below(folder: &Path) -> Vec<String> {
    const DEPTH: usize = 2;
    let (mut names, mut folders) = (Vec::new(), vec![(folder.to_owned(), 0)]);
    while let Some((at, depth)) = folders.pop() {
        for path in fs::read_dir(&at).into_iter().flatten().flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true if depth < DEPTH => folders.push((path, depth + 1)),
                true => {}
                false => names.extend(path.strip_prefix(folder).ok().and_then(Path::to_str).map(str::to_owned)),
            }
        }
    }
    names
}

/// The weights that a file is, or that it lists; with a `step`, if it is of that.
pub(super) fn of_file(path: &Path, step: Option<u64>) -> Result<Vec<PathBuf>, ModelError> {
    if let Some(step) = step {
        let own = path.file_name().and_then(|name| nanochat::step_of(name.to_str()?));
        if own != Some(step) {
            let reason = nanochat::NoCheckpoint::Step { step, there: own.into_iter().collect() };
            return Err(ModelError::NoCheckpoint { place: path.display().to_string(), reason });
        }
    }
    if is_index(path) {
        // Now, so that a file that is missing is told like any other.
        Index::read(path)?;
    }
    Ok(vec![path.to_path_buf()])
}

/// The parts of a split checkpoint, `model-00001-of-00002.safetensors` and so on, whose index is not there. It says nothing that
/// they do not say themselves, unless a tensor is in two of them.
fn without_index(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    for (before, after) in SPLIT {
        let total = |name: &String| {
            let (number, total) = name.strip_prefix(before)?.strip_suffix(after)?.split_once("-of-")?;
            number.parse::<usize>().ok().and(total.parse::<usize>().ok())
        };
        let Some(total) = names.iter().find_map(total) else { continue };
        let part = |number| folder.join(format!("{before}{number:05}-of-{total:05}{after}"));
        // Of more than could be there the first is missing that is.
        return match (1..=total).take(names.len() + 1).map(part).find(|path| !path.exists()) {
            Some(path) => Err(ModelError::MissingPart(path)),
            None => Ok((1..=total).map(part).collect()),
        };
    }
    if let Some(path) = nanochat_in(folder, None)? {
        return Ok(vec![path]);
    }
    match gguf::chosen(names.into_iter(), None) {
        Ok(Some(name)) => Ok(vec![folder.join(name)]),
        Ok(None) => Err(ModelError::missing(folder, CANDIDATES[0], HINT)),
        Err(unclear) => Err(ModelError::Unclear { folder: folder.into(), unclear }),
    }
}
