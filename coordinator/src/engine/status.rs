//! What the engine tells of itself: its threads write it, probes, metrics and pages read it without asking.
//!
//! Does not know who asks.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};

use serde::Serialize;
use tokio::sync::watch;

use crate::engine::{metrics::Metrics, sequence::Sequence};

/// The engine's state, for probes and pages: written by the engine's threads, read by anyone.
#[derive(Debug, Default)]
pub struct Status {
    /// Every rank answered its last heartbeat in time, and the engine runs.
    pub ready: AtomicBool,
    /// No new requests are taken.
    pub stopping: AtomicBool,
    /// Those under way do not finish either.
    pub cutting_off: AtomicBool,
    /// Sequences in the current step.
    pub running: AtomicUsize,
    /// Sequences that wait for their first step, or again after a preemption.
    pub waiting: AtomicUsize,
    /// Readers who went before their sequence's end.
    pub hang_ups: AtomicUsize,
    /// KV blocks in the pool.
    pub blocks_total: AtomicUsize,
    /// KV blocks that nobody holds, those that can be found by their content included.
    pub blocks_free: AtomicUsize,
    /// KV blocks that can be found by their content, held or not.
    pub blocks_cached: AtomicUsize,
    /// Tokens of prompts that were looked up in the prefix cache.
    pub prefix_queries: AtomicU64,
    /// How many of them were there.
    pub prefix_hits: AtomicU64,
    /// Times that a sequence gave its blocks to another.
    pub preemptions: AtomicU64,
    /// Drawing tokens from answers, whole rows included, in all.
    pub draw_ns: AtomicU64,
    /// Draws for which the candidates did not suffice.
    pub rows_fetched: AtomicU64,
    /// Bytes of what ranks answered to steps: candidates, targets and whole rows.
    pub answer_bytes: AtomicU64,
    /// What was found broken while nothing ran: a bug of ours.
    pub broken_invariant: OnceLock<String>,
    /// Why the engine ended, once it has.
    pub failure: OnceLock<String>,
    /// Who holds KV blocks: as of the last step for those who subscribed, else, while steps run, as of a fraction of a second ago.
    pub live: watch::Sender<LiveBlocks>,
    /// What is counted and timed.
    pub metrics: Arc<Metrics>,
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

impl LiveSequence {
    pub(crate) fn of(sequence: &Sequence) -> Self {
        Self {
            id: sequence.id.0,
            prompt_tokens: sequence.request.prompt.len(),
            tokens: sequence.tokens.len(),
            computed: sequence.computed,
            blocks: sequence.blocks.covering(sequence.computed).iter().map(|block| block.0).collect(),
        }
    }
}
