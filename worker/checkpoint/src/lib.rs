//! A GPT-2 checkpoint of any format: mapped, checked against its configuration, read by slices.
//!
//! ```text
//! names, without prefixes                                    shapes as seen from here: Conv1D, [in, out]
//!   wte.weight [V, C]   wpe.weight [P, C]                      h.0.attn.c_attn.weight [C, 3C]  columns: q | k | v
//!   h.0.ln_1.{weight,bias} [C]  …  ln_f.{weight,bias} [C]      h.0.attn.c_proj.weight [C, C]
//!   h.0.mlp.c_fc.weight [C, F]  h.0.mlp.c_proj.weight [F, C]   lm_head.weight [V, C], where it is not wte
//! ```
//! Reading order: [`tensor`](TensorSlice) is a view; `names` says which there are; `mapped` is a file, `index` says which there
//! are of a split checkpoint; `archive`, `pickle` and `torch` read files of torch.save; `fingerprint` samples; `export` writes
//! safetensors. Opening reads headers only. Pages of a slice are read when the slice is; they are the file's, not this process's.
//! Does not know ranks, devices, kernels or candle. Invariant: what opening and checking cost is linear in the length of headers and pickles.
//! Reference: <https://github.com/huggingface/safetensors>, `torch/serialization.py`.

mod tensor;
mod names;
mod mapped;
mod index;
mod archive;
mod pickle;
mod torch;
mod fingerprint;
mod export;
mod error;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use nanoinfer_shared::Geometry;
use safetensors::{Dtype, SafeTensors};

pub use self::{
    error::CheckpointError,
    index::{Index, is_index, parts},
    names::{expected, shown},
    pickle::PickleError,
    tensor::TensorSlice,
};
use self::{
    mapped::MappedFile,
    tensor::Stored,
    torch::{Contents, TorchError},
};

/// Most tensors of a checkpoint: those of 5,000 layers.
const MAX_TENSORS: usize = 1 << 16;
/// Most dimensions of a tensor: mask buffers have 4.
const MAX_DIMENSIONS: usize = 8;

/// What is taken for a checkpoint by mistake: how it begins, what it is, and what to do.
const OTHER_FILES: [(&[u8], &str, &str); 2] = [
    (
        b"GGUF",
        "a GGUF file, of llama.cpp and Ollama, which is not read",
        "take the checkpoint that it was made from, safetensors or of torch.save",
    ),
    (
        b"version https://git-lfs",
        "only what Git LFS leaves in the place of a file",
        "`git lfs pull` fetches the file itself",
    ),
];

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<MappedFile>,
    format: Format,
    layout: Layout,
    tensors: BTreeMap<String, Stored>,
    config: Option<String>,
    /// Tensors that were not taken from a file, as the index names another for them.
    overruled: usize,
}

/// How the files of a checkpoint are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Of Hugging Face.
    Safetensors,
    /// `torch.save` since 1.6.
    TorchZip,
    /// `torch.save` before that.
    TorchLegacy,
}

/// How a layer's matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[in, out]`, as in transformers' GPT-2.
    Conv1d,
    /// `[out, in]`, as in torch's nn.Linear and so in nanoGPT.
    Linear,
}

/// One tensor of a file, as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// Without prefixes.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: &'a [usize],
}

