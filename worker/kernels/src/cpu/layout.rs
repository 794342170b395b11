//! The KV pool of one layer: where keys and values lie in it.
//!
//! ```text
//! one layer's pool:  block 0 │ block 1 │ …          a block: head 0 │ head 1 │ …  (this rank's heads)
//! one head of one block:  K as [D][16 positions], then V as [16 positions][D′]   D′ = D rounded up to 16
//! scales of bytes, apart: of each head of each block 16 of keys, then 16 of values
//! ```
//! K is laid out so that 16 scores are one vector; V so that 16 outputs are. A scale belongs to one key or value: what others a block
//! holds does not matter to it.

use std::ops::Range;

use crate::{Element, cpu::lanes::LANES};

/// Scales of one head of one block.
pub(crate) const SCALES: usize = 2 * LANES;

/// Shape of a layer's KV pool on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Heads of keys and of values of this rank.
    pub heads_local: usize,
    /// Width D of a head.
    pub head_dim: usize,
}

impl KvLayout {
    /// Positions of one block.
    pub const BLOCK: usize = LANES;

    /// Bytes of one block of one layer.
    pub fn block_bytes(self, element: Element) -> usize {
        self.block_elements() * element.bytes() + self.block_scales(element) * size_of::<f32>()
    }

    pub(crate) fn block_scales(self, element: Element) -> usize {
        if element == Element::Int8 { self.heads_local * SCALES } else { 0 }
    }

    pub(crate) fn block_elements(self) -> usize {
        self.heads_local * self.head_elements()
    }

    pub(crate) fn head_elements(self) -> usize {
        LANES * (self.head_dim + self.value_stride())
    }

    pub(crate) fn value_stride(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Width of the keys of a row, or of its values: `KV_local · D`.
    pub fn width(self) -> usize {
        self.heads_local * self.head_dim
    }
}

/// Query heads of a rank, and which of its keys and values they read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryHeads {
    /// Their number `H_local`.
    pub count: usize,
    /// So many, in order, read the same keys and values.
    pub group: usize,
    /// Heads of the first group that are not this rank's.
    pub skipped: usize,
}

impl QueryHeads {
    /// Each with keys and values of its own.
    pub fn ungrouped(count: usize) -> Self {
        Self { count, group: 1, skipped: 0 }
    }

    /// The rank's head of keys that query head `head` reads.
    pub fn kv_head(self, head: usize) -> usize {
        (self.skipped + head) / self.group
    }

    /// Runs of at most `most` heads that read the same keys.
    pub(crate) fn together(self, most: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for head in 0..self.count {
            match runs.last_mut() {
                Some(run) if run.len() < most && self.kv_head(run.start) == self.kv_head(head) => run.end = head + 1,
                _ => runs.push(head..head + 1),
            }
        }
        runs
    }
}
