//! What the engine is told while it runs, beside requests: by whoever stops it, and by readers who go.
//!
//! Does not know what the engine makes of it.

use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

/// What the engine looks at between steps: written by anyone, read by the engine's thread.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    stopping: AtomicBool,
    cutting_off: AtomicBool,
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

    /// A reader has gone before its sequence's end; its channel is closed by now.
    pub(crate) fn hang_up(&self) {
        self.hang_ups.fetch_add(1, Release);
    }

    /// Readers who went so. Whose channels are closed is seen by who sees the count.
    pub(crate) fn hang_ups(&self) -> usize {
        self.hang_ups.load(Acquire)
    }
}
