//! The door to the engine: submit requests, receive events, ask how it is.
//!
//! The engine itself runs on its own thread and owns every sequence; this handle is cheap to clone. Everything
//! between the two is a bounded queue or an atomic.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::request::{Event, Request};

/// Submits requests to the engine.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    pub(crate) submissions: mpsc::Sender<Submission>,
    pub(crate) status: Arc<Status>,
}

/// A request on its way to the engine, with the way back.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) request: Request,
    /// Holds every event a sequence can have, so that the engine never waits for a slow reader.
    pub(crate) events: mpsc::Sender<Event>,
}

/// The events of one sequence. Dropping it cancels the sequence within one step.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<Event>);

/// The engine's state, for probes and pages: written by the engine's threads, read by anyone.
#[derive(Debug, Default)]
pub struct Status {
    /// Every rank answered its last heartbeat in time, and the engine runs.
    pub ready: AtomicBool,
    /// No new requests are taken.
    pub stopping: AtomicBool,
    /// Sequences in the current step.
    pub running: AtomicUsize,
    /// Sequences that wait for their first step, or again after a preemption.
    pub waiting: AtomicUsize,
    /// KV blocks in the pool.
    pub blocks_total: AtomicUsize,
    /// KV blocks that nobody holds.
    pub blocks_free: AtomicUsize,
    /// Why the engine ended, once it has.
    pub failure: OnceLock<String>,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Try again later.
    #[error("the queue is full: {limit} requests are waiting")]
    QueueFull {
        /// `--max-queue`.
        limit: usize,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
    /// A rank is gone.
    #[error("the engine has ended: {0}")]
    Ended(String),
}

impl EngineHandle {
    /// Queues one sequence.
    ///
    /// # Errors
    /// When the queue is full, or the engine takes nothing more.
    pub fn submit(&self, request: Request) -> Result<Events, SubmitError> {
        if self.status.stopping.load(Relaxed) {
            return Err(SubmitError::Stopping);
        }
        let (submission, events) = submission(request);
        match self.submissions.try_send(submission) {
            Ok(()) => Ok(events),
            Err(TrySendError::Full(_)) => Err(SubmitError::QueueFull { limit: self.submissions.max_capacity() }),
            Err(TrySendError::Closed(_)) => Err(SubmitError::Ended(self.failure())),
        }
    }

    /// Queues one sequence, and waits as long as the queue is full: for the rest of a request of which a part runs
    /// already, so that it is taken even while the server is shutting down.
    ///
    /// # Errors
    /// When the engine takes nothing more.
    pub async fn submit_in_turn(&self, request: Request) -> Result<Events, SubmitError> {
        let (submission, events) = submission(request);
        match self.submissions.send(submission).await {
            Ok(()) => Ok(events),
            Err(_) => Err(SubmitError::Ended(self.failure())),
        }
    }

    /// The engine's state.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Takes no new requests from now on; those under way finish.
    pub fn stop(&self) {
        self.status.stopping.store(true, Relaxed);
    }

    /// Waits until the engine's thread has ended, cleanly or not.
    pub async fn ended(&self) {
        self.submissions.closed().await;
    }

    fn failure(&self) -> String {
        self.status.failure.get().cloned().unwrap_or_else(|| "it was stopped".into())
    }
}

fn submission(request: Request) -> (Submission, Events) {
    // A prompt event, one event a token, and the end.
    let (events, receiver) = mpsc::channel(request.limits.max_tokens + 2);
    (Submission { request, events }, Events(receiver))
}

impl Events {
    /// The next event; `None` only after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}
