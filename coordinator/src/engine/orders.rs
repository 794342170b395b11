//! What the engine is told while it runs, beside requests: by whoever stops or wakes it, and by readers who go.
//!
//! Does not know what the engine makes of it.

use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// What the engine looks at between steps: written by anyone, read by the engine's thread.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    stopping: AtomicBool,
    cutting_off: AtomicBool,
    /// A wake-up is on its way.
    waking: AtomicBool,
    hang_ups: AtomicUsize,
}

impl Orders {
    /// No new requests are to be taken.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Whether no new requests are taken.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Those under way are not to finish.
    pub(crate) fn cut_off(&self) {
        self.cutting_off.store(true, Relaxed);
    }

    /// Whether those under way do not finish either.
    pub(crate) fn is_cutting_off(&self) -> bool {
        self.cutting_off.load(Relaxed)
    }

    /// Whether a wake-up is to be sent: none is on its way.
    pub(crate) fn wake(&self) -> bool {
        !self.waking.swap(true, AcqRel)
    }

    /// All that was sent has been read. Who has something to be looked at from here on sends another.
    pub(crate) fn woken(&self) {
        self.waking.swap(false, AcqRel);
    }

    /// A reader has gone before its sequence's end; its channel is closed by now.
    pub(crate) fn hang_up(&self) {
        self.hang_ups.fetch_add(1, Release);
    }

    /// Readers who went so. Whose channels are closed is seen by who sees the count.
    pub(crate) fn hang_ups(&self) -> usize {
        self.hang_ups.load(Acquire)
    }
}
