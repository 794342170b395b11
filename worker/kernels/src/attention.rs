//! Attention of single rows over a paged KV pool, with an online softmax.
//!
//! ```text
//! one layer's pool:  block 0 │ block 1 │ …          a block: head 0 │ head 1 │ …  (this rank's heads)
//! one head of one block:  K as [D][16 positions], then V as [16 positions][D′]   D′ = D rounded up to 16
//! ```
//! K is laid out so that 16 scores are one vector; V so that 16 outputs are. A block is the tile of the softmax for decode
//! and prefill alike, and rows read K and V back from the pool even within their own chunk: a row's result depends on its
//! position and history only, not on how it was batched or chunked.

use crate::{
    Kernels,
    lanes::{LANES, Lanes, versions},
    packed::to_bf16,
    pool::Shards,
};

/// Widest head that the kernel has scratch for.
pub const MAX_HEAD_DIM: usize = 512;

/// Shape of a layer's KV pool on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Heads of this rank.
    pub heads_local: usize,
    /// Width D of a head.
    pub head_dim: usize,
}

impl KvLayout {
    /// Positions of one block.
    pub const BLOCK: usize = LANES;

    /// Elements of one block of one layer.
    pub fn block_elements(self) -> usize {
        self.heads_local * self.head_elements()
    }

    fn head_elements(self) -> usize {
        LANES * (self.head_dim + self.value_stride())
    }

    fn value_stride(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Width of one of q, k, v of a row: `H_local · D`.
    pub fn width(self) -> usize {
        self.heads_local * self.head_dim
    }

    fn write<T: Cell>(self, pool: &mut [T], block: usize, slot: usize, k: &[f32], v: &[f32]) {
        assert!(slot < Self::BLOCK && k.len() == self.width() && v.len() == self.width(), "one position of all heads");
        let block = &mut pool[block * self.block_elements()..][..self.block_elements()];
        let heads = block.chunks_exact_mut(self.head_elements());
        for ((tile, k), v) in heads.zip(k.chunks_exact(self.head_dim)).zip(v.chunks_exact(self.head_dim)) {
            let (keys, values) = tile.split_at_mut(LANES * self.head_dim);
            keys.chunks_exact_mut(LANES).zip(k).for_each(|(lanes, &k)| lanes[slot] = T::from_f32(k));
            values[slot * self.value_stride()..].iter_mut().zip(v).for_each(|(cell, &v)| *cell = T::from_f32(v));
        }
    }
}

/// Element type of a KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// The upper half of one, rounded to nearest even.
    Bf16,
}

impl KvType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Keys and values of one layer: blocks of a [`KvLayout`].
#[derive(Debug)]
pub struct KvLayer {
    layout: KvLayout,
    cells: Cells,
}

#[derive(Debug)]
enum Cells {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl KvLayer {
    /// `blocks` blocks of zeros; memory becomes resident as it is written.
    pub fn zeros(kind: KvType, layout: KvLayout, blocks: usize) -> Self {
        let len = blocks * layout.block_elements();
        let cells = match kind {
            KvType::F32 => Cells::F32(vec![0.0; len]),
            KvType::Bf16 => Cells::Bf16(vec![0; len]),
        };
        Self { layout, cells }
    }

    /// Stores `k` and `v` of one position, `[H_local · D]` each, at slot `slot` of `block`.
    ///
    /// # Panics
    /// When block or slot lie outside the pool.
    pub fn write(&mut self, block: usize, slot: usize, k: &[f32], v: &[f32]) {
        match &mut self.cells {
            Cells::F32(cells) => self.layout.write(cells, block, slot, k, v),
            Cells::Bf16(cells) => self.layout.write(cells, block, slot, k, v),
        }
    }
}

/// An element of a pool.
trait Cell: Copy + Sync {
    fn from_f32(x: f32) -> Self;

    /// Sixteen of them.
    ///
    /// # Safety
    /// 16 readable elements at `from`; the instruction set of `V` is available.
    unsafe fn load<V: Lanes>(from: *const Self) -> V;
}

impl Cell for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}

/// A bf16.
impl Cell for u16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        to_bf16(x)
    }
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
}

