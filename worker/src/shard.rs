//! One rank's weights: slices of the checkpoint in the kernels' packed form.
//!
//! ```text
//! c_attn [C, 3C], columns q | k | v, each of H heads of D:   this rank's columns are its heads in each third:
//!     q₀ q₁ q₂ q₃ │ k₀ k₁ k₂ k₃ │ v₀ v₁ v₂ v₃                 heads 1..3 → q₁ q₂ │ k₁ k₂ │ v₁ v₂
//! c_proj (attention), mlp.c_proj: rows of this rank's heads or FFN columns; the bias is whole, added after the reduction
//! wte: this rank's vocabulary rows, as columns of the LM head; the embedding is read back from there. An untied head is cut alike
//! ```
//! Only this rank's slices are ever copied: resident anonymous memory stays at its share, also while loading.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use nanoinfer_kernels::{PackedMatrix, WeightType};
use nanoinfer_shared::{Geometry, Share, partition::FFN_BLOCK, protocol::DType};

use crate::pack::{Packer, UNIT};
use nanoinfer_checkpoint::{Checkpoint, CheckpointError};

/// Everything that a rank holds of a model.
#[derive(Debug)]
pub struct Shard {
    /// Token embedding, and LM head where that is tied: `[C, V_local]`, the token's row as a column.
    pub embedding: PackedMatrix,
    /// An LM head of its own: `[C, V_local]`.
    pub untied_head: Option<PackedMatrix>,
    /// Position embedding `[P, C]`, on every rank.
    pub positions: Vec<f32>,
    /// Transformer blocks.
    pub layers: Vec<LayerShard>,
    /// The LayerNorm before the head, on every rank.
    pub final_norm: LayerNorm,
}

/// What a rank holds of one transformer block.
#[derive(Debug)]
pub struct LayerShard {
    /// Before attention, on every rank.
    pub norm_1: LayerNorm,
    /// Column-parallel: `[C, 3 · H_local · D]`, q | k | v of this rank's heads.
    pub qkv: Linear,
    /// Row-parallel: `[H_local · D, C]`.
    pub attention_projection: Linear,
    /// Before the MLP, on every rank.
    pub norm_2: LayerNorm,
    /// Column-parallel: `[C, F_local]`.
    pub fc: Linear,
    /// Row-parallel: `[F_local, C]`.
    pub mlp_projection: Linear,
}

/// Weights and bias of a layer. A row-parallel layer holds its whole bias, to be added once after the reduction.
#[derive(Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub weights: PackedMatrix,
    /// `[out]`.
    pub bias: Vec<f32>,
}

/// Gain and bias of a LayerNorm.
#[derive(Debug)]
pub struct LayerNorm {
    /// `[C]`.
    pub gain: Vec<f32>,
    /// `[C]`.
    pub bias: Vec<f32>,
}

impl Shard {
    /// Copies `share` of a checked checkpoint, on `threads` threads.
    ///
    /// # Errors
    /// When a tensor is missing, a weight is no number or too large for `dtype`, or the files are written to meanwhile.
    pub fn load(
        checkpoint: &Checkpoint,
        geometry: &Geometry,
        share: &Share,
        dtype: DType,
        threads: usize,
    ) -> Result<Self, CheckpointError> {
        let packer = Packer::new(weight_type(dtype));
        let next = AtomicUsize::new(0);
        // Each thread takes one layer after the other; the first begins with the embedding, the largest matrix there is.
        let load_layers = || {
            let taken =
                std::iter::repeat_with(|| next.fetch_add(1, Relaxed)).take_while(|&layer| layer < geometry.n_layer);
            let load = |layer| Ok((layer, LayerShard::load(checkpoint, geometry, share, &packer, layer)?));
            taken.map(load).collect::<Result<Vec<_>, CheckpointError>>()
        };
        let (outside, layers) = thread::scope(|scope| {
            // Where the system gives fewer threads, those take more layers.
            let more = |_| thread::Builder::new().spawn_scoped(scope, load_layers).ok();
            let others: Vec<_> = (1..threads.min(geometry.n_layer)).map_while(more).collect();
            let vocabulary =
                |name| packer.rows_as_columns(checkpoint.tensor(name)?, share.vocab.clone(), geometry.n_embd);
            let untied_head = (!geometry.tie_word_embeddings).then(|| vocabulary("lm_head.weight")).transpose();
            let outside = vocabulary("wte.weight").and_then(|embedding| Ok((embedding, untied_head?)));
            let mut layers = vec![load_layers()];
            layers.extend(others.into_iter().map(|other| other.join().expect("loading does not panic")));
            (outside, layers.into_iter().collect::<Result<Vec<_>, _>>())
        });
        let mut layers: Vec<_> = layers?.into_iter().flatten().collect();
        layers.sort_unstable_by_key(|&(layer, _)| layer);
        let (embedding, untied_head) = outside?;
        let shard = Self {
            embedding,
            untied_head,
            positions: checkpoint.tensor("wpe.weight")?.read_matrix()?,
            layers: layers.into_iter().map(|(_, layer)| layer).collect(),
            final_norm: LayerNorm::load(checkpoint, geometry, "ln_f")?,
        };
        checkpoint.still_as_opened()?;
        Ok(shard)
    }

