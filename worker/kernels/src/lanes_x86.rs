//! x86-64: AVX2 with FMA as two halves of 8, AVX-512 as one register.

use std::arch::x86_64::*;

use super::{Isa, LANES, Lanes};
use crate::tiles::Ahead;

impl Isa {
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
        }
    }
}

/// Makes `name(isa, …)` out of a generic `#[inline(always)] unsafe fn body<V: Lanes>(…)`: the body is compiled once for
/// each instruction set.
///
/// # Safety
/// Callers of the made function promise that the CPU has `isa`, besides what the body asks.
macro_rules! versions {
    ($(#[$meta:meta])* unsafe fn $name:ident $(<$(const $c:ident: usize),+>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident $(<$element:ty>)?) => {
        $(#[$meta])*
        pub(crate) unsafe fn $name $(<$(const $c: usize),+>)? (isa: $crate::lanes::Isa, $($arg: $type),*) $(-> $ret)? {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2 $(<$(const $c: usize),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::lanes::Avx2, $($($c,)+)? $($element)?>($($arg),*) }
            }
            #[target_feature(enable = "avx2,fma,avxvnni")]
            unsafe fn avx_vnni $(<$(const $c: usize),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::lanes::AvxVnni, $($($c,)+)? $($element)?>($($arg),*) }
            }
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn avx512 $(<$(const $c: usize),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::lanes::Avx512, $($($c,)+)? $($element)?>($($arg),*) }
            }
            // SAFETY: the caller promises that the CPU has `isa`.
            unsafe {
                match isa {
                    $crate::lanes::Isa::Portable => $body::<$crate::lanes::Portable, $($($c,)+)? $($element)?>($($arg),*),
                    $crate::lanes::Isa::Avx2 => avx2 $(::<$($c),+>)? ($($arg),*),
                    $crate::lanes::Isa::AvxVnni => avx_vnni $(::<$($c),+>)? ($($arg),*),
                    $crate::lanes::Isa::Avx512 | $crate::lanes::Isa::Avx512Bf16 => avx512 $(::<$($c),+>)? ($($arg),*),
                }
            }
        }
    };
}
pub(crate) use versions;

/// Two halves of 8 lanes; with VNNI, four products of bytes are one instruction.
#[derive(Clone, Copy)]
pub(crate) struct Halves<const VNNI: bool>(__m256, __m256);

pub(crate) type Avx2 = Halves<false>;
pub(crate) type AvxVnni = Halves<true>;

/// One register of 16 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// Combines the upper half with the lower until one lane is left.
#[inline(always)]
unsafe fn fold(lanes: __m256, combine: unsafe fn(__m128, __m128) -> __m128) -> f32 {
    // SAFETY: the caller promises AVX2.
    unsafe {
        let four = combine(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = combine(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(combine(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

macro_rules! avx2_lanewise {
    ($($name:ident = $intrinsic:ident),*) => {
        $(#[inline(always)]
        unsafe fn $name(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX2.
            unsafe { Self($intrinsic(self.0, other.0), $intrinsic(self.1, other.1)) }
        })*
    };
}

macro_rules! avx512_lanewise {
    ($($name:ident = $intrinsic:ident),*) => {
        $(#[inline(always)]
        unsafe fn $name(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX-512 F.
            unsafe { Self($intrinsic(self.0, other.0)) }
        })*
    };
}

// SAFETY of every block below: the caller promises the instruction set, and 16 floats behind every pointer.
impl<const VNNI: bool> Lanes for Halves<VNNI> {
    const CHAINS: usize = 6;

    avx2_lanewise!(
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

// SAFETY of every block below: the caller promises the instruction set, and 16 floats behind every pointer.
impl Lanes for Avx512 {
    const CHAINS: usize = 12;

    avx512_lanewise!(
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

/// Wishes for the cache line at `at`, which need not exist, in the first-level cache.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    // SAFETY: a prefetch never faults; SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

/// The same for the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_far<T>(at: *const T) {
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
}

/// Columns of rows times panels over pairs of bf16, by the instruction that does just that; see [`crate::tiles`]. It treats
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
