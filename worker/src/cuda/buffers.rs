//! What lies between the kernels of a forward pass, made once for the largest step. Does not know in which order they run.

use nanoinfer_kernels::cuda::{BLOCK, head_stride, part_floats, row_stride};
use nanoinfer_shared::model::{partition::Linear, shape::Positions};

use super::{
    error::GpuError,
    gpu::{Gpu, Memory},
    model::RankModel,
};

/// Activations, but for the residual stream.
pub(crate) struct Buffers {
    /// `[T, H_local, D]`, heads in whole loads.
    pub(crate) queries: Memory,
    /// `[T, H_local · D]` in whole slices.
    pub(crate) mixed: Memory,
    /// `[T, F_local]` in whole slices.
    pub(crate) hidden: Memory,
    /// f32 `[T, (H_local + 2 · KV_local) · D]` and `[T, D]`, where positions are rotations: what they turn, and by which angles.
    pub(crate) turned: [Memory; 2],
    /// f32 `[T, C]`, where a family does more to the stream than add to it: embeddings before they are normed, with those of the tokens
    /// before each sequence; what the stream began as; and what it was in the middle.
    pub(crate) embeddings: Memory,
    pub(crate) origin: Memory,
    pub(crate) middle: Memory,
    /// Of attention to long histories: f32 that is still to be merged, and zeros.
    pub(crate) parts: [Memory; 2],
}

impl Buffers {
    /// Bytes for steps of up to `tokens` tokens; what is the GPU's size to say is little.
    pub(crate) fn bytes(model: &RankModel, tokens: usize) -> u64 {
        let of_row: usize = activation_row_bytes(model).iter().sum();
        let floats: usize = turned_widths(model).iter().sum();
        let stream = term_rows(model, tokens).iter().sum::<usize>() * model.shape.width;
        (tokens * of_row + (tokens * floats + stream + parts(model, tokens, 0)) * size_of::<f32>()) as u64
    }

    pub(crate) fn new(gpu: &Gpu, model: &RankModel, tokens: usize) -> Result<Self, GpuError> {
        let floats = |count: usize| gpu.allocate(count * size_of::<f32>(), "activations");
        // What fills rows up stays zero.
        let zeroed = |bytes| gpu.zeroed(bytes, "activations");
        let [queries, mixed, hidden] = activation_row_bytes(model).map(|bytes| zeroed(tokens * bytes));
        let [sums, turns] = turned_widths(model).map(|width| floats(tokens * width));
        let [embeddings, origin, middle] = term_rows(model, tokens).map(|rows| floats(rows * model.shape.width));
        Ok(Self {
            queries: queries?,
            mixed: mixed?,
            hidden: hidden?,
            turned: [sums?, turns?],
            embeddings: embeddings?,
            origin: origin?,
            middle: middle?,
            parts: [floats(parts(model, tokens, gpu.multiprocessors))?, zeroed(gpu.multiprocessors * 4)?],
        })
    }
}

/// Rows of what the stream needs beside itself, for a step of so many tokens.
fn term_rows(RankModel { shape, .. }: &RankModel, tokens: usize) -> [usize; 3] {
    let stream = &shape.stream;
    let embeddings = if stream.smear.is_some() { 2 * tokens } else { tokens };
    let where_needed = |is_needed, rows| if is_needed { rows } else { 0 };
    [
        where_needed(stream.normed_embedding, embeddings),
        where_needed(stream.lambdas, tokens),
        where_needed(stream.backout, tokens),
    ]
}

/// Most floats that ranks add up at once, in steps of up to `tokens` tokens: of embeddings also those of the tokens before.
pub(crate) fn reduced_floats(RankModel { shape, .. }: &RankModel, tokens: usize) -> usize {
    if shape.stream.smear.is_some() { 2 * tokens * shape.width } else { tokens * shape.width }
}

/// Bytes a row of queries, of what attention mixes, and of the hidden layer.
fn activation_row_bytes(model: &RankModel) -> [usize; 3] {
    let RankModel { shape, share, .. } = model;
    let (d, heads, carried) = (shape.attention.head_dim, share.heads.len(), model.carried_bytes());
    [
        heads * head_stride(d) * model.head_bytes(),
        row_stride(heads * d) * carried,
        row_stride(share.ffn.len()) * carried,
    ]
}

/// Floats a row of what rotations turn, and of their angles; none where there are no rotations.
fn turned_widths(RankModel { shape, share, .. }: &RankModel) -> [usize; 2] {
    match shape.attention.positions {
        Positions::Learned => [0, 0],
        Positions::Rotary(_) => [share.linear(shape, Linear::Qkv).outputs(), shape.attention.head_dim],
    }
}

/// Floats of attention's parts.
fn parts(RankModel { shape, share, .. }: &RankModel, tokens: usize, multiprocessors: usize) -> usize {
    part_floats(tokens, share.heads.len(), shape.attention.head_dim, shape.context, multiprocessors)
}

/// K and V of the heads of one block of one layer.
pub(crate) fn layer_block_bytes(model: &RankModel) -> usize {
    2 * BLOCK * model.share.kv_heads.len() * head_stride(model.shape.attention.head_dim) * model.head_bytes()
}
