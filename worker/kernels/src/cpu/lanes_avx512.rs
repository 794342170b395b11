//! AVX-512: one register of 16 lanes.

use std::arch::x86_64::*;

use super::avx2::{NEAREST, fold};
use crate::cpu::{
    lanes::{LANES, Lanes},
    tiles::Ahead,
};

/// One register of 16 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

macro_rules! lanewise {
    ($($name:ident = $intrinsic:ident),*) => {
        $(#[inline(always)]
        unsafe fn $name(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX-512 F.
            unsafe { Self($intrinsic(self.0, other.0)) }
        })*
    };
}

// SAFETY of every block below: the caller promises the instruction set, and 16 floats behind every pointer.
impl Lanes for Avx512 {
    const CHAINS: usize = 12;

    lanewise!(
        add = _mm512_add_ps,
        sub = _mm512_sub_ps,
        mul = _mm512_mul_ps,
        div = _mm512_div_ps,
        max = _mm512_max_ps,
        min = _mm512_min_ps
    );

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self) {
        // SAFETY: see the impl. A bf16 is the upper half of an f32; the second of a pair already stands there.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
            let second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
            (Self(first), Self(second))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: see the impl; 16 bytes.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
    }
    type Sums = __m512i;
    const WEIGHT_OFFSET: i32 = 128;
    #[inline(always)]
    unsafe fn start_sums(offset: *const i32) -> __m512i {
        // SAFETY: see the impl; one number.
        unsafe { _mm512_set1_epi32(*offset) }
    }
    type Weights = __m512i;
    #[inline(always)]
    unsafe fn load_weights(from: *const i8) -> __m512i {
        // SAFETY: see the impl; 64 bytes. The instruction wants one side unsigned: the weights, plus
        // WEIGHT_OFFSET.
        unsafe { _mm512_xor_si512(_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot4(sums: __m512i, weights: __m512i, x: i32) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn sums_to_f32(sums: __m512i) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_cvtepi32_ps(sums)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, by: Self, to: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_fmadd_ps(self.0, by.0, to.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_roundscale_ps::<NEAREST>(self.0)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_abs_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn round_to_bf16(self) -> Self {
        // SAFETY: see the impl. As with AVX2.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let rounded = _mm512_mask_or_epi32(up, is_nan, bits, _mm512_set1_epi32(0x0040_0000));
            Self(_mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(0xffff_0000_u32 as i32))))
        }
    }
    #[inline(always)]
    unsafe fn store_upper_halves(self, to: *mut u16) {
        // SAFETY: see the impl.
        unsafe {
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(self.0)));
            _mm256_storeu_si256(to.cast(), halves);
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8) {
        // SAFETY: see the impl.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0))) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b11_10_11_10>(self.0, self.0));
            fold(_mm256_add_ps(_mm512_castps512_ps256(self.0), high), _mm_add_ps)
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b11_10_11_10>(self.0, self.0));
            fold(_mm256_max_ps(_mm512_castps512_ps256(self.0), high), _mm_max_ps)
        }
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
}

/// Columns of rows times panels over pairs of bf16, by the instruction that does just that; see [`crate::cpu::tiles`]. It treats
/// denormals as zeros and rounds the two products of a pair its own way: these bits are those of no other level.
///
/// # Safety
/// The CPU has [`Isa::Avx512Bf16`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn bf16_pairs_tile<const M: usize, const P: usize>(
    x: &[u16],
    panels: &[u16],
    ahead: Ahead,
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
