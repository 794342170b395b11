//! Chooses what the next step computes: decodes first, then chunks of prefill, first come first served.
//!
//! ```text
//!            admit (whole prompt fits)                 finish, cancel
//! waiting ─────────────────────────────► running ────────────────────► blocks freed
//!         ◄───────────────────────────── (oldest … youngest)
//!            preempt the youngest: blocks freed, computed again later
//!
//! step n     schedule ─ admit ─ plan ─────── under way ─────── complete
//! step n+1                             schedule ─ ─ ─ ─ ─ ─ ─ holds? ─ admit ─ plan ──
//! ```
//! The next step is chosen, with its blocks, while one is under way: each draw under way counts as one token, which is
//! known when the step is planned. Where it ended a text instead, the step is chosen anew. Nobody is preempted on a guess.
//!
//! Knows sequences and blocks; does not know tensors, ranks or how a token is drawn; does no I/O.
//! Invariant: every running sequence is older than every waiting one, and both are in order of arrival, so the oldest
//! always progresses: the pool holds at least one sequence of full length.

use std::collections::VecDeque;

use nanoinfer_shared::{
    Geometry,
    protocol::{BLOCK_TOKENS, SequenceStep, StepPlan},
};

use crate::{
    block_manager::BlockManager,
    sequence::{RowUse, SeqId, Sequence},
};

/// What a scheduler may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SchedulerLimits {
    /// Blocks of the pool; they hold at least `n_positions`.
    pub(crate) kv_blocks: usize,
    /// Most sequences in one step.
    pub(crate) max_seqs: usize,
    /// Most new tokens in one step.
    pub(crate) max_batched_tokens: usize,
    /// Whether a sequence may begin with blocks that another computed.
    pub(crate) prefix_cache: bool,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Sequences that gave their blocks back to an older one.
    pub(crate) preemptions: u64,
    /// Tokens of prompts that were looked up in the prefix cache.
    pub(crate) prefix_queries: u64,
    /// How many of them were there.
    pub(crate) prefix_hits: u64,
}

/// Owner of all sequences and of the block manager.
#[derive(Debug)]
pub(crate) struct Scheduler {
    geometry: Geometry,
    limits: SchedulerLimits,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    blocks: BlockManager,
    counters: Counters,
    next_step: u64,
    /// How many had hung up when it was last looked who.
    hang_ups: usize,
}

/// Who takes part in a step; open for more until it is planned.
#[derive(Debug)]
pub(crate) struct Step {
    /// In order of arrival.
    parts: Vec<Part>,
    /// New tokens that may still be added.
    budget: usize,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    id: SeqId,
    /// New tokens.
    count: usize,
}

/// A step as the ranks get it, and what its answers are for.
#[derive(Debug)]
pub(crate) struct PlannedStep {
    pub(crate) plan: StepPlan,
    /// One for each sequence of the plan.
    pub(crate) parts: Vec<PlannedPart>,
}

/// What one sequence does in a step.
#[derive(Debug)]
pub(crate) struct PlannedPart {
    pub(crate) id: SeqId,
    /// Tokens of the sequence in the pool after it.
    pub(crate) end: usize,
    /// One for each row that the plan asks for.
    pub(crate) uses: Vec<RowUse>,
}

impl Scheduler {
    /// Nothing to do yet.
    pub(crate) fn new(geometry: Geometry, mut limits: SchedulerLimits) -> Self {
        // One decode of each must fit a step, or the youngest would stand still.
        limits.max_seqs = limits.max_seqs.min(limits.max_batched_tokens);
        Self {
            geometry,
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks: BlockManager::new(limits.kv_blocks),
            counters: Counters::default(),
            limits,
            next_step: 0,
            hang_ups: 0,
        }
    }

