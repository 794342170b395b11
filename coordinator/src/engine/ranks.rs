//! Speaks to the ranks: orders them up, sends every step to all, gathers what they answer, and watches that they live.
//!
//! ```text
//! engine ── step ──► sender of each rank ◄── ping ── heartbeat thread, twice a second
//!   ▲                                                  │ who answered when ──► Status::ready
//!   └── one channel ◄── one reader thread a rank ◄─────┘ (pongs stay here)
//! ```
//! Knows the protocol; does not know sequences, sampling or how the links came to be.
//! Invariant: at most one order is under way, and every rank has answered it before the next is sent.

mod error;
mod heartbeat;
mod start;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    link::{ControlLink, LinkError, Receiver, Sender},
    protocol::{FromRank, LogitSlice, StepOutput, StepPlan, ToRank},
};

pub use self::error::RanksError;
use self::heartbeat::Heartbeat;
use crate::engine::status::Status;

/// A rank that has not answered a heartbeat for so long has ended or hangs: all ranks fail.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// A rank that answers heartbeats, but has not come from one reduction to the next for so long, hangs: all ranks fail. The
/// largest layer of a step takes seconds.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// How often a wait for answers looks at heartbeats.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is said for whom a start waits.
const REMINDER: Duration = Duration::from_secs(30);
/// Rows fetched at once: bounds the coordinator's memory (200 KB a row of GPT-2) and the frames.
const MAX_FETCHED_ROWS: usize = 64;

/// What the engine asks of its ranks; its tests have ranks without threads and processes.
pub(crate) trait Ranks {
    /// Starts a step on all ranks.
    fn begin_step(&mut self, plan: &StepPlan) -> Result<(), RanksError>;
    /// Waits for the step that was started: the ranks' slices in rank order.
    fn finish_step(&mut self) -> Result<Vec<StepOutput>, RanksError>;
    /// The raw logits of rows of the last step: for each rank its slices of them.
    fn fetch_rows(&mut self, rows: &[u32]) -> Result<Vec<Vec<LogitSlice>>, RanksError>;
    /// Looks whether a rank has gone while nothing was asked of it.
    fn check(&mut self) -> Result<(), RanksError>;
    /// Tells the ranks to end. Those that are gone already have.
    fn shut_down(&self);
}

/// The ranks, seen from the coordinator.
#[derive(Debug)]
pub(crate) struct LinkedRanks {
    senders: Arc<Senders>,
    answers: mpsc::Receiver<Answer>,
    heartbeat: Heartbeat,
    vocab_size: usize,
    /// Number and rows of the step that was started.
    step: (u64, usize),
    patience: Patience,
}

/// How long ranks are waited for. Tests have less.
#[derive(Clone, Copy, Debug)]
struct Patience {
    lost: Duration,
    stuck: Duration,
    look: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { lost: LOST_AFTER, stuck: STUCK_AFTER, look: LOOK_EVERY }
    }
}

/// The engine's thread sends orders and the heartbeat thread pings, each a whole frame: hence a lock for each rank.
/// The heartbeat thread only ever tries it, as a rank that was stopped can hold a sender for long.
type Senders = Vec<Mutex<Sender<ToRank>>>;

/// What a reader thread heard from its rank; nothing follows an error.
#[derive(Debug)]
struct Answer {
    rank: usize,
    message: Result<FromRank, LinkError>,
}

impl LinkedRanks {
    /// Takes over the links, in rank order. `wake` is called when a rank is gone, whoever waits for it or not.
    fn connect(
        links: Vec<ControlLink<ToRank, FromRank>>,
        vocab_size: usize,
        status: Arc<Status>,
        wake: impl Fn() + Send + Clone + 'static,
    ) -> Result<Self, RanksError> {
        // A rank answers one order at a time and may fail on top of it.
        let (inbox, answers) = mpsc::sync_channel(2 * links.len());
        let mut heartbeat = Heartbeat::new(links.len(), status);
        let mut senders = Vec::with_capacity(links.len());
        for (rank, link) in links.into_iter().enumerate() {
            let (inbox, pulse, wake) = (inbox.clone(), heartbeat.pulse(rank), wake.clone());
            senders.push(Mutex::new(link.sender));
            thread::Builder::new()
                .name(format!("from-rank-{rank}"))
                .spawn(move || read(rank, link.receiver, &inbox, &pulse, wake))
                .map_err(RanksError::Thread)?;
        }
        let senders = Arc::new(senders);
        heartbeat.start(senders.clone())?;
        Ok(Self { senders, answers, heartbeat, vocab_size, step: (0, 0), patience: Patience::default() })
    }

    fn send_all(&self, message: impl Fn(usize) -> ToRank) -> Result<(), RanksError> {
        self.heartbeat.expect();
        for (rank, sender) in self.senders.iter().enumerate() {
            let mut sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(source) = sender.send(message(rank)) {
                drop(sender);
                return Err(self.last_words(rank).unwrap_or(RanksError::Gone { rank, source }));
            }
        }
        Ok(())
    }

