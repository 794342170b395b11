//! Speaks to the ranks: orders them up, sends every step to all, gathers what they answer, watches that they live, and gets others
//! in the place of those that do not.
//!
//! ```text
//! engine ── step ──► sender of each rank ◄── ping ── heartbeat thread, twice a second
//!   ▲                                                  │ who answered when ──► Status::ready
//!   └── one channel ◄── one reader thread a rank ◄─────┘ (pongs stay here)
//! ```
//! Reading order: `members` are the links, `start` brings ranks up, `recovery` brings them up again with those that a `source` has.
//! Knows the protocol; does not know sequences, sampling or how the links came to be.
//! Invariant: at most one order is under way, and every rank has answered it before the next is sent.

mod answers;
mod budget;
mod error;
mod heartbeat;
mod members;
mod pulse;
mod recovery;
mod source;
mod start;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    link::LinkError,
    protocol::{FromRank, LoadReport, LogitSlice, Masks, StepOutput, StepPlan, ToRank, TokenMask},
};

use self::{
    budget::Budget,
    heartbeat::Heartbeat,
    members::{Answer, Inbox},
};
pub use self::{
    budget::RestartLimit,
    error::RanksError,
    source::{Lost, RankSource, SourceError},
};
use crate::engine::{config::EngineConfig, status::Status};

/// A rank that has not answered a heartbeat for so long has ended or hangs: it is lost.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// A rank that answers heartbeats, but has not come from one reduction to the next for so long, hangs: it is lost. The
/// largest layer of a step takes seconds.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// How long a rank that has loaded may take to break off its step: it is at the next reduction within a part of a layer.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
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
    /// Says which tokens may come in its masked rows, in their order: over the whole vocabulary.
    fn send_masks(&mut self, masks: &[TokenMask]) -> Result<(), RanksError>;
    /// Waits for the step that was started: the ranks' slices in rank order.
    fn finish_step(&mut self) -> Result<Vec<StepOutput>, RanksError>;
    /// The raw logits of rows of the last step: for each rank its slices of them.
    fn fetch_rows(&mut self, rows: &[u32]) -> Result<Vec<Vec<LogitSlice>>, RanksError>;
    /// Looks whether a rank has gone while nothing was asked of it.
    fn check(&mut self) -> Result<(), RanksError>;
    /// Gets ranks in the place of those that were lost, and says what is left in the KV pools; the step under way is over on all.
    fn recover(&mut self, loss: RanksError) -> Result<Pools, RanksError>;
    /// Tells the ranks to end. Those that are gone already have.
    fn shut_down(&self);
}

/// What the KV pools hold after a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pools {
    /// What steps before wrote; the one under way may have written some of its positions.
    Kept,
    /// Nothing, on one rank at least.
    Blank,
}

/// Whether nobody waits for the ranks any more.
pub(crate) type GivenUp = Box<dyn Fn() -> bool + Send>;

/// The ranks, seen from the coordinator.
pub(crate) struct LinkedRanks {
    inbox: Inbox,
    heartbeat: Heartbeat,
    config: EngineConfig,
    status: Arc<Status>,
    /// What each rank that has loaded said.
    reports: Vec<Option<LoadReport>>,
    /// Blocks of the pool, once it is known what fits.
    kv_blocks: Option<usize>,
    /// Number of the last start.
    group: u32,
    source: Option<Box<dyn RankSource>>,
    budget: Budget,
    /// The step that was started.
    step: StepPlan,
    patience: Patience,
    given_up: GivenUp,
}

/// How long ranks are waited for. Tests have less.
#[derive(Clone, Copy, Debug)]
struct Patience {
    lost: Duration,
    stuck: Duration,
    leave: Duration,
    look: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { lost: LOST_AFTER, stuck: STUCK_AFTER, leave: LEAVE_WITHIN, look: LOOK_EVERY }
    }
}

impl LinkedRanks {
    fn all(&self) -> Vec<usize> {
        (0..self.inbox.members().world()).collect()
    }

    fn send(&self, ranks: &[usize], message: impl Fn(usize) -> ToRank) -> Result<(), RanksError> {
        self.heartbeat.expect();
        let mut failed = None;
        for &rank in ranks {
            // The others get theirs all the same: one that was never told to load could not be told to leave.
            let sent = self.inbox.members().of(rank).send(message(rank));
            failed = failed.or(sent.err().map(|source| (rank, source)));
        }
        match failed {
            Some((rank, source)) => Err(self.last_words(rank).unwrap_or(RanksError::Gone { rank, source })),
            None => Ok(()),
        }
    }

