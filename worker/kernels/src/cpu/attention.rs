//! Attention of single rows over a paged KV pool ([`crate::cpu::KvLayout`]), with an online softmax.
//!
//! Queries that read the same keys and values read them together: rows of one sequence, or heads of one row.
//! A block is the tile of the softmax for decode and prefill alike, and rows read K and V back from the pool even within their
//! own chunk: a row's result depends on its position and history only, not on how it was batched or chunked.

use std::{mem::MaybeUninit, ops::Range};

use crate::cpu::{
    ahead::prefetch,
    kernels::Kernels,
    kv::{Cell, Cells, KvLayer},
    lanes::{LANES, Lanes},
    layout::{KvLayout, QueryHeads, SCALES},
    pool::Shards,
    rows::{AttentionRow, AttentionRows, MOST_TOGETHER},
    versions::versions,
};

/// Widest head that the kernel has scratch for.
pub const MAX_HEAD_DIM: usize = 512;

/// What a query makes of keys.
#[derive(Clone, Copy, Debug)]
pub struct Scoring {
    /// What `q·k` is multiplied by.
    pub scale: f32,
    /// How many positions before its own it sees; all where none is said.
    pub window: Option<usize>,
}

impl Kernels {
    /// `out[t] = softmax(q[t] · K^T · scale) · V` over the keys that it sees, for every row and query head: `qkv` is `[T, (H_local + 2 · KV_local) · D]`, of which
    /// the queries are read, `out` is `[T, H_local · D]`; f32 but for what the pool holds.
    ///
    /// # Panics
    /// When sizes do not agree, or a block lies outside the pool.
    pub fn attention(
        &mut self,
        layer: &KvLayer,
        rows: &AttentionRows<'_>,
        heads: QueryHeads,
        qkv: &[f32],
        scoring: Scoring,
        out: &mut [f32],
    ) {
        let (layout, dim) = (layer.layout, layer.layout.head_dim);
        assert!(dim <= MAX_HEAD_DIM, "heads are at most {MAX_HEAD_DIM} wide");
        assert!(heads.kv_head(heads.count - 1) < layout.heads_local, "every query has its keys");
        let width = heads.count * dim + 2 * layout.width();
        let has_size = qkv.len() == rows.len() * width && out.len() == rows.len() * heads.count * dim;
        assert!(has_size, "qkv and out have T rows");
        let all = Queries { rows: &[], heads: 0..heads.count, qkv, width, scoring };
        match &layer.cells {
            Cells::F32(cells) => self.attend(layer, cells.as_slice(), rows, heads, all, out),
            Cells::Bf16(cells) => self.attend(layer, cells.as_slice(), rows, heads, all, out),
            Cells::Int8(cells) => self.attend(layer, cells.as_slice(), rows, heads, all, out),
        }
    }

    fn attend<T: Cell>(
        &mut self,
        layer: &KvLayer,
        cells: &[T],
        rows: &AttentionRows<'_>,
        heads: QueryHeads,
        all: Queries<'_>,
        out: &mut [f32],
    ) {
        let (isa, layout, scales, dim) = (self.isa, layer.layout, layer.scales.as_slice(), layer.layout.head_dim);
        // Heads of a row that is alone; rows together are of one head.
        let (together, each) = (heads.together(MOST_TOGETHER), heads.together(1));
        let heads_of = |group: &Range<usize>| if group.len() == 1 { &together } else { &each };
        let tasks: Vec<_> =
            rows.together().iter().flat_map(|g| heads_of(g).iter().map(move |heads| (g, heads))).collect();
        let out = Shards::new(out);
        self.pool.run(tasks.len(), &|task| {
            let (group, task_heads) = tasks[task];
            let (rows, qkv) = (rows.part(group), &all.qkv[group.start * all.width..]);
            let queries = Queries { rows, heads: task_heads.clone(), qkv, ..all };
            let head = heads.kv_head(task_heads.start);
            let out = |query: usize| {
                let (row, head) = queries.place(query);
                // SAFETY: each row and head is written by one task.
                unsafe { out.slice(((group.start + row) * heads.count + head) * dim, dim) }
            };
            // SAFETY: `isa` was detected or listed as available.
            unsafe {
                match group.len() * task_heads.len() {
                    1 => attend_rows::<T, 1>(isa, layout, cells, scales, head, &queries, &out),
                    2 => attend_rows::<T, 2>(isa, layout, cells, scales, head, &queries, &out),
                    3 => attend_rows::<T, 3>(isa, layout, cells, scales, head, &queries, &out),
                    _ => attend_rows::<T, 4>(isa, layout, cells, scales, head, &queries, &out),
                }
            };
        });
    }
}

