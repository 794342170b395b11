//! The KV pool of one layer: its layout, and how keys and values get into it.
//!
//! ```text
//! one layer's pool:  block 0 │ block 1 │ …          a block: head 0 │ head 1 │ …  (this rank's heads)
//! one head of one block:  K as [D][16 positions], then V as [16 positions][D′]   D′ = D rounded up to 16
//! scales of bytes, apart: of each head of each block 16 of keys, then 16 of values
//! ```
//! K is laid out so that 16 scores are one vector; V so that 16 outputs are. A scale belongs to one key or value: what others a block
//! holds does not matter to it.

use crate::cpu::{
    AttentionRow, AttentionRows, Kernels,
    buffer::in_small_pages,
    lanes::{LANES, Lanes, byte_scale, versions},
    pool::Shards,
};

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

    /// Bytes of one block of one layer.
    pub fn block_bytes(self, kind: KvType) -> usize {
        match kind {
            KvType::F32 => 4 * self.block_elements(),
            KvType::Bf16 => 2 * self.block_elements(),
            KvType::Int8 => self.block_elements() + size_of::<f32>() * self.heads_local * SCALES,
        }
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

    /// Width of one of q, k, v of a row: `H_local · D`.
    pub fn width(self) -> usize {
        self.heads_local * self.head_dim
    }
}

/// Element type of a KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// The upper half of one, rounded to nearest even.
    Bf16,
    /// Bytes, with a scale for each key and each value of a head.
    Int8,
}

/// Scales of one head of one block.
pub(crate) const SCALES: usize = 2 * LANES;

/// Keys and values of one layer: blocks of a [`KvLayout`].
#[derive(Debug)]
pub struct KvLayer {
    pub(crate) layout: KvLayout,
    pub(crate) cells: Cells,
}

#[derive(Debug)]
pub(crate) enum Cells {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Int8 { bytes: Vec<i8>, scales: Vec<f32> },
}

impl KvLayer {
    /// `blocks` blocks of zeros; memory becomes resident as it is written, in small pages: clearing a huge one
    /// takes longer than a step.
    pub fn zeros(kind: KvType, layout: KvLayout, blocks: usize) -> Self {
        let len = blocks * layout.block_elements();
        let cells = match kind {
            KvType::F32 => Cells::F32(in_small_pages(vec![0.0; len])),
            KvType::Bf16 => Cells::Bf16(in_small_pages(vec![0; len])),
            KvType::Int8 => Cells::Int8 {
                bytes: in_small_pages(vec![0; len]),
                scales: in_small_pages(vec![0.0; blocks * layout.heads_local * SCALES]),
            },
        };
        Self { layout, cells }
    }
}

/// An element of a pool.
pub(crate) trait Cell: Copy + Send + Sync {
    /// Whether it is to be multiplied by a scale; else pools have none.
    const SCALED: bool = false;

    /// Sixteen of them.
    ///
    /// # Safety
    /// 16 readable elements at `from`; the instruction set of `V` is available.
    unsafe fn load<V: Lanes>(from: *const Self) -> V;

    /// The same, written, rounded to nearest even.
    ///
    /// # Safety
    /// 16 writable elements at `to`; the instruction set of `V` is available.
    unsafe fn store<V: Lanes>(lanes: V, to: *mut Self);
}

impl Cell for f32 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(lanes: V, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { lanes.store(to) }
    }
}

/// A bf16.
impl Cell for u16 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(lanes: V, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { lanes.round_to_bf16().store_upper_halves(to) }
    }
}

/// A byte, −127..=127.
impl Cell for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bytes(from) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(lanes: V, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { lanes.round_to_bytes().store_bytes(to) }
    }
}

impl Kernels {
    /// Stores the keys and values of `rows`, each at its own position: `qkv` is `[T, 3 · H_local · D]`.
    ///
    /// # Panics
    /// When sizes do not agree, or a block lies outside the pool.
    pub fn write_kv(&mut self, layer: &mut KvLayer, rows: &AttentionRows<'_>, qkv: &[f32]) {
        let (isa, layout, parts) = (self.isa, layer.layout, rows.by_block());
        assert_eq!(qkv.len(), rows.len() * 3 * layout.width(), "qkv is [T, 3 · H_local · D]");
        let part = |task: usize| (rows.part(&parts[task]), &qkv[parts[task].start * 3 * layout.width()..]);
        match &mut layer.cells {
            Cells::F32(cells) => {
                let (cells, none) = (Shards::new(cells), Shards::new(&mut []));
                // SAFETY: `isa` was detected or listed as available; each block is written by one task.
                self.pool.run(parts.len(), &|task| unsafe { write_f32(isa, layout, &cells, &none, part(task)) });
            }
            Cells::Bf16(cells) => {
                let (cells, none) = (Shards::new(cells), Shards::new(&mut []));
                // SAFETY: as above.
                self.pool.run(parts.len(), &|task| unsafe { write_bf16(isa, layout, &cells, &none, part(task)) });
            }
            Cells::Int8 { bytes, scales } => {
                let (bytes, scales) = (Shards::new(bytes), Shards::new(scales));
                // SAFETY: as above.
                self.pool.run(parts.len(), &|task| unsafe { write_int8(isa, layout, &bytes, &scales, part(task)) });
            }
        }
    }
}

