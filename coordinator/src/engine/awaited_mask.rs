//! A mask that another thread computes, and who waits for it.
//!
//! ```text
//! engine   begin ── wait ──(its deadline)── given up: its sequence sits out ─── take
//! thread     └───── Next::mask ────────────────────────────────────── done ─ wake ┘
//! ```
//! Does not know steps, nor what a grammar is. Invariant: who was given up on wakes the engine when it is done, and nobody else does.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use nanoinfer_shared::protocol::TokenMask;

use super::{next::Next, submission::Wake};

/// Work for another thread.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// A mask, with what computed it.
pub(crate) type Computed = (Box<dyn Next>, Result<TokenMask, String>);

/// A mask, and what computes it until it is there.
pub(crate) struct AwaitedMask(Arc<Slot>);

/// Where both sides meet: the engine waits, with a deadline, for what the other thread leaves here.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    computed: Option<Computed>,
    given_up: bool,
}

impl AwaitedMask {
    /// The mask of `next`, and the job that computes it.
    pub(super) fn begin(mut next: Box<dyn Next>, wake: Wake) -> (Self, Job) {
        let slot = Arc::new(Slot::default());
        let of_job = slot.clone();
        let job = Box::new(move || {
            // Its sequence has ended meanwhile.
            if Arc::strong_count(&of_job) == 1 {
                return;
            }
            // Whoever asked for this grammar is told, and nobody else.
            let mask = catch_unwind(AssertUnwindSafe(|| next.mask())).unwrap_or_else(|panic| Err(bug(&*panic)));
            let mut state = of_job.lock();
            state.computed = Some((next, mask));
            let given_up = state.given_up;
            drop(state);
            of_job.changed.notify_one();
            if given_up {
                wake();
            }
        });
        (Self(slot), job)
    }

    /// One that is there already.
    pub(super) fn done(next: Box<dyn Next>, mask: Result<TokenMask, String>) -> Self {
        let state = State { computed: Some((next, mask)), given_up: false };
        Self(Arc::new(Slot { state: state.into(), changed: Condvar::new() }))
    }

    /// Waits for it; given up from the deadline on.
    pub(super) fn wait(&self, deadline: Instant) -> Option<Computed> {
        let mut state = self.0.lock();
        loop {
            if let Some(computed) = state.computed.take() {
                return Some(computed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.given_up = true;
                return None;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// It, once it is there.
    pub(crate) fn take(&self) -> Option<Computed> {
        self.0.lock().computed.take()
    }
}

impl fmt::Debug for AwaitedMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwaitedMask")
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bug(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().map(|&words| words.to_owned());
    let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    format!("its grammar failed, which is a bug: {words}")
}