/// Queries of one head of keys that attend together: one head of some rows, or some heads of one row. `qkv` begins with that of the
/// first row.
#[derive(Clone)]
pub(crate) struct Queries<'a> {
    rows: &'a [AttentionRow<'a>],
    heads: Range<usize>,
    qkv: &'a [f32],
    /// Of a row of `qkv`.
    width: usize,
    scoring: Scoring,
}

impl Queries<'_> {
    /// Row and head of a query.
    fn place(&self, query: usize) -> (usize, usize) {
        if self.rows.len() > 1 { (query, self.heads.start) } else { (0, self.heads.start + query) }
    }
}

type Out<'a> = &'a dyn Fn(usize) -> &'a mut [f32];

versions! {
    unsafe fn attend_rows<type T: Cell, const R: usize>(
        layout: KvLayout, pool: &[T], scales: &[f32], head: usize, queries: &Queries<'_>, out: Out<'_>,
    ) = attend_body
}

/// What a query does is the same, in the same order, whether or not others are with it.
#[inline(always)]
unsafe fn attend_body<V: Lanes, T: Cell, const R: usize>(
    layout: KvLayout,
    pool: &[T],
    scales: &[f32],
    head: usize,
    queries: &Queries<'_>,
    out: Out<'_>,
) {
    let (dim, stride) = (layout.head_dim, layout.value_stride());
    let places: [_; R] = std::array::from_fn(|r| queries.place(r));
    let positions = places.map(|(row, _)| queries.rows[row].positions);
    let q = places.map(|(row, head)| &queries.qkv[row * queries.width + head * dim..][..dim]);
    let last = positions[R - 1];
    // The first key that each sees.
    let firsts = positions.map(|positions| queries.scoring.window.map_or(0, |w| (positions - 1).saturating_sub(w)));
    let first_block = firsts[0] / LANES;
    let blocks = &queries.rows[0].blocks[..last.div_ceil(LANES)];
    let tile_of = |block: u32, head: usize| {
        &pool[block as usize * layout.block_elements() + head * layout.head_elements()..][..layout.head_elements()]
    };
    let scales_of = |block: u32| match T::SCALED {
        true => &scales[(block as usize * layout.heads_local + head) * SCALES..][..SCALES],
        false => &[],
    };
    // The same thread's next task is most likely the next head.
    let then = tile_of(blocks[first_block], (head + 1) % layout.heads_local);
    // Only what a head needs of it is written, and read.
    let mut scratch = [MaybeUninit::<[f32; MAX_HEAD_DIM]>::uninit(); R];
    let sums = scratch.each_mut().map(|sums| sums.as_mut_ptr().cast::<f32>());
    let (mut max, mut mass) = ([f32::NEG_INFINITY; R], [0.0; R]);
    // SAFETY: tiles are checked slices of `layout`'s size, in which all offsets stay; `sums` have room for D′ ≤ their length,
    // all of which is written first; the instruction set is the caller's promise.
    unsafe {
        for sums in sums {
            (0..stride).step_by(LANES).for_each(|j| V::splat(0.0).store(sums.add(j)));
        }
        for (index, &block) in blocks.iter().enumerate().skip(first_block) {
            let tile = tile_of(block, head);
            let ahead = blocks.get(index + 1).map_or(then, |&block| tile_of(block, head)).as_ptr();
            let (keys, values) = (tile.as_ptr(), tile.as_ptr().add(LANES * dim));
            // Slots past a row's own hold what an earlier owner left, or later rows: never touched, so that not even a NaN
            // could leak.
            let slot = |position: usize| position.saturating_sub(index * LANES).min(LANES);
            let (valid, hidden): ([usize; R], [usize; R]) = (positions.map(slot), firsts.map(slot));
            let mut scores = scores::<V, R, T>(q, keys, ahead);
            let mut weights = [[0.0; LANES]; R];
            let scales = scales_of(block);
            let key_scale = match scales.first_chunk::<LANES>() {
                Some(keys) => V::load(keys.as_ptr()).mul(V::splat(queries.scoring.scale)),
                None => V::splat(queries.scoring.scale),
            };
            for r in 0..R {
                // The windows of later rows may begin behind this block.
                if hidden[r] == LANES {
                    continue;
                }
                scores[r] = scores[r].mul(key_scale);
                if valid[r] < LANES || hidden[r] > 0 {
                    let mut lanes = scores[r].to_array();
                    lanes[valid[r]..].fill(f32::NEG_INFINITY);
                    lanes[..hidden[r]].fill(f32::NEG_INFINITY);
                    scores[r] = V::load(lanes.as_ptr());
                }
                let new_max = scores[r].largest().max(max[r]);
                if new_max > max[r] {
                    let shrink = V::splat(max[r] - new_max).exp();
                    for j in (0..stride).step_by(LANES) {
                        let sum = sums[r].add(j);
                        V::load(sum).mul(shrink).store(sum);
                    }
                    mass[r] *= shrink.to_array()[0];
                    max[r] = new_max;
                }
                let mut exponentials = scores[r].sub(V::splat(max[r])).exp();
                mass[r] += exponentials.sum();
                if let Some(values) = scales.last_chunk::<LANES>() {
                    exponentials = exponentials.mul(V::load(values.as_ptr()));
                }
                weights[r] = exponentials.to_array();
            }
            // What all see, four vectors at a time; before it what earlier rows see besides, and behind it what later ones do.
            let all = hidden[R - 1]..valid[0].max(hidden[R - 1]);
            for r in (0..R).filter(|&r| hidden[r] < all.start) {
                add_alone::<V, T>(sums[r], &weights[r], values, stride, hidden[r]..valid[r].min(all.start));
            }
            let whole = stride / (4 * LANES) * 4 * LANES;
            for j in (0..whole).step_by(4 * LANES) {
                add_values::<V, R, 4, T>(sums.map(|sums| sums.add(j)), &weights, values.add(j), stride, all.clone());
            }
            for j in (whole..stride).step_by(LANES) {
                add_values::<V, R, 1, T>(sums.map(|sums| sums.add(j)), &weights, values.add(j), stride, all.clone());
            }
            for r in (1..R).filter(|&r| valid[r] > all.end) {
                add_alone::<V, T>(sums[r], &weights[r], values, stride, all.end..valid[r]);
            }
        }
        for r in 0..R {
            out(r).iter_mut().enumerate().for_each(|(i, out)| *out = *sums[r].add(i) / mass[r]);
        }
    }
}

