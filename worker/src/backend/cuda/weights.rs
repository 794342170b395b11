//! One rank's weights on its GPU: slices of the checkpoint in the element type asked for, a row for each output.
//!
//! ```text
//! c_attn [3·H_local·D, C], c_proj [C, H_local·D], mlp.c_fc [F_local, C], mlp.c_proj [C, F_local]   rows in whole slices
//! wte, an untied lm_head [V_local, C]   likewise; the embedding is also the head
//! biases, norms, wpe [P, C] (on the first rank)   f32
//! ```
//! Whoever multiplies a few inputs with a matrix reads rows of it, hence outputs are rows; GPT-2 files have them as columns. Pieces go
//! from the mapped file through a few megabytes of pinned memory: the host never holds the share.

use std::{ops::Range, slice::from_ref, sync::Mutex, thread};

use half::{bf16, f16};
use nanoinfer_kernels::cuda::{Element, row_stride};
use nanoinfer_shared::{Geometry, Share};
use safetensors::Dtype;

use super::{
    error::GpuError,
    gpu::{Gpu, Memory, Pinned},
};
use crate::WorkerError;
use nanoinfer_checkpoint::{Checkpoint, CheckpointError, TensorSlice};

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 8 << 20;
/// Outputs that are read together: as many lines of a file stay in the cache while their inputs are read one by one.
const STRIP_OUTPUTS: usize = 64;
/// Inputs of theirs that are read before they are turned: a line of the result.
const BLOCK_INPUTS: usize = 16;

pub(super) struct Weights {
    /// `[V_local, C]`, rows in whole slices.
    pub(super) embedding: Memory,
    /// Likewise.
    pub(super) untied_head: Option<Memory>,
    /// `[P, C]` f32, on the first rank only.
    pub(super) positions: Option<Memory>,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) final_norm: Norm,
}

pub(super) struct LayerWeights {
    pub(super) norm_1: Norm,
    pub(super) qkv: Linear,
    pub(super) attention_projection: Linear,
    pub(super) norm_2: Norm,
    pub(super) fc: Linear,
    pub(super) mlp_projection: Linear,
}

pub(super) struct Linear {
    /// `[out, in]`, rows in whole slices.
    weights: Memory,
    /// `[out]` f32.
    bias: Memory,
    inputs: usize,
    outputs: usize,
}

/// Where a matrix lies, and its bias, 0 where it has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) weights: u64,
    pub(super) bias: u64,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Linear {
    pub(super) fn matrix(&self) -> Matrix {
        let Self { weights, bias, inputs, outputs } = self;
        Matrix { weights: weights.address(), bias: bias.address(), inputs: *inputs, outputs: *outputs }
    }
}

pub(super) struct Norm {
    /// `[C]` f32.
    pub(super) gain: Memory,
    /// `[C]` f32.
    pub(super) bias: Memory,
}

impl Weights {
    /// Bytes that [`Weights::load`] takes.
    pub(super) fn bytes(geometry: &Geometry, rank: usize, share: &Share, element: Element) -> u64 {
        let (c, width, f) = (geometry.n_embd, share.heads.len() * geometry.head_dim(), share.ffn.len());
        let matrices = (3 * width + f) * row_stride(c) + c * (row_stride(width) + row_stride(f));
        let layer = matrices * element.bytes() + (6 * c + 3 * width + f) * size_of::<f32>();
        let vocabularies = if geometry.tie_word_embeddings { 1 } else { 2 };
        let positions = if rank == 0 { geometry.n_positions * c } else { 0 };
        let outside =
            vocabularies * share.vocab.len() * row_stride(c) * element.bytes() + (positions + 2 * c) * size_of::<f32>();
        (geometry.n_layer * layer + outside) as u64
    }

    /// Copies `share` of a checked checkpoint, read by `threads` threads.
    ///
    /// # Errors
    /// When the GPU fails, a tensor is missing, a weight is no number or too large for `element`, or the files are written to meanwhile.
    ///
    /// # Panics
    /// When the system gives no thread.
    pub(super) fn load(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        geometry: &Geometry,
        (rank, share): (usize, &Share),
        element: Element,
        threads: usize,
    ) -> Result<Self, WorkerError> {
        let mut loader = Loader::new(gpu, rank, element, threads)?;
        let c = geometry.n_embd;
        let rows_of = |name| Ok::<_, WorkerError>(checkpoint.tensor(name)?.transposed());
        let vocab = share.vocab.clone();
        let embedding = loader.matrix(rows_of("wte.weight")?, 0..c, from_ref(&vocab))?;
        let untied_head = match geometry.tie_word_embeddings {
            true => None,
            false => Some(loader.matrix(rows_of("lm_head.weight")?, 0..c, from_ref(&vocab))?),
        };
        let positions = match rank {
            0 => Some(loader.floats(checkpoint.tensor("wpe.weight")?, 0..geometry.n_positions, from_ref(&(0..c)))?),
            _ => None,
        };
        let layers = (0..geometry.n_layer)
            .map(|layer| loader.layer(checkpoint, geometry, share, layer))
            .collect::<Result<_, _>>()?;
        let final_norm = loader.norm(checkpoint, "ln_f", geometry.n_embd)?;
        checkpoint.still_as_opened()?;
        Ok(Self { embedding, untied_head, positions, layers, final_norm })
    }

