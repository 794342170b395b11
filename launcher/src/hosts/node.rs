//! The process of a host that is not node 0's: says what its host has, starts ranks as it is told, and ends with node 0.
//!
//! ```text
//! thread "orders": knock ─► Hello ─► Start … Start … End ─► wait for the ranks     before the first start, slices of a checkpoint
//!                                                                                  where this host has none
//! this one:        signals, and ends of ranks, which are passed on
//! ```
//! A signal to stop goes to all processes of a job: node 0 finishes its requests and then says the end, which is waited for. Where it
//! went to this node alone, node 0 lets it go.
//! Does not know the model, nor what ranks do.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nanoinfer_coordinator::engine::Lost;
use nanoinfer_shared::{
    handshake::Identity,
    link::{ControlLink, Sender},
};
use nanoinfer_worker::cuda;
use tokio::{
    sync::oneshot,
    time::{Instant as Moment, sleep_until},
};

use super::{
    knock::{Joined, knock_until},
    messages::{FileToCome, FromNode, Hello, Pieces, StartRanks, ToNode},
    secret::Secret,
    slices::Borrowed,
};
use crate::{
    build::BUILD_ID,
    config::{Balance, DeviceChoice},
    error::LaunchError,
    host_ranks::HostRanks,
    log::Log,
    plan::Host,
    rank_end::{RankEnds, Reports},
    spawn::{OfHost, Way, WorkerBinary},
    supervise::Signals,
};

/// A node, and its way to node 0.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where node 0 is.
    pub(crate) address: String,
    pub(crate) secret: Secret,
    /// How long to knock there.
    pub(crate) patience: Duration,
    /// Its number; any that is free where it does not know.
    pub(crate) number: Option<usize>,
    /// How many there are, as far as it knows.
    pub(crate) nodes: Option<usize>,
    /// GPUs of this host.
    pub(crate) device: DeviceChoice,
    /// Whether this host is to be measured.
    pub(crate) balance: Balance,
    /// Own copy of the checkpoint. Without one, node 0's paths may be valid here; if they are not, node 0 sends what ranks read.
    pub(crate) weights: Option<Vec<PathBuf>>,
    /// Where that may lie.
    pub(crate) caches: Vec<PathBuf>,
    /// Address for the data link; none for the one that reaches node 0.
    pub(crate) data_host: Option<String>,
    pub(crate) data_ports: Option<RangeInclusive<u16>>,
    pub(crate) binary: WorkerBinary,
    pub(crate) log: Log,
    /// How long node 0 may take to finish requests after a signal.
    pub(crate) shutdown_timeout: Duration,
}

/// What node 0 may take beyond its own time for requests: for their last bytes, and for its ranks.
const AFTER_REQUESTS: Duration = Duration::from_secs(10);

/// Where what this node says goes, once it is in.
type Mouth = Arc<Mutex<Option<Sender<FromNode>>>>;

/// Serves until node 0 ends the cluster.
///
/// # Errors
/// When it cannot join, node 0 is gone, or it is told twice to stop.
pub(crate) fn run(node: Node) -> Result<(), LaunchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(LaunchError::system("start a runtime"))?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let (report, mut ends) = RankEnds::new();
        let (mouth, patience) = (Mouth::default(), node.shutdown_timeout + AFTER_REQUESTS);
        let (to_us, mut over) = oneshot::channel();
        let of_orders = mouth.clone();
        thread::Builder::new()
            .name("orders".into())
            .spawn(move || {
                // Nobody listens only where it was told twice to stop.
                let _ = to_us.send(follow(&node, &of_orders, &report));
            })
            .map_err(LaunchError::system("start a thread"))?;
        let mut until: Option<Moment> = None;
        loop {
            let late = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = &mut over => return result.expect("orders are followed until their end"),
                Some(all) = ends.changed() => all.into_iter().for_each(|end| say(&mouth, FromNode::Ended(end))),
                name = signals.next() => {
                    if mouth.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
                        tracing::info!("{name} before node 0 was there");
                        return Ok(());
                    }
                    if until.is_some() {
                        return Err(LaunchError::StoppedTwice);
                    }
                    tracing::info!("{name}: waiting for node 0 to end, up to {} s", patience.as_secs());
                    until = Some(Moment::now() + patience);
                    say(&mouth, FromNode::Leaving);
                }
                () = late => return Err(LaunchError::StoppedTwice),
            }
        }
    })
}

/// What node 0 does not hear any more is of no use.
fn say(mouth: &Mouth, message: FromNode) {
    if let Some(sender) = &mut *mouth.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = sender.send(message);
    }
}

