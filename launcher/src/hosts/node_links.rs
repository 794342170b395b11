//! The links between node 0 and the other nodes: what each is told, and what it says.
//!
//! A thread a node hears it: ends of ranks are passed on, a failure is kept for whoever waits for ranks, and what lacks a checkpoint is sent
//! slices of it. Does not know when a rank is started, nor which are needed.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use nanoinfer_shared::link::{ControlLink, Receiver, Sender};

use super::{
    door::NodeGuest,
    messages::{FromNode, ToNode},
    slices::{LendError, Lender},
};
use crate::{error::LaunchError, rank_end::Reports};

/// How long it takes at most until node 0 has been told to stop too, where all nodes are.
const ECHO: Duration = Duration::from_secs(2);

/// The ways to the other nodes, by number from 1 on. The last clone tells them to end.
#[derive(Clone, Debug)]
pub(crate) struct NodeLinks(Arc<Links>);

#[derive(Debug)]
struct Links {
    of_nodes: Vec<Mutex<Option<NodeLink>>>,
    /// Of each host, node 0's first.
    ranks: Vec<Range<usize>>,
    /// For those that have no checkpoint.
    lender: Arc<Lender>,
    reports: Reports,
    /// Node 0 was told to stop.
    is_stopping: AtomicBool,
}

#[derive(Debug)]
struct NodeLink {
    sender: Sender<ToNode>,
    heard: Arc<Heard>,
}

/// What a node said, or that it says nothing any more.
#[derive(Debug, Default)]
struct Heard {
    is_gone: AtomicBool,
    /// Slices of the checkpoint are on their way to it.
    is_lent_to: AtomicBool,
    /// Written by the thread that listens, read by whoever waits for ranks.
    failure: Mutex<Option<String>>,
}

impl NodeLinks {
    /// None yet, to the nodes of hosts with these ranks, node 0's first. Ends of ranks go to `reports`.
    pub(super) fn new(ranks: &[Range<usize>], lender: Lender, reports: Reports) -> Self {
        let of_nodes = (1..ranks.len()).map(|_| Mutex::new(None)).collect();
        let (ranks, lender, is_stopping) = (ranks.to_vec(), Arc::new(lender), AtomicBool::new(false));
        Self(Arc::new(Links { of_nodes, ranks, lender, reports, is_stopping }))
    }

    /// Begins to listen to a node.
    pub(super) fn meet(&self, number: usize, guest: NodeGuest) -> Result<(), LaunchError> {
        let ControlLink { sender, receiver } = guest.link;
        let name = format!("node {number} ({})", guest.hello.host.name);
        let (heard, links) = (Arc::<Heard>::default(), Arc::downgrade(&self.0));
        let listener = Listener {
            number,
            name,
            ranks: self.0.ranks[number].clone(),
            lender: self.0.lender.clone(),
            reports: self.0.reports.clone(),
            heard: heard.clone(),
            links,
        };
        thread::Builder::new()
            .name(format!("from-node-{number}"))
            .spawn(move || listener.listen(receiver))
            .map_err(LaunchError::system("start a thread"))?;
        *self.of(number) = Some(NodeLink { sender, heard });
        Ok(())
    }

    /// Where node 0 has the checkpoint.
    pub(super) fn weights(&self) -> &[PathBuf] {
        self.0.lender.weights()
    }

    /// From now on nobody is let go before the end.
    pub(crate) fn stopping(&self) {
        self.0.is_stopping.store(true, SeqCst);
    }

    /// Tells all of them to end.
    pub(crate) fn end(&self) {
        self.0.end();
    }

    /// A node that is gone is missed by who waits for it.
    pub(super) fn tell(&self, number: usize, order: ToNode) {
        self.0.tell(number, order);
    }

    pub(super) fn is_gone(&self, number: usize) -> bool {
        self.of(number).as_ref().is_none_or(|link| link.heard.is_gone.load(SeqCst))
    }

    /// Whether slices of the checkpoint are on their way to it.
    pub(super) fn is_lent_to(&self, number: usize) -> bool {
        self.of(number).as_ref().is_some_and(|link| link.heard.is_lent_to.load(SeqCst))
    }

