//! How the first ranks of several hosts meet: each connects to those of the hosts before its own, and admits those of the hosts behind.
//! Does not know what they say to one another.

use std::{
    io::{self, ErrorKind},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    time::Timespec,
};

use super::{Abort, CommError, Hosts};
use crate::{
    door::{self, Knocks},
    handshake::{Admission, HANDSHAKE_TIMEOUT, HandshakeError, Identity, admit, join},
    link::{Socket, notice_silence},
    seal::Seal,
};

/// How long the peers of a starting cluster may take to reach one another.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked whether all peers are there.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// Handshakes under way at a starting data link: more than ranks that may come at once.
const MAX_KNOCKS: usize = 1024;

/// Where a rank awaits its peers.
#[derive(Debug)]
pub struct TcpListenerForPeers {
    listener: TcpListener,
    address: SocketAddr,
}

impl TcpListenerForPeers {
    /// Listens on a free port of `host`, one of `ports` where they are named.
    ///
    /// # Errors
    /// When `host` is no address of this machine, or no port is free.
    pub fn bind(host: &str, ports: Option<&RangeInclusive<u16>>) -> io::Result<Self> {
        let listener = door::listen(host, ports)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// What to tell the peers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Who meets its peers, and what it knows of them.
#[derive(Clone, Copy, Debug)]
pub struct Meeting<'a> {
    /// Its own.
    pub identity: &'a Identity,
    /// Of the first rank of each host.
    pub addresses: &'a [String],
    /// What each must hold.
    pub key: &'a [u8],
    /// This life of the cluster.
    pub epoch: u32,
    /// Whether what crosses is sealed.
    pub is_sealed: bool,
}

/// The first rank of another host.
#[derive(Debug)]
pub(super) struct Met {
    pub(super) host: usize,
    pub(super) socket: Arc<TcpStream>,
    pub(super) seal: Option<Seal>,
}

/// Meets the first ranks of all other hosts; returns them in the order of hosts.
///
/// # Errors
/// Names the peer that could not be reached, or that did not come, within 30 s or before `abort` was pulled.
pub(super) fn meet(
    listener: &TcpListenerForPeers,
    meeting: Meeting<'_>,
    hosts: &Hosts,
    abort: &Abort,
) -> Result<Vec<Met>, CommError> {
    let Meeting { identity, addresses, key, .. } = meeting;
    let rank = identity.rank;
    let own = hosts.of(rank);
    assert_eq!(addresses.len(), hosts.count(), "the start order lists one address a host");
    let deadline = Instant::now() + CONNECT_DEADLINE;
    let mut met: Vec<Option<Met>> = addresses.iter().map(|_| None).collect();
    for (host, address) in addresses.iter().enumerate().take(own) {
        let peer = hosts.ranks(host).start;
        let unreachable = |reason: String| CommError::Unreachable { rank, peer, address: address.clone(), reason };
        let failed = |e: io::Error| own_lack(rank, e).unwrap_or_else(|e| unreachable(e.to_string()));
        let stream = reach(address, deadline).map_err(failed)?;
        let handle = stream.try_clone().map_err(failed)?;
        let socket = shut_by(abort, stream);
        // The peer listens, and answers once it has been told to start too, and has met those before it.
        let terms = join(&mut Socket::Tcp(handle), identity, key, deadline).map_err(|e| unreachable(e.to_string()))?;
        met[host] = Some(Met { host, socket, seal: terms.seal });
    }
    admit_peers(&listener.listener, meeting, hosts, deadline, abort, &mut met).map_err(|error| {
        let missing = (own + 1..hosts.count()).find(|&host| met[host].is_none()).unwrap_or(own);
        let missed = |error| CommError::Unreachable {
            rank,
            peer: hosts.ranks(missing).start,
            address: addresses[missing].clone(),
            reason: format!("it did not connect: {error}"),
        };
        own_lack(rank, error).unwrap_or_else(missed)
    })?;
    let met: Vec<Met> = met.into_iter().flatten().collect();
    for Met { socket, .. } in &met {
        let ready = socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(true));
        ready.and_then(|()| notice_silence(socket)).map_err(|source| CommError::Setup { rank, source })?;
    }
    Ok(met)
}

/// The failure of a rank that lacks descriptors, memory or threads itself, which no peer can mend; else what it is given.
fn own_lack(rank: usize, error: io::Error) -> Result<CommError, io::Error> {
    match Errno::from_io_error(&error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN) => {
            Ok(CommError::Setup { rank, source: error })
        }
        _ => Err(error),
    }
}

/// The same socket, shut down when `abort` is pulled.
fn shut_by(abort: &Abort, socket: TcpStream) -> Arc<TcpStream> {
    let socket = Arc::new(socket);
    let shared = socket.clone();
    // An error means that the peer was faster.
    abort.on_pull(move || drop(shared.shutdown(Shutdown::Both)));
    socket
}

/// Connects to `address` before `deadline`. A peer listens before its address is told, so a refusal is final.
fn reach(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let resolved = address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the address names no host"))?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    TcpStream::connect_timeout(&resolved, left)
}

/// Lets the first ranks of the hosts behind this one in, each into its place of `met`.
fn admit_peers(
    listener: &TcpListener,
    Meeting { identity, key, epoch, is_sealed, .. }: Meeting<'_>,
    hosts: &Hosts,
    deadline: Instant,
    abort: &Abort,
    met: &mut [Option<Met>],
) -> io::Result<()> {
    let mut knocks = Knocks::new(MAX_KNOCKS);
    let own = hosts.of(identity.rank);
    while met[own + 1..].iter().any(Option::is_none) {
        if Instant::now() >= deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        if abort.is_pulled() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        if poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&TICK))? > 0 {
            let (identity, hosts, key) = (identity.clone(), hosts.clone(), key.to_vec());
            let until = deadline.min(Instant::now() + HANDSHAKE_TIMEOUT);
            knocks.answer(listener.accept()?.0, move |stream| {
                let mut handle = Socket::Tcp(stream.try_clone().ok()?);
                let above = |joiner: usize| match joiner {
                    _ if joiner > identity.rank && hosts.is_front(joiner) => Ok(()),
                    _ => Err(format!("rank {} does not expect rank {joiner} here", identity.rank)),
                };
                let admission = Admission { expected: &identity, key: &key, epoch, is_sealed, until };
                let refused = |error: &HandshakeError| {
                    // Anybody may knock at an open port; the peers still come.
                    tracing::warn!(rank = identity.rank, %error, "a stranger was turned away from the data link");
                };
                let (joiner, terms) = admit(&mut handle, admission, above).inspect_err(refused).ok()?;
                Some((hosts.of(joiner.rank), stream, terms.seal))
            })?;
        }
        for (host, stream, seal) in knocks.arrivals() {
            met[host].get_or_insert_with(|| Met { host, socket: shut_by(abort, stream), seal });
        }
    }
    Ok(())
}
