//! The process of a host that is not node 0's: says what its host has, starts ranks as it is told, and ends with node 0.
//!
//! ```text
//! thread "orders": knock ─► Hello ─► Start … Start … End ─► wait for the ranks
//! this one:        signals, and ends of ranks, which are passed on
//! ```
//! A signal to stop goes to all processes of a job: node 0 finishes its requests and then says the end, which is waited for. Where it
//! went to this node alone, node 0 lets it go.
//! Does not know the model, nor what ranks do.

use std::{
    net::SocketAddr,
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
    messages::{FromNode, Hello, StartRanks, ToNode},
    secret::Secret,
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
    /// Own copy of the checkpoint; none if node 0's paths are valid here.
    pub(crate) weights: Option<Vec<PathBuf>>,
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
    let of_host = OfHost {
        weights: node.weights.clone(),
        data_host: node.data_host.clone().unwrap_or_else(|| local.to_string()),
        data_ports: node.data_ports.clone(),
    };
    let mut ranks: Option<HostRanks> = None;
    let ended = loop {
        match receiver.receive() {
            Ok(ToNode::Start(StartRanks { world, ranks: again, port, key })) => {
                let way = Way { node_zero: Some((SocketAddr::new(peer, port), key)), of_host: of_host.clone() };
                let lost: Vec<_> = again.into_iter().map(|(rank, is_corrupt)| Lost { rank, is_corrupt }).collect();
                let mut host = match ranks.take() {
                    Some(host) => host,
                    None => HostRanks::new(world, &node.binary, &node.log, report)?,
                };
                if let Err(error) = host.start(&lost, &way) {
                    tracing::error!("{error}");
                    say(mouth, FromNode::Failed { reason: error.to_string() });
                }
                ranks = Some(host);
            }
            Ok(ToNode::Segments { group }) => {
                if let Some(Err(error)) = ranks.as_ref().map(|host| host.send_segments(group)) {
                    tracing::error!("{error}");
                    say(mouth, FromNode::Failed { reason: error.to_string() });
                }
            }
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
            Err(source) => break Err(gone(source)),
        }
    };
    // They have heard the same, or have lost node 0 too; what is left after the wait is killed by the drop.
    if let Some(ranks) = ranks {
        ranks.processes().wait();
    }
    ended
}
