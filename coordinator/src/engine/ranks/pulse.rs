//! Signs of life of one rank: when it last answered, and how far it had come.
//!
//! Does not know who asks for them.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nanoinfer_shared::protocol::Place;

/// The life of one rank.
#[derive(Debug)]
pub(crate) struct Pulse {
    born: Instant,
    /// Number of the last ping sent; pings count from 1.
    pub(super) sent: AtomicU64,
    /// Of the last answered.
    pub(super) answered: AtomicU64,
    /// Milliseconds from `born` to the last answer.
    answered_ms: AtomicU64,
    /// Where the rank said that it is, and since when. A mutex, as the two belong together; held for no longer than that.
    place: Mutex<(Place, Instant)>,
    gone: AtomicBool,
}

impl Pulse {
    /// Of a rank that was alive just now.
    pub(super) fn new() -> Self {
        Self {
            born: Instant::now(),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            answered_ms: AtomicU64::new(0),
            place: Mutex::new((Place::default(), Instant::now())),
            gone: AtomicBool::new(false),
        }
    }

    /// The rank answered ping `count`, from `place`.
    pub(super) fn beat(&self, count: u64, place: Place) {
        let mut known = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != place {
            *known = (place, Instant::now());
        }
        drop(known);
        self.answered_ms.store(self.born.elapsed().as_millis() as u64, Relaxed);
        self.answered.store(count, Relaxed);
    }

    /// What it has rested does not count.
    pub(super) fn expect(&self) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).1 = Instant::now();
    }

    /// Where it is, and for how long.
    pub(super) fn place(&self) -> (Place, Duration) {
        let (place, since) = *self.place.lock().unwrap_or_else(PoisonError::into_inner);
        (place, since.elapsed())
    }

    /// The rank is gone.
    pub(super) fn stop(&self) {
        self.gone.store(true, Relaxed);
    }

    /// Since its last answer; forever once it is gone.
    pub(super) fn silent_for(&self) -> Duration {
        if self.gone.load(Relaxed) {
            return Duration::MAX;
        }
        self.born.elapsed().saturating_sub(Duration::from_millis(self.answered_ms.load(Relaxed)))
    }
}
