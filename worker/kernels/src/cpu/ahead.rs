//! Memory that is asked for before it is read.

use std::{ops::Range, ptr};

use crate::cpu::packed::Shape;

/// Wishes for the cache line at `at`, which need not exist: in the first-level cache, or where it is FAR in the second-level one.
#[inline(always)]
pub(crate) fn prefetch<const FAR: bool>(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if FAR { _mm_prefetch::<_MM_HINT_T1>(at.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Memory that is read next: an address and no pointer, as it need not exist.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) from: usize,
    pub(crate) bytes: usize,
}

/// A matrix that is read soon, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) from: usize,
    pub(crate) shape: Shape,
}

/// What a tile asks memory for while it computes: its share of the panels that come next.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    from: *const u8,
    /// For each tile.
    share: usize,
    /// For each step over K.
    bytes_per_step: usize,
}

impl Ahead {
    /// The share of the first of `tiles`, of so many steps each, in what is wanted, which need not exist.
    pub(crate) fn new(wanted: Wanted, steps: usize, tiles: usize) -> Self {
        let share = wanted.bytes / tiles;
        Self { from: ptr::without_provenance(wanted.from), share, bytes_per_step: share.div_ceil(steps.max(1)) }
    }

    /// The share of the tile behind this one.
    pub(crate) fn behind(self) -> Self {
        Self { from: self.from.wrapping_add(self.share), ..self }
    }

    /// Asks for what belongs to a step: a cache line for each of P panels, which may be one that was asked for before.
    #[inline(always)]
    pub(crate) fn fetch<const P: usize>(&self, step: usize) {
        let at = self.from.wrapping_add(step * self.bytes_per_step);
        (0..P).for_each(|line| prefetch::<true>(at.wrapping_add(line * LINE)));
    }

    /// Asks for what belongs to several steps, each cache line once.
    #[inline(always)]
    pub(crate) fn fetch_all(self, steps: Range<usize>) {
        let bytes = steps.start * self.bytes_per_step..steps.end * self.bytes_per_step;
        bytes.step_by(LINE).for_each(|at| prefetch::<true>(self.from.wrapping_add(at)));
    }
}
