//! Keys and values of one layer, and how they get into its pool; where they lie says [`KvLayout`].

use std::ops::Range;

use crate::{
    Element,
    cpu::{
        buffer::{Buffer, KvMemory},
        kernels::Kernels,
        lanes::{LANES, Lanes, byte_scale, methods},
        layout::{KvLayout, SCALES},
        pool::Shards,
        rows::{AttentionRow, AttentionRows},
        versions::versions,
    },
};

/// Keys and values of one layer: blocks of a [`KvLayout`].
#[derive(Debug)]
pub struct KvLayer {
    pub(crate) layout: KvLayout,
    pub(crate) cells: Cells,
    /// Of bytes; else there are none.
    pub(crate) scales: Buffer<f32>,
}

#[derive(Debug)]
pub(crate) enum Cells {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
    Int8(Buffer<i8>),
}

impl KvLayer {
    /// Bytes of `blocks` blocks.
    pub fn bytes(element: Element, layout: KvLayout, blocks: usize) -> usize {
        let cells = match element {
            Element::F32 => Buffer::<f32>::bytes,
            Element::Bf16 | Element::F16 => Buffer::<u16>::bytes,
            Element::Int8 => Buffer::<i8>::bytes,
        };
        cells(blocks * layout.block_elements()) + Buffer::<f32>::bytes(blocks * layout.block_scales(element))
    }

    /// `blocks` blocks in memory of their own, as one layer alone has them.
    ///
    /// # Panics
    /// As [`KvLayer::new`].
    pub fn zeros(element: Element, layout: KvLayout, blocks: usize) -> Self {
        Self::new(element, layout, blocks, &mut KvMemory::of_process(Self::bytes(element, layout, blocks)))
    }

    /// The next `blocks` blocks of `memory`, which has room for them.
    ///
    /// # Panics
    /// When it has not, or the element is f16.
    pub fn new(element: Element, layout: KvLayout, blocks: usize, memory: &mut KvMemory) -> Self {
        let len = blocks * layout.block_elements();
        let cells = match element {
            Element::F32 => Cells::F32(memory.take(len)),
            Element::Bf16 => Cells::Bf16(memory.take(len)),
            Element::Int8 => Cells::Int8(memory.take(len)),
            Element::F16 => panic!("no KV cache on a CPU is of f16"),
        };
        Self { layout, cells, scales: memory.take(blocks * layout.block_scales(element)) }
    }
}

/// An element of a pool.
pub(crate) trait Cell: Copy + Default + Send + Sync {
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
    methods! { unsafe:
        fn load<V: Lanes>(from: *const Self) -> V = V::load(from);
        fn store<V: Lanes>(lanes: V, to: *mut Self) = lanes.store(to);
    }
}

/// A bf16.
impl Cell for u16 {
    methods! { unsafe:
        fn load<V: Lanes>(from: *const Self) -> V = V::load_bf16(from);
        fn store<V: Lanes>(lanes: V, to: *mut Self) = lanes.round_to_bf16().store_upper_halves(to);
    }
}

/// A byte, −127..=127.
impl Cell for i8 {
    const SCALED: bool = true;

    methods! { unsafe:
        fn load<V: Lanes>(from: *const Self) -> V = V::load_bytes(from);
        fn store<V: Lanes>(lanes: V, to: *mut Self) = lanes.round_to_bytes().store_bytes(to);
    }
}

impl Kernels {
    /// Stores the keys and values of `rows`, each at its own position: `qkv` is `[T, (H_local + 2 · KV_local) · D]`.
    ///
    /// # Panics
    /// When sizes do not agree, or a block lies outside the pool.
    pub fn write_kv(&mut self, layer: &mut KvLayer, rows: &AttentionRows<'_>, qkv: &[f32]) {
        if rows.is_empty() {
            return;
        }
        let width = qkv.len() / rows.len();
        let has_size = qkv.len() == rows.len() * width && width >= 2 * layer.layout.width();
        assert!(has_size, "qkv is [T, (H_local + 2 · KV_local) · D]");
        let KvLayer { layout, cells, scales } = layer;
        match cells {
            Cells::F32(cells) => self.write_cells(*layout, cells.as_mut_slice(), scales.as_mut_slice(), rows, qkv),
            Cells::Bf16(cells) => self.write_cells(*layout, cells.as_mut_slice(), scales.as_mut_slice(), rows, qkv),
            Cells::Int8(cells) => self.write_cells(*layout, cells.as_mut_slice(), scales.as_mut_slice(), rows, qkv),
        }
    }

    fn write_cells<T: Cell>(
        &mut self,
        layout: KvLayout,
        cells: &mut [T],
        scales: &mut [f32],
        rows: &AttentionRows<'_>,
        qkv: &[f32],
    ) {
        let (isa, parts, width) = (self.isa, rows.by_block(), qkv.len() / rows.len());
        let (cells, scales) = (Shards::new(cells), Shards::new(scales));
        self.pool.run(parts.len(), &|task| {
            let Range { start, end } = parts[task];
            let part = (rows.part(&parts[task]), &qkv[start * width..end * width]);
            // SAFETY: `isa` was detected or listed as available; each block is written by one task.
            unsafe { write_rows::<T>(isa, layout, &cells, &scales, part) };
        });
    }
}

type Part<'a> = (&'a [AttentionRow<'a>], &'a [f32]);

versions! {
    unsafe fn write_rows<type T: Cell,>(layout: KvLayout, pool: &Shards<T>, scales: &Shards<f32>, part: Part<'_>) = write_body
}

/// # Safety
/// No other task writes the blocks of these rows.
#[inline(always)]
unsafe fn write_body<V: Lanes, T: Cell>(
    layout: KvLayout,
    pool: &Shards<T>,
    scales: &Shards<f32>,
    (rows, qkv): Part<'_>,
) {
    let (dim, width, heads) = (layout.head_dim, layout.width(), layout.heads_local);
    for (row, qkv) in rows.iter().zip(qkv.chunks_exact(qkv.len() / rows.len())) {
        let (keys_and_queries, row_values) = qkv.split_at(qkv.len() - width);
        let row_keys = &keys_and_queries[keys_and_queries.len() - width..];
        let (slot, own) = (row.slot(), row.own_block() as usize);
        // SAFETY: the caller's promise.
        let block = unsafe { pool.slice(own * layout.block_elements(), layout.block_elements()) };
        for (head, tile) in block.chunks_exact_mut(layout.head_elements()).enumerate() {
            let (keys, values) = tile.split_at_mut(LANES * dim);
            let values = &mut values[slot * layout.value_stride()..][..layout.value_stride()];
            let (k, v) = (&row_keys[head * dim..][..dim], &row_values[head * dim..][..dim]);
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
unsafe fn write_lanes<V: Lanes, T: Cell>(
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
