//! The links to the ranks, and who reads from each: a rank that was lost has another in its place, with a link of its own.
//!
//! Knows that ranks come and go; does not know what is said.
//! Invariant: what a rank said whose place another has taken is never taken for that one's.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Instant,
};

use nanoinfer_shared::{
    link::{ControlLink, LinkError, Receiver, Sender},
    protocol::{FailureKind, FromRank, ToRank},
};

use super::{error::RanksError, pulse::Pulse};
use crate::engine::submission::Wake;

/// What may wait in the inbox of each rank: answers of a step that nobody waits for any more, and its end.
const ANSWERS_OF_RANK: usize = 8;

/// All ranks, as the engine's thread and the heartbeat thread see them.
#[derive(Clone, Debug)]
pub(crate) struct Members(Arc<Vec<Mutex<Arc<Member>>>>);

/// One rank, while it lives.
#[derive(Debug)]
pub(super) struct Member {
    /// The engine's thread sends orders and the heartbeat thread pings, each a whole frame. The heartbeat thread only ever tries
    /// it, as a rank that was stopped can hold a sender for long.
    pub(super) sender: Mutex<Sender<ToRank>>,
    pub(super) pulse: Arc<Pulse>,
    /// Tells it from those before it in its place.
    life: u64,
}

/// What a reader thread heard from its rank; nothing follows an error.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) rank: usize,
    pub(super) message: Result<FromRank, LinkError>,
    life: u64,
}

/// Where all readers leave what they hear.
pub(super) struct Inbox {
    members: Members,
    answers: mpsc::Receiver<Answer>,
    sender: mpsc::SyncSender<Answer>,
    /// Called when a rank is gone, whoever waits for it or not.
    wake: Wake,
    lives: u64,
}

impl Members {
    /// Of one rank.
    pub(super) fn of(&self, rank: usize) -> Arc<Member> {
        self.0[rank].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// In rank order.
    pub(super) fn all(&self) -> impl Iterator<Item = Arc<Member>> + '_ {
        (0..self.world()).map(|rank| self.of(rank))
    }

    /// How many there are.
    pub(super) fn world(&self) -> usize {
        self.0.len()
    }
}

impl Inbox {
    /// Takes over the links, in rank order.
    pub(super) fn connect(links: Vec<ControlLink<ToRank, FromRank>>, wake: Wake) -> Result<Self, RanksError> {
        let (sender, answers) = mpsc::sync_channel(ANSWERS_OF_RANK * links.len());
        let (mut members, mut lives) = (Vec::with_capacity(links.len()), 0);
        for (rank, link) in links.into_iter().enumerate() {
            members.push(Mutex::new(meet(rank, link, lives, &sender, wake.clone())?));
            lives += 1;
        }
        Ok(Self { members: Members(Arc::new(members)), answers, sender, wake, lives })
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Puts another in the place of a rank, whose link ends.
    pub(super) fn replace(&mut self, rank: usize, link: ControlLink<ToRank, FromRank>) -> Result<(), RanksError> {
        let member = meet(rank, link, self.lives, &self.sender, self.wake.clone())?;
        self.lives += 1;
        let mut place = self.members.0[rank].lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *place, member);
        drop(place);
        before.close();
        Ok(())
    }

    /// The next answer of a rank that is still in its place, if there is one before `deadline`.
    pub(super) fn next(&self, deadline: Instant) -> Option<Answer> {
        loop {
            match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(answer) if answer.life == self.members.of(answer.rank).life => return Some(answer),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => unreachable!("the inbox holds a sender of its own"),
            }
        }
    }

    /// What is there already.
    pub(super) fn try_next(&self) -> Option<Answer> {
        self.next(Instant::now())
    }
}

impl Member {
    /// Ends the link: both sides are told.
    pub(super) fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).close();
    }

    /// Sends one order.
    pub(super) fn send(&self, order: ToRank) -> Result<(), LinkError> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).send(order)
    }
}

/// Begins to listen to a rank.
fn meet(
    rank: usize,
    link: ControlLink<ToRank, FromRank>,
    life: u64,
    inbox: &mpsc::SyncSender<Answer>,
    wake: Wake,
) -> Result<Arc<Member>, RanksError> {
    let pulse = Arc::new(Pulse::new());
    let (inbox, watched) = (inbox.clone(), pulse.clone());
    thread::Builder::new()
        .name(format!("from-rank-{rank}"))
        .spawn(move || read(rank, life, link.receiver, &inbox, &watched, wake))
        .map_err(RanksError::Thread)?;
    Ok(Arc::new(Member { sender: Mutex::new(link.sender), pulse, life }))
}

/// Hands on what the rank says until its link ends.
fn read(
    rank: usize,
    life: u64,
    mut receiver: Receiver<FromRank>,
    inbox: &mpsc::SyncSender<Answer>,
    pulse: &Pulse,
    wake: Wake,
) {
    loop {
        let message = match receiver.receive() {
            Ok(FromRank::Pong { count, place }) => {
                pulse.beat(count, place);
                continue;
            }
            message => message,
        };
        let last = match &message {
            Ok(FromRank::Failed { kind, .. }) => *kind != FailureKind::Peer,
            Ok(_) => false,
            Err(_) => true,
        };
        if last {
            pulse.stop();
        }
        // A closed inbox: the engine has ended before its rank.
        if inbox.send(Answer { rank, message, life }).is_err() || last {
            return wake();
        }
    }
}
