//! The engine: the one owner of every sequence, on a thread of its own.
//!
//! ```text
//! ranks    ── step n ──────────────────►│                 │── step n+1 ──────────
//! engine     deliver  schedule (n+1)    │ draw, append,   │ deliver  schedule …
//!            what n−1 drew              │ admit, plan n+1 │ what n drew
//! ```
//! While the ranks compute, masks of the step are computed and follow it, the tokens of the last step are delivered, and the next step is
//! chosen with its blocks; once they have answered, the tokens drawn are patched in and the next step goes out. Whose mask is late sits out.
//!
//! When a rank is lost, the step under way has not happened: it is taken back, and chosen anew when the ranks are there again.
//!
//! Knows the order of things; the rest is in [`scheduler`], [`ranks`] and [`sampler`]. Does not know text. No answer depends on a clock: it
//! is read to report how long steps took, and to wait for masks no longer than others can bear.
//! Invariant: every submission ends in exactly one of `Finished` or `Failed`, or its receiver was dropped.

mod awaited_mask;
mod block_hash;
mod block_manager;
pub mod config;
pub mod explanation;
mod fair_queue;
pub mod handle;
pub mod history;
pub mod kv_budget;
mod masker;
pub mod metrics;
pub mod next;
mod orders;
mod outcomes;
mod owner;
mod queue_room;
mod random;
mod ranks;
mod report;
pub mod request;
mod sampler;
mod scheduler;
mod sequence;
mod startup;
pub mod status;
pub(crate) mod submission;

#[cfg(test)]
pub(crate) mod fake_rank;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{self, error::TryRecvError};

use self::{
    config::EngineConfig,
    explanation::StepReport,
    handle::EngineHandle,
    history::Entry,
    masker::Masker,
    orders::Orders,
    outcomes::{Outcome, Outcomes},
    owner::{Owner, RequestId},
    ranks::{Pools, Ranks},
    request::Event,
    sampler::RowDrawer,
    scheduler::{MOST_SAT_OUT, PlannedStep, Scheduler, SchedulerLimits},
    sequence::{SeqId, Sequence},
    status::Status,
    submission::{Command, Submission},
};
pub use self::{
    ranks::{Lost, RankSource, RanksError, RestartLimit, SourceError},
    startup::{StartError, start},
};

struct Engine<R> {
    /// First, so that the failure is there before the queue closes.
    _panic_report: PanicReport,
    eos_token_ids: Vec<u32>,
    scheduler: Scheduler,
    ranks: R,
    commands: mpsc::Receiver<Command>,
    /// Every handle has been dropped: nothing more can come.
    abandoned: bool,
    /// Requests taken so far.
    requests: u64,
    /// Their sequences.
    arrived: u64,
    /// What the ranks compute, since when.
    under_way: Option<(PlannedStep, Instant)>,
    /// Sequences that ended; their last events were not delivered yet.
    ended: Vec<Sequence>,
    row_drawer: RowDrawer,
    masker: Masker,
    orders: Arc<Orders>,
    status: Arc<Status>,
}

/// What a turn left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The ranks compute.
    Busy,
    /// There is nothing to do until a command comes, as it does with a mask that was late.
    Idle,
    /// Nothing more will be done.
    Over,
}

