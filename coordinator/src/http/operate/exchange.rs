//! How far a connection is with its requests and answers, for all who look after it.
//!
//! ```text
//! Waiting ─a head─► Asking ─its body is read─► Answering ─the answer's end─► Flushing ─it is sent─► Waiting
//! ```
//! The one truth that the stream, the service and the connection's task share. Does not know what is said.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use tokio::sync::Notify;

use super::places::Place;

const WAITING: u8 = 0;
const ASKING: u8 = 1;
const ANSWERING: u8 = 2;
const FLUSHING: u8 = 3;

/// One connection's.
#[derive(Debug)]
pub(crate) struct Exchange {
    phase: AtomicU8,
    /// Its first request came.
    pub(crate) asked: Notify,
    pub(crate) place: Place,
}

impl Exchange {
    pub(crate) fn new(place: Place) -> Arc<Self> {
        Arc::new(Self { phase: AtomicU8::new(WAITING), asked: Notify::new(), place })
    }

    /// A request's head is there. Its body, and in time its answer's, go with what this returns.
    pub(crate) fn begin(self: &Arc<Self>) -> (Guard, Guard) {
        self.place.busy();
        self.phase.store(ASKING, Relaxed);
        self.asked.notify_one();
        // A request's body may be left where it is until its answer is over.
        let asking = |exchange: &Self| {
            let _ = exchange.phase.compare_exchange(ASKING, ANSWERING, Relaxed, Relaxed);
        };
        let answering = |exchange: &Self| exchange.phase.store(FLUSHING, Relaxed);
        (Guard(self.clone(), asking), Guard(self.clone(), answering))
    }

    /// Nothing more is to be read of the request, and its answer goes on.
    pub(crate) fn is_answering(&self) -> bool {
        self.phase.load(Relaxed) == ANSWERING
    }

    /// What comes now is none of the request's.
    pub(crate) fn is_ahead(&self) -> bool {
        matches!(self.phase.load(Relaxed), ANSWERING | FLUSHING)
    }

    /// All that was said is sent. Returns whether that ends an answer.
    pub(crate) fn flushed(&self) -> bool {
        let ends = self.phase.compare_exchange(FLUSHING, WAITING, Relaxed, Relaxed).is_ok();
        if ends {
            self.place.idle();
        }
        ends
    }
}

/// Dropped with the body of a request or of an answer; what its end means.
#[derive(Debug)]
pub(crate) struct Guard(Arc<Exchange>, fn(&Exchange));

impl Drop for Guard {
    fn drop(&mut self) {
        (self.1)(&self.0);
    }
}
