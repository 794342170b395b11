//! Ranks of all hosts, as the engine gets them: at the start and after a loss by the same way. Those of this host are started
//! here; those of others by their nodes, and come in at the ranks' door.
//!
//! A rank that is lost is had again at once by its node. A node that is lost took its ranks along: it is waited for.
//! Does not know what a loss is, nor what ranks do.

use std::{
    net::TcpListener,
    ops::{Range, RangeInclusive},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use nanoinfer_coordinator::engine::{Lost, RankSource, SourceError};
use nanoinfer_shared::{
    door::listen as listen_at,
    handshake,
    link::{ControlLink, Receiver, Sender},
    protocol::{FromRank, ToRank},
};

use super::{
    door::{Arrivals, Door, Guest, NodeGuest, RankGuest},
    messages::{FromNode, StartRanks, ToNode},
    secret::Secret,
};
use crate::{
    error::LaunchError,
    host_ranks::{EPOCH, HostRanks},
    plan::Host,
    rank_end::Reports,
    spawn::{OfHost, Way},
};

/// How long it takes at most until node 0 has been told to stop too, where all nodes are.
const ECHO: Duration = Duration::from_secs(2);
/// How long a node that was lost may take to come back, and its ranks with it.
const REJOIN_DEADLINE: Duration = Duration::from_secs(60);

type Link = ControlLink<ToRank, FromRank>;

/// The other nodes that a plan counted on, and the door at which they came in.
#[derive(Debug)]
pub(crate) struct OtherNodes {
    guests: Vec<NodeGuest>,
    nodes: Door<NodeGuest>,
    /// Where their ranks are to come in.
    for_ranks: TcpListener,
    /// What ranks of this host have to reach theirs.
    of_host: OfHost,
}

impl OtherNodes {
    /// Waits until all have come. Their ranks will come to a port of `data_ports`, or any; ranks of this host are reached at
    /// `data_host`, or where nodes came.
    ///
    /// # Errors
    /// When the door is broken, or no port is free.
    pub(crate) fn await_all(
        arrivals: Arrivals<NodeGuest>,
        data_host: Option<String>,
        data_ports: Option<RangeInclusive<u16>>,
    ) -> Result<Self, LaunchError> {
        let (guests, nodes) = arrivals.all()?;
        // As nodes came, so come their ranks.
        let host = nodes.address()?.ip().to_string();
        let for_ranks = listen_at(&host, data_ports.as_ref()).map_err(|source| LaunchError::Bind {
            address: host,
            source,
            hint: "ranks of other hosts come to a port of --data-ports",
        })?;
        let came = guests.first().and_then(|guest| guest.socket().local_addr().ok());
        let came = || came.map_or("127.0.0.1".to_owned(), |came| came.ip().to_canonical().to_string());
        let data_host = data_host.unwrap_or_else(came);
        Ok(Self { guests, nodes, for_ranks, of_host: OfHost { weights: None, data_host, data_ports } })
    }

    /// Tells them that there is nothing to do.
    pub(crate) fn end(mut self) {
        for guest in &mut self.guests {
            // One that is gone has ended.
            let _ = guest.link.sender.send(ToNode::End);
        }
    }

    /// What their hosts have, in order.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = Host> {
        self.guests.iter().map(|guest| guest.hello.host.clone())
    }
}

/// Those of a cluster.
#[derive(Debug)]
pub(crate) struct AllRanks {
    here: HostRanks,
    /// What ranks of this host are told.
    way: Way,
    /// Of each host, this one first.
    ranks: Vec<Range<usize>>,
    /// Those of a host reach one another through memory.
    by_memory: bool,
    others: Option<Others>,
}

/// Other hosts.
#[derive(Debug)]
struct Others {
    nodes: Door<NodeGuest>,
    links: NodeLinks,
    /// Where their ranks come in,
    door: Door<RankGuest>,
    /// with this.
    key: [u8; 32],
    reports: Reports,
}

/// The ways to the other nodes, by number from 1 on. The last clone tells them to end.
#[derive(Clone, Debug)]
pub(crate) struct NodeLinks(Arc<Links>);

#[derive(Debug)]
struct Links {
    of_nodes: Vec<Mutex<Option<NodeLink>>>,
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
    /// Written by the thread that listens, read by whoever waits for ranks.
    failure: Mutex<Option<String>>,
}

