//! Chooses what the next step computes: decodes first, then pieces of prompts, in turns among those who ask.
//!
//! ```text
//!            let in (a place, blocks for all of it)        finish, cancel
//! fair queue ─────────────────────────────► running ────────────────────► blocks freed
//!            ◄───────────────────────────── (admitted first … last)
//!            give way: blocks freed, computed again later
//!
//! step n     schedule ─ admit ─ plan ─────── under way ─────── complete
//! step n+1                             schedule ─ ─ ─ ─ ─ ─ ─ holds? ─ admit ─ plan ──
//! ```
//! The next step is chosen, with its blocks, while one is under way: each draw under way counts as one token, which is
//! known when the step is planned. Where it ended a text instead, or forced further tokens, the step is chosen anew. Nobody gives
//! way on a guess.
//!
//! Who gives way, and when, is in `give_way`.
//!
//! Knows sequences and blocks; whose turn it is, is the [`FairQueue`]'s. Does not know tensors, ranks or how a token is
//! drawn; does no I/O.
//! Invariant: the sequence that was admitted first never gives way and takes part in every step, but for those that it sits out because its
//! mask is late, so it always progresses: the pool holds at least one sequence of full length.

mod give_way;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use nanoinfer_shared::{
    ModelShape,
    protocol::{BLOCK_TOKENS, SequenceStep, StepPlan},
};

use crate::engine::{
    block_manager::BlockManager,
    fair_queue::FairQueue,
    metrics::Metrics,
    owner::{Party, RequestId},
    sequence::{RowUse, Sequence, Ticket},
};

/// Lost steps in a row after which a sequence takes its next one alone.
const SUSPECT: u32 = 2;
/// Steps that a sequence sits out for one mask, at most. Bounded as the library's work is, none takes nearly as long.
pub(crate) const MOST_SAT_OUT: u32 = 1000;

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

/// Owner of all sequences and of the block manager.
#[derive(Debug)]
pub(crate) struct Scheduler {
    shape: ModelShape,
    limits: SchedulerLimits,
    queue: FairQueue,
    /// In order of admission.
    running: Vec<Sequence>,
    admitted: u64,
    blocks: BlockManager,
    metrics: Arc<Metrics>,
    next_step: u64,
    /// How many had hung up when it was last looked who.
    hang_ups: usize,
}

/// Who takes part in a step; open for more until it is planned.
#[derive(Debug)]
pub(crate) struct Step {
    /// In order of admission.
    parts: Vec<Part>,
    /// New tokens that may still be added.
    budget: usize,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    ticket: Ticket,
    /// New tokens.
    count: usize,
    /// Of so many that it had to compute.
    pending: usize,
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
    pub(crate) ticket: Ticket,
    /// Tokens of the sequence in the pool after it.
    pub(crate) end: usize,
    /// One for each row that the plan asks for.
    pub(crate) uses: Vec<RowUse>,
}

/// Why a sequence that wanted in is not.
enum Refusal {
    /// Not in this step; others may be.
    Later,
    /// There is no block for it, and what comes free is for it.
    NoBlocks,
    /// Others should give way to it, once the step under way is done.
    Exchange,
}

impl Scheduler {
    /// Nothing to do yet.
    pub(crate) fn new(shape: ModelShape, mut limits: SchedulerLimits, metrics: Arc<Metrics>) -> Self {
        // One decode of each must fit a step, or the last would stand still.
        limits.max_seqs = limits.max_seqs.min(limits.max_batched_tokens);
        Self {
            shape,
            queue: FairQueue::default(),
            running: Vec::new(),
            admitted: 0,
            blocks: BlockManager::new(limits.kv_blocks),
            metrics,
            limits,
            next_step: 0,
            hang_ups: 0,
        }
    }

