//! Reduction between ranks anywhere, over one socket for each pair of ranks.
//!
//! A rank connects to every lower rank and admits every higher one. In a round each rank sends up to
//! [`CHUNK_ELEMENTS`] to all others and receives theirs, both ways at once, then adds up all contributions in rank order.
//! A chunk on the wire: `[round: u32][element type: u32][elements: u32]`, then the elements, all little-endian. It goes out
//! from where the caller has it, and comes in where it is added up: the kernel's copies are the only ones.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    ops::RangeInclusive,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    time::Timespec,
};

use super::{Abort, CommError, Communicator, Elements, REDUCE_DEADLINE, ReduceSite, Threads, add_in_rank_order};
use crate::{
    door::{self, Knocks},
    handshake::{Admission, HANDSHAKE_TIMEOUT, HandshakeError, Identity, admit, join},
    link::{Socket, notice_silence},
};

/// Elements of 4 bytes that move in one round.
const CHUNK_ELEMENTS: usize = 64 << 10;
const HEADER_BYTES: usize = 12;
/// Value of the element type field for f32.
const TYPE_F32: u32 = 1;
// Elements are sent as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the wire is little-endian");
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

/// One rank's sockets to all others.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    /// By rank; none at this rank's place.
    peers: Vec<Option<Peer>>,
    round: u32,
}

#[derive(Debug)]
struct Peer {
    /// Shared with the way out.
    socket: Arc<TcpStream>,
    /// Bytes of this round, the header's among them.
    sent: usize,
    received: usize,
    header: [u8; HEADER_BYTES],
    /// The peer's contribution.
    incoming: Vec<f32>,
}

impl Tcp {
    /// Bytes of user memory that a link between `world` ranks can come to hold.
    pub fn buffer_bytes(world: usize) -> usize {
        world.saturating_sub(1) * CHUNK_ELEMENTS * size_of::<f32>()
    }

    /// Meets all peers at `addresses` (in rank order), each of which must hold `key`.
    ///
    /// # Errors
    /// Names the peer that could not be reached, or that did not come, within 30 s or before `abort` was pulled.
    pub fn connect(
        listener: TcpListenerForPeers,
        identity: &Identity,
        addresses: &[String],
        key: &[u8],
        epoch: u32,
        abort: &Abort,
    ) -> Result<Self, CommError> {
        let (rank, world) = (identity.rank, identity.world);
        assert_eq!(addresses.len(), world, "the start order lists one address a rank");
        let deadline = Instant::now() + CONNECT_DEADLINE;
        let mut sockets: Vec<Option<Arc<TcpStream>>> = (0..world).map(|_| None).collect();
        for (peer, address) in addresses.iter().enumerate().take(rank) {
            let unreachable = |reason: String| CommError::Unreachable { rank, peer, address: address.clone(), reason };
            let failed = |e: io::Error| own_lack(rank, e).unwrap_or_else(|e| unreachable(e.to_string()));
            let stream = reach(address, deadline).map_err(failed)?;
            let handle = stream.try_clone().map_err(failed)?;
            let stream = shut_by(abort, stream);
            // The peer listens, and answers once it has been told to start too, and has met those below it.
            join(&mut Socket::Tcp(handle), identity, key, deadline).map_err(|e| unreachable(e.to_string()))?;
            sockets[peer] = Some(stream);
        }
        admit_peers(&listener.listener, identity, key, epoch, deadline, abort, &mut sockets).map_err(|error| {
            let peer = (rank + 1..world).find(|&peer| sockets[peer].is_none()).unwrap_or(rank);
            let missed = |error| CommError::Unreachable {
                rank,
                peer,
                address: addresses[peer].clone(),
                reason: format!("it did not connect: {error}"),
            };
            own_lack(rank, error).unwrap_or_else(missed)
        })?;
        let peer = |socket: Arc<TcpStream>| {
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            notice_silence(&socket)?;
            Ok(Peer { socket, sent: 0, received: 0, header: [0; HEADER_BYTES], incoming: Vec::new() })
        };
        let peers = sockets.into_iter().map(|socket| socket.map(peer).transpose()).collect::<io::Result<_>>();
        Ok(Self { rank, peers: peers.map_err(|source| CommError::Setup { rank, source })?, round: 0 })
    }

    fn reduce_round(&mut self, data: &mut [f32], site: ReduceSite) -> Result<Duration, CommError> {
        let words = [self.round, TYPE_F32, data.len() as u32].map(u32::to_le_bytes);
        let header: &[u8] = words.as_flattened();
        for peer in self.peers.iter_mut().flatten() {
            (peer.sent, peer.received) = (0, 0);
            peer.incoming.resize(data.len(), 0.0);
        }
        let waited = self.exchange(header, bytemuck::cast_slice(data), site)?;
        let (rank, world) = (self.rank, self.peers.len());
        let strange = |peer: &Option<Peer>| peer.as_ref().is_some_and(|peer| peer.header != header);
        if let Some(peer) = self.peers.iter().position(strange) {
            return Err(CommError::OutOfStep { rank, peer, site });
        }
        let peers = &self.peers;
        add_in_rank_order(data, rank, world, |peer, range, reader| {
            let peer = peers[peer].as_ref().expect("every rank but this one has a socket");
            reader(&peer.incoming[range]);
        });
        self.round = self.round.wrapping_add(1);
        Ok(waited)
    }