/// Joins, and does what node 0 says until the end.
fn follow(node: &Node, mouth: &Mouth, report: &Reports) -> Result<(), LaunchError> {
    let mut host = Host::of_this_process(&node.device, usize::MAX, cuda::find);
    if node.balance == Balance::Auto {
        host = host.measured();
    }
    let who = node.number.map_or("this node".to_owned(), |number| format!("node {number}"));
    // All of them come as one kind; which is said within.
    let identity = Identity { build_id: BUILD_ID.into(), world: 1, rank: 0 };
    let until = Instant::now() + node.patience;
    let Joined { socket, terms, local, peer } = knock_until(&who, &identity, &node.address, node.secret.key(), until)?;
    let gone = |source| LaunchError::NodeZeroGone { address: node.address.clone(), source };
    let ControlLink { mut sender, mut receiver } =
        ControlLink::<FromNode, ToNode>::over(socket, terms).map_err(gone)?;
    let hello = Hello { number: node.number, nodes: node.nodes, host };
    sender.send(FromNode::Hello(Box::new(hello))).map_err(gone)?;
    *mouth.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    let mut here = Here { node, mouth, report, local, peer, ranks: None, slices: None, waiting: None };
    let ended = loop {
        let done = match receiver.receive() {
            Ok(ToNode::Start(order)) => here.start(order),
            Ok(ToNode::Files(files)) => here.expect(&files),
            Ok(ToNode::Pieces(pieces)) => here.take(&pieces),
            Ok(ToNode::Segments { group }) => here.send_segments(group),
            Ok(ToNode::Release) => {
                tracing::info!("node 0 goes on without this node");
                return Ok(());
            }
            Ok(ToNode::End) => {
                tracing::info!("node 0 ends the cluster");
                break Ok(());
            }
            Ok(ToNode::Refused { reason }) => {
                break Err(LaunchError::Join { who, address: node.address.clone(), reason });
            }
            Err(source) => {
                if let Some(slices) = here.slices.filter(|slices| !slices.is_whole()) {
                    tracing::error!("{slices}");
                }
                break Err(gone(source));
            }
        };
        if let Err(error) = done {
            say(mouth, FromNode::Failed { reason: error.to_string() });
            // Another start may do better; bytes that found no place do not come again.
            if here.waiting.is_some() {
                break Err(error);
            }
            tracing::error!("{error}");
        }
    };
    // They have heard the same, or have lost node 0 too; what is left after the wait is killed by the drop.
    if let Some(ranks) = here.ranks {
        ranks.processes().wait();
    }
    ended
}

/// What is on this host, once it is in.
struct Here<'a> {
    node: &'a Node,
    mouth: &'a Mouth,
    report: &'a Reports,
    /// The address that reaches node 0, and node 0's.
    local: IpAddr,
    peer: IpAddr,
    ranks: Option<HostRanks>,
    /// Of a checkpoint that is not here.
    slices: Option<Borrowed>,
    /// Ranks that are started when those have come.
    waiting: Option<StartRanks>,
}

impl Here<'_> {
    /// Starts ranks, at once if what they load is here.
    fn start(&mut self, order: StartRanks) -> Result<(), LaunchError> {
        let weights = match (&self.node.weights, &self.slices) {
            (Some(own), _) => Some(own.clone()),
            (None, Some(slices)) if slices.is_whole() => Some(slices.paths(&order.weights)),
            (None, None) if order.weights.iter().all(|path| path.exists()) => None,
            (None, slices) => {
                if slices.is_none() && self.waiting.is_none() {
                    say(self.mouth, FromNode::Lacking);
                }
                self.waiting = Some(order);
                return Ok(());
            }
        };
        let data_host = self.node.data_host.clone().unwrap_or_else(|| self.local.to_string());
        let of_host = OfHost { weights, data_host, data_ports: self.node.data_ports.clone() };
        let way = Way { node_zero: Some((SocketAddr::new(self.peer, order.port), order.key)), of_host };
        let lost: Vec<_> = order.ranks.into_iter().map(|(rank, is_corrupt)| Lost { rank, is_corrupt }).collect();
        if self.ranks.is_none() {
            self.ranks = Some(HostRanks::new(order.world, &self.node.binary, &self.node.log, self.report)?);
        }
        self.ranks.as_mut().map_or(Ok(()), |ranks| ranks.start(&lost, &way).map(drop))
    }

    /// Makes room for slices.
    fn expect(&mut self, files: &[FileToCome]) -> Result<(), LaunchError> {
        self.slices = Some(Borrowed::begin(&self.node.caches, files)?);
        Ok(())
    }

    /// Takes some bytes of them; the last are what ranks waited for.
    fn take(&mut self, pieces: &Pieces) -> Result<(), LaunchError> {
        let slices = self.slices.as_mut().ok_or(LaunchError::StrangeSlices)?;
        slices.write(pieces)?;
        match self.waiting.take_if(|_| slices.is_whole()) {
            Some(order) => self.start(order),
            None => Ok(()),
        }
    }

    fn send_segments(&self, group: u32) -> Result<(), LaunchError> {
        self.ranks.as_ref().map_or(Ok(()), |ranks| ranks.send_segments(group).map_err(LaunchError::SharedMemory))
    }
}
