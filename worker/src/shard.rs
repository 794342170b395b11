//! One rank's weights: slices of the checkpoint in the kernels' packed form.
//!
//! ```text
//! c_attn [C, 3C], columns q | k | v, each of H heads of D:   this rank's columns are its heads in each third:
//!     q₀ q₁ q₂ q₃ │ k₀ k₁ k₂ k₃ │ v₀ v₁ v₂ v₃                 heads 1..3 → q₁ q₂ │ k₁ k₂ │ v₁ v₂
//! c_proj (attention), mlp.c_proj: rows of this rank's heads or FFN columns; the bias is whole, added after the reduction
//! wte: this rank's vocabulary rows, as columns of the LM head; the embedding is read back from there
//! ```
//! Only this rank's slices are ever copied: resident anonymous memory stays at its share, also while loading.

use nanoinfer_kernels::PackedMatrix;
use nanoinfer_shared::{Geometry, Share};

use crate::checkpoint::{Checkpoint, CheckpointError, TensorSlice};

/// Everything that a rank holds of a model.
#[derive(Debug)]
pub struct Shard {
    /// Token embedding and LM head: `[C, V_local]`, the token's row as a column.
    pub embedding: PackedMatrix,
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
    /// Copies `share` of a checked checkpoint.
    ///
    /// # Errors
    /// When the checkpoint has a head that is not the embedding.
    pub fn load(checkpoint: &Checkpoint, geometry: &Geometry, share: &Share) -> Result<Self, CheckpointError> {
        let layers = (0..geometry.n_layer).map(|layer| LayerShard::load(checkpoint, geometry, share, layer));
        Ok(Self {
            embedding: load_embedding(checkpoint, geometry, share)?,
            positions: checkpoint.tensor("wpe.weight")?.read_vector(0..geometry.n_positions * geometry.n_embd),
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: LayerNorm::load(checkpoint, geometry, "ln_f")?,
        })
    }

    /// Bytes that [`Shard::load`] will take for `share`.
    pub fn bytes(geometry: &Geometry, share: &Share) -> u64 {
        let (c, width, f) = (geometry.n_embd, share.heads.len() * geometry.head_dim(), share.ffn.len());
        let matrices = PackedMatrix::bytes(c, 3 * width)
            + PackedMatrix::bytes(width, c)
            + PackedMatrix::bytes(c, f)
            + PackedMatrix::bytes(f, c);
        let vectors = (4 * c + 3 * width + c + f + c) * size_of::<f32>();
        let outside = PackedMatrix::bytes(c, share.vocab.len()) + (geometry.n_positions * c + 2 * c) * size_of::<f32>();
        (geometry.n_layer * (matrices + vectors) + outside) as u64
    }
}

impl LayerShard {
    fn load(
        checkpoint: &Checkpoint,
        geometry: &Geometry,
        share: &Share,
        layer: usize,
    ) -> Result<Self, CheckpointError> {
        let name = |part: &str| format!("h.{layer}.{part}");
        let tensor = |part: &str| checkpoint.tensor(&name(part));
        let (c, d) = (geometry.n_embd, geometry.head_dim());
        let heads = share.heads.start * d..share.heads.end * d;
        let thirds = [0, c, 2 * c].map(|third| third + heads.start..third + heads.end);
        Ok(Self {
            norm_1: LayerNorm::load(checkpoint, geometry, &name("ln_1"))?,
            qkv: Linear {
                weights: columns(tensor("attn.c_attn.weight")?, c, &thirds),
                bias: pieces(tensor("attn.c_attn.bias")?, &thirds),
            },
            attention_projection: Linear {
                weights: rows(tensor("attn.c_proj.weight")?, heads, c),
                bias: tensor("attn.c_proj.bias")?.read_vector(0..c),
            },
            norm_2: LayerNorm::load(checkpoint, geometry, &name("ln_2"))?,
            fc: Linear {
                weights: columns(tensor("mlp.c_fc.weight")?, c, std::slice::from_ref(&share.ffn)),
                bias: pieces(tensor("mlp.c_fc.bias")?, std::slice::from_ref(&share.ffn)),
            },
            mlp_projection: Linear {
                weights: rows(tensor("mlp.c_proj.weight")?, share.ffn.clone(), c),
                bias: tensor("mlp.c_proj.bias")?.read_vector(0..c),
            },
        })
    }
}

impl LayerNorm {
    fn load(checkpoint: &Checkpoint, geometry: &Geometry, name: &str) -> Result<Self, CheckpointError> {
        let vector = |part: &str| Ok(checkpoint.tensor(&format!("{name}.{part}"))?.read_vector(0..geometry.n_embd));
        Ok(Self { gain: vector("weight")?, bias: vector("bias")? })
    }
}

type Range = std::ops::Range<usize>;

/// The given column ranges of a matrix with `height` rows, side by side.
fn columns(tensor: TensorSlice<'_>, height: usize, ranges: &[Range]) -> PackedMatrix {
    let mut matrix = PackedMatrix::zeros(height, ranges.iter().map(Range::len).sum());
    let mut values = Vec::new();
    for row in 0..height {
        let mut column = 0;
        for range in ranges {
            tensor.read_row(row, range.clone(), &mut values);
            matrix.set_row(row, column, &values);
            column += values.len();
        }
    }
    matrix
}

/// The given rows of a matrix with `width` columns.
fn rows(tensor: TensorSlice<'_>, range: Range, width: usize) -> PackedMatrix {
    let mut matrix = PackedMatrix::zeros(range.len(), width);
    let mut values = Vec::new();
    for (to, from) in range.enumerate() {
        tensor.read_row(from, 0..width, &mut values);
        matrix.set_row(to, 0, &values);
    }
    matrix
}

/// The given ranges of a vector, one after the other.
fn pieces(tensor: TensorSlice<'_>, ranges: &[Range]) -> Vec<f32> {
    ranges.iter().flat_map(|range| tensor.read_vector(range.clone())).collect()
}

fn load_embedding(
    checkpoint: &Checkpoint,
    geometry: &Geometry,
    share: &Share,
) -> Result<PackedMatrix, CheckpointError> {
    let tensor = checkpoint.tensor("wte.weight")?;
    if let Ok(head) = checkpoint.tensor("lm_head.weight")
        && head.row_bytes(share.vocab.clone()) != tensor.row_bytes(share.vocab.clone())
    {
        return Err(CheckpointError::UntiedHead);
    }
    let mut matrix = PackedMatrix::zeros(geometry.n_embd, share.vocab.len());
    let mut values = Vec::new();
    for (column, token) in share.vocab.clone().enumerate() {
        tensor.read_row(token, 0..geometry.n_embd, &mut values);
        matrix.set_column(column, &values);
    }
    Ok(matrix)
}
