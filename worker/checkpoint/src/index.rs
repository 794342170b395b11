//! The index of a split checkpoint: which of the files beside it holds which tensor.
//!
//! Its word counts: a tensor that stands in several files is taken from the one that the index names. Tensors that it does not
//! list are taken where they are, as transformers does. Knows names of tensors and files, not what is in them. Invariant: files
//! lie in the index's own folder.
//! Reference: `transformers/utils/hub.py`, `get_checkpoint_shard_files`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use nanoinfer_shared::{
    json,
    model::family::{bare, is_buffer},
};

use super::{CheckpointError, shown::shown};

const SUFFIX: &str = ".index.json";

/// Whether a file is an index, by its name: `model.safetensors.index.json`.
pub fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(SUFFIX))
}

/// Names of the files that the text of an index lists, in their order.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parts(text: &str) -> Result<BTreeSet<String>, String> {
    Ok(places(text)?.into_values().collect())
}

/// An index that was read.
#[derive(Debug)]
pub struct Index {
    pub(super) path: PathBuf,
    /// File names by tensors, without prefixes and masks.
    places: BTreeMap<String, String>,
    /// Files that it lists, in the order of their names.
    pub(super) files: BTreeSet<PathBuf>,
}

impl Index {
    /// Reads an index, whose files must all be there.
    ///
    /// # Errors
    /// When it cannot be read, is no index, names one tensor twice, or a file that is missing or elsewhere.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let open = |source| CheckpointError::Open { path: path.to_owned(), source };
        let broken = |reason| CheckpointError::Index { path: path.to_owned(), reason };
        let text = fs::read_to_string(path).map_err(open)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let (mut places_bare, mut files) = (BTreeMap::new(), BTreeSet::new());
        for (name, file) in places(&text).map_err(broken)? {
            files.insert(folder.join(&file));
            let bare = bare(&name);
            if is_buffer(bare) {
                continue;
            }
            if let Some(other) = places_bare.insert(bare.to_owned(), file.clone())
                && other != file
            {
                let (name, other, file) = (shown(bare), shown(&other), shown(&file));
                return Err(broken(format!("`weight_map` has tensor `{name}` twice, in {other} and in {file}")));
            }
        }
        match files.iter().find(|file| !file.exists()) {
            Some(lost) => Err(broken(format!("{} is missing", lost.display()))),
            None => Ok(Self { path: path.to_owned(), places: places_bare, files }),
        }
    }

    /// Tensors without prefixes, and their files.
    pub(super) fn places(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.places.iter().map(|(name, file)| (name.as_str(), self.path.with_file_name(file)))
    }

    /// Whether it says that a tensor is in another file than `file`.
    pub(super) fn is_elsewhere(&self, name: &str, file: &Path) -> bool {
        self.places.get(name).is_some_and(|place| file.file_name() != Some(place.as_ref()))
    }
}

/// File names by names of tensors.
fn places(text: &str) -> Result<BTreeMap<String, String>, String> {
    let index = json::parse(text.as_bytes()).map_err(|e| shown(&e.to_string()))?;
    let map = index.get("weight_map").and_then(|map| map.as_object()).ok_or("there is no `weight_map`")?;
    let place = |(name, file): (&String, &serde_json::Value)| match file.as_str() {
        Some(file) if Path::new(file).file_name() == Some(file.as_ref()) => Ok((name.clone(), file.to_owned())),
        _ => Err(format!("`weight_map` has {}, which is no file name", shown(&file.to_string()))),
    };
    let places: BTreeMap<_, _> = map.iter().map(place).collect::<Result<_, _>>()?;
    if places.is_empty() { Err("`weight_map` is empty".into()) } else { Ok(places) }
}
