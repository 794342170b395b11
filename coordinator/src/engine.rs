//! The engine: the one owner of every sequence, on a thread of its own.
//!
//! ```text
//! ranks    ── step n ──────────────────►│                 │── step n+1 ──────────
//! engine     deliver  schedule (n+1)    │ draw, append,   │ deliver  schedule …
//!            what n−1 drew              │ admit, plan n+1 │ what n drew
//! ```
//! While the ranks compute, masks of the step are computed and follow it, the tokens of the last step are delivered, and the next step is
//! chosen with its blocks; once they have answered, the tokens drawn are patched in and the next step goes out.
//!
//! When a rank is lost, the step under way has not happened: it is taken back, and chosen anew when the ranks are there again.
//!
//! Knows the order of things; the rest is in [`scheduler`], [`ranks`] and [`sampler`]. Does not know text. No decision depends on a clock: it is read to report how long steps took.
//! Invariant: every submission ends in exactly one of `Finished` or `Failed`, or its receiver was dropped.

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
mod owner;
mod queue_room;
mod random;
mod ranks;
pub mod request;
mod sampler;
mod scheduler;
mod sequence;
pub mod status;
pub(crate) mod submission;

#[cfg(test)]
pub(crate) mod fake_rank;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    link::ControlLink,
    protocol::{FromRank, LogSumExp, LogitSlice, RowSlice, SequenceStep, StepOutput, StepPlan, ToRank},
};
use tokio::sync::mpsc::{self, error::TryRecvError};

pub use self::ranks::{Lost, RankSource, RanksError, RestartLimit, SourceError};
use self::{
    config::EngineConfig,
    explanation::StepReport,
    handle::{Door, EngineHandle},
    history::{Entry, Part},
    masker::Masker,
    orders::Orders,
    owner::{Owner, RequestId},
    ranks::{LinkedRanks, Pools, Ranks},
    request::{Event, TokenLogprobs},
    sampler::{Draw, Drawn, RowDraw, RowDrawer, logprobs},
    scheduler::{PlannedPart, PlannedStep, Scheduler, SchedulerLimits},
    sequence::{RowUse, SeqId, Sequence},
    status::Status,
    submission::{Command, Submission},
};

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ranks did not come up.
    #[error(transparent)]
    Ranks(#[from] RanksError),
    /// A limit that lets nothing run.
    #[error("{name} must be at least 1")]
    Zero {
        /// The option.
        name: &'static str,
    },
    /// The operating system gave no thread.
    #[error("no thread for the engine: {0}")]
    Thread(std::io::Error),
}

/// Brings up the ranks behind `links`, in rank order, and the engine above them. Blocks until they are ready. Where there is a
/// `source` of others, the engine survives the loss of a rank.
///
/// # Errors
/// When a rank fails to load, the KV pool cannot hold one sequence of full length, or a limit is 0.
pub fn start(
    links: Vec<ControlLink<ToRank, FromRank>>,
    source: Option<Box<dyn RankSource>>,
    config: EngineConfig,
) -> Result<EngineHandle, StartError> {
    for (name, limit) in [
        ("--max-seqs", config.load.max_seqs),
        ("--max-batched-tokens", config.load.max_batched_tokens),
        ("--max-queue", config.max_queue),
        ("--max-queue-tokens", config.max_queue_tokens),
    ] {
        if limit == 0 {
            return Err(StartError::Zero { name });
        }
    }
    let (handle, commands) = handle::channel(Door::of(&config));
    let (orders, wake) = (handle.orders.clone(), Arc::new(handle.waker()));
    let given_up = Box::new(move || orders.is_cutting_off());
    let (ranks, kv_blocks) = LinkedRanks::start(links, source, &config, handle.status.clone(), wake, given_up)?;
    let engine = Engine::new(config, kv_blocks, ranks, commands, &handle);
    thread::Builder::new().name("engine".into()).spawn(move || engine.run()).map_err(StartError::Thread)?;
    Ok(handle)
}

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

/// What comes of a row of a step.
enum Outcome {
    /// A token of the prompt is scored.
    Score(TokenLogprobs),
    /// A token is drawn.
    Draw(Drawn),
    /// Nothing may come.
    Stuck(String),
}

/// What comes of a step.
struct Outcomes {
    /// Of each row, in their order.
    rows: Vec<Outcome>,
    /// How many of them had to be fetched whole.
    rows_fetched: usize,
}

/// What a turn left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The ranks compute.
    Busy,
    /// There is nothing to do until a command comes.
    Idle,
    /// Nothing more will be done.
    Over,
}

