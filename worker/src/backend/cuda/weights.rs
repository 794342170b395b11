//! One rank's weights on its GPU: slices of the checkpoint as it stores them, in the element type asked for.
//!
//! ```text
//! c_attn [C, 3·H_local·D], c_proj [H_local·D, C], mlp.c_fc [C, F_local], mlp.c_proj [F_local, C]   row-major, as in the file
//! wte, an untied lm_head [V_local, C]   the embedding is also the head
//! biases, norms, wpe [P, C] (on the first rank)   f32
//! ```
//! Rows go from the mapped file through a few megabytes of pinned memory: the host never holds the share.

use std::{ops::Range, slice::from_ref};

use half::{bf16, f16};
use nanoinfer_kernels::cuda::Element;
use nanoinfer_shared::{Geometry, Share};

use super::{
    error::GpuError,
    gpu::{Gpu, Memory, Pinned},
};
use crate::{
    WorkerError,
    checkpoint::{Checkpoint, TensorSlice},
};

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 8 << 20;

pub(super) struct Weights {
    /// `[V_local, C]`.
    pub(super) embedding: Memory,
    /// `[V_local, C]`.
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
    /// `[in, out]`.
    pub(super) weights: Memory,
    /// `[out]` f32.
    pub(super) bias: Memory,
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
        let layer =
            (c * 3 * width + width * c + 2 * c * f) * element.bytes() + (6 * c + 3 * width + f) * size_of::<f32>();
        let vocabularies = if geometry.tie_word_embeddings { 1 } else { 2 };
        let positions = if rank == 0 { geometry.n_positions * c } else { 0 };
        let outside = vocabularies * share.vocab.len() * c * element.bytes() + (positions + 2 * c) * size_of::<f32>();
        (geometry.n_layer * layer + outside) as u64
    }

    /// Copies `share` of a checked checkpoint.
    pub(super) fn load(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        geometry: &Geometry,
        rank: usize,
        share: &Share,
        element: Element,
    ) -> Result<Self, WorkerError> {
        let mut loader = Loader::new(gpu, rank, geometry, element)?;
        let all = 0..geometry.n_embd;
        let embedding = loader.matrix(checkpoint.tensor("wte.weight")?, share.vocab.clone(), from_ref(&all))?;
        let untied_head = match geometry.tie_word_embeddings {
            true => None,
            false => Some(loader.matrix(checkpoint.tensor("lm_head.weight")?, share.vocab.clone(), from_ref(&all))?),
        };
        let positions = match rank {
            0 => Some(loader.floats(checkpoint.tensor("wpe.weight")?, 0..geometry.n_positions, from_ref(&all))?),
            _ => None,
        };
        let layers = (0..geometry.n_layer)
            .map(|layer| loader.layer(checkpoint, geometry, share, layer))
            .collect::<Result<_, _>>()?;
        let final_norm = loader.norm(checkpoint, "ln_f", geometry.n_embd)?;
        Ok(Self { embedding, untied_head, positions, layers, final_norm })
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
    staging: Pinned,
    row: Vec<f32>,
    pending: Vec<u8>,
}

impl<'a> Loader<'a> {
    fn new(gpu: &'a Gpu, rank: usize, geometry: &Geometry, element: Element) -> Result<Self, WorkerError> {
        let widest = geometry.n_inner.max(3 * geometry.n_embd) * size_of::<f32>();
        let staging =
            gpu.pinned((CHUNK_BYTES + widest).div_ceil(4)).map_err(|source| WorkerError::Gpu { rank, source })?;
        Ok(Self { gpu, rank, element, staging, row: Vec::new(), pending: Vec::new() })
    }

