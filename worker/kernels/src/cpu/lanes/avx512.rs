//! AVX-512: one register of 16 lanes.

use std::arch::x86_64::*;

use super::avx2::{NEAREST, UPPER_HALF, fold};
use crate::cpu::lanes::{Lanes, methods};

/// One register of 16 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// The upper half of a register.
#[inline(always)]
unsafe fn upper(lanes: __m512) -> __m256 {
    // SAFETY: the caller promises AVX-512 F.
    unsafe { _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b11_10_11_10>(lanes, lanes)) }
}

impl Lanes for Avx512 {
    const CHAINS: usize = 12;
    const WEIGHT_OFFSET: i32 = 128;
    type Sums = __m512i;
    type Weights = __m512i;

    methods! { unsafe:
        fn splat(x: f32) -> Self = Self(_mm512_set1_ps(x));
        fn load(from: *const f32) -> Self = Self(_mm512_loadu_ps(from));
        fn load_bf16_pairs(from: *const u16) -> (Self, Self) = {
            // A bf16 is the upper half of an f32; the second of a pair already stands there.
            let pairs = _mm512_loadu_si512(from.cast());
            let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
            let second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(UPPER_HALF)));
            (Self(first), Self(second))
        };
        fn load_bf16(from: *const u16) -> Self = {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        };
        fn load_bytes(from: *const i8) -> Self =
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))));
        fn load_i32(from: *const i32) -> Self = Self(_mm512_cvtepi32_ps(_mm512_loadu_si512(from.cast())));
        fn start_sums(offset: *const i32) -> __m512i = _mm512_set1_epi32(*offset);
        // The instruction wants one side unsigned: the weights, plus WEIGHT_OFFSET.
        fn load_weights(from: *const i8) -> __m512i = _mm512_loadu_si512(from.cast());
        fn load_signed_weights(from: *const i8) -> __m512i =
            _mm512_xor_si512(_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(i8::MIN));
        fn dot4(sums: __m512i, weights: __m512i, x: i32) -> __m512i =
            _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(x));
        fn store_rounded(self, sums: __m512i, to: *mut i8) -> __m512i = {
            let whole = _mm512_cvtps_epi32(self.0);
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(whole));
            _mm512_add_epi32(sums, whole)
        };
        fn sums_to_f32(sums: __m512i) -> Self = Self(_mm512_cvtepi32_ps(sums));
        fn store(self, to: *mut f32) = _mm512_storeu_ps(to, self.0);
        fn mul_add(self, by: Self, to: Self) -> Self = Self(_mm512_fmadd_ps(self.0, by.0, to.0));
        fn add(self, other: Self) -> Self = Self(_mm512_add_ps(self.0, other.0));
        fn sub(self, other: Self) -> Self = Self(_mm512_sub_ps(self.0, other.0));
        fn mul(self, other: Self) -> Self = Self(_mm512_mul_ps(self.0, other.0));
        fn div(self, other: Self) -> Self = Self(_mm512_div_ps(self.0, other.0));
        fn max(self, other: Self) -> Self = Self(_mm512_max_ps(self.0, other.0));
        fn min(self, other: Self) -> Self = Self(_mm512_min_ps(self.0, other.0));
        fn above(self, other: Self) -> u16 = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0);
        fn round(self) -> Self = Self(_mm512_roundscale_ps::<NEAREST>(self.0));
        fn abs(self) -> Self = Self(_mm512_abs_ps(self.0));
        // As with AVX2.
        fn round_to_bf16(self) -> Self = {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let rounded = _mm512_mask_or_epi32(up, is_nan, bits, _mm512_set1_epi32(0x0040_0000));
            Self(_mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(UPPER_HALF))))
        };
        fn store_upper_halves(self, to: *mut u16) = {
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(self.0)));
            _mm256_storeu_si256(to.cast(), halves);
        };
        fn store_bytes(self, to: *mut i8) =
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0)));
        fn sum(self) -> f32 = fold(_mm256_add_ps(_mm512_castps512_ps256(self.0), upper(self.0)), _mm_add_ps);
        fn largest(self) -> f32 = fold(_mm256_max_ps(_mm512_castps512_ps256(self.0), upper(self.0)), _mm_max_ps);
        fn exp2_whole(self) -> Self = {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        };
    }
}