type Part<'a> = (&'a [AttentionRow<'a>], &'a [f32]);

versions! {
    unsafe fn write_f32(layout: KvLayout, pool: &Shards<f32>, scales: &Shards<f32>, part: Part<'_>) = write_body<f32>
}
versions! {
    unsafe fn write_bf16(layout: KvLayout, pool: &Shards<u16>, scales: &Shards<f32>, part: Part<'_>) = write_body<u16>
}
versions! {
    unsafe fn write_int8(layout: KvLayout, pool: &Shards<i8>, scales: &Shards<f32>, part: Part<'_>) = write_body<i8>
}

/// # Safety
/// No other task writes the blocks of these rows.
#[inline(always)]
unsafe fn write_body<V: Lanes, T: Cell + Default>(
    layout: KvLayout,
    pool: &Shards<T>,
    scales: &Shards<f32>,
    (rows, qkv): Part<'_>,
) {
    let (dim, width, heads) = (layout.head_dim, layout.width(), layout.heads_local);
    for (row, qkv) in rows.iter().zip(qkv.chunks_exact(3 * width)) {
        let (slot, own) = (row.slot(), row.own_block() as usize);
        // SAFETY: the caller's promise.
        let block = unsafe { pool.slice(own * layout.block_elements(), layout.block_elements()) };
        for (head, tile) in block.chunks_exact_mut(layout.head_elements()).enumerate() {
            let (keys, values) = tile.split_at_mut(LANES * dim);
            let values = &mut values[slot * layout.value_stride()..][..layout.value_stride()];
            let (k, v) = (&qkv[width + head * dim..][..dim], &qkv[2 * width + head * dim..][..dim]);
            let mut inverses = [1.0; 2];
            if T::SCALED {
                // SAFETY: the caller's promise.
                unsafe {
                    let scales = scales.slice((own * heads + head) * SCALES, SCALES);
                    for (i, x) in [k, v].into_iter().enumerate() {
                        (scales[i * LANES + slot], inverses[i]) = byte_scale::<V>(x);
                    }
                }
            }
            let ((k, k_tail), (v, v_tail)) = (k.as_chunks::<LANES>(), v.as_chunks::<LANES>());
            for (i, pair) in k.iter().zip(v).enumerate() {
                let (keys, values) = (&mut keys[i * LANES * LANES..], &mut values[i * LANES..]);
                // SAFETY: the instruction set is the caller's promise.
                unsafe { write_lanes::<V, T>(pair, inverses, keys, slot, values) };
            }
            if !k_tail.is_empty() {
                let (whole, mut lanes) = (k.len() * LANES, [[0.0; LANES]; 2]);
                lanes[0][..k_tail.len()].copy_from_slice(k_tail);
                lanes[1][..k_tail.len()].copy_from_slice(v_tail);
                let (keys, values) = (&mut keys[whole * LANES..], &mut values[whole..]);
                // SAFETY: as above.
                unsafe { write_lanes::<V, T>((&lanes[0], &lanes[1]), inverses, keys, slot, values) };
            }
        }
    }
}

/// Stores 16 elements of a position's key, down a column of `keys` as far as that goes, and of its value, padded to 16, each
/// multiplied by its inverse scale where there are scales.
///
/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
unsafe fn write_lanes<V: Lanes, T: Cell + Default>(
    (k, v): (&[f32; LANES], &[f32; LANES]),
    inverses: [f32; 2],
    keys: &mut [T],
    slot: usize,
    values: &mut [T],
) {
    let (mut cells, values) = ([T::default(); LANES], &mut values[..LANES]);
    // SAFETY: 16 elements each; the instruction set is the caller's promise.
    unsafe {
        let (mut k, mut v) = (V::load(k.as_ptr()), V::load(v.as_ptr()));
        if T::SCALED {
            (k, v) = (k.mul(V::splat(inverses[0])), v.mul(V::splat(inverses[1])));
        }
        T::store(k, cells.as_mut_ptr());
        T::store(v, values.as_mut_ptr());
    }
    keys.chunks_exact_mut(LANES).zip(cells).for_each(|(lanes, cell)| lanes[slot] = cell);
}
