//! How a rank that is a process of its own joins its cluster: the `worker` subcommand.
//!
//! Started by the launcher it inherits its control link as standard input; started by hand, by Slurm, by mpirun or by
//! Kubernetes it joins a coordinator by address and proves that it holds the cluster's secret.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    handshake::{self, HANDSHAKE_TIMEOUT, HandshakeError, Identity},
    link::{ControlLink, LinkError, Socket},
    protocol::{FromRank, ToRank},
};
use nanoinfer_worker::rank::{self, HostMemory, OnLost, RankSetup};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::{build::BUILD_ID, error::LaunchError, hosts::secret::Secret, spawn};

/// How long a rank knocks at a coordinator that is not there yet: schedulers start them in any order.
const KNOCK_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two attempts.
const KNOCK_INTERVAL: Duration = Duration::from_millis(200);

/// One rank of a cluster, and its way to the coordinator.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) door: Door,
}

/// How a rank meets its coordinator.
#[derive(Debug)]
pub(crate) enum Door {
    /// On standard input, a socket made by the process with this number.
    Inherited { parent: u32 },
    /// At an address.
    Connect {
        address: String,
        secret: Secret,
        /// Own copy of the checkpoint; `None` if the coordinator's paths are valid here.
        weights: Option<Vec<PathBuf>>,
        /// Address for the data link; `None` for the one that the coordinator is reached from.
        data_host: Option<String>,
    },
}

/// Serves as a rank until the coordinator ends the cluster.
///
/// # Errors
/// When the rank cannot join, or fails.
pub(crate) fn run(worker: Worker) -> Result<(), LaunchError> {
    // A name for `ps` and `top`; a kernel that refuses it is no reason to stop.
    let _ = std::ffi::CString::new(format!("rank {}", worker.rank)).map(|name| rustix::thread::set_name(&name));
    let identity = Identity { build_id: BUILD_ID.into(), world: worker.world, rank: worker.rank, host: this_host() };
    let (link, epoch, memory, weights, data_host) = match worker.door {
        Door::Inherited { parent } => {
            let failed = |error: Refusal| {
                let (address, reason) = ("standard input".into(), error.to_string());
                LaunchError::Join { rank: identity.rank, address, reason }
            };
            let (link, epoch, memory) = inherit(&identity, parent).map_err(failed)?;
            (link, epoch, Some(memory), None, "127.0.0.1".into())
        }
        Door::Connect { address, secret, weights, data_host } => {
            let (link, epoch, local) = connect(&identity, &address, &secret)?;
            (link, epoch, None, weights, data_host.unwrap_or(local))
        }
    };
    Ok(rank::run(RankSetup { link, identity, epoch, memory, weights, data_host, on_lost: OnLost::Exit })?)
}

/// What tells this host from others: its boot, and the control groups that this process sees, as containers of one host have
/// limits of their own. Empty where the system says neither: such a host counts as one with every other such.
fn this_host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let groups = std::fs::read_link("/proc/self/ns/cgroup").unwrap_or_default();
    format!("{} {}", boot.trim(), groups.display())
}

/// Asks the kernel to kill this process when the thread that started it ends, unless `parent` is gone already.
pub(crate) fn die_with_parent(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map(Pid::as_raw_pid) == i32::try_from(parent).ok() {
        Ok(())
    } else {
        Err(io::Error::other(format!("process {parent}, which started it, is gone")))
    }
}

type Link = ControlLink<FromRank, ToRank>;

/// The link, the cluster's epoch, and memory that the launcher holds too.
fn inherit(identity: &Identity, parent: u32) -> Result<(Link, u32, HostMemory), Refusal> {
    die_with_parent(parent)?;
    spawn::leave_stopping_to_the_launcher();
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut handle = Socket::Unix(socket.try_clone()?);
    let epoch = handshake::join(&mut handle, identity, &[], Instant::now() + HANDSHAKE_TIMEOUT)?;
    let memory = spawn::receive_memory(&socket)?;
    Ok((ControlLink::over(handle, epoch).map_err(HandshakeError::from)?, epoch, memory))
}

