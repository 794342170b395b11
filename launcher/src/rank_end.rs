//! How a rank ended, and which of several ends explains the others.
//!
//! Does not know who watches ranks, nor what becomes of a cluster that lost one.

use std::{fmt, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};

/// How long the ends of further ranks are awaited after the first: the one that came first need not be the cause.
const SETTLE: Duration = Duration::from_millis(200);
/// How long to wait for the word of the rank that a failed engine lost: the cause is worth more than the effect.
pub(crate) const CAUSE_DEADLINE: Duration = Duration::from_secs(1);

/// Exit status of a program that panicked.
const PANICKED: i32 = 101;

/// The end of one rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RankEnd {
    /// Which.
    pub rank: usize,
    /// How.
    pub how: HowEnded,
    /// What it last wrote to its standard error.
    pub last_lines: Vec<String>,
}

/// How a rank ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum HowEnded {
    /// A process, with this status.
    Status(#[serde(with = "raw_status")] ExitStatus),
    /// A thread, cleanly.
    Returned,
    /// A thread, with this error.
    Failed(String),
}

/// As the kernel has it.
mod raw_status {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(status: &ExitStatus, serializer: S) -> Result<S::Ok, S::Error> {
        (*status).into_raw().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ExitStatus, D::Error> {
        i32::deserialize(deserializer).map(ExitStatus::from_raw)
    }
}

/// The last end of each rank that another has not taken the place of: as many as there are ranks, however long a cluster lives.
#[derive(Debug)]
pub(crate) struct RankEnds(watch::Receiver<Vec<RankEnd>>);

/// Where ends are reported.
#[derive(Clone, Debug)]
pub(crate) struct Reports(watch::Sender<Vec<RankEnd>>);

impl Reports {
    /// A rank has ended.
    pub(crate) fn ended(&self, end: RankEnd) {
        self.began(end.rank);
        self.0.send_modify(|ends| ends.push(end));
    }

    /// A rank begins: how one before it in its place ended explains nothing that is to come.
    pub(crate) fn began(&self, rank: usize) {
        self.0.send_modify(|ends| ends.retain(|end| end.rank != rank));
    }
}

impl RankEnds {
    /// None yet, and where they are reported.
    pub(crate) fn new() -> (Reports, Self) {
        let (report, reports) = watch::channel(Vec::new());
        (Reports(report), Self(reports))
    }

    /// Waits until one ends or begins, and has the ends of all that have not begun again; none where nobody is left to report any.
    pub(crate) async fn changed(&mut self) -> Option<Vec<RankEnd>> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// Failures that come together, the likeliest cause first, if one comes within `patience`; none where nobody is left to report
    /// any. May be dropped and called again.
    pub(crate) async fn failures(&mut self, patience: Duration) -> Option<Vec<RankEnd>> {
        loop {
            // A rank that ends cleanly was told to; where it was not, the engine misses it and ends.
            let failed: Vec<_> = self.0.borrow_and_update().iter().filter(|end| !end.is_clean()).cloned().collect();
            let patience = if failed.is_empty() { patience } else { SETTLE };
            match timeout(patience, self.0.changed()).await {
                Ok(Ok(())) => {}
                _ if failed.is_empty() => return None,
                _ => return Some(RankEnd::sorted(failed)),
            }
        }
    }
}

impl RankEnd {
    /// Ends in the order in which they explain the most: signals first, else as they came.
    fn sorted(mut ends: Vec<Self>) -> Vec<Self> {
        ends.sort_by_key(|end| !matches!(&end.how, HowEnded::Status(status) if status.signal().is_some()));
        ends
    }

    /// Several ends in words: the first in full, the others in a line each, as they mostly followed from it.
    pub(crate) fn told(ends: &[Self]) -> String {
        let Some((first, others)) = ends.split_first() else { return "a rank ended".into() };
        let headline = |end: &Self| end.to_string().lines().next().map(|line| format!("\n  then {line}"));
        first.to_string() + &others.iter().filter_map(headline).collect::<String>()
    }