    /// Zeros, of a tied head, for the first rank.
    pub(super) fn zeroed(gpu: &Gpu, geometry: &Geometry, share: &Share, element: Element) -> Result<Self, GpuError> {
        let (c, width, f) = (geometry.n_embd, share.heads.len() * geometry.head_dim(), share.ffn.len());
        let matrix = |rows: usize, width: usize| gpu.zeroed(rows * row_stride(width) * element.bytes(), "weights");
        let floats = |count: usize| gpu.zeroed(count * size_of::<f32>(), "weights");
        let norm = || Ok(Norm { gain: floats(c)?, bias: floats(c)? });
        let linear = |inputs: usize, outputs: usize| {
            Ok(Linear { weights: matrix(outputs, inputs)?, bias: floats(outputs)?, inputs, outputs })
        };
        let layer = || {
            Ok(LayerWeights {
                norm_1: norm()?,
                qkv: linear(c, 3 * width)?,
                attention_projection: linear(width, c)?,
                norm_2: norm()?,
                fc: linear(c, f)?,
                mlp_projection: linear(f, c)?,
            })
        };
        Ok(Self {
            embedding: matrix(share.vocab.len(), c)?,
            untied_head: None,
            positions: Some(floats(geometry.n_positions * c)?),
            layers: (0..geometry.n_layer).map(|_| layer()).collect::<Result<_, GpuError>>()?,
            final_norm: norm()?,
        })
    }

    /// What logits are made with.
    pub(super) fn head(&self) -> &Memory {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }
}

struct Loader<'a> {
    gpu: &'a Gpu,
    rank: usize,
    element: Element,
    threads: usize,
    staging: Pinned,
    /// Bytes that are still to be copied, fewer than a chunk and what one call adds.
    pending: Vec<u8>,
}

impl<'a> Loader<'a> {
    fn new(gpu: &'a Gpu, rank: usize, element: Element, threads: usize) -> Result<Self, WorkerError> {
        let staging = gpu.pinned(CHUNK_BYTES / 4).map_err(|source| WorkerError::Gpu { rank, source })?;
        Ok(Self { gpu, rank, element, threads, staging, pending: Vec::new() })
    }

    fn layer(
        &mut self,
        checkpoint: &Checkpoint,
        geometry: &Geometry,
        share: &Share,
        layer: usize,
    ) -> Result<LayerWeights, WorkerError> {
        let name = |part: &str| format!("h.{layer}.{part}");
        let c = geometry.n_embd;
        let (all, thirds, ffn) = (0..c, share.qkv_columns(geometry), share.ffn.clone());
        let mut linear = |part: &str, inputs: Range<usize>, outputs: &[Range<usize>], biases: usize| {
            let bias = checkpoint.vector(&name(&format!("{part}.bias")), biases)?;
            Ok::<_, WorkerError>(Linear {
                inputs: inputs.len(),
                outputs: outputs.iter().map(Range::len).sum(),
                weights: self.matrix(checkpoint.tensor(&name(&format!("{part}.weight")))?, inputs, outputs)?,
                bias: self.floats(bias, 0..1, outputs)?,
            })
        };
        let qkv = linear("attn.c_attn", all.clone(), &thirds, 3 * c)?;
        let attention_projection = linear("attn.c_proj", thirds[0].clone(), from_ref(&all), c)?;
        let fc = linear("mlp.c_fc", all.clone(), from_ref(&ffn), geometry.n_inner)?;
        let mlp_projection = linear("mlp.c_proj", ffn, from_ref(&all), c)?;
        let norm_1 = self.norm(checkpoint, &name("ln_1"), c)?;
        let norm_2 = self.norm(checkpoint, &name("ln_2"), c)?;
        Ok(LayerWeights { norm_1, qkv, attention_projection, norm_2, fc, mlp_projection })
    }

    fn norm(&mut self, checkpoint: &Checkpoint, name: &str, c: usize) -> Result<Norm, WorkerError> {
        let all = 0..c;
        let gain = self.floats(checkpoint.vector(&format!("{name}.weight"), c)?, 0..1, from_ref(&all))?;
        let bias = self.floats(checkpoint.vector(&format!("{name}.bias"), c)?, 0..1, from_ref(&all))?;
        Ok(Norm { gain, bias })
    }

