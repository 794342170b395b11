//! Tiles of pairs of bf16, by the instruction that does just that; see the parent.

use std::arch::x86_64::*;

use crate::cpu::{ahead::Ahead, lanes::LANES};

/// Columns of rows times panels over pairs of bf16, by one instruction for both. It treats
/// denormals as zeros and rounds the two products of a pair its own way: these bits are those of no other level.
///
/// # Safety
/// The CPU has [`crate::Isa::Avx512Bf16`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn bf16_pairs_tile<const M: usize, const P: usize>(
    x: &[u16],
    panels: &[u16],
    ahead: &Ahead,
    tile: &mut [[f32; LANES]],
) {
    let len = panels.len() / P;
    let depth = len / LANES;
    assert!(x.len() == M * depth && depth.is_multiple_of(2) && tile.len() == P * M);
    // SAFETY: offsets are below the lengths just checked; a pair of bf16 is as large as an i32, of any alignment.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); M]; P];
        let (x, panels) = (x.as_ptr(), panels.as_ptr());
        for k in (0..depth).step_by(2) {
            ahead.fetch::<P>(k / 2);
            let mut weights: [__m512bh; P] = [std::mem::zeroed(); P];
            for (p, weights) in weights.iter_mut().enumerate() {
                let at = panels.add(p * len + k * LANES);
                *weights = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast()));
            }
            for m in 0..M {
                let pair = _mm512_set1_epi32(x.add(m * depth + k).cast::<i32>().read_unaligned());
                let pair = std::mem::transmute::<__m512i, __m512bh>(pair);
                for p in 0..P {
                    sums[p][m] = _mm512_dpbf16_ps(sums[p][m], weights[p], pair);
                }
            }
        }
        for (sum, row) in sums.as_flattened().iter().zip(tile) {
            _mm512_storeu_ps(row.as_mut_ptr(), *sum);
        }
    }
}
