//! Ranks of all hosts, as the engine gets them: at the start and after a loss by the same way. Those of this host are started
//! here; those of others by their nodes, and come in at the ranks' door.
//!
//! A rank that is lost is had again at once by its node. A node that is lost took its ranks along: it is waited for.
//! Does not know what a loss is, nor what ranks do.

use std::{
    cell::Cell,
    net::TcpListener,
    ops::{Range, RangeInclusive},
    time::{Duration, Instant},
};

use nanoinfer_coordinator::engine::{Lost, RankSource, SourceError};
use nanoinfer_shared::{
    door::listen as listen_at,
    handshake,
    link::ControlLink,
    protocol::{FromRank, ToRank},
};

use super::{
    door::{Arrivals, Door, Guest, NodeGuest, RankGuest},
    messages::{StartRanks, ToNode},
    node_links::NodeLinks,
    secret::Secret,
    slices::Lender,
};
use crate::{
    error::LaunchError,
    host_ranks::{EPOCH, HostRanks},
    plan::Host,
    rank_end::Reports,
    spawn::{OfHost, Way},
};

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
        lender: Lender,
    ) -> Result<Self, LaunchError> {
        let world = ranks.last().map_or(0, |ranks| ranks.end);
        let of_host = others.as_ref().map_or_else(OfHost::only, |others| others.of_host.clone());
        let others = others.map(|OtherNodes { guests, nodes, for_ranks, .. }| {
            let key = handshake::random_key().map_err(LaunchError::NoRandom)?;
            let door = Door::new(for_ranks, Secret::of_this_life(&key), nodes.is_sealed(), world)?;
            door.keep(0..world);
            let links = NodeLinks::new(&ranks, lender, reports.clone());
            for (number, guest) in (1..).zip(guests) {
                links.meet(number, guest)?;
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
        let begun = Cell::new(Instant::now());
        let on = |node: usize| lost.iter().filter(move |lost| ranks[node].contains(&lost.rank));
        let concerned: Vec<usize> = (1..ranks.len()).filter(|&node| on(node).next().is_some()).collect();
        self.door.free(lost.iter().map(|lost| lost.rank));
        // Who was told keeps to it; who comes back is told again.
        let mut untold = concerned.clone();
        loop {
            untold.extend(self.have_back(&concerned, begun.get(), given_up)?);
            untold.sort_unstable();
            untold.dedup();
            for node in untold.drain(..) {
                let again = on(node).map(|lost| (lost.rank, lost.is_corrupt)).collect::<Vec<_>>();
                again.iter().for_each(|&(rank, _)| self.reports.began(rank));
                let world = ranks[ranks.len() - 1].end;
                let (weights, port) = (self.links.weights().to_vec(), self.door.address()?.port());
                let order = StartRanks { world, ranks: again, weights, port, key: self.key };
                self.links.tell(node, ToNode::Start(order));
            }
            let trouble = || {
                let failed = concerned.iter().find_map(|&node| self.links.failure(node));
                // Whoever waits for a checkpoint has not begun.
                if concerned.iter().any(|&node| self.links.is_lent_to(node)) {
                    begun.set(Instant::now());
                }
                let waited = begun.get().elapsed();
                let is_late = given_up() || waited > REJOIN_DEADLINE;
                let gone = concerned.iter().any(|&node| self.links.is_gone(node));
                let late = || LaunchError::NotBack { who: "ranks of other hosts".into(), seconds: waited.as_secs() };
                failed.or_else(|| (is_late || gone).then(late))
            };
            match self.door.wait(&trouble) {
                Ok(guests) => return Ok(guests),
                // What a node said before it went is why, and would be so again.
                Err(error @ LaunchError::Node { .. }) => return Err(error),
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
        for (&node, guest) in gone.iter().zip(back) {
            self.links.meet(node, guest)?;
        }
        Ok(gone)
    }
}
