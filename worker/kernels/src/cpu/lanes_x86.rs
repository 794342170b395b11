//! x86-64: what its instruction sets are, and how a kernel gets a version for each.

#[path = "lanes_avx2.rs"]
mod avx2;
#[path = "lanes_avx512.rs"]
mod avx512;

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

pub(crate) use self::{
    avx2::{Avx2, AvxVnni},
    avx512::{Avx512, bf16_pairs_tile},
};
use super::Isa;

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
        pub(crate) unsafe fn $name $(<$(const $c: usize),+>)? (isa: $crate::cpu::lanes::Isa, $($arg: $type),*) $(-> $ret)? {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2 $(<$(const $c: usize),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::cpu::lanes::Avx2, $($($c,)+)? $($element)?>($($arg),*) }
            }
            #[target_feature(enable = "avx2,fma,avxvnni")]
            unsafe fn avx_vnni $(<$(const $c: usize),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::cpu::lanes::AvxVnni, $($($c,)+)? $($element)?>($($arg),*) }
            }
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn avx512 $(<$(const $c: usize),+>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::cpu::lanes::Avx512, $($($c,)+)? $($element)?>($($arg),*) }
            }
            // SAFETY: the caller promises that the CPU has `isa`.
            unsafe {
                match isa {
                    $crate::cpu::lanes::Isa::Portable => $body::<$crate::cpu::lanes::Portable, $($($c,)+)? $($element)?>($($arg),*),
                    $crate::cpu::lanes::Isa::Avx2 => avx2 $(::<$($c),+>)? ($($arg),*),
                    $crate::cpu::lanes::Isa::AvxVnni => avx_vnni $(::<$($c),+>)? ($($arg),*),
                    $crate::cpu::lanes::Isa::Avx512 | $crate::cpu::lanes::Isa::Avx512Bf16 => avx512 $(::<$($c),+>)? ($($arg),*),
                }
            }
        }
    };
}
pub(crate) use versions;

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
