//! A checkpoint of any format: mapped, checked against its configuration, read by slices.
//!
//! Its family says which tensor a [`Part`] of the model is; matrices of blocks are `[in, out]` as seen from here, however they
//! are stored.
//!
//! Reading order: [`tensor`](TensorSlice) is a view, `tile` and `blocks` how it is read; `mapped` is a file, `index` says which there are of a split checkpoint; `archive`, `pickle` and `torch` read files of torch.save, `gguf` those of llama.cpp, `nanochat` what lies beside nanochat's, `tiktoken` its tokenizers, which become `tokenizer_files`; `fingerprint` samples; `export` writes
//! safetensors; `excerpt` says which bytes some slices are made of. Opening reads headers only. Pages of a slice are read when the slice is; they are the file's, not this process's.
//! Does not know ranks, devices, kernels or candle. Invariant: what opening and checking cost is linear in the length of headers and pickles.
//! Reference: <https://github.com/huggingface/safetensors>, `torch/serialization.py`, `docs/gguf.md` of ggml.

mod tensor;
mod tile;
mod blocks;
mod shown;
mod mapped;
mod index;
mod archive;
mod pickle;
mod torch;
mod tokenizer_files;
mod gguf;
mod nanochat;
mod tiktoken;
mod fingerprint;
mod excerpt;
mod export;
mod error;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use nanoinfer_shared::{
    ModelShape,
    model::{
        families::FAMILIES,
        family::{Family, Names, Source, bare, is_buffer},
        parts::Part,
        unserved::NotServed,
    },
};
use safetensors::{SafeTensors, tensor::TensorView};

pub use nanoinfer_shared::model::family::Layout;

pub use self::{
    blocks::BlockType,
    error::CheckpointError,
    excerpt::Excerpt,
    gguf::split::{gguf_parts, is_gguf},
    index::{Index, is_index, parts},
    pickle::{Content, PickleError},
    shown::shown,
    tensor::{ElementType, TensorSlice},
    tokenizer_files::TokenizerFiles,
};
use self::{
    gguf::{
        GgufError, Header,
        config::{Description, Tensors},
    },
    mapped::MappedFile,
    tensor::{MAX_DIMENSIONS, MAX_TENSORS, Stored},
    torch::{Contents, TorchError},
};

/// What is taken for a checkpoint by mistake: how it begins, what it is, and what to do.
const OTHER_FILES: [(&[u8], &str, &str); 2] = [
    (b"GGML", "a file of llama.cpp before there was GGUF", "take a newer file of the same model"),
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
    family: &'static Family,
    names: &'static Names,
    layout: Layout,
    tensors: BTreeMap<String, Stored>,
    config: Option<String>,
    /// Tensors that were not taken from a file, as the index names another for them.
    overruled: usize,
    /// Files that say something of these: an index, nanochat's sizes.
    beside: Vec<PathBuf>,
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
    /// Of llama.cpp.
    Gguf,
}

/// One tensor of a file, as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// Without prefixes.
    pub name: &'a str,
    /// Element type.
    pub dtype: ElementType,
    /// Sizes.
    pub shape: &'a [usize],
}

impl Checkpoint {
    /// Maps `files` and reads their headers. An index stands for the files that it lists, a part of a split GGUF for all of them.
    ///
    /// # Errors
    /// When a file cannot be opened, is of no known format, holds more than data, or of a family that is not served; when a tensor is in two files
    /// and no index says which is meant, or not in the one that it says.
    pub fn open(files: &[PathBuf]) -> Result<Self, CheckpointError> {
        Self::of_families(FAMILIES, files)
    }

