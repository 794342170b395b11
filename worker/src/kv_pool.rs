//! The KV pool of one rank: keys and values of its heads, in blocks that the coordinator hands out.
//!
//! Knows blocks and slots only; which sequence owns a block is the coordinator's business. Memory becomes resident as blocks
//! are first written.

use nanoinfer_kernels::{KvLayer, KvLayout, KvType};
use nanoinfer_shared::{
    Geometry, Share,
    protocol::{BLOCK_TOKENS, KvDType},
};

// One block is one tile of the attention kernel.
const _: () = assert!(BLOCK_TOKENS == KvLayout::BLOCK);

/// Keys and values of all layers.
#[derive(Debug)]
pub struct KvPool {
    layout: KvLayout,
    blocks: usize,
    layers: Vec<KvLayer>,
}

impl KvPool {
    /// A pool of `blocks` blocks for the heads of `share`.
    pub fn new(geometry: &Geometry, share: &Share, dtype: KvDType, blocks: usize) -> Self {
        let layout = layout(geometry, share);
        let layers = (0..geometry.n_layer).map(|_| KvLayer::zeros(kv_type(dtype), layout, blocks)).collect();
        Self { layout, blocks, layers }
    }

    /// Bytes of one block of all layers.
    pub fn block_bytes(geometry: &Geometry, share: &Share, dtype: KvDType) -> u64 {
        (geometry.n_layer * layout(geometry, share).block_bytes(kv_type(dtype))) as u64
    }

    /// Shape of a layer's part.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// One layer's part.
    pub fn layer(&self, layer: usize) -> &KvLayer {
        &self.layers[layer]
    }

    /// One layer's part, to write to.
    pub fn layer_mut(&mut self, layer: usize) -> &mut KvLayer {
        &mut self.layers[layer]
    }
}

fn kv_type(dtype: KvDType) -> KvType {
    match dtype {
        KvDType::F32 => KvType::F32,
        KvDType::Bf16 => KvType::Bf16,
        KvDType::Int8 => KvType::Int8,
        KvDType::F16 => unreachable!("the CPU's backend refuses it"),
    }
}

fn layout(geometry: &Geometry, share: &Share) -> KvLayout {
    KvLayout { heads_local: share.heads.len(), head_dim: geometry.head_dim() }
}