    /// One answer of each of `ranks`, in that order. `accept` gives back what does not belong here.
    fn collect<T>(
        &self,
        ranks: &[usize],
        expected: &str,
        mut accept: impl FnMut(usize, FromRank) -> Result<T, FromRank>,
    ) -> Result<Vec<T>, RanksError> {
        let mut gathered: Vec<Option<T>> = ranks.iter().map(|_| None).collect();
        let mut reminded = Instant::now();
        while gathered.iter().any(Option::is_none) {
            let Some(Answer { rank, message, .. }) = self.inbox.next(Instant::now() + self.patience.look) else {
                let owe = || ranks.iter().zip(&gathered).filter(|(_, got)| got.is_none()).map(|(&rank, _)| rank);
                self.heartbeat.lost(owe(), self.patience.lost)?;
                if self.heartbeat.is_serving() {
                    self.heartbeat.stuck(owe(), self.patience.stuck)?;
                }
                self.give_up()?;
                if reminded.elapsed() >= REMINDER {
                    tracing::info!(ranks = ?owe().collect::<Vec<_>>(), "waiting for {expected}");
                    reminded = Instant::now();
                }
                continue;
            };
            let place = ranks.iter().position(|&asked| asked == rank);
            match (place, message.map_err(Err).and_then(|message| accept(rank, message).map_err(Ok))) {
                (Some(place), Ok(value)) if gathered[place].is_none() => gathered[place] = Some(value),
                (_, Ok(_)) => {
                    return Err(RanksError::Unexpected {
                        rank,
                        expected: "nothing more".into(),
                        got: format!("{expected} again"),
                    });
                }
                (_, Err(message)) => return Err(unexpected(rank, message, expected)),
            }
        }
        Ok(gathered.into_iter().flatten().collect())
    }

    /// What a rank said before its link closed, if its reader has heard it or does soon.
    fn last_words(&self, of: usize) -> Option<RanksError> {
        let deadline = Instant::now() + LOOK_EVERY;
        while let Some(Answer { rank, message, .. }) = self.inbox.next(deadline) {
            if rank == of {
                return Some(unexpected(rank, message, "nothing"));
            }
        }
        None
    }

    /// Whether they have been up together before.
    fn is_started(&self) -> bool {
        self.kv_blocks.is_some()
    }
}

impl Ranks for LinkedRanks {
    fn begin_step(&mut self, plan: &StepPlan) -> Result<(), RanksError> {
        self.step.clone_from(plan);
        self.send(&self.all(), |_| ToRank::Step(plan.clone()))
    }

    fn send_masks(&mut self, masks: &[TokenMask]) -> Result<(), RanksError> {
        let (step, partition) = (self.step.step, &self.config.load.partition);
        let of_rank = |rank| masks.iter().map(|mask| mask.slice(&partition.share(rank).vocab)).collect();
        self.send(&self.all(), |rank| ToRank::Masks(Masks { step, rows: of_rank(rank) }))
    }

    fn finish_step(&mut self) -> Result<Vec<StepOutput>, RanksError> {
        let step = self.step.step;
        let rows = self.step.sequences.iter().map(|sequence| sequence.outputs.len()).sum::<usize>();
        let answers =
            self.collect(&self.all(), &format!("step {step} with {rows} rows"), |_, message| match message {
                FromRank::Done(output) if output.step == step && output.rows.len() == rows => Ok(output),
                other => Err(other),
            })?;
        for (rank, output) in answers.iter().enumerate() {
            answers::check_step(rank, output, &self.step, &self.config.load.partition.share(rank).vocab)?;
        }
        self.budget.succeeded();
        Ok(answers)
    }

    fn fetch_rows(&mut self, rows: &[u32]) -> Result<Vec<Vec<LogitSlice>>, RanksError> {
        let all = self.all();
        let mut fetched = vec![Vec::<LogitSlice>::new(); all.len()];
        for rows in rows.chunks(MAX_FETCHED_ROWS) {
            self.send(&all, |_| ToRank::FetchRows(rows.to_vec()))?;
            let by_rank = self.collect(&all, &format!("{} rows", rows.len()), |_, message| match message {
                FromRank::Rows(slices) if slices.len() == rows.len() => Ok(slices),
                other => Err(other),
            })?;
            for (rank, slices) in by_rank.iter().enumerate() {
                answers::check_rows(rank, slices, &self.config.load.partition.share(rank).vocab)?;
            }
            fetched.iter_mut().zip(by_rank).for_each(|(all, slices)| all.extend(slices));
        }
        Ok(fetched)
    }

    fn check(&mut self) -> Result<(), RanksError> {
        match self.inbox.try_next() {
            Some(Answer { rank, message, .. }) => Err(unexpected(rank, message, "nothing")),
            None => Ok(()),
        }
    }

    fn recover(&mut self, loss: RanksError) -> Result<Pools, RanksError> {
        self.recover_from(loss)
    }

    fn shut_down(&self) {
        for member in self.inbox.members().all() {
            // A sender that is held belongs to a rank that does not read; it ends as its link closes.
            if let Ok(mut sender) = member.sender.try_lock() {
                let _ = sender.send(ToRank::Shutdown);
            }
        }
    }
}

/// The error that an answer out of place is.
fn unexpected(rank: usize, message: Result<FromRank, LinkError>, expected: &str) -> RanksError {
    let got = match message {
        Err(source) => return RanksError::Gone { rank, source },
        Ok(FromRank::Failed { kind, reason }) => return RanksError::Failed { rank, kind, reason },
        Ok(FromRank::Loaded(_)) => "the end of loading".into(),
        Ok(FromRank::Ready { .. }) => "that it is ready".into(),
        Ok(FromRank::Left { group, .. }) => format!("that it has left for start {group}"),
        Ok(FromRank::Done(output)) => format!("step {} with {} rows", output.step, output.rows.len()),
        Ok(FromRank::Rows(rows)) => format!("{} rows", rows.len()),
        Ok(FromRank::Pong { .. }) => "a heartbeat".into(),
    };
    RanksError::Unexpected { rank, expected: expected.into(), got }
}

#[cfg(test)]
mod tests;