    /// One answer of each rank, in rank order. `accept` gives back what does not belong here.
    fn collect<T>(
        &self,
        expected: &str,
        accept: impl Fn(FromRank) -> Result<T, FromRank>,
    ) -> Result<Vec<T>, RanksError> {
        let mut gathered: Vec<Option<T>> = self.senders.iter().map(|_| None).collect();
        let mut reminded = Instant::now();
        while gathered.iter().any(Option::is_none) {
            let Answer { rank, message } = match self.answers.recv_timeout(self.patience.look) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => {
                    let owe = || gathered.iter().enumerate().filter(|(_, got)| got.is_none()).map(|(rank, _)| rank);
                    self.heartbeat.lost(self.patience.lost)?;
                    if self.heartbeat.is_serving() {
                        self.heartbeat.stuck(owe(), self.patience.stuck)?;
                    }
                    if reminded.elapsed() >= REMINDER {
                        tracing::info!(ranks = ?owe().collect::<Vec<_>>(), "waiting for {expected}");
                        reminded = Instant::now();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("every reader leaves an error behind"),
            };
            match message.map_err(Err).and_then(|message| accept(message).map_err(Ok)) {
                Ok(value) if gathered[rank].is_none() => gathered[rank] = Some(value),
                Ok(_) => {
                    return Err(RanksError::Unexpected {
                        rank,
                        expected: "nothing more".into(),
                        got: format!("{expected} again"),
                    });
                }
                Err(message) => return Err(unexpected(Answer { rank, message }, expected)),
            }
        }
        Ok(gathered.into_iter().flatten().collect())
    }

    /// What a rank said before its link closed, if its reader has heard it or does soon.
    fn last_words(&self, of: usize) -> Option<RanksError> {
        let deadline = Instant::now() + LOOK_EVERY;
        while let Ok(answer) = self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if answer.rank == of {
                return Some(unexpected(answer, "nothing"));
            }
        }
        None
    }
}

impl Ranks for LinkedRanks {
    fn begin_step(&mut self, plan: &StepPlan) -> Result<(), RanksError> {
        self.step = (plan.step, plan.sequences.iter().map(|sequence| sequence.outputs.len()).sum());
        self.send_all(|_| ToRank::Step(plan.clone()))
    }

    fn finish_step(&mut self) -> Result<Vec<StepOutput>, RanksError> {
        let (step, rows) = self.step;
        self.collect(&format!("step {step} with {rows} rows"), |message| match message {
            FromRank::Done(output) if output.step == step && output.rows.len() == rows => Ok(output),
            other => Err(other),
        })
    }

    fn fetch_rows(&mut self, rows: &[u32]) -> Result<Vec<Vec<LogitSlice>>, RanksError> {
        let mut fetched = vec![Vec::<LogitSlice>::new(); self.senders.len()];
        for rows in rows.chunks(MAX_FETCHED_ROWS) {
            self.send_all(|_| ToRank::FetchRows(rows.to_vec()))?;
            let by_rank = self.collect(&format!("{} rows", rows.len()), |message| match message {
                FromRank::Rows(slices) if slices.len() == rows.len() => Ok(slices),
                other => Err(other),
            })?;
            for row in 0..rows.len() {
                let got = by_rank.iter().map(|slices| slices[row].len()).sum::<usize>();
                if got != self.vocab_size {
                    return Err(RanksError::Unexpected {
                        rank: self.senders.len() - 1,
                        expected: format!("its part of {} logits", self.vocab_size),
                        got: format!("{got} with those of the ranks before it"),
                    });
                }
            }
            fetched.iter_mut().zip(by_rank).for_each(|(all, slices)| all.extend(slices));
        }
        Ok(fetched)
    }

    fn check(&mut self) -> Result<(), RanksError> {
        match self.answers.try_recv() {
            Ok(answer) => Err(unexpected(answer, "nothing")),
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => unreachable!("every reader leaves an error behind"),
        }
    }

    fn shut_down(&self) {
        for sender in self.senders.iter() {
            // A sender that is held belongs to a rank that does not read; it ends as its link closes.
            if let Ok(mut sender) = sender.try_lock() {
                let _ = sender.send(ToRank::Shutdown);
            }
        }
    }
}

/// Hands on what the rank says until its link ends.
fn read(
    rank: usize,
    mut receiver: Receiver<FromRank>,
    inbox: &mpsc::SyncSender<Answer>,
    pulse: &heartbeat::Pulse,
    wake: impl Fn(),
) {
    loop {
        let message = match receiver.receive() {
            Ok(FromRank::Pong { count, place }) => {
                pulse.beat(count, place);
                continue;
            }
            message => message,
        };
        let last = matches!(message, Err(_) | Ok(FromRank::Failed(_)));
        if last {
            pulse.stop();
        }
        // A closed inbox: the engine has ended before its rank.
        if inbox.send(Answer { rank, message }).is_err() || last {
            return wake();
        }
    }
}

/// The error that an answer out of place is.
fn unexpected(Answer { rank, message }: Answer, expected: &str) -> RanksError {
    let got = match message {
        Err(source) => return RanksError::Gone { rank, source },
        Ok(FromRank::Failed(reason)) => return RanksError::Failed { rank, reason },
        Ok(FromRank::Loaded(_)) => "the end of loading".into(),
        Ok(FromRank::Ready) => "that it is ready".into(),
        Ok(FromRank::Done(output)) => format!("step {} with {} rows", output.step, output.rows.len()),
        Ok(FromRank::Rows(rows)) => format!("{} rows", rows.len()),
        Ok(FromRank::Pong { .. }) => "a heartbeat".into(),
    };
    RanksError::Unexpected { rank, expected: expected.into(), got }
}

#[cfg(test)]
mod tests;