/// The link, the cluster's epoch, and the address of this host that reaches the coordinator.
fn connect(identity: &Identity, address: &str, secret: &Secret) -> Result<(Link, u32, String), LaunchError> {
    let rank = identity.rank;
    let failed = |reason: String| LaunchError::Join { rank, address: address.into(), reason };
    let deadline = Instant::now() + KNOCK_DEADLINE;
    let mut said = false;
    loop {
        match introduce(identity, address, secret, deadline) {
            Ok(joined) => {
                tracing::info!(rank, "joined the coordinator at {address}");
                return Ok(joined);
            }
            Err(error) if error.is_final() => return Err(failed(error.to_string())),
            Err(error) if Instant::now() >= deadline => {
                return Err(failed(format!("{error}, for {} s", KNOCK_DEADLINE.as_secs())));
            }
            Err(error) => {
                if !said {
                    tracing::info!(rank, "waiting for the coordinator at {address}: {error}");
                    said = true;
                }
                thread::sleep(KNOCK_INTERVAL);
            }
        }
    }
}

/// Why a rank was not let in this time.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Knock(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl Refusal {
    /// Whether another knock can do no better: an address that can never work, or a no in words. A link that closed before
    /// an answer is none: strangers may have taken all places.
    fn is_final(&self) -> bool {
        match self {
            Self::Knock(error) => error.kind() == io::ErrorKind::InvalidInput,
            Self::Handshake(HandshakeError::Link(LinkError::Closed | LinkError::Io(_))) => false,
            Self::Handshake(_) => true,
        }
    }
}

fn introduce(
    identity: &Identity,
    address: &str,
    secret: &Secret,
    deadline: Instant,
) -> Result<(Link, u32, String), Refusal> {
    let stream = knock(address, deadline)?;
    let local = stream.local_addr()?.ip().to_string();
    stream.set_nodelay(true)?;
    let mut socket = Socket::Tcp(stream);
    let epoch = handshake::join(&mut socket, identity, secret.key(), Instant::now() + HANDSHAKE_TIMEOUT)?;
    let link = ControlLink::over(socket, epoch).map_err(HandshakeError::from)?;
    Ok((link, epoch, local))
}

/// One attempt to connect, which ends by `deadline` also where nobody answers. A name may have several addresses: each gets an
/// even share of the time that is left.
fn knock(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<_> = address.to_socket_addrs()?.collect();
    let mut refused = io::Error::other("the name has no address");
    for (address, others) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
        // No time at all is an invalid argument.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(address, left / others) {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustix::net::{AddressFamily, SocketAddrV4, SocketType, bind, listen, socket};

    use super::*;

    #[test]
    fn a_door_that_is_shut_before_an_answer_is_knocked_at_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "0123456789abcdef").unwrap();
        let secret = Secret::read(&file).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let identity = Identity { build_id: BUILD_ID.into(), world: 1, rank: 0, host: String::new() };
        thread::scope(|scope| {
            let joined = scope.spawn(|| connect(&identity, &address, &secret).map(|(_, epoch, _)| epoch));
            drop(listener.accept().unwrap());
            let mut socket = Socket::Tcp(listener.accept().unwrap().0);
            let until = Instant::now() + HANDSHAKE_TIMEOUT;
            let admission = handshake::Admission { expected: &identity, key: b"0123456789abcdef", epoch: 5, until };
            assert_eq!(handshake::admit(&mut socket, admission, |_| Ok(())).unwrap(), identity);
            assert_eq!(joined.join().unwrap().unwrap(), 5);
        });
    }

    #[test]
    fn an_address_that_never_answers_is_given_up_at_the_deadline() {
        let deaf = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&deaf, &SocketAddrV4::new([127, 0, 0, 1].into(), 0)).unwrap();
        listen(&deaf, 0).unwrap();
        let deaf = TcpListener::from(deaf);
        let address = deaf.local_addr().unwrap().to_string();
        let begun = Instant::now();
        // Knocks beyond the few that wait to be accepted get no answer.
        let refused = std::iter::repeat_with(|| knock(&address, Instant::now() + Duration::from_millis(300)));
        let mut waiting = Vec::new();
        let error = refused.take(100).find_map(|knock| knock.map(|stream| waiting.push(stream)).err());
        assert_eq!(error.unwrap().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        // Past the deadline it still fails as it should.
        assert_ne!(knock(&address, begun).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