    /// The given outputs one below the other, each a row of the given inputs in the element type, filled up with zeros. `tensor` is
    /// `[in, out]`.
    fn matrix(
        &mut self,
        tensor: TensorSlice<'_>,
        inputs: Range<usize>,
        outputs: &[Range<usize>],
    ) -> Result<Memory, WorkerError> {
        let tensor = tensor.narrowed_to(match self.element {
            Element::F32 => Dtype::F32,
            Element::F16 => Dtype::F16,
            Element::Bf16 => Dtype::BF16,
        });
        let stride = row_stride(inputs.len());
        let row_bytes = stride * self.element.bytes();
        let strip = |first: usize, end: usize| first..end.min(first + STRIP_OUTPUTS);
        let strips: Vec<Range<usize>> = outputs
            .iter()
            .flat_map(|range| range.clone().step_by(STRIP_OUTPUTS).map(|first| strip(first, range.end)))
            .collect();
        let rows: usize = outputs.iter().map(Range::len).sum();
        let memory = self.allocate(rows * row_bytes)?;
        let at_once = (CHUNK_BYTES / (STRIP_OUTPUTS * row_bytes).max(1)).max(1);
        let mut offset = 0;
        for strips in strips.chunks(at_once) {
            let begin = self.pending.len();
            self.pending.resize(begin + strips.iter().map(Range::len).sum::<usize>() * row_bytes, 0);
            let mut places = &mut self.pending[begin..];
            let places =
                strips.iter().map(|strip| places.split_off_mut(..strip.len() * row_bytes).expect("as counted"));
            let work = Mutex::new(strips.iter().cloned().zip(places));
            let fill_strips = || {
                let (mut values, mut columns, mut rows) = (Vec::new(), Vec::new(), Vec::new());
                let next = || work.lock().expect("no thread panics").next();
                while let Some((strip, place)) = next() {
                    rows.resize(strip.len() * stride, 0.0);
                    for (block, first) in inputs.clone().step_by(BLOCK_INPUTS).enumerate() {
                        columns.clear();
                        for input in first..inputs.end.min(first + BLOCK_INPUTS) {
                            tensor.read_row(input, strip.clone(), &mut values)?;
                            columns.extend_from_slice(&values);
                        }
                        for (output, row) in rows.chunks_exact_mut(stride).enumerate() {
                            let inputs = columns.iter().skip(output).step_by(strip.len());
                            row[block * BLOCK_INPUTS..].iter_mut().zip(inputs).for_each(|(place, &x)| *place = x);
                        }
                    }
                    narrow(&rows, self.element, place);
                }
                Ok::<_, CheckpointError>(())
            };
            thread::scope(|scope| {
                // Where the system gives fewer threads, those take more strips.
                let more = |_| thread::Builder::new().spawn_scoped(scope, fill_strips).ok();
                let others: Vec<_> = (1..self.threads.min(strips.len())).map_while(more).collect();
                let ours = fill_strips();
                others.into_iter().map(|other| other.join().expect("loading does not panic")).fold(ours, Result::and)
            })?;
            offset = self.send(&memory, offset, CHUNK_BYTES)?;
        }
        self.send(&memory, offset, 1)?;
        Ok(memory)
    }

    /// Rows of the given columns side by side, in f32.
    fn floats(
        &mut self,
        tensor: TensorSlice<'_>,
        rows: Range<usize>,
        columns: &[Range<usize>],
    ) -> Result<Memory, WorkerError> {
        let width: usize = columns.iter().map(Range::len).sum();
        let memory = self.allocate(rows.len() * width * size_of::<f32>())?;
        let (mut offset, mut values) = (0, Vec::new());
        for index in rows {
            for range in columns {
                tensor.read_row(index, range.clone(), &mut values)?;
                self.pending.extend_from_slice(bytemuck::cast_slice(&values));
            }
            offset = self.send(&memory, offset, CHUNK_BYTES)?;
        }
        self.send(&memory, offset, 1)?;
        Ok(memory)
    }

    fn allocate(&self, bytes: usize) -> Result<Memory, WorkerError> {
        self.gpu.allocate(bytes, "weights").map_err(|source| WorkerError::Gpu { rank: self.rank, source })
    }

    /// Copies what is pending behind the first `offset` bytes, chunk by chunk, while there are at least `least` bytes; returns the next
    /// offset. All that is pending is whole words.
    fn send(&mut self, to: &Memory, mut offset: usize, least: usize) -> Result<usize, WorkerError> {
        while self.pending.len() >= least {
            let bytes = self.pending.len().min(CHUNK_BYTES);
            bytemuck::cast_slice_mut::<u32, u8>(&mut self.staging.words_mut()[..bytes / 4])
                .copy_from_slice(&self.pending[..bytes]);
            let copied = self
                .gpu
                .upload(&self.staging, bytes / 4, to.at(offset, bytes))
                .and_then(|()| self.gpu.wait("load weights", || Ok(())));
            copied.map_err(|source| WorkerError::Gpu { rank: self.rank, source })?;
            self.pending.drain(..bytes);
            offset += bytes;
        }
        Ok(offset)
    }
}

fn narrow(values: &[f32], element: Element, out: &mut [u8]) {
    match element {
        Element::F32 => out.copy_from_slice(bytemuck::cast_slice(values)),
        Element::F16 => convert(values, out, |x| f16::from_f32(x).to_le_bytes()),
        Element::Bf16 => convert(values, out, |x| bf16::from_f32(x).to_le_bytes()),
    }
}

fn convert(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; 2]) {
    let (words, _) = out.as_chunks_mut::<2>();
    words.iter_mut().zip(values).for_each(|(word, &x)| *word = convert(x));
}
