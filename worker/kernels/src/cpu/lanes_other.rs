//! Other CPUs: the portable lanes only.

use super::Isa;
use crate::cpu::tiles::Ahead;

impl Isa {
    pub(crate) fn is_available(self) -> bool {
        self == Self::Portable
    }
}

/// Makes `name(isa, …)` out of a generic body; see the x86-64 form.
macro_rules! versions {
    ($(#[$meta:meta])* unsafe fn $name:ident $(<$(const $c:ident: usize),+>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident $(<$element:ty>)?) => {
        $(#[$meta])*
        pub(crate) unsafe fn $name $(<$(const $c: usize),+>)? (_isa: $crate::cpu::lanes::Isa, $($arg: $type),*) $(-> $ret)? {
            // SAFETY: portable code runs everywhere; the rest is the caller's promise.
            unsafe { $body::<$crate::cpu::lanes::Portable, $($($c,)+)? $($element)?>($($arg),*) }
        }
    };
}
pub(crate) use versions;

/// Nothing to wish for.
#[inline(always)]
pub(crate) fn prefetch<T>(_: *const T) {}

/// As above.
#[inline(always)]
pub(crate) fn prefetch_far<T>(_: *const T) {}

/// See the x86-64 form.
pub(crate) unsafe fn bf16_pairs_tile<const M: usize, const P: usize>(
    _: &[u16],
    _: &[u16],
    _: Ahead,
    _: &mut [[f32; super::LANES]],
) {
    unreachable!("the level of this instruction is not available here");
}