    /// Puts a sequence in the queue.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.queue.add(sequence);
    }

    /// Who takes part in the next step, with the blocks for it. With a step `under_way`, `None` where that must be done
    /// first: where it must be known whose blocks come free before anybody loses theirs.
    pub(crate) fn schedule(&mut self, under_way: bool) -> Option<Step> {
        self.queue.forget_reserved();
        let mut preempted = false;
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            // Who computes its prompt has blocks for all of it, and who was forced to several tokens gets them for all of these.
            let positions = sequence.computed + sequence.pending();
            if self.blocks.grow(&mut sequence.blocks, positions) {
                at += 1;
                continue;
            }
            if under_way {
                return None;
            }
            let giving = self.who_gives_way();
            self.preempt(giving);
            preempted = true;
            at -= usize::from(giving < at);
        }
        // What was freed is for those that run.
        if !preempted && self.let_in(!under_way) && under_way {
            return None;
        }
        if let Some(suspect) = self.running.iter().find(|it| it.lost_steps >= SUSPECT && it.pending() > 0) {
            if under_way {
                return None;
            }
            let pending = suspect.pending();
            let part = Part { ticket: suspect.ticket, count: pending.min(self.limits.max_batched_tokens), pending };
            self.queue.reserve(suspect.owner, part.count);
            // Nobody joins it.
            return Some(Step { parts: vec![part], budget: 0 });
        }
        let mut step = Step { parts: Vec::new(), budget: self.limits.max_batched_tokens };
        self.share_budget(&mut step, 0);
        Some(step)
    }

    /// Whether everybody who takes part in a step is still there, with as much to compute. Where not, others may use the room, or
    /// there is more to compute at once: it is chosen anew.
    pub(crate) fn holds(&self, step: &Step) -> bool {
        let unchanged =
            |part: &Part| self.position(part.ticket).is_some_and(|at| self.running[at].pending() == part.pending);
        step.parts.iter().all(unchanged)
    }

    /// Adds those to a step who came while another was under way, as far as there is room.
    pub(crate) fn admit(&mut self, step: &mut Step) {
        if step.budget > 0 {
            let before = self.running.len();
            self.let_in(false);
            self.share_budget(step, before);
        }
    }

    /// The step as the ranks get it; `None` where nobody takes part. Every token it computes is known by now.
    pub(crate) fn plan(&mut self, step: Step) -> Option<PlannedStep> {
        let mut planned = PlannedStep {
            plan: StepPlan { step: self.next_step, sequences: Vec::with_capacity(step.parts.len()), timed: false },
            parts: Vec::with_capacity(step.parts.len()),
        };
        for Part { ticket, count, .. } in step.parts {
            let at = self.running_at(ticket);
            let sequence = &mut self.running[at];
            let (start, end) = (sequence.computed, sequence.computed + count);
            let (outputs, uses) = sequence.outputs(count, &self.shape);
            planned.plan.sequences.push(SequenceStep {
                tokens: sequence.tokens[start..end].to_vec(),
                start: start as u32,
                before: start.checked_sub(1).map(|before| sequence.tokens[before]),
                blocks: sequence.blocks.covering(end).to_vec(),
                outputs,
            });
            sequence.computed = end;
            sequence.drawing = uses.iter().any(|row| matches!(row, RowUse::Draw(_)));
            planned.plan.timed |= sequence.drawing && sequence.request.sampling.explain;
            planned.parts.push(PlannedPart { ticket, end, uses });
        }
        if planned.parts.is_empty() {
            return None;
        }
        self.queue.settle();
        self.next_step += 1;
        self.running.iter_mut().filter(|sequence| sequence.is_sitting_out()).for_each(|late| late.sat_out += 1);
        Some(planned)
    }

    /// Notes that a step is done: what it computed may be found by others.
    pub(crate) fn complete(&mut self, step: &PlannedStep) {
        for part in &step.parts {
            let at = self.running_at(part.ticket);
            let Sequence { blocks, hashes, tokens, lost_steps, .. } = &mut self.running[at];
            *lost_steps = 0;
            if self.limits.prefix_cache {
                self.blocks.publish(blocks, hashes.of(tokens, part.end / BLOCK_TOKENS));
            }
        }
    }

    /// Those whose masks have come take part again; whether there are any.
    pub(crate) fn rejoin(&mut self) -> bool {
        self.running.iter_mut().map(Sequence::rejoin).fold(false, |any, rejoined| any | rejoined)
    }

    /// Whether somebody runs, and sits out until its mask has come.
    pub(crate) fn awaits_masks(&self) -> bool {
        self.running.iter().any(Sequence::is_sitting_out)
    }

    /// Takes out those whose masks have not come for too many steps.
    pub(crate) fn remove_too_late(&mut self) -> Vec<Sequence> {
        let too_late = self.running.iter().filter(|sequence| sequence.sat_out > MOST_SAT_OUT);
        let tickets: Vec<Ticket> = too_late.map(|sequence| sequence.ticket).collect();
        tickets.into_iter().map(|ticket| self.remove(ticket)).collect()
    }

    /// The step has not happened: its sequences stand where they stood before it. One that was alone in it, as it was in two that
    /// were lost before, is taken out: it may well be what ends ranks.
    pub(crate) fn take_back(&mut self, step: &PlannedStep) -> Option<Sequence> {
        for (part, planned) in step.parts.iter().zip(&step.plan.sequences) {
            let sequence = self.get_mut(part.ticket);
            sequence.computed = planned.start as usize;
            sequence.drawing = false;
            sequence.lost_steps += 1;
        }
        match step.parts[..] {
            [PlannedPart { ticket, .. }] if self.get_mut(ticket).lost_steps > SUSPECT => Some(self.remove(ticket)),
            _ => None,
        }
    }

    /// Nothing is in the KV pool any more: all who run go back to the queue, each to its place, and compute their tokens again.
    pub(crate) fn rewind(&mut self) {
        for mut sequence in self.running.drain(..) {
            self.blocks.release(&mut sequence.blocks);
            sequence.computed = 0;
            self.queue.put_back(sequence);
        }
        self.blocks = BlockManager::new(self.blocks.total());
    }

    /// A sequence of the last step.
    pub(crate) fn get_mut(&mut self, ticket: Ticket) -> &mut Sequence {
        let at = self.running_at(ticket);
        &mut self.running[at]
    }

    /// The same, if it was not taken out since.
    pub(crate) fn find_mut(&mut self, ticket: Ticket) -> Option<&mut Sequence> {
        self.position(ticket).map(|at| &mut self.running[at])
    }

    /// Takes out a sequence of the last step and frees its blocks.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Sequence {
        let at = self.running_at(ticket);
        let mut sequence = self.running.remove(at);
        self.blocks.release(&mut sequence.blocks);
        self.queue.left(sequence.owner);
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
            self.queue.left(sequence.owner);
        }
        removed.extend(self.queue.remove_where(gone));
        removed
    }

    /// Whether there is no sequence at all.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.len() == 0
    }

    /// Those that hold blocks, the first admitted first.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter()
    }

    /// Sequences that hold blocks.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for their first step, or again after they gave way.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Sequences that have taken a step: those that run, and those that gave way.
    pub(crate) fn begun_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.running.iter_mut().chain(self.queue.begun_mut())
    }

    /// The pool of blocks.
    pub(crate) fn blocks(&self) -> &BlockManager {
        &self.blocks
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
        let all = || self.running.iter().chain(self.queue.sequences());
        self.blocks.check(all().map(|sequence| &sequence.blocks))?;
        self.queue.check(self.running.iter())?;
        if !self.running.iter().map(|sequence| sequence.ticket).is_sorted() {
            return Err("a sequence runs before one that was admitted earlier".into());
        }
        match self.queue.sequences().find(|sequence| sequence.blocks.len() > 0 || sequence.computed > 0) {
            Some(sequence) => Err(format!("{:?} waits with something computed", sequence.id)),
            None => Ok(()),
        }
    }

    /// Adds to a step those who run, from the `from`-th on: a token of each that decodes, and of the prompts of the others as
    /// much as there is room for, in turns. Who is far ahead computes no more of them than its places would by decoding: a step
    /// that is full of one party's prompts takes many times as long, and all others wait for it.
    fn share_budget(&mut self, step: &mut Step, from: usize) {
        let running = &self.running[from..];
        let mut counts = vec![0; running.len()];
        for (sequence, count) in running.iter().zip(&mut counts) {
            if sequence.pending() == 1 {
                *count = 1;
                step.budget -= 1;
                self.queue.reserve(sequence.owner, 1);
            }
        }
        // A token is kept for who was admitted first, however much was computed for its owner.
        let first = running.iter().position(|sequence| sequence.pending() > 0).filter(|_| from == 0);
        let mut shares = self.shares_of_who_is_far_ahead();
        loop {
            let share = |at: usize| shares.get(&running[at].owner.party).copied().unwrap_or(usize::MAX);
            let wanting = (0..running.len()).filter(|&at| counts[at] < running[at].pending() && share(at) > 0);
            let Some(at) = wanting.min_by_key(|&at| self.queue.turn(running[at].owner)) else { break };
            let kept = usize::from(first.is_some_and(|first| first != at && counts[first] == 0));
            let count = (running[at].pending() - counts[at]).min(step.budget - kept).min(share(at));
            if count == 0 {
                break;
            }
            if let Some(share) = shares.get_mut(&running[at].owner.party) {
                *share -= count;
            }
            counts[at] += count;
            step.budget -= count;
            self.queue.reserve(running[at].owner, count);
        }
        if let Some(first) = first.filter(|&first| counts[first] == 0) {
            counts[first] = 1;
            step.budget -= 1;
            self.queue.reserve(running[first].owner, 1);
        }
        let parts = running.iter().zip(counts).filter(|&(_, count)| count > 0);
        let part = |(sequence, count): (&Sequence, usize)| Part {
            ticket: sequence.ticket,
            count,
            pending: sequence.pending(),
        };
        step.parts.extend(parts.map(part));
    }

    /// Who got more tokens than this is far ahead: a sequence of full length more than another.
    fn far_ahead(&self) -> u64 {
        self.queue.least().unwrap_or_default() + self.shape.context as u64
    }

    /// Tokens of prompts that a step may compute for those who are far ahead.
    fn shares_of_who_is_far_ahead(&self) -> HashMap<Party, usize> {
        let mut places: HashMap<Party, usize> = HashMap::new();
        self.running.iter().for_each(|sequence| *places.entry(sequence.owner.party).or_default() += 1);
        let far = self.far_ahead();
        places.retain(|&party, _| self.queue.served(party) > far);
        places.values_mut().for_each(|share| *share = (*share).max(BLOCK_TOKENS));
        places
    }

    /// Lets in what waits, in turns, while those that run do not fill a step, and in any case one sequence of each request. The last
    /// place is not for those who are far ahead. Others give way if they `may`; tells where they would, if they might.
    fn let_in(&mut self, may_give_way: bool) -> bool {
        let is_full = self.running.len() == self.limits.max_seqs;
        if self.queue.len() == 0 || (is_full && !self.somebody_holds_places()) {
            return false;
        }
        let far = self.far_ahead();
        let mut line = self.queue.line();
        let mut wanted: usize = self.running.iter().map(Sequence::pending).sum();
        let mut runs: HashSet<RequestId> = self.running.iter().map(|sequence| sequence.owner.request).collect();
        while let Some(next) = line.next() {
            let owner = next.owner();
            let full = wanted >= self.limits.max_batched_tokens;
            // Who comes next should not have to wait until somebody has given way, nor behind prompts of who is far ahead: one of many
            // requests always has another of which nothing runs.
            let is_last_place = self.limits.max_seqs > 1 && self.running.len() + 1 == self.limits.max_seqs;
            if (full && runs.contains(&owner.request))
                || ((full || is_last_place) && self.queue.served(owner.party) > far)
                || !self.queue.waits(owner)
            {
                continue;
            }
            let mut sequence = self.queue.take(owner);
            match self.enter(&mut sequence, may_give_way) {
                Ok(()) => {
                    let pending = sequence.pending();
                    sequence.ticket = Ticket(self.admitted);
                    self.admitted += 1;
                    self.running.push(sequence);
                    wanted += pending;
                    runs.insert(owner.request);
                    line.again(next, pending);
                }
                Err(refusal) => {
                    self.blocks.release(&mut sequence.blocks);
                    self.queue.put_back(sequence);
                    match refusal {
                        Refusal::Later => {}
                        Refusal::NoBlocks => return false,
                        Refusal::Exchange => return true,
                    }
                }
            }
        }
        false
    }

    /// Whether anybody has more than one place, and so might give one.
    fn somebody_holds_places(&self) -> bool {
        let mut parties = HashSet::new();
        !self.running.iter().all(|sequence| parties.insert(sequence.owner.party))
    }

    /// Finds a place, and the blocks for all tokens of a sequence: what others have computed, and free ones for the rest.
    /// Where it may not run, it may hold some of them.
    fn enter(&mut self, sequence: &mut Sequence, may_give_way: bool) -> Result<(), Refusal> {
        // Its mask may have come while it waited.
        sequence.rejoin();
        let reusable = if self.limits.prefix_cache { sequence.reusable_blocks() } else { 0 };
        let contents = sequence.hashes.of(&sequence.tokens, reusable);
        let reused = self.blocks.reuse(&mut sequence.blocks, contents);
        if let Some(next) = contents.get(reused) {
            // Somebody is about to compute what comes next: a step of waiting saves computing it twice. This is how the
            // choices of one request come to share their prompt.
            let computes = |other: &Sequence| {
                !other.is_sitting_out() && other.blocks.published() <= reused && other.hashes.get(reused) == Some(next)
            };
            if self.running.iter().any(computes) {
                return Err(Refusal::Later);
            }
        }
        let has_place = self.running.len() < self.limits.max_seqs;
        let refusal = if has_place { Refusal::NoBlocks } else { Refusal::Later };
        let giving = self.who_would_give_way(sequence).ok_or(refusal)?;
        if !giving.is_empty() && !may_give_way {
            return Err(Refusal::Exchange);
        }
        giving.into_iter().for_each(|ticket| self.preempt(self.running_at(ticket)));
        assert!(self.blocks.grow(&mut sequence.blocks, sequence.tokens.len()), "the blocks were counted");
        sequence.computed = reused * BLOCK_TOKENS;
        if sequence.place.take().is_some() && reusable > 0 {
            self.metrics.prefix_cache_queries.inc_by(sequence.tokens.len() as u64);
            self.metrics.prefix_cache_hits.inc_by(sequence.computed as u64);
        }
        Ok(())
    }

    /// Sends a running sequence back to the queue. It keeps its tokens and computes them again.
    fn preempt(&mut self, at: usize) {
        assert!(at > 0, "who was admitted first does not give way");
        let mut sequence = self.running.remove(at);
        tracing::debug!(seq = sequence.id.0, tokens = sequence.computed, "preempted: its blocks are another's");
        self.blocks.release(&mut sequence.blocks);
        sequence.computed = 0;
        self.metrics.num_preemptions.inc();
        self.queue.put_back(sequence);
    }

    fn running_at(&self, ticket: Ticket) -> usize {
        self.position(ticket).expect("nobody is taken out of a step between its plan and its end")
    }

    fn position(&self, ticket: Ticket) -> Option<usize> {
        self.running.binary_search_by_key(&ticket, |sequence| sequence.ticket).ok()
    }
}

#[cfg(test)]
mod tests;