impl AllRanks {
    /// Ranks of this host alone, or of others too, whose nodes have come in by their door; none is started.
    ///
    /// # Errors
    /// When the system gives no socket, thread or random numbers.
    pub(crate) fn new(
        here: HostRanks,
        ranks: Vec<Range<usize>>,
        by_memory: bool,
        others: Option<OtherNodes>,
        reports: Reports,
    ) -> Result<Self, LaunchError> {
        let world = ranks.last().map_or(0, |ranks| ranks.end);
        let of_host = others.as_ref().map_or_else(OfHost::only, |others| others.of_host.clone());
        let others = others.map(|OtherNodes { guests, nodes, for_ranks, .. }| {
            let key = handshake::random_key().map_err(LaunchError::NoRandom)?;
            let door = Door::new(for_ranks, Secret::of_this_life(&key), nodes.is_sealed(), world)?;
            door.keep(0..world);
            let links = NodeLinks::to(guests.len());
            for (number, guest) in (1..).zip(guests) {
                links.meet(number, guest, &reports)?;
            }
            Ok::<_, LaunchError>(Others { nodes, links, door, key, reports })
        });
        Ok(Self { here, way: Way { node_zero: None, of_host }, ranks, by_memory, others: others.transpose()? })
    }

    /// To tell the other nodes of the end.
    pub(crate) fn links(&self) -> Option<NodeLinks> {
        self.others.as_ref().map(|others| others.links.clone())
    }

    /// Starts these ranks in the place of what is left of them, and returns their links in this order.
    ///
    /// # Errors
    /// When a host does not give them, or nobody waits any more.
    pub(crate) fn start(
        &mut self,
        group: u32,
        ranks: &[Lost],
        given_up: &dyn Fn() -> bool,
    ) -> Result<Vec<Link>, LaunchError> {
        let (mine, theirs): (Vec<Lost>, Vec<Lost>) =
            ranks.iter().cloned().partition(|lost| self.ranks[0].contains(&lost.rank));
        let mut links = Vec::with_capacity(ranks.len());
        for (lost, socket) in mine.iter().zip(self.here.start(&mine, &self.way)?) {
            let rank = lost.rank;
            links.push((rank, ControlLink::over(socket, EPOCH).map_err(|source| LaunchError::Link { rank, source })?));
        }
        if let Some(others) = self.others.as_mut().filter(|_| !theirs.is_empty()) {
            links.extend(
                others.start(&self.ranks, &theirs, given_up)?.into_iter().map(|guest| (guest.rank, guest.link)),
            );
        }
        if self.by_memory {
            if self.ranks[0].len() > 1 {
                self.here.send_segments(group).map_err(LaunchError::SharedMemory)?;
            }
            if let Some(others) = &self.others {
                for node in (1..self.ranks.len()).filter(|&node| self.ranks[node].len() > 1) {
                    others.links.tell(node, ToNode::Segments { group });
                }
            }
        }
        links.sort_by_key(|(rank, _)| *rank);
        Ok(links.into_iter().map(|(_, link)| link).collect())
    }
}

impl RankSource for AllRanks {
    fn replace(&mut self, group: u32, lost: &[Lost], given_up: &dyn Fn() -> bool) -> Result<Vec<Link>, SourceError> {
        Ok(self.start(group, lost, given_up)?)
    }
}