/// Adds `positions` of a tile's values to the sums of one row.
///
/// # Safety
/// As for [`add_values`], with all vectors of a head.
#[inline(always)]
unsafe fn add_alone<V: Lanes, T: Cell>(
    sums: *mut f32,
    weights: &[f32; LANES],
    values: *const T,
    stride: usize,
    positions: Range<usize>,
) {
    for j in (0..stride).step_by(LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let (sums, weights) = ([sums.add(j)], std::array::from_ref(weights));
            add_values::<V, 1, 1, T>(sums, weights, values.add(j), stride, positions.clone());
        }
    }
}

/// Adds `positions` of a tile's values to sums of R rows: I vectors of each, with the rows' weights.
///
/// # Safety
/// `sums` and `values` have I vectors from there on, `values` one such every `stride`; the instruction set is available.
#[inline(always)]
unsafe fn add_values<V: Lanes, const R: usize, const I: usize, T: Cell>(
    sums: [*mut f32; R],
    weights: &[[f32; LANES]; R],
    values: *const T,
    stride: usize,
    positions: Range<usize>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals: [[V; I]; R] = [[V::splat(0.0); I]; R];
        for r in 0..R {
            for i in 0..I {
                totals[r][i] = V::load(sums[r].add(i * LANES));
            }
        }
        for t in positions {
            for i in 0..I {
                let value: V = T::load(values.add(t * stride + i * LANES));
                for r in 0..R {
                    totals[r][i] = V::splat(*weights[r].get_unchecked(t)).mul_add(value, totals[r][i]);
                }
            }
        }
        for r in 0..R {
            for i in 0..I {
                totals[r][i].store(sums[r].add(i * LANES));
            }
        }
    }
}

/// `q · K` of each row for the 16 positions of a tile: four chains over D, so that their latencies overlap. Meanwhile asks for
/// the tile `ahead`, which is one 64th of memory's latency away for each of a head's usual 64 elements.
///
/// # Safety
/// `keys` points to `[D][16]` elements, where D is the length of each of `q`; the instruction set is available.
#[inline(always)]
unsafe fn scores<V: Lanes, const R: usize, T: Cell>(q: [&[f32]; R], keys: *const T, ahead: *const T) -> [V; R] {
    let dim = q[0].len();
    // SAFETY: offsets stay below `D · 16`, and below D in each of `q`; the rest is the caller's promise.
    unsafe {
        let mut chains = [[V::splat(0.0); R]; 4];
        for i in (0..dim / 4 * 4).step_by(4) {
            for c in 0..4 {
                add_scores::<V, R, T>(&mut chains[c], q, keys, ahead, i + c);
            }
        }
        for i in dim / 4 * 4..dim {
            add_scores::<V, R, T>(&mut chains[i % 4], q, keys, ahead, i);
        }
        let mut sums = [V::splat(0.0); R];
        for r in 0..R {
            sums[r] = chains[0][r].add(chains[1][r]).add(chains[2][r].add(chains[3][r]));
        }
        sums
    }
}

