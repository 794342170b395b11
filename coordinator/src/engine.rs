//! The engine: the one owner of every sequence, on a thread of its own.
//!
//! ```text
//! loop { admit what was submitted ─► schedule ─► the ranks step ─► postprocess: draw, append, report, free }
//! ```
//! Knows the order of things; the rest is in [`scheduler`](crate::scheduler), [`worker_pool`](crate::worker_pool) and
//! [`sampler`](crate::sampler). Does not know text.
//! Invariant: every submission ends in exactly one of `Finished` or `Failed`, or its receiver was dropped.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Instant,
};

use nanoinfer_shared::{
    link::ControlLink,
    protocol::{FromRank, RowSlice, StepOutput, ToRank},
};
use tokio::sync::mpsc::{self, error::TryRecvError};

pub use crate::worker_pool::PoolError;
use crate::{
    config::EngineConfig,
    handle::{self, Command, Door, EngineHandle, LiveSequence, Status, Submission},
    request::Event,
    sampler::{Draw, Drawn, logprobs},
    scheduler::{Scheduler, Step},
    sequence::{RowUse, SeqId, Sequence},
    worker_pool::WorkerPool,
};

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ranks did not come up.
    #[error(transparent)]
    Pool(#[from] PoolError),
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

/// Brings up the ranks behind `links`, in rank order, and the engine above them. Blocks until they are ready.
///
/// # Errors
/// When a rank fails to load, the KV pool cannot hold one sequence of full length, or a limit is 0.
pub fn start(links: Vec<ControlLink<ToRank, FromRank>>, config: EngineConfig) -> Result<EngineHandle, StartError> {
    for (name, limit) in [
        ("--max-seqs", config.max_seqs),
        ("--max-batched-tokens", config.max_batched_tokens),
        ("--max-queue", config.max_queue),
    ] {
        if limit == 0 {
            return Err(StartError::Zero { name });
        }
    }
    let (vocab_size, n_positions) = (config.geometry.vocab_size, config.geometry.n_positions);
    let (handle, commands) = handle::channel(Door { vocab_size, n_positions, max_queue: config.max_queue });
    let (pool, kv_blocks) = WorkerPool::start(links, &config, handle.shared_status(), handle.waker())?;
    let scheduler = Scheduler::new(config.geometry.clone(), kv_blocks, config.max_seqs, config.max_batched_tokens);
    let engine = Engine {
        _panic_report: PanicReport(handle.shared_status()),
        eos_token_ids: config.geometry.eos_token_ids,
        scheduler,
        pool,
        commands,
        abandoned: false,
        arrived: 0,
        status: handle.shared_status(),
    };
    engine.report();
    thread::Builder::new().name("engine".into()).spawn(move || engine.run()).map_err(StartError::Thread)?;
    Ok(handle)
}

struct Engine {
    /// First, so that the failure is there before the queue closes.
    _panic_report: PanicReport,
    eos_token_ids: Vec<u32>,
    scheduler: Scheduler,
    pool: WorkerPool,
    commands: mpsc::Receiver<Command>,
    /// Every handle has been dropped: nothing more can come.
    abandoned: bool,
    /// Sequences taken so far.
    arrived: u64,
    status: Arc<Status>,
}

impl Engine {
    fn run(mut self) {
        let served = self.serve();
        self.end(served.err());
    }

    /// Steps until there is nothing left to do and nothing more to come.
    fn serve(&mut self) -> Result<(), PoolError> {
        while self.admit()? {
            self.step()?;
            self.report();
        }
        Ok(())
    }

    /// The whole system in three calls.
    fn step(&mut self) -> Result<(), PoolError> {
        let Some(step) = self.scheduler.schedule() else { return Ok(()) };
        self.report();
        for part in &step.parts {
            self.scheduler.get_mut(part.id).meter.started();
        }
        let begun = Instant::now();
        let answers = self.pool.step(&step.plan)?;
        self.status.metrics.step.observe(begun.elapsed().as_secs_f64());
        self.postprocess(&step, &answers)
    }

    /// Drops what was cancelled and takes what was submitted; waits where there is neither work nor an end. Tells
    /// whether there is work.
    fn admit(&mut self) -> Result<bool, PoolError> {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.abandoned = true;
                        break;
                    }
                }
            }
            if self.status.cutting_off.load(Relaxed) {
                return Ok(false);
            }
            for cancelled in self.scheduler.remove_where(Sequence::is_cancelled) {
                tracing::debug!(seq = cancelled.id.0, tokens = cancelled.tokens.len(), "cancelled");
            }
            if !self.scheduler.is_idle() {
                return Ok(true);
            }
            self.report();
            if self.abandoned || self.status.stopping.load(Relaxed) {
                return Ok(false);
            }
            self.pool.check()?;
            match self.commands.blocking_recv() {
                Some(command) => self.take(command),
                None => self.abandoned = true,
            }
        }
    }

    fn take(&mut self, command: Command) {
        if let Command::Submit(submissions) = command {
            for submission in submissions {
                self.scheduler.add(Sequence::new(SeqId(self.arrived), submission));
                self.arrived += 1;
            }
        }
    }

    /// Draws, appends, reports and frees.
    fn postprocess(&mut self, step: &Step, answers: &[StepOutput]) -> Result<(), PoolError> {
        self.scheduler.advance(step);
        let mut undecided: Vec<(u32, SeqId, &Draw)> = Vec::new();
        let mut drawn: Vec<(SeqId, Drawn)> = Vec::new();
        let uses = step.parts.iter().flat_map(|part| part.uses.iter().map(|row_use| (part.id, row_use)));
        for (row, (id, row_use)) in uses.enumerate() {
            let slices = slices(answers, row);
            match row_use {
                RowUse::Score { target, top } => {
                    let raw = logprobs::raw_logit(*target, &slices).ok_or(PoolError::MissingTarget { id: *target })?;
                    let score = logprobs::report(*target, raw, *top, &slices);
                    self.scheduler.get_mut(id).record_score(Some(score));
                }
                RowUse::Draw(draw) => match draw.by_candidates(&slices) {
                    Some(token) => drawn.push((id, token)),
                    None => undecided.push((row as u32, id, draw)),
                },
            }
        }
        let rows: Vec<u32> = undecided.iter().map(|&(row, ..)| row).collect();
        let whole_rows = if rows.is_empty() { Vec::new() } else { self.pool.fetch_rows(&rows)? };
        for ((row, id, draw), whole) in undecided.into_iter().zip(&whole_rows) {
            drawn.push((id, draw.by_row(&slices(answers, row as usize), whole)));
        }
        for (id, token) in drawn {
            self.scheduler.get_mut(id).append(token);
        }
        for part in &step.parts {
            if let Some(reason) = self.scheduler.get_mut(part.id).finish_reason(&self.eos_token_ids) {
                let mut sequence = self.scheduler.remove(part.id);
                tracing::debug!(seq = part.id.0, tokens = sequence.tokens.len(), ?reason, "finished");
                sequence.send(Event::Finished(reason));
            }
        }
        let sequences = step.parts.len();
        let tokens: usize = step.parts.iter().map(|part| part.count).sum();
        let blocks_free = self.scheduler.blocks().free();
        tracing::debug!(step = step.plan.step, sequences, tokens, rows_fetched = rows.len(), blocks_free, "step");
        Ok(())
    }

    /// Ends the ranks, and every sequence there still is.
    fn end(mut self, error: Option<PoolError>) {
        let failure = error.map(|error| error.to_string());
        match &failure {
            Some(failure) => {
                tracing::error!("the engine ends: {failure}");
                // Set by nobody else.
                let _ = self.status.failure.set(failure.clone());
            }
            None => tracing::info!("the engine ends: it was stopped"),
        }
        let failed = Event::Failed(failure.unwrap_or_else(|| "the server is shutting down".into()));
        for mut sequence in self.scheduler.remove_where(|_| true) {
            sequence.send(failed.clone());
        }
        self.report();
        self.pool.shut_down();
        // `ready` is false from here.
        drop(self.pool);
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            let Command::Submit(submissions) = command else { continue };
            for Submission { events, .. } in submissions {
                // Its reader may be gone; there is room otherwise.
                let _ = events.try_send(failed.clone());
            }
        }
    }

    fn report(&self) {
        let status = &self.status;
        status.running.store(self.scheduler.running(), Relaxed);
        status.waiting.store(self.scheduler.waiting(), Relaxed);
        status.blocks_total.store(self.scheduler.blocks().total(), Relaxed);
        status.blocks_free.store(self.scheduler.blocks().free(), Relaxed);
        status.live.send_replace(self.scheduler.sequences().map(LiveSequence::of).collect());
    }
}

/// Says that the engine failed where its thread ends by a bug of ours, so that nobody takes that for a clean stop.
struct PanicReport(Arc<Status>);

impl Drop for PanicReport {
    fn drop(&mut self) {
        if thread::panicking() {
            // An earlier failure says more.
            let _ = self.0.failure.set("the engine's thread panicked, which is a bug".into());
        }
    }
}

/// The ranks' views of one row.
fn slices(answers: &[StepOutput], row: usize) -> Vec<&RowSlice> {
    answers.iter().map(|answer| &answer.rows[row]).collect()
}

#[cfg(test)]
mod tests;
