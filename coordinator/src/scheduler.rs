//! Chooses what the next step computes: decodes first, then chunks of prefill, first come first served.
//!
//! ```text
//!            admit (whole prompt fits)                 finish, cancel
//! waiting ─────────────────────────────► running ────────────────────► blocks freed
//!         ◄───────────────────────────── (oldest … youngest)
//!            preempt the youngest: blocks freed, computed again later
//! ```
//! Knows sequences and blocks; does not know tensors, ranks or how a token is drawn; does no I/O.
//! Invariant: every running sequence is older than every waiting one, and both are in order of arrival, so the oldest
//! always progresses: the pool holds at least one sequence of full length.

use std::collections::VecDeque;

use nanoinfer_shared::{
    Geometry,
    protocol::{SequenceStep, StepPlan},
};

use crate::{
    block_manager::BlockManager,
    sequence::{RowUse, SeqId, Sequence},
};

/// Owner of all sequences and of the block manager.
#[derive(Debug)]
pub(crate) struct Scheduler {
    geometry: Geometry,
    max_seqs: usize,
    max_batched_tokens: usize,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    blocks: BlockManager,
    next_step: u64,
}

/// A step to take, and what its answers are for.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) plan: StepPlan,
    /// One for each sequence of the plan.
    pub(crate) parts: Vec<Part>,
}

/// What one sequence does in a step.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) id: SeqId,
    /// New tokens.
    pub(crate) count: usize,
    /// One for each row that the plan asks for.
    pub(crate) uses: Vec<RowUse>,
}

impl Scheduler {
    /// Nothing to do yet. `kv_blocks` hold at least `n_positions`.
    pub(crate) fn new(geometry: Geometry, kv_blocks: usize, max_seqs: usize, max_batched_tokens: usize) -> Self {
        Self {
            geometry,
            // One decode of each must fit a step, or the youngest would stand still.
            max_seqs: max_seqs.min(max_batched_tokens),
            max_batched_tokens,
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks: BlockManager::new(kv_blocks),
            next_step: 0,
        }
    }

    /// Puts a sequence, younger than all before, at the end of the queue.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// The next step; `None` where there is nothing to compute.
    pub(crate) fn schedule(&mut self) -> Option<Step> {
        let (mut counts, mut budget) = self.share_budget();
        let preempted = self.cover_with_blocks(&mut counts);
        if !preempted {
            self.admit(&mut counts, &mut budget);
        }
        let mut step = Step { plan: StepPlan { step: self.next_step, sequences: Vec::new() }, parts: Vec::new() };
        for (sequence, count) in self.running.iter().zip(counts).filter(|&(_, count)| count > 0) {
            let (start, end) = (sequence.computed, sequence.computed + count);
            let (outputs, uses) = sequence.outputs(count, &self.geometry);
            step.plan.sequences.push(SequenceStep {
                tokens: sequence.tokens[start..end].to_vec(),
                start: start as u32,
                blocks: sequence.blocks.covering(end).to_vec(),
                outputs,
            });
            step.parts.push(Part { id: sequence.id, count, uses });
        }
        if step.parts.is_empty() {
            return None;
        }
        self.next_step += 1;
        Some(step)
    }

    /// Notes that a step's tokens are in the KV pool.
    pub(crate) fn advance(&mut self, step: &Step) {
        for part in &step.parts {
            self.get_mut(part.id).computed += part.count;
        }
    }

    /// A sequence of the last step.
    pub(crate) fn get_mut(&mut self, id: SeqId) -> &mut Sequence {
        let at = self.position(id);
        &mut self.running[at]
    }

    /// Takes out a sequence of the last step and frees its blocks.
    pub(crate) fn remove(&mut self, id: SeqId) -> Sequence {
        let at = self.position(id);
        let mut sequence = self.running.remove(at);
        self.blocks.release(&mut sequence.blocks);
        sequence
    }

    /// Takes out every sequence for which `gone` holds and frees its blocks.
    pub(crate) fn remove_where(&mut self, gone: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut removed: Vec<Sequence> = self.running.extract_if(.., |sequence| gone(sequence)).collect();
        for sequence in &mut removed {
            self.blocks.release(&mut sequence.blocks);
        }
        let (left, kept) = self.waiting.drain(..).partition(|sequence| gone(sequence));
        self.waiting = kept;
        removed.extend::<VecDeque<_>>(left);
        removed
    }

    /// Whether there is no sequence at all.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Those that hold blocks, the oldest first.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter()
    }

    /// Sequences that hold blocks.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for their first step, or again after a preemption.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The pool of blocks.
    pub(crate) fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// New tokens of each running sequence, and what is left of the budget.
    fn share_budget(&self) -> (Vec<usize>, usize) {
        let mut counts = vec![0; self.running.len()];
        let mut budget = self.max_batched_tokens;
        for decodes in [true, false] {
            for (sequence, count) in self.running.iter().zip(&mut counts) {
                if (sequence.pending() == 1) == decodes {
                    *count = sequence.pending().min(budget);
                    budget -= *count;
                }
            }
        }
        (counts, budget)
    }

    /// Gives every sequence the blocks for its new tokens, the oldest first; where the pool is empty, the youngest
    /// gives way. Tells whether one did.
    fn cover_with_blocks(&mut self, counts: &mut Vec<usize>) -> bool {
        let before = self.running.len();
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            if self.blocks.grow(&mut sequence.blocks, sequence.computed + counts[at]) {
                at += 1;
            } else {
                self.preempt_youngest();
            }
        }
        counts.truncate(self.running.len());
        self.running.len() < before
    }

    /// Sends the youngest running sequence back to the front of the queue. It keeps its tokens and computes them again.
    fn preempt_youngest(&mut self) {
        let mut sequence = self.running.pop().expect("the pool holds one sequence of full length, so one can run");
        assert!(!self.running.is_empty(), "the pool holds the oldest sequence whatever its length");
        tracing::debug!(seq = sequence.id.0, tokens = sequence.computed, "preempted: no KV block is free");
        self.blocks.release(&mut sequence.blocks);
        sequence.computed = 0;
        self.waiting.push_front(sequence);
    }

    /// Lets in what waits, while there is budget and a place, and blocks for all of its tokens: letting in what only
    /// fits for a chunk would preempt it soon after.
    fn admit(&mut self, counts: &mut Vec<usize>, budget: &mut usize) {
        while *budget > 0 && self.running.len() < self.max_seqs {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            if !self.blocks.grow(&mut sequence.blocks, sequence.tokens.len()) {
                self.waiting.push_front(sequence);
                return;
            }
            sequence.place = None;
            let count = sequence.pending().min(*budget);
            *budget -= count;
            counts.push(count);
            self.running.push(sequence);
        }
    }

    fn position(&self, id: SeqId) -> usize {
        self.running.binary_search_by_key(&id, |sequence| sequence.id).expect("a sequence of the last step is running")
    }
}

#[cfg(test)]
mod tests;