impl<R: Ranks> Engine<R> {
    fn new(
        config: EngineConfig,
        kv_blocks: usize,
        ranks: R,
        masker: Masker,
        commands: mpsc::Receiver<Command>,
        handle: &EngineHandle,
    ) -> Self {
        let status = handle.status.clone();
        let limits = SchedulerLimits {
            kv_blocks,
            max_seqs: config.load.max_seqs,
            max_batched_tokens: config.load.max_batched_tokens,
            prefix_cache: config.prefix_cache,
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let engine = Self {
            _panic_report: PanicReport(status.clone()),
            eos_token_ids: config.shape.eos_token_ids.clone(),
            scheduler: Scheduler::new(config.shape, limits, status.metrics().clone()),
            ranks,
            commands,
            abandoned: false,
            requests: 0,
            arrived: 0,
            under_way: None,
            ended: Vec::new(),
            row_drawer: RowDrawer::new(threads),
            masker,
            orders: handle.orders.clone(),
            status,
        };
        engine.report();
        engine
    }

    fn run(mut self) {
        let served = self.serve();
        self.end(served.err());
    }

    /// Takes turns until there is nothing left to do and nothing more to come.
    fn serve(&mut self) -> Result<(), RanksError> {
        loop {
            match self.turn() {
                Ok(Turn::Busy) => {}
                Ok(Turn::Idle) => match self.commands.blocking_recv() {
                    Some(command) => self.take(command),
                    None => self.abandoned = true,
                },
                Ok(Turn::Over) => return Ok(()),
                Err(loss) => match self.recover(loss) {
                    Err(RanksError::GivenUp) => return Ok(()),
                    recovered => recovered?,
                },
            }
        }
    }

    /// Gets the ranks back, and what was computed to where they are: the step under way has not happened.
    fn recover(&mut self, loss: RanksError) -> Result<(), RanksError> {
        // What is known is told now: the next step may be long in coming.
        self.deliver();
        let pools = self.ranks.recover(loss)?;
        if let Some((step, _)) = self.under_way.take() {
            self.ended.extend(self.scheduler.take_back(&step).map(|mut sequence| {
                let reason = "it was computed alone when a rank was lost, the third time in a row that one was with it";
                tracing::error!(seq = sequence.id.0, "a sequence is given up: {reason}");
                sequence.end(Event::Failed(reason.into()));
                sequence
            }));
        }
        if pools == Pools::Blank {
            self.scheduler.rewind();
            self.status.history().add(Entry::Blank);
        }
        self.report();
        self.deliver();
        Ok(())
    }

    /// From one step to the next: the ranks compute when it begins and, if there is work, when it ends.
    fn turn(&mut self) -> Result<Turn, RanksError> {
        let mut chosen = None;
        if let Some((step, since)) = self.under_way.take() {
            chosen = self.scheduler.schedule(true);
            let answered = self.ranks.finish_step().and_then(|answers| {
                let (ranks, drawer) = (&mut self.ranks, &mut self.row_drawer);
                let outcomes = Outcomes::of(&step, &answers, ranks, drawer, self.status.metrics())?;
                Ok((answers, outcomes))
            });
            let (answers, outcomes) = match answered {
                Ok(answered) => answered,
                Err(error) => {
                    self.under_way = Some((step, since));
                    return Err(error);
                }
            };
            let elapsed = since.elapsed();
            self.status.metrics().step_seconds.observe(elapsed.as_secs_f64());
            let reducing = answers.iter().map(|answer| answer.reducing).max().unwrap_or_default();
            self.status.metrics().allreduce_seconds.observe(reducing.as_secs_f64());
            let report = step.plan.timed.then(|| Arc::new(StepReport::of(&step.plan, elapsed, &answers)));
            self.postprocess(&step, elapsed, outcomes, report.as_ref());
        }
        // Read before what was submitted is taken: who goes later is seen at the next turn.
        let hang_ups = self.orders.hang_ups();
        self.take_commands();
        if self.orders.is_cutting_off() {
            self.deliver();
            return Ok(Turn::Over);
        }
        for cancelled in self.scheduler.remove_hung_up(hang_ups, Sequence::is_cancelled) {
            tracing::debug!(seq = cancelled.id.0, tokens = cancelled.tokens.len(), "cancelled");
        }
        // A rank that was lost between two steps is nobody's fault.
        self.ranks.check()?;
        // Who comes back has a part in the step that goes out next.
        let rejoined = self.scheduler.rejoin();
        for mut sequence in self.scheduler.remove_too_late() {
            let reason = format!("its grammar was not done with one mask within {MOST_SAT_OUT} steps");
            tracing::warn!(seq = sequence.id.0, tokens = sequence.tokens.len(), "given up: {reason}");
            sequence.end(Event::Stuck(reason));
            self.ended.push(sequence);
        }
        let step = match chosen.filter(|step| !rejoined && self.scheduler.holds(step)) {
            Some(mut step) => {
                // For those who came while the ranks computed.
                self.scheduler.admit(&mut step);
                Some(step)
            }
            None => self.scheduler.schedule(false),
        };
        if let Some(step) = step.and_then(|step| self.scheduler.plan(step)) {
            step.parts.iter().for_each(|part| self.scheduler.get_mut(part.ticket).meter.started());
            // A rank begins while others are still being told.
            let (step, _) = self.under_way.insert((step, Instant::now()));
            self.ranks.begin_step(&step.plan)?;
            let masks = self.masker.masks(step, &mut self.scheduler);
            if !masks.is_empty() {
                self.ranks.send_masks(&masks)?;
            }
        }
        self.report();
        self.deliver();
        if self.under_way.is_some() {
            return Ok(Turn::Busy);
        }
        // Who hung up since the last step.
        self.record_who_left();
        if self.scheduler.awaits_masks() {
            // Each of them wakes when it comes.
            return Ok(Turn::Idle);
        }
        assert!(self.scheduler.is_idle(), "there are sequences, and none of them can take a step");
        self.check_invariants();
        if self.abandoned || self.orders.is_stopping() {
            return Ok(Turn::Over);
        }
        Ok(Turn::Idle)
    }

    fn take_commands(&mut self) {
        while !self.abandoned {
            match self.commands.try_recv() {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.abandoned = true,
            }
        }
        // Behind the last of them, and before anybody looks for what they are about.
        self.orders.woken();
    }

    fn take(&mut self, command: Command) {
        let Command::Submit { client, sequences } = command else { return };
        let owner = Owner::new(client, RequestId(self.requests));
        self.requests += 1;
        for submission in sequences {
            self.scheduler.add(Sequence::new(SeqId(self.arrived), owner, submission));
            self.arrived += 1;
        }
    }

    /// Appends and frees, after a step. `report` is there where a token is to be explained.
    fn postprocess(
        &mut self,
        step: &PlannedStep,
        elapsed: Duration,
        outcomes: Outcomes,
        report: Option<&Arc<StepReport>>,
    ) {
        let Outcomes { rows: outcomes, rows_fetched } = outcomes;
        self.scheduler.complete(step);
        let tickets = step.parts.iter().flat_map(|part| part.uses.iter().map(|_| part.ticket));
        let mut stuck = Vec::new();
        for (ticket, outcome) in tickets.zip(outcomes) {
            let sequence = self.scheduler.get_mut(ticket);
            match outcome {
                Outcome::Score(score) => sequence.record_score(Some(score)),
                Outcome::Draw(drawn) => sequence.append(drawn, report, &self.eos_token_ids),
                Outcome::Stuck(reason) => stuck.push((ticket, reason)),
                Outcome::Late => {}
            }
        }
        self.record(step, elapsed);
        for (ticket, reason) in stuck {
            let mut sequence = self.scheduler.remove(ticket);
            tracing::debug!(seq = sequence.id.0, tokens = sequence.tokens.len(), reason, "stuck");
            sequence.end(Event::Stuck(reason));
            self.ended.push(sequence);
        }
        for part in &step.parts {
            let finished = self.scheduler.find_mut(part.ticket).and_then(|it| it.finish_reason(&self.eos_token_ids));
            if let Some(reason) = finished {
                let mut sequence = self.scheduler.remove(part.ticket);
                tracing::debug!(seq = sequence.id.0, tokens = sequence.tokens.len(), ?reason, "finished");
                sequence.end(Event::Finished(reason));
                self.ended.push(sequence);
            }
        }
        self.record_who_left();
        let sequences = step.parts.len();
        let tokens: usize = step.plan.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let blocks_free = self.scheduler.blocks().free();
        tracing::debug!(step = step.plan.step, sequences, tokens, rows_fetched, blocks_free, "step");
    }

    /// Tells what the last step brought. A slow reader holds nobody up: every channel has room for all its events.
    fn deliver(&mut self) {
        self.ended.drain(..).for_each(|mut sequence| sequence.deliver());
        self.scheduler.begun_mut().for_each(Sequence::deliver);
    }

    /// Ends the ranks, and every sequence there still is.
    fn end(mut self, error: Option<RanksError>) {
        let failure = error.map(|error| error.to_string());
        match &failure {
            Some(failure) => {
                tracing::error!("the engine ends: {failure}");
                self.status.fail(failure);
            }
            None => tracing::info!("the engine ends: it was stopped"),
        }
        self.deliver();
        let failed = Event::Failed(failure.unwrap_or_else(|| "the server is shutting down".into()));
        for mut sequence in self.scheduler.remove_where(|_| true) {
            sequence.end(failed.clone());
            sequence.deliver();
        }
        self.report();
        self.ranks.shut_down();
        // `ready` is false from here.
        drop(self.ranks);
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            let Command::Submit { sequences, .. } = command else { continue };
            for Submission { events, .. } in sequences {
                // Its reader may be gone; there is room otherwise.
                let _ = events.try_send(failed.clone());
            }
        }
    }
}

/// Says that the engine failed where its thread ends by a bug of ours, so that nobody takes that for a clean stop.
struct PanicReport(Arc<Status>);

impl Drop for PanicReport {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail("the engine's thread panicked, which is a bug");
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod simulation;