/// One query row: which positions it sees.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRow<'a> {
    /// Block table of its sequence.
    pub blocks: &'a [u32],
    /// It attends to positions `0 .. positions`, its own included.
    pub positions: usize,
}

impl Kernels {
    /// `out[t] = softmax(q[t] · K^T · scale) · V` for every row and head: `q` holds rows of `q_stride` elements whose first
    /// `H_local · D` are the query, `out` is `[T, H_local · D]`; f32 but for what the pool holds.
    ///
    /// # Panics
    /// When sizes do not agree, or a block lies outside the pool.
    pub fn attention(
        &mut self,
        layer: &KvLayer,
        rows: &[AttentionRow<'_>],
        (q, q_stride): (&[f32], usize),
        scale: f32,
        out: &mut [f32],
    ) {
        let layout = layer.layout;
        let (heads, dim) = (layout.heads_local, layout.head_dim);
        assert!(dim <= MAX_HEAD_DIM, "heads are at most {MAX_HEAD_DIM} wide");
        assert!(q.len() == rows.len() * q_stride && out.len() == rows.len() * layout.width(), "q and out have T rows");
        let isa = self.isa;
        let out = Shards::new(out);
        self.pool.run(rows.len() * heads, &|task| {
            let (row, head) = (task / heads, task % heads);
            let q = &q[row * q_stride + head * dim..][..dim];
            // SAFETY: each row and head is written by one task.
            let out = unsafe { out.slice((row * heads + head) * dim, dim) };
            let row = rows[row];
            // SAFETY: `isa` was detected or listed as available.
            unsafe {
                match &layer.cells {
                    Cells::F32(cells) => attend_f32(isa, layout, cells, row, head, q, scale, out),
                    Cells::Bf16(cells) => attend_bf16(isa, layout, cells, row, head, q, scale, out),
                }
            };
        });
    }
}

versions! {
    #[allow(clippy::too_many_arguments, reason = "one call site; a struct would only rename its locals")]
    unsafe fn attend_f32(
        layout: KvLayout, pool: &[f32], row: AttentionRow<'_>, head: usize, q: &[f32], scale: f32, out: &mut [f32],
    ) = attend_body<f32>
}
versions! {
    #[allow(clippy::too_many_arguments, reason = "one call site; a struct would only rename its locals")]
    unsafe fn attend_bf16(
        layout: KvLayout, pool: &[u16], row: AttentionRow<'_>, head: usize, q: &[f32], scale: f32, out: &mut [f32],
    ) = attend_body<u16>
}

#[inline(always)]
unsafe fn attend_body<V: Lanes, T: Cell>(
    layout: KvLayout,
    pool: &[T],
    row: AttentionRow<'_>,
    head: usize,
    q: &[f32],
    scale: f32,
    out: &mut [f32],
) {
    let (dim, stride) = (layout.head_dim, layout.value_stride());
    let mut sums = [0.0f32; MAX_HEAD_DIM];
    let (mut max, mut mass) = (f32::NEG_INFINITY, 0.0);
    // SAFETY: tiles are checked slices of `layout`'s size, in which all offsets stay; `sums` has room for D′ ≤ its length;
    // the instruction set is the caller's promise.
    unsafe {
        for (index, &block) in row.blocks.iter().enumerate().take(row.positions.div_ceil(LANES)) {
            let valid = LANES.min(row.positions - index * LANES);
            let tile = &pool[block as usize * layout.block_elements() + head * layout.head_elements()..]
                [..layout.head_elements()];
            let (keys, values) = (tile.as_ptr(), tile.as_ptr().add(LANES * dim));

            let mut scores = scores::<V, T>(q, keys).mul(V::splat(scale));
            if valid < LANES {
                let mut lanes = scores.to_array();
                lanes[valid..].fill(f32::NEG_INFINITY);
                scores = V::load(lanes.as_ptr());
            }
            let new_max = scores.largest().max(max);
            let weights = scores.sub(V::splat(new_max)).exp();
            let shrink = V::splat(max - new_max).exp();
            mass = mass * shrink.to_array()[0] + weights.sum();
            max = new_max;

            let weights = weights.to_array();
            for j in (0..stride).step_by(LANES) {
                let mut sum = V::load(sums.as_ptr().add(j)).mul(shrink);
                // Slots past the end hold what an earlier owner left: never touched, so that not even a NaN could leak.
                for (t, &weight) in weights[..valid].iter().enumerate() {
                    sum = V::splat(weight).mul_add(T::load::<V>(values.add(t * stride + j)), sum);
                }
                sum.store(sums.as_mut_ptr().add(j));
            }
        }
    }
    out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = sum / mass);
}