impl Checkpoint {
    /// Maps `files` and reads their headers. An index stands for the files that it lists.
    ///
    /// # Errors
    /// When a file cannot be opened, is of no known format, holds more than data, or is not GPT-2's; when a tensor is in two files
    /// and no index says which is meant, or not in the one that it says.
    pub fn open(files: &[PathBuf]) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self {
            files: Vec::new(),
            format: Format::Safetensors,
            layout: Layout::Conv1d,
            tensors: BTreeMap::new(),
            config: None,
            overruled: 0,
        };
        for path in files {
            if is_index(path) {
                checkpoint.add_all(&Index::read(path)?)?;
            } else {
                checkpoint.add(path, None)?;
            }
        }
        if let Some((name, (family, why))) =
            checkpoint.tensors.keys().find_map(|name| Some((name, names::other_family(name)?)))
        {
            return Err(CheckpointError::NotGpt2 { family, tensor: shown(name), why });
        }
        checkpoint.layout = checkpoint.find_layout()?;
        Ok(checkpoint)
    }

    fn add_all(&mut self, index: &Index) -> Result<(), CheckpointError> {
        index.files().try_for_each(|file| self.add(file, Some(index)))?;
        for (name, file) in index.places() {
            if self.tensors.get(name).is_none_or(|stored| self.files[stored.file].path != file) {
                let index = index.path().to_owned();
                return Err(CheckpointError::NotInFile { name: shown(name), file, index });
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, index: Option<&Index>) -> Result<(), CheckpointError> {
        let map = MappedFile::open(path)?;
        let malformed = |reason: String| CheckpointError::Malformed { path: path.to_owned(), reason };
        let torch_error = |error| match error {
            TorchError::Pickle(source) => CheckpointError::Pickle { path: path.to_owned(), source },
            TorchError::Malformed(reason) => malformed(reason),
        };
        let (format, contents) = if map.starts_with(&torch::ZIP_MAGIC) {
            (Format::TorchZip, torch::read_zip(&map).map_err(torch_error)?)
        } else if map.starts_with(&torch::LEGACY_MAGIC) {
            (Format::TorchLegacy, torch::read_legacy(&map).map_err(torch_error)?)
        } else if let Some((_, what, hint)) = OTHER_FILES.into_iter().find(|(magic, ..)| map.starts_with(magic)) {
            return Err(CheckpointError::OtherFile { path: path.to_owned(), what, hint });
        } else {
            (Format::Safetensors, read_safetensors(&map).map_err(malformed)?)
        };
        if contents.tensors.len() > MAX_TENSORS - self.tensors.len() {
            return Err(malformed(format!("a checkpoint of more than {MAX_TENSORS} tensors is none")));
        }
        for (name, mut stored) in contents.tensors {
            let bare = names::bare(&name);
            if names::is_mask(bare) {
                continue;
            }
            if index.is_some_and(|index| index.is_elsewhere(bare, path)) {
                self.overruled += 1;
                continue;
            }
            stored.file = self.files.len();
            if let Some(first) = self.tensors.insert(bare.to_owned(), stored) {
                let first = self.files.get(first.file).map_or(path, |file| &file.path).to_owned();
                return Err(CheckpointError::Twice { name: shown(bare), first, second: path.to_owned() });
            }
        }
        self.format = format;
        self.config = contents.config.or(self.config.take());
        self.files.push(map);
        Ok(())
    }

    /// Told by c_attn, whose two sizes always differ; c_proj of attention is square.
    fn find_layout(&self) -> Result<Layout, CheckpointError> {
        let name = "h.0.attn.c_attn.weight";
        let (Some(wte), Some(c_attn)) = (self.tensors.get("wte.weight"), self.tensors.get(name)) else {
            // `check` says what is missing.
            return Ok(Layout::Conv1d);
        };
        let (&[_, c], &[first, second]) = (&wte.shape[..], &c_attn.shape[..]) else { return Ok(Layout::Conv1d) };
        let linear = second == c && Some(first) == c.checked_mul(3);
        // One head of keys and values for all queries: fewer columns than three thirds.
        if second == c && first > c && !linear {
            return Err(CheckpointError::NotGpt2 {
                family: "gpt_bigcode",
                tensor: name.into(),
                why: "all heads share one pair of keys and values",
            });
        }
        Ok(if linear { Layout::Linear } else { Layout::Conv1d })
    }

    /// How the files are written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How the matrices are stored.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The text of a `config.json`, where the file itself tells its sizes, as those of nanoGPT do.
    pub fn config(&self) -> Option<&str> {
        self.config.as_deref()
    }

    /// Its files, without an index.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// That nobody wrote to its files since they were opened: asked by whoever has read what it needs.
    ///
    /// # Errors
    /// Names the first that is not as it was.
    pub fn still_as_opened(&self) -> Result<(), CheckpointError> {
        match self.files.iter().find(|file| !file.is_as_opened()) {
            Some(file) => Err(CheckpointError::Changed { path: file.path.clone() }),
            None => Ok(()),
        }
    }

    /// All tensors, as they are stored.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, stored)| TensorInfo { name, dtype: stored.dtype, shape: &stored.shape })
    }

    /// `geometry` with what the weights know better than a configuration: how many rows the vocabulary has, padding included,
    /// and whether the head is a matrix of its own. Warns of what it overrules.
    pub fn refine(&self, geometry: Geometry) -> Geometry {
        // An empty one is no vocabulary, as `check` says then.
        let vocab_size = self.tensors.get("wte.weight").and_then(|wte| wte.shape.first()).filter(|&&rows| rows > 0);
        let vocab_size = vocab_size.copied().unwrap_or(geometry.vocab_size);
        // A head that is stored twice is still one matrix.
        let tie_word_embeddings = match (self.tensor("wte.weight"), self.tensor("lm_head.weight")) {
            (Ok(wte), Ok(head)) if is_float(wte.dtype) && is_float(head.dtype) => wte.equals(&head),
            _ => geometry.tie_word_embeddings,
        };
        if geometry.tie_word_embeddings && !tie_word_embeddings {
            tracing::warn!(
                "config.json ties the head to the embedding, but the checkpoint has another: that one is used"
            );
        }
        if self.overruled > 0 {
            tracing::warn!("{} of the tensors in several files were left out: the index names others", self.overruled);
        }
        Geometry { vocab_size, tie_word_embeddings, ..geometry }
    }

    /// Checks that exactly the tensors of `geometry` are there, in its shapes. A bias may be left out, if it is in all layers.
    ///
    /// # Errors
    /// Names the first tensor that is missing, misshapen, of a foreign type, or of a layer too many.
    pub fn check(&self, geometry: &Geometry) -> Result<(), CheckpointError> {
        let in_layers: BTreeSet<&str> = self.tensors.keys().filter_map(|name| Some(names::in_layer(name)?.1)).collect();
        // A bias that the model does without is in no layer.
        let leaves_out = |name: &str| {
            name.ends_with(".bias") && names::in_layer(name).is_none_or(|(_, part)| !in_layers.contains(part))
        };
        for (name, shape) in names::expected(geometry) {
            let Some(entry) = self.tensors.get(&name) else {
                if leaves_out(&name) {
                    continue;
                }
                return Err(CheckpointError::Missing { name });
            };
            let stored = match (self.layout, is_layer_matrix(&name)) {
                (Layout::Linear, true) => shape.iter().rev().copied().collect(),
                _ => shape,
            };
            if entry.shape != stored {
                return Err(CheckpointError::Shape { name, expected: stored, got: entry.shape.clone() });
            }
            if !is_float(entry.dtype) {
                return Err(CheckpointError::Type { name, dtype: format!("{:?}", entry.dtype) });
            }
        }
        let known = names::of_layer(geometry);
        for name in self.tensors.keys() {
            match names::in_layer(name) {
                Some((layer, _)) if layer >= geometry.n_layer => {
                    return Err(CheckpointError::Extra { name: shown(name), n_layer: geometry.n_layer });
                }
                Some((_, part)) if known.iter().all(|(known, _)| *known != part) => {
                    return Err(CheckpointError::Foreign { name: shown(name) });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A tensor by its name without prefixes, matrices as `[in, out]`.
    ///
    /// # Errors
    /// When there is none, or one of more than two dimensions.
    pub fn tensor(&self, name: &str) -> Result<TensorSlice<'_>, CheckpointError> {
        let missing = || CheckpointError::Missing { name: name.to_owned() };
        let (name, entry) = self.tensors.get_key_value(name).ok_or_else(missing)?;
        let slice = entry.view(name, &self.files[entry.file][entry.start..]).ok_or_else(|| CheckpointError::Shape {
            name: shown(name),
            expected: vec![0; 2],
            got: entry.shape.clone(),
        })?;
        Ok(if self.layout == Layout::Linear && is_layer_matrix(name) { slice.transposed() } else { slice })
    }

    /// All tensors that `geometry` has, with their names and shapes, matrices as `[in, out]`, and zeros for biases that the model
    /// does without.
    ///
    /// # Errors
    /// When one is missing.
    pub fn of_geometry(
        &self,
        geometry: &Geometry,
    ) -> Result<Vec<(String, Vec<usize>, TensorSlice<'_>)>, CheckpointError> {
        let slice = |(name, shape): (String, Vec<usize>)| {
            let slice = if shape.len() == 1 { self.vector(&name, shape[0])? } else { self.tensor(&name)? };
            Ok((name, shape, slice))
        };
        names::expected(geometry).map(slice).collect()
    }

    /// A vector by its name: zeros where it is a bias that the model does without.
    ///
    /// # Errors
    /// When there is none and it is no bias.
    pub fn vector(&self, name: &str, len: usize) -> Result<TensorSlice<'_>, CheckpointError> {
        match self.tensor(name) {
            Err(CheckpointError::Missing { .. }) if name.ends_with(".bias") => Ok(TensorSlice::zeros(len)),
            other => other,
        }
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Whether a tensor is one of those that Linear stores the other way round.
fn is_layer_matrix(name: &str) -> bool {
    names::in_layer(name)
        .is_some_and(|(_, part)| part.ends_with(".weight") && (part.starts_with("attn.") || part.starts_with("mlp.")))
}

fn read_safetensors(map: &[u8]) -> Result<Contents, String> {
    let header = SafeTensors::deserialize(map).map_err(|e| shown(&e.to_string()))?;
    let mut tensors = Vec::new();
    for (name, view) in header.iter() {
        if view.shape().len() > MAX_DIMENSIONS {
            return Err(format!("tensor `{}` has {} dimensions", shown(name), view.shape().len()));
        }
        let stored = Stored {
            file: 0,
            start: view.data().as_ptr().addr() - map.as_ptr().addr(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            strides: Stored::contiguous(view.shape()),
        };
        tensors.push((name.to_owned(), stored));
    }
    Ok(Contents { tensors, config: None })
}

#[cfg(test)]
mod tests;