    /// Whether it may have written anywhere before: no memory that others can see of it is to be trusted.
    pub(crate) fn is_corrupt(&self) -> bool {
        match &self.how {
            HowEnded::Status(status) => {
                // SIGKILL stops a program between two instructions; other signals are its own doing, and so is a panic.
                status.code() == Some(PANICKED) || status.signal().is_some_and(|signal| signal != libc::SIGKILL)
            }
            HowEnded::Returned | HowEnded::Failed(_) => true,
        }
    }

    /// Without any sign of failure.
    fn is_clean(&self) -> bool {
        match &self.how {
            HowEnded::Status(status) => status.success(),
            HowEnded::Returned => true,
            HowEnded::Failed(_) => false,
        }
    }
}

impl fmt::Display for RankEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} ", self.rank)?;
        match &self.how {
            HowEnded::Status(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => {
                    write!(f, "was killed by signal {signal}{}", signal_name(signal))?;
                    if signal == 9 {
                        write!(
                            f,
                            "\n  hint: if nobody did that, the kernel ran out of memory: see `dmesg` and --plan"
                        )?;
                    }
                }
                (None, Some(code)) => write!(f, "ended with exit status {code}")?,
                (None, None) => write!(f, "ended with {status}")?,
            },
            HowEnded::Returned => write!(f, "ended although nobody asked it to")?,
            HowEnded::Failed(reason) => write!(f, "failed: {reason}")?,
        }
        if !self.last_lines.is_empty() {
            write!(f, "\n  its last lines:")?;
            self.last_lines.iter().try_for_each(|line| write!(f, "\n    {line}"))?;
        }
        Ok(())
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_rank_names_signal_status_and_last_lines() {
        let end = |how| RankEnd { rank: 1, how, last_lines: vec!["thread panicked".into()] }.to_string();
        let killed = end(HowEnded::Status(ExitStatus::from_raw(9)));
        assert!(killed.starts_with("rank 1 was killed by signal 9 (SIGKILL)"), "{killed}");
        assert!(killed.contains("out of memory") && killed.ends_with("thread panicked"), "{killed}");
        assert!(end(HowEnded::Status(ExitStatus::from_raw(101 << 8))).contains("exit status 101"));

        let one = |rank, status| RankEnd {
            rank,
            how: HowEnded::Status(ExitStatus::from_raw(status)),
            last_lines: vec!["a line".into()],
        };
        let told = RankEnd::told(&RankEnd::sorted(vec![one(0, 1 << 8), one(2, 11)]));
        assert_eq!(
            told,
            "rank 2 was killed by signal 11 (SIGSEGV)\n  its last lines:\n    a line\n  then rank 0 ended with exit status 1"
        );
    }

    #[test]
    fn ends_that_come_together_are_told_together_and_those_of_ranks_that_began_again_are_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (report, mut ends) = RankEnds::new();
        let came = |rank, how| report.ended(RankEnd { rank, how, last_lines: Vec::new() });
        let ranks = |ends: &mut RankEnds| -> Option<Vec<usize>> {
            let failures = runtime.block_on(ends.failures(Duration::from_millis(1)))?;
            Some(failures.iter().map(|end| end.rank).collect())
        };
        came(0, HowEnded::Returned);
        assert!(ranks(&mut ends).is_none(), "a clean end is no failure");
        came(1, HowEnded::Failed("of something".into()));
        // Dropped while others are awaited.
        runtime.block_on(async { timeout(SETTLE / 10, ends.failures(Duration::MAX)).await.unwrap_err() });
        came(2, HowEnded::Status(ExitStatus::from_raw(9)));
        assert_eq!(ranks(&mut ends).unwrap(), [2, 1], "a signal explains the most");
        for _ in 0..1000 {
            came(1, HowEnded::Failed("of something".into()));
        }
        assert_eq!(ranks(&mut ends).unwrap(), [2, 1], "one end of each");
        report.began(2);
        report.began(1);
        assert!(ranks(&mut ends).is_none());
        drop(report);
        assert!(runtime.block_on(ends.failures(Duration::MAX)).is_none(), "nobody is left to report any");
    }
}
