//! A Hugging Face GPT-2 checkpoint in safetensors: mapped, checked against its configuration, read by slices.
//!
//! ```text
//! names (with or without `transformer.` before them)          shapes, Conv1D: [in, out]
//!   wte.weight [V, C]   wpe.weight [P, C]                      h.0.attn.c_attn.weight [C, 3C]  columns: q | k | v
//!   h.0.ln_1.{weight,bias} [C]  …  ln_f.{weight,bias} [C]      h.0.attn.c_proj.weight [C, C]
//!   h.0.mlp.c_fc.weight [C, F]  h.0.mlp.c_proj.weight [F, C]
//! ```
//! Opening reads the header only. Pages of a slice are read when the slice is; they are the file's, not this process's.
//! Does not know ranks. Reference: the format, <https://github.com/huggingface/safetensors>.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use memmap2::Mmap;
use nanoinfer_shared::Geometry;
use safetensors::{Dtype, SafeTensors};

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no safetensors file, or is cut short.
    #[error(
        "{path} is not a complete safetensors file: {reason}\n  hint: the download may have been interrupted; fetch the file again"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },
    /// A tensor that GPT-2 needs is not there.
    #[error("the checkpoint has no tensor `{name}`\n  hint: config.json may belong to another checkpoint")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` is {got:?}, but config.json makes it {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the file.
        got: Vec<usize>,
    },
    /// An element type that GPT-2 checkpoints don't have.
    #[error("tensor `{name}` is of type {dtype}; f32, f16 and bf16 are read")]
    Type {
        /// The tensor.
        name: String,
        /// In the file.
        dtype: String,
    },
    /// More layers than configured.
    #[error("the checkpoint has tensor `{name}`, but config.json says n_layer {n_layer}")]
    Extra {
        /// The tensor.
        name: String,
        /// By the configuration.
        n_layer: usize,
    },
    /// A head of its own.
    #[error("`lm_head.weight` differs from `wte.weight`: an untied head is not supported")]
    UntiedHead,
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// One tensor, still in its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorSlice<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    shape: &'a [usize],
}

impl Checkpoint {
    /// Maps `files` and reads their headers.
    ///
    /// # Errors
    /// When a file cannot be opened, or its header does not agree with its size.
    pub fn open(files: &[PathBuf]) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for path in files {
            let map = map_file(path)?;
            let malformed = |reason: String| CheckpointError::Malformed { path: path.clone(), reason };
            let header = SafeTensors::deserialize(&map).map_err(|e| malformed(e.to_string()))?;
            for (name, view) in header.iter() {
                let start = view.data().as_ptr().addr() - map.as_ptr().addr();
                let entry = Entry {
                    file: checkpoint.files.len(),
                    bytes: start..start + view.data().len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                };
                let name = name.strip_prefix("transformer.").unwrap_or(name);
                checkpoint.tensors.insert(name.to_owned(), entry);
            }
            checkpoint.files.push(map);
        }
        Ok(checkpoint)
    }

    /// Checks that exactly the tensors of `geometry` are there, in its shapes.
    ///
    /// # Errors
    /// Names the first tensor that is missing, misshapen, of a foreign type, or of a layer too many.
    pub fn check(&self, geometry: &Geometry) -> Result<(), CheckpointError> {
        for (name, shape) in expected(geometry) {
            let entry = self.tensors.get(&name).ok_or_else(|| CheckpointError::Missing { name: name.clone() })?;
            if entry.shape != shape {
                return Err(CheckpointError::Shape { name, expected: shape, got: entry.shape.clone() });
            }
            if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(CheckpointError::Type { name, dtype: format!("{:?}", entry.dtype) });
            }
        }
        let layer = |name: &str| name.strip_prefix("h.")?.split('.').next()?.parse::<usize>().ok();
        if let Some(name) = self.tensors.keys().find(|name| layer(name).is_some_and(|l| l >= geometry.n_layer)) {
            return Err(CheckpointError::Extra { name: name.clone(), n_layer: geometry.n_layer });
        }
        Ok(())
    }

    /// Digest (FNV-1a) of names, types and shapes: two hosts with different checkpoints almost surely differ in it.
    pub fn fingerprint(&self) -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        for (name, entry) in &self.tensors {
            for byte in format!("{name} {:?} {:?}\n", entry.dtype, entry.shape).bytes() {
                digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        digest
    }

    /// A tensor by its name without `transformer.`.
    ///
    /// # Errors
    /// When there is none.
    pub fn tensor(&self, name: &str) -> Result<TensorSlice<'_>, CheckpointError> {
        let entry = self.tensors.get(name).ok_or_else(|| CheckpointError::Missing { name: name.to_owned() })?;
        let bytes = &self.files[entry.file][entry.bytes.clone()];
        Ok(TensorSlice { bytes, dtype: entry.dtype, shape: &entry.shape })
    }
}

