//! Watches that every rank answers and goes on, and says so in [`Status::is_ready`].
//!
//! Pings begin with the links, so that ranks are watched while they load. Does not know what else is sent.
//! Invariant: at most one ping of each rank is unanswered, so pings never fill the buffer of a rank that was stopped;
//! once the heartbeat has ended, `ready` stays false.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    link::Sender,
    protocol::{Place, ToRank},
};

use super::error::RanksError;
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
    pulses: Vec<Arc<Pulse>>,
    status: Arc<Status>,
    ended: Arc<AtomicBool>,
    /// Whether the ranks are past their start.
    serving: Arc<AtomicBool>,
    /// Dropped with this, which ends the thread.
    thread: Option<mpsc::Sender<()>>,
}

/// The life of one rank.
#[derive(Debug)]
pub(crate) struct Pulse {
    born: Instant,
    /// Number of the last ping answered; pings count from 1.
    answered: AtomicU64,
    /// Milliseconds from `born` to the last answer.
    answered_ms: AtomicU64,
    /// Where the rank said that it is, and since when. A mutex, as the two belong together; held for no longer than that.
    place: Mutex<(Place, Instant)>,
    gone: AtomicBool,
}

impl Heartbeat {
    /// Of `world` ranks that were all alive just now; nobody is pinged yet.
    pub(super) fn new(world: usize, status: Arc<Status>) -> Self {
        Self {
            pulses: (0..world).map(|_| Arc::new(Pulse::new())).collect(),
            status,
            ended: Arc::default(),
            serving: Arc::default(),
            thread: None,
        }
    }

    /// The life of one rank, for its reader.
    pub(super) fn pulse(&self, rank: usize) -> Arc<Pulse> {
        self.pulses[rank].clone()
    }

    /// Begins to ping.
    pub(super) fn start(&mut self, senders: Arc<Vec<Mutex<Sender<ToRank>>>>) -> Result<(), RanksError> {
        let (pulses, status, ended) = (self.pulses.clone(), self.status.clone(), self.ended.clone());
        let serving = self.serving.clone();
        let (alive, end) = mpsc::channel();
        self.thread = Some(alive);
        let watch = move || {
            let (mut sent, mut next_ping) = (vec![0; pulses.len()], Instant::now());
            while end.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                // Looked at before pinging, which can be held up.
                let ready = serving.load(SeqCst) && pulses.iter().all(|pulse| pulse.silent_for() < UNREADY_AFTER);
                if ready != status.set_ready(ready) {
                    tracing::info!(ready, "the ranks' heartbeats changed");
                }
                if ended.load(SeqCst) {
                    // Ended while we looked: what we said must not stay.
                    status.set_ready(false);
                }
                if Instant::now() >= next_ping {
                    next_ping = Instant::now() + PING_EVERY;
                    ping(&mut sent, &pulses, &senders);
                }
            }
        };
        thread::Builder::new().name("heartbeat".into()).spawn(watch).map_err(RanksError::Thread)?;
        Ok(())
    }

    /// The ranks take steps: sets [`Status::is_ready`] from now on.
    pub(super) fn serve(&self) {
        self.serving.store(true, SeqCst);
        self.status.set_ready(true);
    }

    /// Whether the ranks take steps.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.load(SeqCst)
    }

    /// An order goes out: from here on ranks are expected to go on.
    pub(super) fn expect(&self) {
        self.pulses.iter().for_each(|pulse| pulse.expect());
    }

    /// Names a rank that has been silent for `limit`.
    pub(super) fn lost(&self, limit: Duration) -> Result<(), RanksError> {
        let silent =
            self.pulses.iter().map(|pulse| pulse.silent_for()).enumerate().find(|(_, silence)| *silence > limit);
        match silent {
            Some((rank, silence)) => Err(RanksError::Silent { rank, seconds: silence.as_secs() }),
            None => Ok(()),
        }
    }

    /// Names the rank that is furthest behind of those that `owe` an answer, and where it is, if it has not gone on for `limit`.
    /// Those before it may well wait for it.
    pub(super) fn stuck(&self, owe: impl Iterator<Item = usize>, limit: Duration) -> Result<(), RanksError> {
        let of = |rank: usize| (self.pulses[rank].place(), rank);
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

impl Pulse {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            answered: AtomicU64::new(0),
            answered_ms: AtomicU64::new(0),
            place: Mutex::new((Place::default(), Instant::now())),
            gone: AtomicBool::new(false),
        }
    }

    /// The rank answered ping `count`, from `place`.
    pub(super) fn beat(&self, count: u64, place: Place) {
        let mut known = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != place {
            *known = (place, Instant::now());
        }
        drop(known);
        self.answered_ms.store(self.born.elapsed().as_millis() as u64, Relaxed);
        self.answered.store(count, Relaxed);
    }

    /// What it has rested does not count.
    fn expect(&self) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).1 = Instant::now();
    }

    /// Where it is, and for how long.
    fn place(&self) -> (Place, Duration) {
        let (place, since) = *self.place.lock().unwrap_or_else(PoisonError::into_inner);
        (place, since.elapsed())
    }

    /// The rank is gone.
    pub(super) fn stop(&self) {
        self.gone.store(true, Relaxed);
    }

    /// Since its last answer; forever once it is gone.
    fn silent_for(&self) -> Duration {
        if self.gone.load(Relaxed) {
            return Duration::MAX;
        }
        self.born.elapsed().saturating_sub(Duration::from_millis(self.answered_ms.load(Relaxed)))
    }
}

/// Pings every rank that answered the last ping and whose sender is free: an order on its way is answered for itself.
/// `sent` counts the pings of each rank.
fn ping(sent: &mut [u64], pulses: &[Arc<Pulse>], senders: &[Mutex<Sender<ToRank>>]) {
    for ((sent, pulse), sender) in sent.iter_mut().zip(pulses).zip(senders) {
        if pulse.answered.load(Relaxed) == *sent
            && let Ok(mut sender) = sender.try_lock()
            // A link that failed is the business of its reader.
            && sender.send(ToRank::Ping(*sent + 1)).is_ok()
        {
            *sent += 1;
        }
    }
}
