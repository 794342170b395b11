//! AVX2 with FMA: two halves of 8 lanes, with products of bytes by AVX-VNNI or without.

use std::arch::x86_64::*;

use crate::cpu::lanes::{Lanes, methods};

/// Two halves of 8 lanes; with VNNI, four products of bytes are one instruction.
#[derive(Clone, Copy)]
pub(crate) struct Halves<const VNNI: bool>(__m256, __m256);

pub(crate) type Avx2 = Halves<false>;
pub(crate) type AvxVnni = Halves<true>;

/// Combines the upper half with the lower until one lane is left.
#[inline(always)]
pub(super) unsafe fn fold(lanes: __m256, combine: unsafe fn(__m128, __m128) -> __m128) -> f32 {
    // SAFETY: the caller promises AVX2.
    unsafe {
        let four = combine(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = combine(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(combine(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Rounding to the nearest, to even on ties.
pub(super) const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
/// The bits of an f32 that a bf16 has too.
pub(super) const UPPER_HALF: i32 = 0xffff_0000_u32 as i32;

impl<const VNNI: bool> Lanes for Halves<VNNI> {
    const CHAINS: usize = 6;
    const WEIGHT_OFFSET: i32 = if VNNI { 128 } else { 0 };
    type Sums = (__m256i, __m256i);
    type Weights = (__m256i, __m256i);

    methods! { unsafe:
        fn splat(x: f32) -> Self = Self(_mm256_set1_ps(x), _mm256_set1_ps(x));
        fn load(from: *const f32) -> Self = Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
        fn load_bf16_pairs(from: *const u16) -> (Self, Self) = {
            // A bf16 is the upper half of an f32; the second of a pair already stands there.
            let (low, high) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast()));
            let first = |half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half));
            let second = |half| _mm256_castsi256_ps(_mm256_and_si256(half, _mm256_set1_epi32(UPPER_HALF)));
            (Self(first(low), first(high)), Self(second(low), second(high)))
        };
        fn load_bf16(from: *const u16) -> Self = {
            let widen = |half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)));
            Self(widen(_mm_loadu_si128(from.cast())), widen(_mm_loadu_si128(from.add(8).cast())))
        };
        fn load_bytes(from: *const i8) -> Self = {
            let widen = |half| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half));
            Self(widen(_mm_loadl_epi64(from.cast())), widen(_mm_loadl_epi64(from.add(8).cast())))
        };
        fn load_i32(from: *const i32) -> Self = {
            let (low, high) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast()));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        };
        fn start_sums(offset: *const i32) -> Self::Sums = {
            let sums = if VNNI { _mm256_set1_epi32(*offset) } else { _mm256_setzero_si256() };
            (sums, sums)
        };
        fn load_weights(from: *const i8) -> Self::Weights = {
            (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast()))
        };
        fn load_signed_weights(from: *const i8) -> Self::Weights = {
            let flip = if VNNI { _mm256_set1_epi8(i8::MIN) } else { _mm256_setzero_si256() };
            let weights = Self::load_weights(from);
            (_mm256_xor_si256(weights.0, flip), _mm256_xor_si256(weights.1, flip))
        };
        // With VNNI the instruction wants one side unsigned: the weights, plus WEIGHT_OFFSET. Without, unsigned times signed bytes in
        // pairs is what there is: |x| times the weight with the sign of x. Its sums saturate at 2^15, which 2 · 127 · 127 does not reach.
        fn dot4(sums: Self::Sums, weights: Self::Weights, x: i32) -> Self::Sums = {
            let x = _mm256_set1_epi32(x);
            let (magnitude, ones) = (_mm256_abs_epi8(x), _mm256_set1_epi16(1));
            let add = |sum, weights| {
                let products = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weights, x));
                _mm256_add_epi32(sum, _mm256_madd_epi16(products, ones))
            };
            if VNNI {
                (_mm256_dpbusd_avx_epi32(sums.0, weights.0, x), _mm256_dpbusd_avx_epi32(sums.1, weights.1, x))
            } else {
                (add(sums.0, weights.0), add(sums.1, weights.1))
            }
        };
        fn store_rounded(self, sums: Self::Sums, to: *mut i8) -> Self::Sums = {
            // Conversion rounds to the nearest.
            self.store_bytes(to);
            let whole = (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            (_mm256_add_epi32(sums.0, whole.0), _mm256_add_epi32(sums.1, whole.1))
        };
        fn sums_to_f32(sums: Self::Sums) -> Self = Self(_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1));
        fn store(self, to: *mut f32) = {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        };
        fn mul_add(self, by: Self, to: Self) -> Self =
            Self(_mm256_fmadd_ps(self.0, by.0, to.0), _mm256_fmadd_ps(self.1, by.1, to.1));
        fn add(self, other: Self) -> Self = Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1));
        fn sub(self, other: Self) -> Self = Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1));
        fn mul(self, other: Self) -> Self = Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1));
        fn div(self, other: Self) -> Self = Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1));
        fn max(self, other: Self) -> Self = Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1));
        fn min(self, other: Self) -> Self = Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1));
        fn above(self, other: Self) -> u16 = {
            let bits = |a, b| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) as u16;
            bits(self.0, other.0) | bits(self.1, other.1) << 8
        };
        fn round(self) -> Self = Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1));
        fn abs(self) -> Self = {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        };
        // Half of the last place, or just below it where the last place is even; a NaN is made quiet, as adding to it could make
        // it a number.
        fn round_to_bf16(self) -> Self = Self(round_half_to_bf16(self.0), round_half_to_bf16(self.1));
        // Packing works within the two lanes of 128 bits, which are put in order behind it.
        fn store_upper_halves(self, to: *mut u16) = {
            let half = |x| _mm256_srli_epi32::<16>(_mm256_castps_si256(x));
            let packed = _mm256_packus_epi32(half(self.0), half(self.1));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        };
        fn store_bytes(self, to: *mut i8) = {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
        };
        fn sum(self) -> f32 = fold(_mm256_add_ps(self.0, self.1), _mm_add_ps);
        fn largest(self) -> f32 = fold(_mm256_max_ps(self.0, self.1), _mm_max_ps);
        fn exp2_whole(self) -> Self = {
            let half = |x| {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            Self(half(self.0), half(self.1))
        };
    }
}

/// A closure would not be inlined, and neither would each of these be in it.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn round_half_to_bf16(x: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        let rounded = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), is_nan);
        _mm256_and_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32(UPPER_HALF)))
    }
}
