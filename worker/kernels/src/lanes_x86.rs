//! x86-64: AVX2 with FMA as two halves of 8, AVX-512 as one register.

use std::arch::x86_64::*;

use super::{AHEAD, Isa, LANES, Lanes};

impl Isa {
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
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
    ($(#[$meta:meta])* unsafe fn $name:ident $(<const $c:ident: usize>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident $(<$element:ty>)?) => {
        $(#[$meta])*
        pub(crate) unsafe fn $name $(<const $c: usize>)? (isa: $crate::lanes::Isa, $($arg: $type),*) $(-> $ret)? {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2 $(<const $c: usize>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::lanes::Avx2, $($c)? $($element)?>($($arg),*) }
            }
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn avx512 $(<const $c: usize>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::lanes::Avx512, $($c)? $($element)?>($($arg),*) }
            }
            // SAFETY: the caller promises that the CPU has `isa`.
            unsafe {
                match isa {
                    $crate::lanes::Isa::Portable => $body::<$crate::lanes::Portable, $($c)? $($element)?>($($arg),*),
                    $crate::lanes::Isa::Avx2 => avx2 $(::<$c>)? ($($arg),*),
                    $crate::lanes::Isa::Avx512 | $crate::lanes::Isa::Avx512Bf16 => avx512 $(::<$c>)? ($($arg),*),
                }
            }
        }
    };
}
pub(crate) use versions;

/// Two halves of 8 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// One register of 16 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

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
impl Lanes for Avx2 {
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
    #[inline(always)]
    unsafe fn start_sums(_: i32) -> (__m256i, __m256i) {
        // SAFETY: see the impl.
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn dot4(sums: (__m256i, __m256i), weights: *const i8, x: i32) -> (__m256i, __m256i) {
        // SAFETY: see the impl. Unsigned times signed bytes in pairs is the instruction there is: |x| times the weight with the
        // sign of x. Its sums saturate at 2^15, which 2 · 127 · 127 does not reach.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let (magnitude, ones) = (_mm256_abs_epi8(x), _mm256_set1_epi16(1));
            let add = |sum, at| {
                let weights = _mm256_sign_epi8(_mm256_loadu_si256(at), x);
                _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, weights), ones))
            };
            (add(sums.0, weights.cast()), add(sums.1, weights.add(32).cast()))
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
    #[inline(always)]
    unsafe fn start_sums(x_sum: i32) -> __m512i {
        // SAFETY: see the impl. What `dot4` adds to every weight is taken back here.
        unsafe { _mm512_set1_epi32(-128 * x_sum) }
    }
    #[inline(always)]
    unsafe fn dot4(sums: __m512i, weights: *const i8, x: i32) -> __m512i {
        // SAFETY: see the impl. The instruction wants one side unsigned: the weights, plus 128.
        unsafe {
            let weights = _mm512_xor_si512(_mm512_loadu_si512(weights.cast()), _mm512_set1_epi8(-128));
            _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(x))
        }
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
    unsafe fn exp2_whole(self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
}

/// Wishes for the cache line at `at`, which need not exist.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    // SAFETY: a prefetch never faults; SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

/// `tile[m] = Σ_k x[m, k] · panel[k]` over pairs of bf16, by the instruction that does just that. It treats denormals as zeros
/// and rounds the two products of a pair its own way: these bits are those of no other level.
///
/// # Safety
/// The CPU has [`Isa::Avx512Bf16`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn bf16_pairs_tile<const M: usize>(x: &[u16], panel: &[u16], tile: &mut [[f32; LANES]]) {
    let depth = panel.len() / LANES;
    assert!(x.len() == M * depth && depth.is_multiple_of(2) && tile.len() == M);
    // SAFETY: offsets are below the lengths just checked; a pair of bf16 is as large as an i32, of any alignment.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); M];
        let (x, panel) = (x.as_ptr(), panel.as_ptr());
        for k in (0..depth).step_by(2) {
            prefetch(panel.wrapping_add(k * LANES + AHEAD / 2));
            let weights: __m512bh = std::mem::transmute(_mm512_loadu_si512(panel.add(k * LANES).cast()));
            for (m, sum) in sums.iter_mut().enumerate() {
                let pair = x.add(m * depth + k).cast::<i32>().read_unaligned();
                *sum =
                    _mm512_dpbf16_ps(*sum, weights, std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair)));
            }
        }
        for (sum, row) in sums.iter().zip(tile) {
            _mm512_storeu_ps(row.as_mut_ptr(), *sum);
        }
    }
}
