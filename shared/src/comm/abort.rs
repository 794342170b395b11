//! Ends the waits of a data link from another thread: who waits for a peer that is gone does not look elsewhere.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// A way out of one data link, for whoever else in this process learns that it is of no further use. Pulled once.
#[derive(Clone, Default)]
pub struct Abort(Arc<Inner>);

#[derive(Default)]
struct Inner {
    pulled: AtomicBool,
    /// What wakes those that wait. A mutex, as a link is joined by one thread and aborted by another.
    wakers: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl Abort {
    /// Makes pending and later reductions of the link fail at once instead of at their deadline, the peers' too.
    pub fn pull(&self) {
        self.0.pulled.store(true, SeqCst);
        let wakers = std::mem::take(&mut *self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(|wake| wake());
    }

    /// Whether that has happened.
    pub fn is_pulled(&self) -> bool {
        self.0.pulled.load(SeqCst)
    }

    /// Has `wake` called when that happens, or now if it has.
    pub(super) fn on_pull(&self, wake: impl FnOnce() + Send + 'static) {
        self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(wake));
        // Either it was pulled before, or it finds this waker.
        if self.is_pulled() {
            self.pull();
        }
    }
}

impl fmt::Debug for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Abort").field(&self.is_pulled()).finish()
    }
}
