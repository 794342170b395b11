//! What the engine tells of itself: its threads write it, probes, metrics and pages read it without asking.
//!
//! Does not know who asks.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use crate::engine::{
    history::{Entry, StepHistory},
    metrics::Metrics,
};

/// The engine's state, for probes and pages: written by the engine's threads, read by anyone.
#[derive(Debug, Default)]
pub struct Status {
    ready: AtomicBool,
    failure: OnceLock<String>,
    history: StepHistory,
    /// Those that were ever lost, by rank. A mutex, as they change together; held for no longer than that.
    ranks: Mutex<Vec<LiveRank>>,
    metrics: Arc<Metrics>,
}

/// What became of a rank, as the live view shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveRank {
    /// It is lost, and none has taken its place yet.
    pub is_lost: bool,
    /// How often another has taken its place.
    pub restarts: u64,
    /// From its last loss until steps were taken again.
    pub back_after: Option<Duration>,
}

impl Status {
    /// Whether every rank answered its last heartbeat in time, and the engine runs.
    pub fn is_ready(&self) -> bool {
        self.ready.load(SeqCst)
    }

    /// Sets that; tells what it was.
    pub(crate) fn set_ready(&self, ready: bool) -> bool {
        self.ready.swap(ready, SeqCst)
    }

    /// Why the engine ended, once it has.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Notes why the engine ends; the first reason says most.
    pub(crate) fn fail(&self, reason: impl Into<String>) {
        let _ = self.failure.set(reason.into());
    }

    /// What became of a rank.
    pub fn rank(&self, rank: usize) -> LiveRank {
        self.ranks.lock().unwrap_or_else(PoisonError::into_inner).get(rank).copied().unwrap_or_default()
    }

    /// Notes that some are lost.
    pub(crate) fn lose(&self, lost: impl Iterator<Item = usize>) {
        let mut ranks = self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newly = Vec::new();
        for rank in lost {
            let known = ranks.len().max(rank + 1);
            ranks.resize_with(known, LiveRank::default);
            if !std::mem::replace(&mut ranks[rank].is_lost, true) {
                newly.push(rank);
            }
        }
        if !newly.is_empty() {
            self.history.add(Entry::Lost { ranks: newly });
        }
    }

    /// Notes that those that were lost have others in their places, which took so long.
    pub(crate) fn regain(&self, after: Duration) {
        let mut ranks = self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        for rank in ranks.iter_mut().filter(|rank| rank.is_lost) {
            *rank = LiveRank { is_lost: false, restarts: rank.restarts + 1, back_after: Some(after) };
        }
        self.history.add(Entry::Back { after_s: after.as_secs_f64() });
    }

    /// Sequences in the current step.
    pub fn running(&self) -> usize {
        self.metrics.num_requests_running.get() as usize
    }

    /// Sequences that wait for their first step, or again after a preemption.
    pub fn waiting(&self) -> usize {
        self.metrics.num_requests_waiting.get() as usize
    }

    /// KV blocks in the pool.
    pub fn blocks_total(&self) -> usize {
        self.metrics.blocks_total.load(Relaxed)
    }

    /// KV blocks that nobody holds, those that can be found by their content included.
    pub fn blocks_free(&self) -> usize {
        self.metrics.blocks_free.load(Relaxed)
    }

    /// What happened lately, and who holds which KV blocks.
    pub fn history(&self) -> &StepHistory {
        &self.history
    }

    /// What is counted and timed.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}