/// Adds what element `i` of the queries contributes.
///
/// # Safety
/// As for [`scores`], with `i` below D.
#[inline(always)]
unsafe fn add_scores<V: Lanes, const R: usize, T: Cell>(
    sums: &mut [V; R],
    q: [&[f32]; R],
    keys: *const T,
    ahead: *const T,
    i: usize,
) {
    // SAFETY: the caller's promise; what is prefetched need not exist.
    unsafe {
        // A tile is K and V: twice as much as `keys`. Of bytes, two rounds share a line.
        if size_of::<T>() > 1 || i.is_multiple_of(2) {
            prefetch::<false>(ahead.wrapping_add(i * 2 * LANES).cast());
        }
        if size_of::<T>() == 4 {
            prefetch::<false>(ahead.wrapping_add(i * 2 * LANES + LANES).cast());
        }
        let key: V = T::load(keys.add(i * LANES));
        for r in 0..R {
            sums[r] = V::splat(*q[r].get_unchecked(i)).mul_add(key, sums[r]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Element, Isa, cpu::rounding::to_bf16};

    fn value(position: usize, i: usize, kind: usize) -> f32 {
        ((position * 131 + i * 17 + kind * 71) % 97) as f32 / 64.0 - 1.0
    }

    #[test]
    fn rows_agree_with_f64_and_ignore_stale_slots() {
        let kinds = [Element::F32, Element::Bf16, Element::Int8];
        for (isa, kind) in Isa::available().into_iter().flat_map(|isa| kinds.map(|kind| (isa, kind))) {
            let windows = [None, Some(0), Some(2), Some(15), Some(20), Some(36)];
            for ((heads, dim), window) in
                [(5, 8), (3, 64), (2, 5), (1, 80)].into_iter().flat_map(|head| windows.map(|window| (head, window)))
            {
                let layout = KvLayout { heads_local: heads, head_dim: dim };
                let width = layout.width();
                let blocks = [4u32, 0, 2];
                let mut layer = KvLayer::zeros(kind, layout, 5);
                match &mut layer.cells {
                    Cells::F32(cells) => cells.as_mut_slice().fill(f32::NAN),
                    Cells::Bf16(cells) => cells.as_mut_slice().fill(to_bf16(f32::NAN)),
                    Cells::Int8(bytes) => bytes.as_mut_slice().fill(-128),
                }
                layer.scales.as_mut_slice().fill(f32::NAN);
                let row = |t: usize| AttentionRow { blocks: &blocks, positions: t + 1 };
                // Queries, keys and values of each row.
                let part = |t: usize, kind: usize| (0..width).map(move |i| value(t, i, kind));
                let qkv: Vec<_> =
                    (0..37).flat_map(|t| [2, 0, 1].into_iter().flat_map(move |kind| part(t, kind))).collect();
                let mut out = vec![0.0; 37 * width];
                let mut kernels = Kernels::new(isa, 2, false).unwrap();
                let rows = AttentionRows::new((0..37).map(row).collect());
                kernels.write_kv(&mut layer, &rows, &qkv);
                let scoring = Scoring { scale: 0.7, window };
                kernels.attention(&layer, &rows, QueryHeads::ungrouped(heads), &qkv, scoring, &mut out);
                for t in 0..37 {
                    let mut alone = vec![0.0; width];
                    let (row, qkv) = (AttentionRows::new(vec![row(t)]), &qkv[t * 3 * width..][..3 * width]);
                    kernels.attention(&layer, &row, QueryHeads::ungrouped(heads), qkv, scoring, &mut alone);
                    assert_eq!(alone, out[t * width..][..width], "{isa:?} {kind:?} row {t} alone");
                }
                for t in 0..37 {
                    for head in 0..heads {
                        // As the pool holds it: f32 and bf16 hold multiples of 1/64 exactly, bytes do not.
                        let stored = |s: usize, d: usize, part: usize| -> f64 {
                            let of = |d: usize| value(s, head * dim + d, part);
                            if kind != Element::Int8 {
                                return of(d).into();
                            }
                            let largest = (0..dim).map(|d| of(d).abs()).fold(0.0, f32::max);
                            let byte = (of(d) * (127.0 / largest)).round_ties_even();
                            f64::from(byte) * f64::from(largest / 127.0)
                        };
                        let dot = |s: usize| -> f64 {
                            (0..dim).map(|d| f64::from(value(t, head * dim + d, 2)) * stored(s, d, 0)).sum()
                        };
                        let seen = t.saturating_sub(window.unwrap_or(t))..t + 1;
                        let weights: Vec<f64> = seen.clone().map(|s| (dot(s) * 0.7).exp()).collect();
                        let mass: f64 = weights.iter().sum();
                        for d in 0..dim {
                            let exact =
                                seen.clone().zip(&weights).map(|(s, weight)| weight * stored(s, d, 1)).sum::<f64>()
                                    / mass;
                            let got = f64::from(out[t * width + head * dim + d]);
                            assert!(
                                (got - exact).abs() < 2e-6,
                                "{isa:?} {kind:?} {heads}x{dim} {window:?} row {t}: {got} {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}
