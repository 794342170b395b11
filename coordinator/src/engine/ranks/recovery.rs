//! What becomes of ranks when one is lost: the others leave their data link, another takes its place, all start again.
//!
//! Knows what a loss is and how many are borne; does not know sequences, nor what ranks are made of: they come from a
//! [`RankSource`](super::RankSource).
//! Invariant: a step is only begun while every rank is in the same group, and its pool as the engine knows it: kept, or told blank.

use std::time::{Duration, Instant};

use nanoinfer_shared::protocol::{FromRank, ToRank};

use super::{LinkedRanks, Pools, budget::RestartLimit, error::RanksError, members::Answer, source::Lost};

/// How often a wait looks up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl LinkedRanks {
    /// Gets all ranks to where they take steps again.
    ///
    /// # Errors
    /// With what cannot be mended, or was not within the limit.
    pub(super) fn recover_from(&mut self, loss: RanksError) -> Result<Pools, RanksError> {
        let begun = Instant::now();
        self.heartbeat.pause();
        let mut lost = Vec::new();
        let mut error = loss;
        loop {
            let may_try = self.source.is_some() && (self.is_started() || !error.comes_again());
            if !may_try || !error.can_be_mended(&mut lost) {
                return Err(error);
            }
            self.status.lose(lost.iter().map(|lost| lost.rank));
            let Some(pause) = self.budget.take(Instant::now()) else {
                let RestartLimit { most, within } = self.budget.limit;
                tracing::error!("{most} recoveries within {within:?} are enough (--rank-restarts)");
                return Err(error);
            };
            tracing::warn!(pause_ms = pause.as_millis() as u64, "{error}; its rank is started again");
            match self.again(&mut lost, pause) {
                Ok(pools) => {
                    self.status.regain(begun.elapsed());
                    let seconds = begun.elapsed().as_secs_f64();
                    self.status.metrics().recovery_seconds.observe(seconds);
                    tracing::info!(seconds, ?pools, "the ranks are ready again");
                    return Ok(pools);
                }
                Err(next) => error = next,
            }
        }
    }

    /// One try. Those that are found lost on the way are added.
    fn again(&mut self, lost: &mut Vec<Lost>, pause: Duration) -> Result<Pools, RanksError> {
        self.group += 1;
        self.leave(lost)?;
        // Who is lost meanwhile is had again together with those that were before.
        let until = Instant::now() + pause;
        while Instant::now() < until {
            self.give_up()?;
            if let Some(answer) = self.inbox.next(until.min(Instant::now() + LOOK_EVERY)) {
                self.hear(answer, lost)?;
            }
        }
        self.give_up()?;
        self.status.lose(lost.iter().map(|lost| lost.rank));
        lost.sort_unstable_by_key(|lost| lost.rank);
        // One on another host that still runs ends by that, so that its host starts it again.
        lost.iter().for_each(|lost| self.inbox.members().of(lost.rank).close());
        let source = self.source.as_mut().expect("there is one, or nobody tries again");
        let links = source.replace(self.group, lost, &*self.given_up).map_err(RanksError::Source)?;
        assert_eq!(links.len(), lost.len(), "the source gives one link a rank");
        let new: Vec<usize> = lost.iter().map(|lost| lost.rank).collect();
        for (&rank, link) in new.iter().zip(links) {
            self.inbox.replace(rank, link)?;
            self.reports[rank] = None;
        }
        lost.clear();
        self.status.metrics().rank_restarts.inc_by(new.len() as u64);
        self.bring_up(&new)
    }

    /// Has all that are not lost leave their data link; who does not, or is gone, is lost too.
    pub(super) fn leave(&mut self, lost: &mut Vec<Lost>) -> Result<(), RanksError> {
        let group = self.group;
        let mut staying: Vec<usize> = self.all();
        staying.retain(|&rank| lost.iter().all(|lost| lost.rank != rank));
        staying.retain(|&rank| match self.inbox.members().of(rank).send(ToRank::Leave { group }) {
            Ok(()) => true,
            Err(source) => !RanksError::Gone { rank, source }.can_be_mended(lost),
        });
        // Since when all that have loaded could have left; who still loads hears of nothing before that is done.
        let (mut since, mut loaded) = (Instant::now(), self.reports.iter().flatten().count());
        while !staying.is_empty() {
            self.give_up()?;
            if let Some(answer) = self.inbox.next(Instant::now() + LOOK_EVERY) {
                let (rank, left) = (answer.rank, self.hear(answer, lost)?);
                staying.retain(|&other| other != rank || !(left || lost.iter().any(|lost| lost.rank == rank)));
                let now_loaded = self.reports.iter().flatten().count();
                if std::mem::replace(&mut loaded, now_loaded) < now_loaded {
                    since = Instant::now();
                }
                continue;
            }
            if let Err(silent) = self.heartbeat.lost(staying.iter().copied(), self.patience.lost) {
                silent.can_be_mended(lost);
            }
            if since.elapsed() > self.patience.leave {
                let seconds = since.elapsed().as_secs();
                for &rank in staying.iter().filter(|&&rank| self.reports[rank].is_some()) {
                    RanksError::Stays { rank, seconds }.can_be_mended(lost);
                }
            }
            staying.retain(|&rank| lost.iter().all(|lost| lost.rank != rank));
        }
        Ok(())
    }

    /// Notes what a rank says while it is not asked for steps: whether it has left, or that it is lost.
    fn hear(&mut self, answer: Answer, lost: &mut Vec<Lost>) -> Result<bool, RanksError> {
        let Answer { rank, message, .. } = answer;
        let error = match message {
            Ok(FromRank::Left { group, data_address }) if group == self.group => {
                if let Some(report) = &mut self.reports[rank] {
                    report.data_address = data_address;
                }
                return Ok(true);
            }
            // It had not been waited for.
            Ok(FromRank::Loaded(report)) => {
                self.reports[rank] = Some(report);
                return Ok(false);
            }
            Ok(FromRank::Failed { kind, reason }) => RanksError::Failed { rank, kind, reason },
            Err(source) => RanksError::Gone { rank, source },
            // Of a step, or a start, that is over.
            Ok(_) => return Ok(false),
        };
        if error.can_be_mended(lost) { Ok(false) } else { Err(error) }
    }

    pub(super) fn give_up(&self) -> Result<(), RanksError> {
        if (self.given_up)() { Err(RanksError::GivenUp) } else { Ok(()) }
    }
}
