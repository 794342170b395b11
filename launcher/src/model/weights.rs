//! Which files of a folder hold a model's weights.
//!
//! Knows names of files and the index of a split checkpoint; does not know what is in the weights.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::ModelError;

/// By preference: as transformers looks for them, then nanoGPT's.
pub(super) const CANDIDATES: [&str; 5] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "ckpt.pt",
];
const INDEX_SUFFIX: &str = ".index.json";
/// What to do where none of them is.
pub(super) const HINT: &str = "weights are model.safetensors, pytorch_model.bin (each also split, with its index) or ckpt.pt; any other name can be passed as a file: --model FOLDER/FILE";

/// The weights in a folder.
pub(super) fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    match CANDIDATES.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
        Some(path) => of_file(&path),
        None => Err(ModelError::MissingFile { folder: folder.into(), file: CANDIDATES[0], hint: HINT }),
    }
}

/// The weights that a file is, or that it lists.
pub(super) fn of_file(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    if !is_index(path) {
        return Ok(vec![path.to_path_buf()]);
    }
    let text = fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.into(), source })?;
    let names = parts(&text).map_err(|reason| ModelError::Index { path: path.into(), reason })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let files: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
    match files.iter().find(|file| !file.exists()) {
        Some(lost) => Err(ModelError::Index { path: path.into(), reason: format!("{} is missing", lost.display()) }),
        None => Ok(files),
    }
}

/// Whether a file lists the parts of a split checkpoint.
pub(super) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(INDEX_SUFFIX))
}

/// Names of the parts in the text of an index, in their order.
pub(super) fn parts(text: &str) -> Result<BTreeSet<String>, String> {
    let index: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let map = index.get("weight_map").and_then(|map| map.as_object()).ok_or("there is no `weight_map`")?;
    let name = |value: &serde_json::Value| match value.as_str() {
        Some(name) if Path::new(name).file_name() == Some(name.as_ref()) => Ok(name.to_string()),
        _ => Err(format!("`weight_map` has {value}, which is no file name")),
    };
    let names: BTreeSet<_> = map.values().map(name).collect::<Result<_, _>>()?;
    if names.is_empty() { Err("`weight_map` is empty".into()) } else { Ok(names) }
}