impl Others {
    /// Has `lost` ranks started by their nodes, once those are there.
    fn start(
        &mut self,
        ranks: &[Range<usize>],
        lost: &[Lost],
        given_up: &dyn Fn() -> bool,
    ) -> Result<Vec<RankGuest>, LaunchError> {
        let begun = Instant::now();
        let on = |node: usize| lost.iter().filter(move |lost| ranks[node].contains(&lost.rank));
        let concerned: Vec<usize> = (1..ranks.len()).filter(|&node| on(node).next().is_some()).collect();
        self.door.free(lost.iter().map(|lost| lost.rank));
        // Who was told keeps to it; who comes back is told again.
        let mut untold = concerned.clone();
        loop {
            untold.extend(self.have_back(&concerned, begun, given_up)?);
            untold.sort_unstable();
            untold.dedup();
            for node in untold.drain(..) {
                let again = on(node).map(|lost| (lost.rank, lost.is_corrupt)).collect::<Vec<_>>();
                again.iter().for_each(|&(rank, _)| self.reports.began(rank));
                let world = ranks[ranks.len() - 1].end;
                let order = StartRanks { world, ranks: again, port: self.door.address()?.port(), key: self.key };
                self.links.tell(node, ToNode::Start(order));
            }
            let trouble = || {
                let failed = concerned.iter().find_map(|&node| self.links.failure(node));
                let waited = begun.elapsed();
                let is_late = given_up() || waited > REJOIN_DEADLINE;
                let gone = concerned.iter().any(|&node| self.links.is_gone(node));
                let late = || LaunchError::NotBack { who: "ranks of other hosts".into(), seconds: waited.as_secs() };
                failed.or_else(|| (is_late || gone).then(late))
            };
            match self.door.wait(&trouble) {
                Ok(guests) => return Ok(guests),
                Err(error) if !concerned.iter().any(|&node| self.links.is_gone(node)) => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Waits for nodes that are gone to be there again, and returns which.
    fn have_back(
        &self,
        nodes: &[usize],
        begun: Instant,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Vec<usize>, LaunchError> {
        let gone: Vec<usize> = nodes.iter().copied().filter(|&node| self.links.is_gone(node)).collect();
        if gone.is_empty() {
            return Ok(gone);
        }
        let named = gone.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(" and ");
        tracing::warn!(
            "{named} is gone with its ranks; waiting up to {} s for it to come back",
            REJOIN_DEADLINE.as_secs()
        );
        self.nodes.free(gone.iter().copied());
        let late = || {
            let seconds = begun.elapsed().as_secs();
            (given_up() || begun.elapsed() > REJOIN_DEADLINE)
                .then(|| LaunchError::NotBack { who: named.clone(), seconds })
        };
        let back = self.nodes.wait(&late).inspect_err(|_| self.nodes.keep(gone.iter().copied()))?;
        for (node, guest) in gone.iter().zip(back) {
            self.links.meet(*node, guest, &self.reports)?;
        }
        Ok(gone)
    }
}

impl NodeLinks {
    fn to(nodes: usize) -> Self {
        let of_nodes = (0..nodes).map(|_| Mutex::new(None)).collect();
        Self(Arc::new(Links { of_nodes, is_stopping: AtomicBool::new(false) }))
    }

    /// From now on nobody is let go before the end.
    pub(crate) fn stopping(&self) {
        self.0.is_stopping.store(true, SeqCst);
    }

    /// Tells all of them to end.
    pub(crate) fn end(&self) {
        self.0.end();
    }

    /// Begins to listen to a node.
    fn meet(&self, number: usize, guest: NodeGuest, reports: &Reports) -> Result<(), LaunchError> {
        let heard = Arc::new(Heard::default());
        let (listening, reports, links) = (heard.clone(), reports.clone(), Arc::downgrade(&self.0));
        let ControlLink { sender, receiver } = guest.link;
        let name = guest.hello.host.name;
        thread::Builder::new()
            .name(format!("from-node-{number}"))
            .spawn(move || listen(number, &name, receiver, &listening, &reports, &links))
            .map_err(LaunchError::system("start a thread"))?;
        *self.of(number) = Some(NodeLink { sender, heard });
        Ok(())
    }

    /// A node that is gone is missed by who waits for it.
    fn tell(&self, number: usize, order: ToNode) {
        self.0.tell(number, order);
    }

    fn is_gone(&self, number: usize) -> bool {
        self.of(number).as_ref().is_none_or(|link| link.heard.is_gone.load(SeqCst))
    }

    /// Why it could not start ranks, told once.
    fn failure(&self, node: usize) -> Option<LaunchError> {
        let link = self.of(node);
        let reason = link.as_ref()?.heard.failure.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(LaunchError::Node { node, reason })
    }

    fn of(&self, number: usize) -> MutexGuard<'_, Option<NodeLink>> {
        self.0.of(number)
    }
}

impl Links {
    fn tell(&self, number: usize, order: ToNode) {
        if let Some(link) = &mut *self.of(number)
            && link.sender.send(order).is_err()
        {
            link.heard.is_gone.store(true, SeqCst);
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

/// Hears a node until it is gone.
fn listen(
    number: usize,
    name: &str,
    mut receiver: Receiver<FromNode>,
    heard: &Heard,
    reports: &Reports,
    links: &Weak<Links>,
) {
    loop {
        match receiver.receive() {
            Ok(FromNode::Ended(end)) => reports.ended(end),
            Ok(FromNode::Failed { reason }) => {
                *heard.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
            }
            Ok(FromNode::Leaving) => {
                let links = links.clone();
                // Without a thread the node waits as long as it does for the end.
                let _ = thread::Builder::new().name("release".into()).spawn(move || {
                    thread::sleep(ECHO);
                    if let Some(links) = links.upgrade().filter(|links| !links.is_stopping.load(SeqCst)) {
                        tracing::warn!("node {number} was told to stop, and is let go");
                        links.tell(number, ToNode::Release);
                    }
                });
            }
            Ok(FromNode::Hello(_)) => tracing::warn!("node {number} ({name}) introduced itself twice"),
            Err(error) => {
                tracing::debug!("node {number} ({name}) is gone: {error}");
                return heard.is_gone.store(true, SeqCst);
            }
        }
    }
}