impl<R: Ranks> Engine<R> {
    fn new(
        config: EngineConfig,
        kv_blocks: usize,
        ranks: R,
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
            masker: Masker::new(threads, status.metrics().clone()),
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
                let outcomes = self.outcomes(&step, &answers)?;
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
            let report = step.plan.timed.then(|| Arc::new(report(&step.plan, elapsed, &answers)));
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
        let step = match chosen.filter(|step| self.scheduler.holds(step)) {
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
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.abandoned = true,
            }
        }
    }

    fn take(&mut self, command: Command) {
        if let Command::Submit { client, sequences } = command {
            let owner = Owner::new(client, RequestId(self.requests));
            self.requests += 1;
            for submission in sequences {
                self.scheduler.add(Sequence::new(SeqId(self.arrived), owner, submission));
                self.arrived += 1;
            }
        }
    }

    /// What comes of each row of a step, in their order. Asks the ranks for what is missing, so that a step happens as a whole or,
    /// when one of them is lost, not at all.
    fn outcomes(&mut self, step: &PlannedStep, answers: &[StepOutput]) -> Result<Outcomes, RanksError> {
        let begun = Instant::now();
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        let mut undecided: Vec<(usize, &Draw)> = Vec::new();
        for (row, row_use) in step.parts.iter().flat_map(|part| &part.uses).enumerate() {
            let slices = slices(answers, row);
            outcomes.push(match row_use {
                RowUse::Score { target, top } => {
                    let raw = logprobs::raw_logit(*target, &slices).ok_or(RanksError::MissingTarget { id: *target })?;
                    Some(Outcome::Score(logprobs::report(*target, raw, *top, &slices)))
                }
                RowUse::Draw(draw) if let Some(reason) = draw.stuck() => Some(Outcome::Stuck(reason.to_owned())),
                RowUse::Draw(draw) => {
                    let drawn = draw.by_candidates(&slices);
                    undecided.extend(drawn.is_none().then_some((row, &**draw)));
                    drawn.map(Outcome::Draw)
                }
            });
        }
        let rows: Vec<u32> = undecided.iter().map(|&(row, _)| row as u32).collect();
        let whole_rows = if rows.is_empty() { Vec::new() } else { self.ranks.fetch_rows(&rows)? };
        let draws: Vec<_> = undecided
            .iter()
            .enumerate()
            .map(|(i, &(row, draw))| RowDraw {
                draw,
                slices: slices(answers, row),
                logits: whole_rows.iter().map(|of_rank| &*of_rank[i]).collect(),
            })
            .collect();
        for (&(row, draw), drawn) in undecided.iter().zip(self.row_drawer.draw(&draws)) {
            outcomes[row] = Some(drawn.map_or_else(|| Outcome::Stuck(draw.nothing_left()), Outcome::Draw));
        }
        let metrics = self.status.metrics();
        metrics.sampling_seconds.inc_by(begun.elapsed().as_secs_f64());
        metrics.rows_fetched.inc_by(rows.len() as u64);
        metrics.rank_answer_bytes.inc_by(answer_bytes(answers, &whole_rows));
        Ok(Outcomes { rows: outcomes.into_iter().flatten().collect(), rows_fetched: rows.len() })
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

    /// For the live view, while those who end with the step are still there.
    fn record(&mut self, step: &PlannedStep, elapsed: Duration) {
        let part = |(part, planned): (&PlannedPart, &SequenceStep)| {
            let sequence = self.scheduler.get_mut(part.ticket);
            Part {
                id: sequence.id.0,
                prompt_tokens: sequence.request.prompt.len(),
                start: planned.start as usize,
                end: part.end,
                tokens: sequence.tokens.len(),
                blocks: planned.blocks.iter().map(|block| block.0).collect(),
            }
        };
        let parts = step.parts.iter().zip(&step.plan.sequences).map(part).collect();
        let blocks = self.scheduler.blocks();
        self.status.history().step(step.plan.step, elapsed, parts, |block| blocks.is_idle(block));
    }

    fn record_who_left(&self) {
        let running = self.scheduler.sequences().map(|sequence| sequence.id.0);
        self.status.history().leave(running, |block| self.scheduler.blocks().is_idle(block));
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

    /// Looks whether all is as it must be while nothing runs, so that a leak is seen in production too.
    fn check_invariants(&self) {
        let leaked = || match self.scheduler.blocks().total() - self.scheduler.blocks().free() {
            0 => Ok(()),
            held => Err(format!("{held} KV blocks are held although nothing runs")),
        };
        if let Err(broken) = self.scheduler.check().and_then(|()| leaked()) {
            tracing::error!("an invariant of the scheduler is broken, which is a bug: {broken}");
            self.status.metrics().scheduler_invariants_hold.set(0);
        }
    }

    fn report(&self) {
        let (metrics, blocks) = (self.status.metrics(), self.scheduler.blocks());
        metrics.num_requests_running.set(self.scheduler.running() as i64);
        metrics.num_requests_waiting.set(self.scheduler.waiting() as i64);
        metrics.set_blocks(blocks.total(), blocks.free(), blocks.cached());
    }
}

/// What there is to tell of a step that was timed.
fn report(plan: &StepPlan, elapsed: Duration, answers: &[StepOutput]) -> StepReport {
    StepReport {
        step: plan.step,
        sequences: plan.sequences.len(),
        tokens: plan.sequences.iter().map(|sequence| sequence.tokens.len()).sum(),
        elapsed,
        ranks: answers.iter().filter_map(|answer| answer.times.clone()).collect(),
    }
}

/// Bytes of what the ranks answered, as numbers: eight for a token with its logit, four for a logit of a whole row.
fn answer_bytes(answers: &[StepOutput], whole_rows: &[Vec<LogitSlice>]) -> u64 {
    let rows = answers.iter().flat_map(|answer| &answer.rows);
    let of = |row: &RowSlice| 2 * size_of::<LogSumExp>() + 8 * (row.top.len() + row.listed.len());
    (rows.map(of).sum::<usize>() + whole_rows.iter().flatten().map(|slice| 4 * slice.len()).sum::<usize>()) as u64
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

/// The ranks' views of one row.
fn slices(answers: &[StepOutput], row: usize) -> Vec<&RowSlice> {
    answers.iter().map(|answer| &answer.rows[row]).collect()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod simulation;
