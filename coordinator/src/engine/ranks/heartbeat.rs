//! Watches that every rank answers and goes on, and says so in [`Status::is_ready`].
//!
//! Pings begin with the links, so that ranks are watched while they load. Who comes in the place of a rank that was lost has a
//! pulse of its own. Does not know what else is sent.
//! Invariant: at most one ping of each rank is unanswered, so pings never fill the buffer of a rank that was stopped;
//! once the heartbeat has ended, `ready` stays false.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::protocol::ToRank;

use super::{error::RanksError, members::Members};
use crate::engine::status::Status;

/// Between two pings.
const PING_EVERY: Duration = Duration::from_millis(500);
/// Between two looks at who answered.
const TICK: Duration = Duration::from_millis(100);
/// A rank that has been silent for longer is not ready: with a tick on top within 2 s of its death.
const UNREADY_AFTER: Duration = Duration::from_millis(1500);

/// The lives of all ranks. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    members: Members,
    status: Arc<Status>,
    ended: Arc<AtomicBool>,
    /// Whether the ranks are past their start.
    serving: Arc<AtomicBool>,
    /// Dropped with this, which ends the thread.
    _thread: mpsc::Sender<()>,
}

impl Heartbeat {
    /// Begins to ping.
    pub(super) fn start(members: Members, status: Arc<Status>) -> Result<Self, RanksError> {
        let (alive, end) = mpsc::channel();
        let heartbeat = Self { members, status, ended: Arc::default(), serving: Arc::default(), _thread: alive };
        let (members, status) = (heartbeat.members.clone(), heartbeat.status.clone());
        let (ended, serving) = (heartbeat.ended.clone(), heartbeat.serving.clone());
        let watch = move || {
            let mut next_ping = Instant::now();
            while end.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                // Looked at before pinging, which can be held up.
                let ready =
                    serving.load(SeqCst) && members.all().all(|member| member.pulse.silent_for() < UNREADY_AFTER);
                if ready != status.set_ready(ready) {
                    tracing::info!(ready, "the ranks' heartbeats changed");
                }
                if ended.load(SeqCst) || !serving.load(SeqCst) {
                    // So since we looked: what we said must not stay.
                    status.set_ready(false);
                }
                if Instant::now() >= next_ping {
                    next_ping = Instant::now() + PING_EVERY;
                    ping(&members);
                }
            }
        };
        thread::Builder::new().name("heartbeat".into()).spawn(watch).map_err(RanksError::Thread)?;
        Ok(heartbeat)
    }

    /// The ranks take steps: sets [`Status::is_ready`] from now on.
    pub(super) fn serve(&self) {
        self.serving.store(true, SeqCst);
        self.status.set_ready(true);
    }

    /// They take none for a while.
    pub(super) fn pause(&self) {
        self.serving.store(false, SeqCst);
        self.status.set_ready(false);
    }

    /// Whether the ranks take steps.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.load(SeqCst)
    }

    /// An order goes out: from here on ranks are expected to go on.
    pub(super) fn expect(&self) {
        self.members.all().for_each(|member| member.pulse.expect());
    }

    /// Names one of `ranks` that has been silent for `limit`.
    pub(super) fn lost(&self, mut ranks: impl Iterator<Item = usize>, limit: Duration) -> Result<(), RanksError> {
        let silence = |rank: usize| self.members.of(rank).pulse.silent_for();
        let silent = ranks.find_map(|rank| Some((rank, silence(rank))).filter(|(_, silence)| *silence > limit));
        match silent {
            Some((rank, silence)) => Err(RanksError::Silent { rank, seconds: silence.as_secs() }),
            None => Ok(()),
        }
    }

    /// Names the rank that is furthest behind of those that `owe` an answer, and where it is, if it has not gone on for `limit`.
    /// Those before it may well wait for it.
    pub(super) fn stuck(&self, owe: impl Iterator<Item = usize>, limit: Duration) -> Result<(), RanksError> {
        let of = |rank: usize| (self.members.of(rank).pulse.place(), rank);
        match owe.map(of).min_by_key(|&((place, _), rank)| (place, rank)) {
            Some(((place, still), rank)) if still > limit => {
                Err(RanksError::Stuck { rank, seconds: still.as_secs(), place })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        self.status.set_ready(false);
    }
}

/// Pings every rank that answered the last ping and whose sender is free: an order on its way is answered for itself.
fn ping(members: &Members) {
    for member in members.all() {
        let (pulse, sent) = (&member.pulse, member.pulse.sent.load(Relaxed));
        if pulse.answered.load(Relaxed) == sent
            && let Ok(mut sender) = member.sender.try_lock()
            // A link that failed is the business of its reader.
            && sender.send(ToRank::Ping(sent + 1)).is_ok()
        {
            pulse.sent.store(sent + 1, Relaxed);
        }
    }
}
