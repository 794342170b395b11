//! x86-64: AVX2 with FMA as two halves of 8, AVX-512 as one register.

use std::arch::x86_64::*;

use super::{Isa, Lanes};

impl Isa {
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
        }
    }
}

/// Makes `name(isa, …)` out of a generic `#[inline(always)] unsafe fn body<V: Lanes>(…)`: the body is compiled once for
/// each instruction set.
///
/// # Safety
/// Callers of the made function promise that the CPU has `isa`, besides what the body asks.
macro_rules! versions {
    ($(#[$meta:meta])* unsafe fn $name:ident $(<const $c:ident: usize>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        pub(crate) unsafe fn $name $(<const $c: usize>)? (isa: $crate::lanes::Isa, $($arg: $type),*) $(-> $ret)? {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2 $(<const $c: usize>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::lanes::Avx2, $($c)?>($($arg),*) }
            }
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512 $(<const $c: usize>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the feature is enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::lanes::Avx512, $($c)?>($($arg),*) }
            }
            // SAFETY: the caller promises that the CPU has `isa`.
            unsafe {
                match isa {
                    $crate::lanes::Isa::Portable => $body::<$crate::lanes::Portable, $($c)?>($($arg),*),
                    $crate::lanes::Isa::Avx2 => avx2 $(::<$c>)? ($($arg),*),
                    $crate::lanes::Isa::Avx512 => avx512 $(::<$c>)? ($($arg),*),
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
