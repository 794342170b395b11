//! AVX2 with FMA: two halves of 8 lanes, with products of bytes by AVX-VNNI or without.

use std::arch::x86_64::*;

use crate::cpu::lanes::Lanes;

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

macro_rules! lanewise {
    ($($name:ident = $intrinsic:ident),*) => {
        $(#[inline(always)]
        unsafe fn $name(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX2.
            unsafe { Self($intrinsic(self.0, other.0), $intrinsic(self.1, other.1)) }
        })*
    };
}

// SAFETY of every block below: the caller promises the instruction set, and 16 floats behind every pointer.
impl<const VNNI: bool> Lanes for Halves<VNNI> {
    const CHAINS: usize = 6;

    lanewise!(
        add = _mm256_add_ps,
        sub = _mm256_sub_ps,
        mul = _mm256_mul_ps,
        div = _mm256_div_ps,
        max = _mm256_max_ps,
        min = _mm256_min_ps
    );

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self) {
        // SAFETY: see the impl. A bf16 is the upper half of an f32; the second of a pair already stands there.
        unsafe {
            let low = _mm256_loadu_si256(from.cast());
            let high = _mm256_loadu_si256(from.add(16).cast());
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let first = Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            );
            let second = Self(
                _mm256_castsi256_ps(_mm256_and_si256(low, upper)),
                _mm256_castsi256_ps(_mm256_and_si256(high, upper)),
            );
            (first, second)
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let widen = |half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)));
            Self(widen(_mm_loadu_si128(from.cast())), widen(_mm_loadu_si128(from.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: see the impl; 16 bytes.
        unsafe {
            let widen = |half| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half));
            Self(widen(_mm_loadl_epi64(from.cast())), widen(_mm_loadl_epi64(from.add(8).cast())))
        }
    }
    type Sums = (__m256i, __m256i);
    const WEIGHT_OFFSET: i32 = if VNNI { 128 } else { 0 };
    #[inline(always)]
    unsafe fn start_sums(offset: *const i32) -> (__m256i, __m256i) {
        // SAFETY: see the impl; one number.
        unsafe {
            let sums = if VNNI { _mm256_set1_epi32(*offset) } else { _mm256_setzero_si256() };
            (sums, sums)
        }
    }
    type Weights = (__m256i, __m256i);
    #[inline(always)]
    unsafe fn load_weights(from: *const i8) -> (__m256i, __m256i) {
        // SAFETY: see the impl; 64 bytes. The instruction wants one side unsigned: the weights, plus WEIGHT_OFFSET.
        unsafe {
            let flip = if VNNI { _mm256_set1_epi8(-128) } else { _mm256_setzero_si256() };
            let half = |from: *const i8| _mm256_xor_si256(_mm256_loadu_si256(from.cast()), flip);
            (half(from), half(from.add(32)))
        }
    }
    #[inline(always)]
    unsafe fn dot4(sums: (__m256i, __m256i), weights: (__m256i, __m256i), x: i32) -> (__m256i, __m256i) {
        // SAFETY: see the impl. Without VNNI, unsigned times signed bytes in pairs is the instruction there is: |x| times the weight with the
        // sign of x. Its sums saturate at 2^15, which 2 · 127 · 127 does not reach.
        unsafe {
            let x = _mm256_set1_epi32(x);
            if VNNI {
                return (_mm256_dpbusd_avx_epi32(sums.0, weights.0, x), _mm256_dpbusd_avx_epi32(sums.1, weights.1, x));
            }
            let (magnitude, ones) = (_mm256_abs_epi8(x), _mm256_set1_epi16(1));
            let add = |sum, weights| {
                let weights = _mm256_sign_epi8(weights, x);
                _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, weights), ones))
            };
            (add(sums.0, weights.0), add(sums.1, weights.1))
        }
    }
    #[inline(always)]
    unsafe fn sums_to_f32(sums: (__m256i, __m256i)) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the impl.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, by: Self, to: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_fmadd_ps(self.0, by.0, to.0), _mm256_fmadd_ps(self.1, by.1, to.1)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }
    #[inline(always)]
    unsafe fn round_to_bf16(self) -> Self {
        // SAFETY: see the impl. Half of the last place, or just below it where the last place is even; a NaN is made quiet, as
        // adding to it could make it a number.
        unsafe {
            let half = |x: __m256| {
                let bits = _mm256_castps_si256(x);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
                let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
                let rounded = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), is_nan);
                _mm256_and_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32)))
            };
            Self(half(self.0), half(self.1))
        }
    }
    #[inline(always)]
    unsafe fn store_upper_halves(self, to: *mut u16) {
        // SAFETY: see the impl. Packing works within the two lanes of 128 bits, which are put in order behind it.
        unsafe {
            let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(self.0));
            let high = _mm256_srli_epi32::<16>(_mm256_castps_si256(self.1));
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
            _mm256_storeu_si256(to.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8) {
        // SAFETY: see the impl.
        unsafe {
            let (low, high) = (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { fold(_mm256_add_ps(self.0, self.1), _mm_add_ps) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { fold(_mm256_max_ps(self.0, self.1), _mm_max_ps) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
}
