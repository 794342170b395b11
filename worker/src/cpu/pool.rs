//! The KV pool of one rank: keys and values of its heads, in blocks that the coordinator hands out.
//!
//! Knows blocks and slots only; which sequence owns a block is the coordinator's business. Memory becomes resident as blocks
//! are first written.

use nanoinfer_kernels::{KvLayer, KvLayout};
use nanoinfer_shared::{
    ModelShape, Share,
    protocol::{BLOCK_TOKENS, DType},
};

use crate::element::element;

// One block is one tile of the attention kernel.
const _: () = assert!(BLOCK_TOKENS == KvLayout::BLOCK);

/// Keys and values of all layers.
#[derive(Debug)]
pub(crate) struct KvPool {
    /// Of a layer's part.
    pub(crate) layout: KvLayout,
    pub(crate) blocks: usize,
    pub(crate) layers: Vec<KvLayer>,
}

impl KvPool {
    /// A pool of `blocks` blocks for the heads of `share`.
    pub(crate) fn new(shape: &ModelShape, share: &Share, dtype: DType, blocks: usize) -> Self {
        let layout = layout(shape, share);
        let layers = (0..shape.layers).map(|_| KvLayer::zeros(element(dtype), layout, blocks)).collect();
        Self { layout, blocks, layers }
    }

    /// Bytes of one block of all layers.
    pub(crate) fn block_bytes(shape: &ModelShape, share: &Share, dtype: DType) -> u64 {
        (shape.layers * layout(shape, share).block_bytes(element(dtype))) as u64
    }
}

fn layout(shape: &ModelShape, share: &Share) -> KvLayout {
    KvLayout { heads_local: share.kv_heads.len(), head_dim: shape.attention.head_dim }
}
