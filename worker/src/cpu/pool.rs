//! The KV pool of one rank: keys and values of its heads, in blocks that the coordinator hands out.
//!
//! Knows blocks and slots only; which sequence owns a block is the coordinator's business. Memory becomes resident as blocks
//! are first written. It may lie in a file that others hold, and then outlives this process.

use std::{fs::File, io};

use nanoinfer_kernels::{KvLayer, KvLayout, KvMark, KvMemory};
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
    /// Set with the first step.
    mark: KvMark,
}

impl KvPool {
    /// A pool of `blocks` blocks for the heads of `share`: of zeros, or what a pool of the same size left in `file`.
    ///
    /// # Errors
    /// When the system does not give the memory of the file.
    pub(crate) fn new(
        shape: &ModelShape,
        share: &Share,
        dtype: DType,
        blocks: usize,
        file: Option<&File>,
    ) -> io::Result<Self> {
        let (layout, element) = (layout(shape, share), element(dtype));
        let bytes = KvLayer::bytes(element, layout, blocks) * shape.layers + KvMark::BYTES;
        let mut memory = match file {
            Some(file) => KvMemory::in_file(file, bytes)?,
            None => KvMemory::of_process(bytes),
        };
        let layers = (0..shape.layers).map(|_| KvLayer::new(element, layout, blocks, &mut memory)).collect();
        Ok(Self { layout, blocks, layers, mark: memory.mark() })
    }

    /// Whether a step ever wrote to it, in this process or in one before.
    pub(crate) fn is_written(&self) -> bool {
        self.mark.is_set()
    }

    /// A step is about to write.
    pub(crate) fn begin_step(&mut self) {
        self.mark.set();
    }

    /// Bytes of one block of all layers.
    pub(crate) fn block_bytes(shape: &ModelShape, share: &Share, dtype: DType) -> u64 {
        (shape.layers * layout(shape, share).block_bytes(element(dtype))) as u64
    }
}

fn layout(shape: &ModelShape, share: &Share) -> KvLayout {
    KvLayout { heads_local: share.kv_heads.len(), head_dim: shape.attention.head_dim }
}