/// `q · K` for the 16 positions of a tile: four chains over D, so that their latencies overlap.
///
/// # Safety
/// `keys` points to `[q.len()][16]` elements; the instruction set is available.
#[inline(always)]
unsafe fn scores<V: Lanes, T: Cell>(q: &[f32], keys: *const T) -> V {
    let (fours, tail) = q.as_chunks::<4>();
    // SAFETY: offsets stay below `q.len() · 16`; the rest is the caller's promise.
    unsafe {
        let mut chains = [V::splat(0.0); 4];
        for (i, four) in fours.iter().enumerate() {
            for c in 0..4 {
                chains[c] = V::splat(four[c]).mul_add(T::load(keys.add((4 * i + c) * LANES)), chains[c]);
            }
        }
        for (c, &q) in tail.iter().enumerate() {
            chains[c] = V::splat(q).mul_add(T::load(keys.add((4 * fours.len() + c) * LANES)), chains[c]);
        }
        chains[0].add(chains[1]).add(chains[2].add(chains[3]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn value(position: usize, i: usize, kind: usize) -> f32 {
        ((position * 131 + i * 17 + kind * 71) % 97) as f32 / 64.0 - 1.0
    }

    #[test]
    fn rows_agree_with_f64_and_ignore_stale_slots() {
        for (isa, kind) in Isa::available().into_iter().flat_map(|isa| [(isa, KvType::F32), (isa, KvType::Bf16)]) {
            for (heads, dim) in [(5, 8), (3, 64), (2, 5), (1, 80)] {
                let layout = KvLayout { heads_local: heads, head_dim: dim };
                let width = layout.width();
                let blocks = [4u32, 0, 2];
                let mut layer = KvLayer::zeros(kind, layout, 5);
                match &mut layer.cells {
                    Cells::F32(cells) => cells.fill(f32::NAN),
                    Cells::Bf16(cells) => cells.fill(to_bf16(f32::NAN)),
                }
                for position in 0..37 {
                    let k: Vec<_> = (0..width).map(|i| value(position, i, 0)).collect();
                    let v: Vec<_> = (0..width).map(|i| value(position, i, 1)).collect();
                    layer.write(blocks[position / 16] as usize, position % 16, &k, &v);
                }
                let rows: Vec<_> = (0..37).map(|t| AttentionRow { blocks: &blocks, positions: t + 1 }).collect();
                let q: Vec<_> = (0..37 * 3 * width).map(|i| value(i / width, i, 2)).collect();
                let mut out = vec![0.0; 37 * width];
                Kernels::new(isa, 2, false).attention(&layer, &rows, (&q, 3 * width), 0.7, &mut out);
                for t in 0..37 {
                    for head in 0..heads {
                        let dot = |s: usize| -> f64 {
                            (0..dim)
                                .map(|d| {
                                    f64::from(q[t * 3 * width + head * dim + d])
                                        * f64::from(value(s, head * dim + d, 0))
                                })
                                .sum()
                        };
                        let weights: Vec<f64> = (0..=t).map(|s| (dot(s) * 0.7).exp()).collect();
                        let mass: f64 = weights.iter().sum();
                        for d in 0..dim {
                            let exact: f64 =
                                (0..=t).map(|s| weights[s] * f64::from(value(s, head * dim + d, 1))).sum::<f64>()
                                    / mass;
                            let got = f64::from(out[t * width + head * dim + d]);
                            assert!(
                                (got - exact).abs() < 2e-6,
                                "{isa:?} {kind:?} {heads}x{dim} row {t}: {got} {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}
