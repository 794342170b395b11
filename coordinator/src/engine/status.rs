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

use serde::Serialize;
use tokio::sync::watch;

use crate::engine::metrics::Metrics;

/// The engine's state, for probes and pages: written by the engine's threads, read by anyone.
#[derive(Debug, Default)]
pub struct Status {
    ready: AtomicBool,
    failure: OnceLock<String>,
    live: watch::Sender<LiveBlocks>,
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

/// The KV blocks in use, as the live view shows them.
#[derive(Clone, Debug, Default)]
pub struct LiveBlocks {
    /// The sequences that hold some.
    pub sequences: Vec<LiveSequence>,
    /// Those that nobody holds and that a prompt may find again; while steps run, as of a fraction of a second ago.
    pub idle: Vec<u32>,
}

/// A sequence as the live view shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LiveSequence {
    /// Its number, in order of arrival.
    pub id: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Prompt and generated tokens.
    pub tokens: usize,
    /// How many of them are in the KV pool.
    pub computed: usize,
    /// The blocks that hold them; a block of several sequences is shared.
    pub blocks: Vec<u32>,
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
        for rank in lost {
            let known = ranks.len().max(rank + 1);
            ranks.resize_with(known, LiveRank::default);
            ranks[rank].is_lost = true;
        }
    }

    /// Notes that those that were lost have others in their places, which took so long.
    pub(crate) fn regain(&self, after: Duration) {
        let mut ranks = self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        for rank in ranks.iter_mut().filter(|rank| rank.is_lost) {
            *rank = LiveRank { is_lost: false, restarts: rank.restarts + 1, back_after: Some(after) };
        }
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

    /// Who holds KV blocks: as of the last step for those who subscribed, else, while steps run, as of a fraction of a second
    /// ago.
    pub fn live(&self) -> &watch::Sender<LiveBlocks> {
        &self.live
    }

    /// What is counted and timed.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}