    /// What logits are made with.
    pub fn head(&self) -> &PackedMatrix {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes that [`Shard::load`] will take for `share`.
    pub fn bytes(geometry: &Geometry, share: &Share, dtype: DType) -> u64 {
        let kind = weight_type(dtype);
        let (c, width, f) = (geometry.n_embd, share.heads.len() * geometry.head_dim(), share.ffn.len());
        let matrices = PackedMatrix::bytes(kind, UNIT, c, 3 * width)
            + PackedMatrix::bytes(kind, geometry.head_dim(), width, c)
            + PackedMatrix::bytes(kind, UNIT, c, f)
            + PackedMatrix::bytes(kind, FFN_BLOCK, f, c);
        let vectors = (4 * c + 3 * width + c + f + c) * size_of::<f32>();
        let vocabularies = if geometry.tie_word_embeddings { 1 } else { 2 };
        let outside = vocabularies * PackedMatrix::bytes(kind, UNIT, c, share.vocab.len())
            + (geometry.n_positions * c + 2 * c) * size_of::<f32>();
        (geometry.n_layer * (matrices + vectors) + outside) as u64
    }
}

impl LayerShard {
    fn load(
        checkpoint: &Checkpoint,
        geometry: &Geometry,
        share: &Share,
        packer: &Packer,
        layer: usize,
    ) -> Result<Self, CheckpointError> {
        let name = |part: &str| format!("h.{layer}.{part}");
        let tensor = |part: &str| checkpoint.tensor(&name(part));
        let bias = |part: &str, len| checkpoint.vector(&name(part), len);
        let (c, d) = (geometry.n_embd, geometry.head_dim());
        let thirds = share.qkv_columns(geometry);
        let mut norm_1 = LayerNorm::load(checkpoint, geometry, &name("ln_1"))?;
        let mut norm_2 = LayerNorm::load(checkpoint, geometry, &name("ln_2"))?;
        let qkv = (tensor("attn.c_attn.weight")?, bias("attn.c_attn.bias", 3 * c)?);
        let fc = (tensor("mlp.c_fc.weight")?, bias("mlp.c_fc.bias", geometry.n_inner)?);
        Ok(Self {
            qkv: packer.columns(c, &thirds, qkv, &mut norm_1)?,
            norm_1,
            attention_projection: Linear {
                weights: packer.rows(d, tensor("attn.c_proj.weight")?, thirds[0].clone(), c)?,
                bias: bias("attn.c_proj.bias", c)?.read_vector(0..c)?,
            },
            fc: packer.columns(c, std::slice::from_ref(&share.ffn), fc, &mut norm_2)?,
            norm_2,
            mlp_projection: Linear {
                weights: packer.rows(FFN_BLOCK, tensor("mlp.c_proj.weight")?, share.ffn.clone(), c)?,
                bias: bias("mlp.c_proj.bias", c)?.read_vector(0..c)?,
            },
        })
    }
}

impl LayerNorm {
    fn load(checkpoint: &Checkpoint, geometry: &Geometry, name: &str) -> Result<Self, CheckpointError> {
        let c = geometry.n_embd;
        let vector = |part: &str| checkpoint.vector(&format!("{name}.{part}"), c)?.read_vector(0..c);
        Ok(Self { gain: vector("weight")?, bias: vector("bias")? })
    }
}

fn weight_type(dtype: DType) -> WeightType {
    match dtype {
        DType::F32 => WeightType::F32,
        DType::Bf16 => WeightType::Bf16,
        DType::Int8 => WeightType::Int8,
        DType::F16 => unreachable!("the CPU's backend refuses it"),
    }
}