    /// The same for a list of families.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn of_families(families: &'static [&'static Family], files: &[PathBuf]) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self {
            files: Vec::new(),
            format: Format::Safetensors,
            family: families[0],
            names: &families[0].namings[0],
            layout: Layout::Conv1d,
            tensors: BTreeMap::new(),
            config: None,
            overruled: 0,
            beside: Vec::new(),
        };
        for path in files {
            if is_index(path) {
                checkpoint.add_all(&Index::read(path)?)?;
            } else {
                gguf::split::files(path)?.iter().try_for_each(|file| checkpoint.add(file, None))?;
            }
        }
        if let Some(other) = checkpoint.tensors.keys().find_map(|name| NotServed::by_tensor(name)) {
            return Err(NotServed { tensor: shown(&other.tensor), ..other }.into());
        }
        (checkpoint.family, checkpoint.names) =
            Family::of_tensors(families, |name| checkpoint.tensors.contains_key(name));
        checkpoint.describe()?;
        let sizes = |name: &str| checkpoint.tensors.get(name).map(|stored| &stored.shape[..]);
        checkpoint.layout = checkpoint.names.layout(sizes)?;
        Ok(checkpoint)
    }

    fn add_all(&mut self, index: &Index) -> Result<(), CheckpointError> {
        self.beside.push(index.path.clone());
        index.files.iter().try_for_each(|file| self.add(file, Some(index)))?;
        for (name, file) in index.places() {
            if self.tensors.get(name).is_none_or(|stored| self.files[stored.file].path != file) {
                let index = index.path.clone();
                return Err(CheckpointError::NotInFile { name: shown(name), file, index });
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, index: Option<&Index>) -> Result<(), CheckpointError> {
        let map = MappedFile::open(path)?;
        let malformed = |reason: String| CheckpointError::Malformed { path: path.to_owned(), reason };
        let (format, contents) = contents(&map)?;
        if contents.tensors.len() > MAX_TENSORS - self.tensors.len() {
            return Err(malformed(format!("a checkpoint of more than {MAX_TENSORS} tensors is none")));
        }
        for (name, mut stored) in contents.tensors {
            let bare = bare(&name);
            if is_buffer(bare) {
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

    /// What GGUF files say of themselves, when all parts are open, and nanochat's beside them.
    fn describe(&mut self) -> Result<(), CheckpointError> {
        let files: Vec<_> = self.files.iter().filter(|file| file.starts_with(&gguf::MAGIC)).collect();
        let Some(first) = files.first() else { return self.describe_nanochat() };
        let mut headers = Vec::new();
        for file in &files {
            headers.push(Header::read(file).map_err(|error| of_gguf(&file.path, error))?);
        }
        let failed = |error| of_gguf(&first.path, error);
        gguf::split::check(&headers).map_err(|(part, reason)| of_gguf(&files[part].path, reason.into()))?;
        let sizes = |name: &str| Some(self.tensors.get(name)?.shape.clone());
        let vector = |name: &str| {
            let tensor = self.tensor(name).ok().filter(|tensor| tensor.dtype.is_float())?;
            tensor.read_vector(0..tensor.columns).ok()
        };
        let tensors = Tensors { names: self.names, sizes: &sizes, vector: &vector };
        let description = Description::read(&headers[0], &tensors).map_err(failed)?;
        for (name, stored) in &mut self.tensors {
            let part = self.names.in_layer(name).map(|(_, part)| part);
            stored.paired = part.zip(stored.shape.first()).and_then(|(part, &rows)| description.paired(part, rows));
        }
        self.config = Some(description.config);
        Ok(())
    }

    fn describe_nanochat(&mut self) -> Result<(), CheckpointError> {
        if self.format == Format::Safetensors || self.names.stream.is_none() {
            return Ok(());
        }
        let Some(path) = self.files.first().and_then(|file| nanochat::meta_of(&file.path)) else { return Ok(()) };
        let malformed = |reason| CheckpointError::Malformed { path: path.clone(), reason };
        let text = fs::read_to_string(&path).map_err(|source| CheckpointError::Meta { path: path.clone(), source })?;
        let sizes = |name: &str| Some(self.tensors.get(name)?.shape.clone());
        self.config = Some(nanochat::config(&text, &sizes).map_err(malformed)?);
        self.beside.push(path);
        Ok(())
    }

    /// How the files are written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The family that its tensors are of.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// What its tensors are called by.
    pub fn names(&self) -> &'static Names {
        self.names
    }

    /// How the matrices are stored.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The text of a `config.json`, where the file itself tells its sizes, as those of nanoGPT and llama.cpp do.
    pub fn config(&self) -> Option<&str> {
        self.config.as_deref()
    }

    /// The tokenizer, where the files themselves have one, as those of llama.cpp do.
    ///
    /// # Errors
    /// When it is of a kind that is not read, or is broken.
    pub fn tokenizer(&self) -> Result<Option<TokenizerFiles>, CheckpointError> {
        let Some(first) = self.files.iter().find(|file| file.starts_with(&gguf::MAGIC)) else { return Ok(None) };
        let files = Header::read(first).and_then(|header| TokenizerFiles::read(&header));
        files.map_err(|error| of_gguf(&first.path, error))
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
        let changed = self.files.iter().find(|file| !file.is_as_opened());
        changed.map_or(Ok(()), |file| Err(CheckpointError::Changed(file.path.clone())))
    }

    /// All tensors, as they are stored.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, stored)| TensorInfo { name, dtype: stored.dtype, shape: &stored.shape })
    }

    /// `model_shape` with what the weights know better than a configuration: how many rows the vocabulary has, padding included where nothing tells it,
    /// and whether the head is a matrix of its own. Warns of what it overrules.
    pub fn refine(&self, model_shape: ModelShape) -> ModelShape {
        let names = self.vocabularies(&model_shape);
        // An empty one is no vocabulary, as `check` says then.
        let rows = self.tensors.get(&names[0]).and_then(|embedding| embedding.shape.first()).filter(|&&rows| rows > 0);
        let stated = model_shape.vocab_size;
        // nanochat says itself which rows are padding.
        let padded = |&rows: &usize| if self.names.stream.is_some() { rows.min(stated) } else { rows };
        let vocab_size = rows.map_or(stated, padded);
        // A head that is stored twice is still one matrix.
        let tied_head = match names.map(|name| self.tensor(&name)) {
            [Ok(embedding), Ok(head)] if embedding.dtype.is_float() && head.dtype.is_float() => embedding.equals(&head),
            _ => model_shape.tied_head,
        };
        if model_shape.tied_head && !tied_head {
            tracing::warn!(
                "config.json ties the head to the embedding, but the checkpoint has another: that one is used"
            );
        }
        if self.overruled > 0 {
            tracing::warn!("{} of the tensors in several files were left out: the index names others", self.overruled);
        }
        ModelShape { vocab_size, tied_head, ..model_shape }
    }

    /// Checks that exactly the tensors of `model_shape` are there, in its shapes. A bias may be left out, if it is in all layers;
    /// a vocabulary may have further rows, which pad it.
    ///
    /// # Errors
    /// Names the first tensor that is missing, misshapen, of a foreign type, or of a layer too many.
    pub fn check(&self, model_shape: &ModelShape) -> Result<(), CheckpointError> {
        let in_layer = |name| self.names.in_layer(name);
        let in_layers: BTreeSet<&str> = self.tensors.keys().filter_map(|name| Some(in_layer(name)?.1)).collect();
        for Source { tensor: name, sizes, may_be_turned, may_be_absent, has_row_a_token, .. } in
            self.names.tensors(model_shape)
        {
            let Some(entry) = self.tensors.get(&name) else {
                // A bias that the model does without is in no layer.
                if may_be_absent && self.names.in_layer(&name).is_none_or(|(_, part)| !in_layers.contains(part)) {
                    continue;
                }
                return Err(CheckpointError::Missing(name));
            };
            let mut expected = sizes;
            if may_be_turned && self.layout == Layout::Linear {
                expected.reverse();
            }
            if has_row_a_token {
                expected[0] = entry.shape.first().map_or(expected[0], |&rows| rows.max(expected[0]));
            }
            if entry.shape != expected {
                return Err(CheckpointError::Shape { name, expected, got: entry.shape.clone() });
            }
            if !entry.dtype.is_float() {
                return Err(CheckpointError::Type { name, dtype: entry.dtype.to_string() });
            }
        }
        if self.names.stream.is_some() {
            let known: BTreeSet<String> = self.names.tensors(model_shape).map(|source| source.tensor).collect();
            let foreign = self.tensors.keys().find(|&name| !known.contains(name));
            return foreign.map_or(Ok(()), |name| Err(CheckpointError::Foreign(shown(name))));
        }
        let one_layer = ModelShape { layers: 1, ..model_shape.clone() };
        let of_one: Vec<Source> = self.names.tensors(&one_layer).collect();
        let known: BTreeSet<&str> = of_one.iter().filter_map(|source| Some(in_layer(&source.tensor)?.1)).collect();
        for name in self.tensors.keys() {
            match in_layer(name) {
                Some((layer, _)) if layer >= model_shape.layers => {
                    return Err(CheckpointError::Extra { name: shown(name), n_layer: model_shape.layers });
                }
                Some((_, part)) if !known.contains(part) => {
                    return Err(CheckpointError::Foreign(shown(name)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Names of the embedding and of the head.
    fn vocabularies(&self, model_shape: &ModelShape) -> [String; 2] {
        [Part::Embedding, Part::Head].map(|part| self.names.source(model_shape, part).tensor)
    }

    /// A part of the model, a matrix as `[in, out]`; zeros for a bias that the model does without.
    ///
    /// # Errors
    /// When it is not there.
    pub fn part(&self, model_shape: &ModelShape, part: Part) -> Result<TensorSlice<'_>, CheckpointError> {
        self.slice(&self.names.source(model_shape, part))
    }

    /// All tensors that `model_shape` has, each whole, in the family's order, matrices as `[in, out]`, and zeros for biases that the
    /// model does without.
    ///
    /// # Errors
    /// When one is missing.
    pub(crate) fn slices(&self, model_shape: &ModelShape) -> Result<Vec<TensorSlice<'_>>, CheckpointError> {
        self.names.tensors(model_shape).map(|source| self.slice(&source)).collect()
    }

    fn slice(&self, source: &Source) -> Result<TensorSlice<'_>, CheckpointError> {
        if source.may_be_absent && !self.tensors.contains_key(&source.tensor) {
            return Ok(TensorSlice::zeros(source.columns.len()));
        }
        let mut slice = self.tensor(&source.tensor)?;
        if source.has_row_a_token {
            slice.rows = slice.rows.min(source.sizes[0]);
        }
        let turned = source.may_be_turned && self.layout == Layout::Linear;
        Ok((if turned { slice.transposed() } else { slice }).columns_of(source.columns.clone()))
    }

    /// A tensor by its name without prefixes, as it is stored.
    ///
    /// # Errors
    /// When there is none, or one of more than two dimensions.
    fn tensor(&self, name: &str) -> Result<TensorSlice<'_>, CheckpointError> {
        let missing = || CheckpointError::Missing(name.to_owned());
        let (name, entry) = self.tensors.get_key_value(name).ok_or_else(missing)?;
        let (expected, got) = (vec![0; 2], &entry.shape);
        let misshapen = || CheckpointError::Shape { name: shown(name), expected, got: got.clone() };
        entry.view(name, &self.files[entry.file][entry.start..]).ok_or_else(misshapen)
    }
}

/// What a file says that it holds.
fn contents(map: &MappedFile) -> Result<(Format, Contents), CheckpointError> {
    let path = map.path.as_path();
    let malformed = |reason: String| CheckpointError::Malformed { path: path.to_owned(), reason };
    let torch_error = |error| match error {
        TorchError::Pickle(source) => CheckpointError::Pickle { path: path.to_owned(), source },
        TorchError::Malformed(reason) => malformed(reason),
    };
    Ok(if map.starts_with(&torch::ZIP_MAGIC) {
        (Format::TorchZip, torch::read_zip(map).map_err(torch_error)?)
    } else if map.starts_with(&torch::LEGACY_MAGIC) {
        (Format::TorchLegacy, torch::read_legacy(map).map_err(torch_error)?)
    } else if map.starts_with(&gguf::MAGIC) {
        let tensors = Header::read(map).map_err(|error| of_gguf(path, error))?.tensors;
        let tensors = tensors.into_iter().map(|(name, stored)| (name.to_owned(), stored)).collect();
        (Format::Gguf, Contents::of(tensors))
    } else if let Some((_, what, hint)) = OTHER_FILES.into_iter().find(|(magic, ..)| map.starts_with(magic)) {
        return Err(CheckpointError::OtherFile { path: path.to_owned(), what, hint });
    } else {
        (Format::Safetensors, read_safetensors(map).map_err(malformed)?)
    })
}

fn of_gguf(path: &Path, error: GgufError) -> CheckpointError {
    let path = path.to_owned();
    match error {
        GgufError::Malformed(reason) => CheckpointError::Malformed { path, reason },
        GgufError::NotServed(reason) => CheckpointError::Gguf { path, reason },
    }
}

fn read_safetensors(map: &[u8]) -> Result<Contents, String> {
    let header = SafeTensors::deserialize(map).map_err(|e| shown(&e.to_string()))?;
    let tensor = |(name, view): (&str, TensorView<'_>)| {
        let (shape, dtype) = (view.shape().to_vec(), ElementType::Plain(view.dtype()));
        if shape.len() > MAX_DIMENSIONS {
            return Err(format!("tensor `{}` has {} dimensions", shown(name), shape.len()));
        }
        let (start, strides) = (view.data().as_ptr().addr() - map.as_ptr().addr(), Stored::contiguous(&shape));
        Ok((name.to_owned(), Stored { file: 0, start, dtype, shape, strides, paired: None }))
    };
    Ok(Contents::of(header.iter().map(tensor).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests;