    /// Puts a sequence, younger than all before, at the end of the queue.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Who takes part in the next step, with the blocks for it. With a step `under_way`, `None` where that must be done
    /// first: where it must be known whose blocks come free before anybody loses theirs.
    pub(crate) fn schedule(&mut self, under_way: bool) -> Option<Step> {
        let (mut counts, budget) = self.share_budget();
        let mut step = Step { parts: Vec::new(), budget };
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            if self.blocks.grow(&mut sequence.blocks, sequence.computed + counts[at]) {
                at += 1;
            } else if under_way {
                return None;
            } else {
                self.preempt_youngest();
                // What was freed is for the older ones.
                step.budget = 0;
            }
        }
        counts.truncate(self.running.len());
        let parts = self.running.iter().zip(counts).filter(|&(_, count)| count > 0);
        step.parts = parts.map(|(sequence, count)| Part { id: sequence.id, count }).collect();
        self.admit(&mut step);
        Some(step)
    }

    /// Whether everybody who takes part in a step is still there. Where not, others may use the room: it is chosen anew.
    pub(crate) fn holds(&self, step: &Step) -> bool {
        step.parts.iter().all(|part| self.position(part.id).is_some())
    }

    /// Lets in what waits, while there is budget and a place, and blocks for all of its tokens: letting in what only
    /// fits for a chunk would preempt it soon after.
    pub(crate) fn admit(&mut self, step: &mut Step) {
        while step.budget > 0 && self.running.len() < self.limits.max_seqs {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            if !self.enter(&mut sequence) {
                self.blocks.release(&mut sequence.blocks);
                self.waiting.push_front(sequence);
                return;
            }
            let count = sequence.pending().min(step.budget);
            step.budget -= count;
            step.parts.push(Part { id: sequence.id, count });
            self.running.push(sequence);
        }
    }

    /// The step as the ranks get it; `None` where nobody takes part. Every token it computes is known by now.
    pub(crate) fn plan(&mut self, step: Step) -> Option<PlannedStep> {
        let mut planned = PlannedStep {
            plan: StepPlan { step: self.next_step, sequences: Vec::with_capacity(step.parts.len()), timed: false },
            parts: Vec::with_capacity(step.parts.len()),
        };
        for Part { id, count } in step.parts {
            let at = self.running_at(id);
            let sequence = &mut self.running[at];
            let (start, end) = (sequence.computed, sequence.computed + count);
            let (outputs, uses) = sequence.outputs(count, &self.geometry);
            planned.plan.sequences.push(SequenceStep {
                tokens: sequence.tokens[start..end].to_vec(),
                start: start as u32,
                blocks: sequence.blocks.covering(end).to_vec(),
                outputs,
            });
            sequence.computed = end;
            sequence.drawing = uses.iter().any(|row| matches!(row, RowUse::Draw(_)));
            planned.plan.timed |= sequence.drawing && sequence.request.explain;
            planned.parts.push(PlannedPart { id, end, uses });
        }
        if planned.parts.is_empty() {
            return None;
        }
        self.next_step += 1;
        Some(planned)
    }

    /// Notes that a step is done: what it computed may be found by others.
    pub(crate) fn complete(&mut self, step: &PlannedStep) {
        if !self.limits.prefix_cache {
            return;
        }
        for part in &step.parts {
            let at = self.running_at(part.id);
            let Sequence { blocks, hashes, tokens, .. } = &mut self.running[at];
            self.blocks.publish(blocks, hashes.of(tokens, part.end / BLOCK_TOKENS));
        }
    }

    /// A sequence of the last step.
    pub(crate) fn get_mut(&mut self, id: SeqId) -> &mut Sequence {
        let at = self.running_at(id);
        &mut self.running[at]
    }

    /// Takes out a sequence of the last step and frees its blocks.
    pub(crate) fn remove(&mut self, id: SeqId) -> Sequence {
        let at = self.running_at(id);
        let mut sequence = self.running.remove(at);
        self.blocks.release(&mut sequence.blocks);
        sequence
    }

    /// The same as [`Self::remove_where`], where more than last time have hung up, `hang_ups` in all: thousands may wait, and
    /// most steps nobody goes.
    pub(crate) fn remove_hung_up(&mut self, hang_ups: usize, gone: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        if std::mem::replace(&mut self.hang_ups, hang_ups) == hang_ups {
            return Vec::new();
        }
        self.remove_where(gone)
    }

    /// Takes out every sequence for which `gone` holds and frees its blocks. No step may be under way.
    pub(crate) fn remove_where(&mut self, gone: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut removed: Vec<Sequence> = self.running.extract_if(.., |sequence| gone(sequence)).collect();
        for sequence in &mut removed {
            self.blocks.release(&mut sequence.blocks);
        }
        if self.waiting.iter().any(&gone) {
            let (left, kept) = self.waiting.drain(..).partition(|sequence| gone(sequence));
            self.waiting = kept;
            removed.extend::<VecDeque<_>>(left);
        }
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

    /// Sequences that have taken a step: those that run, and those that were preempted.
    pub(crate) fn begun_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.running.iter_mut().chain(self.waiting.iter_mut().take_while(|sequence| sequence.place.is_none()))
    }

    /// The pool of blocks.
    pub(crate) fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// What happened so far.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Steps planned so far.
    #[cfg(test)]
    pub(crate) fn steps(&self) -> u64 {
        self.next_step
    }

    /// Whether sequences and blocks are as they must be; meant for idle times, as it looks at all of them.
    ///
    /// # Errors
    /// Says in plain words what is not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let all = || self.running.iter().chain(&self.waiting);
        self.blocks.check(all().map(|sequence| &sequence.blocks))?;
        if !all().map(|sequence| sequence.id).is_sorted() {
            return Err("a sequence runs or waits before one that came earlier".into());
        }
        match self.waiting.iter().find(|sequence| !sequence.blocks.is_empty() || sequence.computed > 0) {
            Some(sequence) => Err(format!("{:?} waits with something computed", sequence.id)),
            None => Ok(()),
        }
    }

    /// New tokens of each running sequence, and what is left of the budget.
    fn share_budget(&self) -> (Vec<usize>, usize) {
        let mut counts = vec![0; self.running.len()];
        let mut budget = self.limits.max_batched_tokens;
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

    /// Sends the youngest running sequence back to the front of the queue. It keeps its tokens and computes them again.
    fn preempt_youngest(&mut self) {
        let mut sequence = self.running.pop().expect("the pool holds one sequence of full length, so one can run");
        assert!(!self.running.is_empty(), "the pool holds the oldest sequence whatever its length");
        tracing::debug!(seq = sequence.id.0, tokens = sequence.computed, "preempted: no KV block is free");
        self.blocks.release(&mut sequence.blocks);
        sequence.computed = 0;
        self.counters.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Finds the blocks for all tokens of a sequence: what others have computed, and free ones for the rest. Tells
    /// whether it may run; where not, it may hold some of them.
    fn enter(&mut self, sequence: &mut Sequence) -> bool {
        let reusable = if self.limits.prefix_cache { sequence.reusable_blocks() } else { 0 };
        let contents = sequence.hashes.of(&sequence.tokens, reusable);
        let reused = self.blocks.reuse(&mut sequence.blocks, contents);
        if let Some(next) = contents.get(reused) {
            // Somebody is about to compute what comes next: a step of waiting saves computing it twice. This is how the
            // choices of one request come to share their prompt.
            let computes =
                |other: &Sequence| other.blocks.published() <= reused && other.hashes.get(reused) == Some(next);
            if self.running.iter().any(computes) {
                return false;
            }
        }
        if !self.blocks.grow(&mut sequence.blocks, sequence.tokens.len()) {
            return false;
        }
        sequence.computed = reused * BLOCK_TOKENS;
        if sequence.place.take().is_some() && reusable > 0 {
            self.counters.prefix_queries += sequence.tokens.len() as u64;
            self.counters.prefix_hits += sequence.computed as u64;
        }
        true
    }

    fn running_at(&self, id: SeqId) -> usize {
        self.position(id).expect("nobody is taken out of a step between its plan and its end")
    }

    fn position(&self, id: SeqId) -> Option<usize> {
        self.running.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }
}

#[cfg(test)]
mod tests;
