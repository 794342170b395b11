//! What a row of logits is asked for: its largest entries and the logarithm of its sum of exponentials.

use crate::cpu::{
    isa::Isa,
    lanes::{LANES, Lanes},
    versions::versions,
};

/// `(max, Σ exp(x · scale − max))` with `max` over `x · scale`; `(−∞, 0)` of an empty row. Terms are f32; they are added in
/// f32 within groups of 1,024 and in f64 across them, in one order for a given row.
///
/// # Panics
/// When this CPU has no `isa`.
pub fn log_sum_exp(isa: Isa, row: &[f32], scale: f32) -> (f32, f64) {
    const GROUP: usize = 64 * LANES;
    assert!(isa.is_available(), "this CPU has no {}", isa.name());
    // SAFETY: `isa` is available.
    let max = unsafe { scaled_max(isa, row, scale) };
    if max == f32::NEG_INFINITY {
        return (max, 0.0);
    }
    // SAFETY: as above.
    (max, row.chunks(GROUP).map(|group| f64::from(unsafe { sum_exp(isa, group, scale, max) })).sum())
}

versions! { unsafe fn scaled_max(row: &[f32], scale: f32) -> f32 = scaled_max_body }
versions! { unsafe fn sum_exp(row: &[f32], scale: f32, max: f32) -> f32 = sum_exp_body }

#[inline(always)]
unsafe fn scaled_max_body<V: Lanes>(row: &[f32], scale: f32) -> f32 {
    let (whole, tail) = row.as_chunks::<LANES>();
    let mut max = tail.iter().map(|x| x * scale).fold(f32::NEG_INFINITY, f32::max);
    // SAFETY: chunks of 16; the instruction set is the caller's promise.
    unsafe {
        let mut lanes = V::splat(f32::NEG_INFINITY);
        for chunk in whole {
            lanes = lanes.max(V::load(chunk.as_ptr()).mul(V::splat(scale)));
        }
        max = max.max(lanes.largest());
    }
    max
}

#[inline(always)]
unsafe fn sum_exp_body<V: Lanes>(row: &[f32], scale: f32, max: f32) -> f32 {
    let (whole, tail) = row.as_chunks::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    for (lane, x) in last.iter_mut().zip(tail) {
        *lane = x * scale - max;
    }
    // SAFETY: chunks of 16; the instruction set is the caller's promise.
    unsafe {
        let mut sum = V::load(last.as_ptr()).exp();
        for chunk in whole {
            sum = sum.add(V::load(chunk.as_ptr()).mul(V::splat(scale)).sub(V::splat(max)).exp());
        }
        sum.sum()
    }
}

/// The `k` largest of `row` as (index, value), descending, the lower index first on ties; fewer if the row is shorter.
///
/// # Panics
/// When this CPU has no `isa`.
pub fn arg_top_k(isa: Isa, row: &[f32], k: usize) -> Vec<(usize, f32)> {
    assert!(isa.is_available(), "this CPU has no {}", isa.name());
    let k = k.min(row.len());
    if k == 0 {
        return Vec::new();
    }
    // SAFETY: `isa` is available.
    unsafe { top_k(isa, row, k) }
}

versions! { unsafe fn top_k(row: &[f32], k: usize) -> Vec<(usize, f32)> = top_k_body }

#[inline(always)]
unsafe fn top_k_body<V: Lanes>(row: &[f32], k: usize) -> Vec<(usize, f32)> {
    let better = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    // Adding 0 makes −0 a 0, so that the two are a tie.
    let candidate = |i: usize| (i, row[i] + 0.0);
    // Candidates so far, at most 2 k of them; whoever is not above the k-th best of the last pruning cannot matter.
    let mut kept: Vec<(usize, f32)> = Vec::with_capacity(2 * k);
    kept.extend((0..k).map(candidate));
    let mut bar = f32::NEG_INFINITY;
    for (chunk, first) in row[k..].chunks(LANES).zip((k..).step_by(LANES)) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunk = chunk.first_chunk::<LANES>().unwrap_or_else(|| {
            lanes[..chunk.len()].copy_from_slice(chunk);
            &lanes
        });
        // SAFETY: arrays of 16; the instruction set is the caller's promise.
        let mut above = unsafe { V::load(chunk.as_ptr()).above(V::splat(bar)) };
        while above != 0 {
            kept.push(candidate(first + above.trailing_zeros() as usize));
            above &= above - 1;
            if kept.len() == 2 * k {
                kept.select_nth_unstable_by(k - 1, better);
                kept.truncate(k);
                bar = kept[k - 1].1;
            }
        }
    }
    kept.sort_unstable_by(better);
    kept.truncate(k);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f32> {
        // Few distinct values, so that ties are common.
        (0..len).map(|i| ((i * 7919) % 251) as f32 / 10.0 - 12.0).collect()
    }

    #[test]
    fn log_sum_exp_agrees_with_f64() {
        for isa in Isa::available() {
            for len in [0, 1, 15, 16, 17, 61, 1024, 5000] {
                for scale in [1.0, 2.5, 0.3] {
                    let row = row(len);
                    let (max, sum) = log_sum_exp(isa, &row, scale);
                    let exact = row.iter().map(|&x| (f64::from(x) * f64::from(scale)).exp()).sum::<f64>().ln();
                    let got = f64::from(max) + sum.ln();
                    assert!(got == exact || (got - exact).abs() < 1e-6, "{isa:?} {len} {scale}: {got} {exact}");
                }
            }
        }
    }

    #[test]
    fn top_k_equals_a_full_sort() {
        for (isa, len) in
            Isa::available().into_iter().flat_map(|isa| [0, 1, 5, 255, 256, 257, 1000].map(|len| (isa, len)))
        {
            let row = row(len);
            let mut sorted: Vec<_> = row.iter().copied().enumerate().collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            for k in [0, 1, 2, 7, 64, 2000] {
                assert_eq!(arg_top_k(isa, &row, k), sorted[..k.min(len)], "{isa:?} {k} of {len}");
            }
        }
    }
}