    /// Why it could not start ranks, told once.
    pub(super) fn failure(&self, node: usize) -> Option<LaunchError> {
        let link = self.of(node);
        let reason = link.as_ref()?.heard.failure.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(LaunchError::Node { node, reason })
    }

    fn of(&self, number: usize) -> MutexGuard<'_, Option<NodeLink>> {
        self.0.of(number)
    }
}

impl NodeLink {
    /// Whether it has left.
    fn send(&mut self, order: ToNode) -> bool {
        let sent = self.sender.send(order).is_ok();
        if !sent {
            self.heard.is_gone.store(true, SeqCst);
        }
        sent
    }
}

impl Links {
    fn tell(&self, number: usize, order: ToNode) {
        if let Some(link) = &mut *self.of(number) {
            link.send(order);
        }
    }

    fn of(&self, number: usize) -> MutexGuard<'_, Option<NodeLink>> {
        self.of_nodes[number - 1].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        for link in &self.of_nodes {
            if let Some(link) = &mut *link.lock().unwrap_or_else(PoisonError::into_inner) {
                // One that is gone has ended.
                let _ = link.sender.send(ToNode::End);
            }
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.end();
    }
}

impl Heard {
    fn fail(&self, reason: String) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }
}

/// Hears a node until it is gone, and answers what needs no other.
#[derive(Clone)]
struct Listener {
    number: usize,
    name: String,
    ranks: Range<usize>,
    lender: Arc<Lender>,
    reports: Reports,
    heard: Arc<Heard>,
    links: Weak<Links>,
}

impl Listener {
    fn listen(self, mut receiver: Receiver<FromNode>) {
        loop {
            match receiver.receive() {
                Ok(FromNode::Ended(end)) => self.reports.ended(end),
                Ok(FromNode::Failed { reason }) => {
                    tracing::warn!("{}: {reason}", self.name);
                    self.heard.fail(reason);
                }
                Ok(FromNode::Lacking) => {
                    self.heard.is_lent_to.store(true, SeqCst);
                    let lending = self.clone();
                    if let Err(error) = thread::Builder::new().name("lender".into()).spawn(move || lending.lend()) {
                        self.heard.fail(format!("there is no thread to send it a checkpoint: {error}"));
                        self.heard.is_lent_to.store(false, SeqCst);
                    }
                }
                Ok(FromNode::Leaving) => {
                    let leaving = self.clone();
                    // Without a thread the node waits as long as it does for the end.
                    let _ = thread::Builder::new().name("release".into()).spawn(move || leaving.release());
                }
                Ok(FromNode::Hello(_)) => tracing::warn!("{} introduced itself twice", self.name),
                Err(error) => {
                    tracing::debug!("{} is gone: {error}", self.name);
                    return self.heard.is_gone.store(true, SeqCst);
                }
            }
        }
    }

    /// Sends it what its ranks read of the checkpoint.
    fn lend(&self) {
        // To this guest: another may come in its place.
        let tell = |order| {
            let links = self.links.upgrade();
            links.is_some_and(|links| match &mut *links.of(self.number) {
                Some(link) if Arc::ptr_eq(&link.heard, &self.heard) => link.send(order),
                _ => false,
            })
        };
        if let Err(error) = self.lender.lend(self.ranks.clone(), &self.name, &tell) {
            tracing::warn!("{}: {error}", self.name);
            // A node that went may come back.
            if !matches!(error, LendError::Gone { .. }) {
                self.heard.fail(error.to_string());
            }
        }
        self.heard.is_lent_to.store(false, SeqCst);
    }

    /// Lets it go, if it was told to stop alone.
    fn release(&self) {
        thread::sleep(ECHO);
        if let Some(links) = self.links.upgrade().filter(|links| !links.is_stopping.load(SeqCst)) {
            tracing::warn!("{} was told to stop, and is let go", self.name);
            links.tell(self.number, ToNode::Release);
        }
    }
}