    /// Sends header and data to every peer, and fills every peer's `header` and `incoming`; returns how long it waited.
    fn exchange(&mut self, header: &[u8], data: &[u8], site: ReduceSite) -> Result<Duration, CommError> {
        let rank = self.rank;
        let mut begun: Option<Instant> = None;
        loop {
            let mut waiting = Vec::with_capacity(self.peers.len());
            let mut late = None;
            for (other, peer) in self.peers.iter_mut().enumerate() {
                let Some(peer) = peer else { continue };
                let failed = |source| CommError::Link { rank, peer: other, site, source };
                let sending = !peer.send(header, data).map_err(failed)?;
                let receiving = !peer.receive().map_err(failed)?;
                if sending || receiving {
                    late = late.or(Some(other));
                    let mut flags = PollFlags::empty();
                    flags.set(PollFlags::OUT, sending);
                    flags.set(PollFlags::IN, receiving);
                    waiting.push(PollFd::from_borrowed_fd(peer.socket.as_fd(), flags));
                }
            }
            let waited = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            let Some(peer) = late else { return Ok(waited) };
            begun.get_or_insert_with(Instant::now);
            if waited >= REDUCE_DEADLINE {
                return Err(CommError::Deadline { rank, peer, waited, site });
            }
            let timeout = Timespec { tv_sec: (REDUCE_DEADLINE - waited).as_secs() as i64 + 1, tv_nsec: 0 };
            match poll(&mut waiting, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(CommError::Link { rank, peer, site, source: errno.into() }),
            }
        }
    }
}

impl Peer {
    /// Sends what the socket takes; true when all is sent.
    fn send(&mut self, header: &[u8], data: &[u8]) -> io::Result<bool> {
        while self.sent < header.len() + data.len() {
            let (header, data) = (rest(header, self.sent), rest(data, self.sent.saturating_sub(header.len())));
            match (&*self.socket).write_vectored(&[IoSlice::new(header), IoSlice::new(data)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Receives what is there; true when header and data are full.
    fn receive(&mut self) -> io::Result<bool> {
        let data: &mut [u8] = bytemuck::cast_slice_mut(&mut self.incoming);
        while self.received < HEADER_BYTES + data.len() {
            let in_header = self.received.min(HEADER_BYTES);
            let (header, data) = (&mut self.header[in_header..], &mut data[self.received - in_header..]);
            match (&*self.socket).read_vectored(&mut [IoSliceMut::new(header), IoSliceMut::new(data)]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.received += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

/// What of `bytes` follows the first `done`.
fn rest(bytes: &[u8], done: usize) -> &[u8] {
    &bytes[done.min(bytes.len())..]
}

impl Communicator for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn all_reduce(
        &mut self,
        data: Elements<'_>,
        site: ReduceSite,
        _threads: &mut dyn Threads,
    ) -> Result<Duration, CommError> {
        let Elements::F32(data) = data;
        data.chunks_mut(CHUNK_ELEMENTS).map(|chunk| self.reduce_round(chunk, site)).sum()
    }
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

/// Lets every rank above this one in, each into its place of `sockets`.
fn admit_peers(
    listener: &TcpListener,
    identity: &Identity,
    key: &[u8],
    epoch: u32,
    deadline: Instant,
    abort: &Abort,
    sockets: &mut [Option<Arc<TcpStream>>],
) -> io::Result<()> {
    let mut knocks = Knocks::new(MAX_KNOCKS);
    let rank = identity.rank;
    while sockets[rank + 1..].iter().any(Option::is_none) {
        if Instant::now() >= deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        if abort.is_pulled() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        if poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&TICK))? > 0 {
            let (identity, key) = (identity.clone(), key.to_vec());
            let until = deadline.min(Instant::now() + HANDSHAKE_TIMEOUT);
            knocks.answer(listener.accept()?.0, move |stream| {
                let mut handle = Socket::Tcp(stream.try_clone().ok()?);
                let above = |joiner: usize| match joiner {
                    _ if joiner > identity.rank => Ok(()),
                    _ => Err(format!("rank {} does not expect rank {joiner} here", identity.rank)),
                };
                let admission = Admission { expected: &identity, key: &key, epoch, until };
                let refused = |error: &HandshakeError| {
                    // Anybody may knock at an open port; the peers still come.
                    tracing::warn!(rank = identity.rank, %error, "a stranger was turned away from the data link");
                };
                let joiner = admit(&mut handle, admission, above).inspect_err(refused).ok()?;
                Some((joiner.rank, stream))
            })?;
        }
        for (joiner, stream) in knocks.arrivals() {
            sockets[joiner].get_or_insert_with(|| shut_by(abort, stream));
        }
    }
    Ok(())
}