    fn layer(
        &mut self,
        checkpoint: &Checkpoint,
        geometry: &Geometry,
        share: &Share,
        layer: usize,
    ) -> Result<LayerWeights, WorkerError> {
        let name = |part: &str| format!("h.{layer}.{part}");
        let tensor = |part: &str| checkpoint.tensor(&name(part));
        let bias = |part: &str, len| checkpoint.vector(&name(part), len);
        let (c, f) = (geometry.n_embd, geometry.n_inner);
        let all = 0..c;
        let thirds = share.qkv_columns(geometry);
        let ffn = share.ffn.clone();
        Ok(LayerWeights {
            norm_1: self.norm(checkpoint, &name("ln_1"), c)?,
            qkv: Linear {
                weights: self.matrix(tensor("attn.c_attn.weight")?, 0..c, &thirds)?,
                bias: self.floats(bias("attn.c_attn.bias", 3 * c)?, 0..1, &thirds)?,
            },
            attention_projection: Linear {
                weights: self.matrix(tensor("attn.c_proj.weight")?, thirds[0].clone(), from_ref(&all))?,
                bias: self.floats(bias("attn.c_proj.bias", c)?, 0..1, from_ref(&all))?,
            },
            norm_2: self.norm(checkpoint, &name("ln_2"), c)?,
            fc: Linear {
                weights: self.matrix(tensor("mlp.c_fc.weight")?, 0..c, from_ref(&ffn))?,
                bias: self.floats(bias("mlp.c_fc.bias", f)?, 0..1, from_ref(&ffn))?,
            },
            mlp_projection: Linear {
                weights: self.matrix(tensor("mlp.c_proj.weight")?, ffn, from_ref(&all))?,
                bias: self.floats(bias("mlp.c_proj.bias", c)?, 0..1, from_ref(&all))?,
            },
        })
    }

    fn norm(&mut self, checkpoint: &Checkpoint, name: &str, c: usize) -> Result<Norm, WorkerError> {
        let all = 0..c;
        let gain = self.floats(checkpoint.vector(&format!("{name}.weight"), c)?, 0..1, from_ref(&all))?;
        let bias = self.floats(checkpoint.vector(&format!("{name}.bias"), c)?, 0..1, from_ref(&all))?;
        Ok(Norm { gain, bias })
    }

    /// Rows of the given columns side by side, in the element type.
    fn matrix(
        &mut self,
        tensor: TensorSlice<'_>,
        rows: Range<usize>,
        columns: &[Range<usize>],
    ) -> Result<Memory, WorkerError> {
        self.copy(tensor, rows, columns, self.element)
    }

    /// The same in f32.
    fn floats(
        &mut self,
        tensor: TensorSlice<'_>,
        rows: Range<usize>,
        columns: &[Range<usize>],
    ) -> Result<Memory, WorkerError> {
        self.copy(tensor, rows, columns, Element::F32)
    }

    fn copy(
        &mut self,
        tensor: TensorSlice<'_>,
        rows: Range<usize>,
        columns: &[Range<usize>],
        element: Element,
    ) -> Result<Memory, WorkerError> {
        let width: usize = columns.iter().map(Range::len).sum();
        let failed = |source| WorkerError::Gpu { rank: self.rank, source };
        // Copies are of whole words.
        let bytes = (rows.len() * width * element.bytes()).next_multiple_of(4);
        let memory = self.gpu.allocate(bytes, "weights").map_err(failed)?;
        let mut offset = 0;
        for index in rows {
            for range in columns {
                tensor.read_row(index, range.clone(), &mut self.row);
                narrow(&self.row, element, &mut self.pending);
            }
            if self.pending.len() >= CHUNK_BYTES {
                offset += self.send(&memory, offset).map_err(|source| WorkerError::Gpu { rank: self.rank, source })?;
            }
        }
        self.pending.resize(self.pending.len().next_multiple_of(4), 0);
        self.send(&memory, offset).map_err(|source| WorkerError::Gpu { rank: self.rank, source })?;
        Ok(memory)
    }

    /// Copies the whole words that are pending; returns their bytes.
    fn send(&mut self, to: &Memory, offset: usize) -> Result<usize, GpuError> {
        let words = self.pending.len() / 4;
        let bytes = words * 4;
        bytemuck::cast_slice_mut::<u32, u8>(&mut self.staging.words_mut()[..words])
            .copy_from_slice(&self.pending[..bytes]);
        self.gpu.upload(&self.staging, words, to.at(offset, bytes))?;
        self.gpu.wait("load weights", || Ok(()))?;
        self.pending.drain(..bytes);
        Ok(bytes)
    }
}

fn narrow(values: &[f32], element: Element, out: &mut Vec<u8>) {
    match element {
        Element::F32 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        Element::F16 => out.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
        Element::Bf16 => out.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
    }
}