impl TensorSlice<'_> {
    /// Reads columns `columns` of row `row` of a matrix `[rows, columns]` into `out`, as f32.
    pub fn read_row(&self, row: usize, columns: Range<usize>, out: &mut Vec<f32>) {
        let width = self.shape[1];
        assert!(row < self.shape[0] && columns.end <= width, "the slice lies inside the tensor");
        self.read(row * width + columns.start..row * width + columns.end, out);
    }

    /// Reads a whole vector, as f32.
    pub fn read_vector(&self, range: Range<usize>) -> Vec<f32> {
        let mut out = Vec::new();
        self.read(range, &mut out);
        out
    }

    /// The bytes of some rows of a matrix: equal bytes are equal weights.
    pub fn row_bytes(&self, rows: Range<usize>) -> &[u8] {
        let width = self.bytes.len() / self.shape[0].max(1);
        &self.bytes[rows.start * width..rows.end * width]
    }

    fn read(&self, elements: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        match self.dtype {
            Dtype::F32 => {
                let (words, _) = self.bytes[elements.start * 4..elements.end * 4].as_chunks::<4>();
                out.extend(words.iter().map(|&word| f32::from_le_bytes(word)));
            }
            Dtype::F16 | Dtype::BF16 => {
                let (words, _) = self.bytes[elements.start * 2..elements.end * 2].as_chunks::<2>();
                if self.dtype == Dtype::F16 {
                    out.extend(words.iter().map(|&word| f16::from_le_bytes(word).to_f32()));
                } else {
                    out.extend(words.iter().map(|&word| bf16::from_le_bytes(word).to_f32()));
                }
            }
            other => unreachable!("`check` refuses {other:?}"),
        }
    }
}

/// Names and shapes of all tensors of a GPT-2 of this geometry.
fn expected(geometry: &Geometry) -> impl Iterator<Item = (String, Vec<usize>)> + use<'_> {
    let (c, f) = (geometry.n_embd, geometry.n_inner);
    let outside = [
        ("wte.weight", vec![geometry.vocab_size, c]),
        ("wpe.weight", vec![geometry.n_positions, c]),
        ("ln_f.weight", vec![c]),
        ("ln_f.bias", vec![c]),
    ];
    let inside = [
        ("ln_1.weight", vec![c]),
        ("ln_1.bias", vec![c]),
        ("attn.c_attn.weight", vec![c, 3 * c]),
        ("attn.c_attn.bias", vec![3 * c]),
        ("attn.c_proj.weight", vec![c, c]),
        ("attn.c_proj.bias", vec![c]),
        ("ln_2.weight", vec![c]),
        ("ln_2.bias", vec![c]),
        ("mlp.c_fc.weight", vec![c, f]),
        ("mlp.c_fc.bias", vec![f]),
        ("mlp.c_proj.weight", vec![f, c]),
        ("mlp.c_proj.bias", vec![c]),
    ];
    let layers = (0..geometry.n_layer)
        .flat_map(move |layer| inside.clone().map(|(name, shape)| (format!("h.{layer}.{name}"), shape)));
    outside.into_iter().map(|(name, shape)| (name.to_owned(), shape)).chain(layers)
}

#[allow(unsafe_code)]
fn map_file(path: &Path) -> Result<Mmap, CheckpointError> {
    let open = |source| CheckpointError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(open)?;
    // SAFETY: the map is read-only. Someone who truncates the file under a running server makes it end with SIGBUS, as with
    // every program that maps its model; contents that change are other numbers, never other types.
    unsafe { Mmap::map(&file) }.map_err(open)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn write(dir: &Path, tensors: &[(&str, Dtype, Vec<usize>)]) -> PathBuf {
        let data: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, dtype, shape)| vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8])
            .collect();
        let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
            (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let path = dir.join("model.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    #[test]
    fn what_does_not_fit_the_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Geometry::from_config_json(
            r#"{"n_layer":1,"n_embd":4,"n_head":2,"n_inner":6,"vocab_size":7,"n_positions":5}"#,
        )
        .unwrap();
        let all: Vec<_> = expected(&geometry).map(|(name, shape)| (name, Dtype::F16, shape)).collect();
        let borrow = |all: &[(String, Dtype, Vec<usize>)]| -> PathBuf {
            let tensors: Vec<_> =
                all.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.clone())).collect();
            write(dir.path(), &tensors)
        };
        let check =
            |path: PathBuf| Checkpoint::open(&[path]).and_then(|c| c.check(&geometry)).map_err(|e| e.to_string());
        check(borrow(&all)).unwrap();

        let error = check(borrow(&all[1..])).unwrap_err();
        assert!(error.contains(&all[0].0), "{error}");
        let mut misshapen = all.clone();
        misshapen[6].2[1] += 1;
        let error = check(borrow(&misshapen)).unwrap_err();
        assert!(error.contains(&misshapen[6].0) && error.contains("13") && error.contains("12"), "{error}");
        let mut integers = all.clone();
        integers[3].1 = Dtype::I64;
        assert!(check(borrow(&integers)).unwrap_err().contains("I64"));
        let mut deeper = all.clone();
        deeper.push(("h.1.ln_1.weight".into(), Dtype::F32, vec![4]));
        assert!(check(borrow(&deeper)).unwrap_err().contains("n_layer 1"));
    }

    #[test]
    fn a_file_cut_short_or_foreign_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &[("wte.weight", Dtype::F32, vec![10, 4])]);
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 8, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = Checkpoint::open(std::slice::from_ref(&path)).unwrap_err();
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
        File::create(&path).unwrap().write_all(&[255; 64]).unwrap();
        assert!(Checkpoint::open(&[path]).is_err());
        assert!(Checkpoint::open(&[dir.path().join("absent")]).unwrap_err().to_string().contains("absent"));
    }
}
