//! Reduction between ranks of several hosts, over one socket for each pair of hosts.
//!
//! A host's first rank is its bridge: in each beat of the [`ring`](super::ring) it sends what the ranks of its host have given and
//! added up to every other host that needs it, and receives theirs into their slots, both ways at once. On the wire a beat is
//! `[beat: u32][element type: u32][elements of the message: u32]`, then of each rank of the host what the other is to add up, then
//! of each the sums that it owns; all little-endian. It goes out from where ranks have it, and comes in where it is added up: the
//! kernel's copies are the only ones.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    net::TcpStream,
    ops::Range,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    time::Timespec,
};

use super::{
    Abort, CommError, Communicator, Elements, Hosts, REDUCE_DEADLINE, ReduceSite, Shm, Threads,
    beat::{Beat, Owners},
    meet::{Meeting, TcpListenerForPeers, meet},
    ring::Bridge,
    shm::Mapping,
};

const HEADER_BYTES: usize = 12;
/// Value of the element type field for f32.
const TYPE_F32: u32 = 1;
// Elements are sent as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the wire is little-endian");

/// The first rank of one of several hosts.
#[derive(Debug)]
pub struct Tcp {
    shm: Shm,
    sockets: Sockets,
}

/// The ways from this host to the others.
#[derive(Debug)]
struct Sockets {
    rank: usize,
    hosts: Hosts,
    /// By host; none at this one's place. Shared with the way out.
    peers: Vec<Option<Arc<TcpStream>>>,
}

impl Tcp {
    /// Meets the first ranks of all other hosts, to be the bridge of `shm`.
    ///
    /// # Errors
    /// Names the peer that could not be reached, or that did not come, within 30 s or before `abort` was pulled.
    pub fn connect(
        shm: Shm,
        listener: &TcpListenerForPeers,
        meeting: Meeting<'_>,
        abort: &Abort,
    ) -> Result<Self, CommError> {
        let hosts = shm.0.hosts().clone();
        let peers = meet(listener, meeting, &hosts, abort)?;
        Ok(Self { shm, sockets: Sockets { rank: meeting.identity.rank, hosts, peers } })
    }
}

impl Communicator for Tcp {
    fn rank(&self) -> usize {
        self.sockets.rank
    }

    fn world(&self) -> usize {
        self.sockets.hosts.world()
    }

    fn all_reduce(
        &mut self,
        data: Elements<'_>,
        site: ReduceSite,
        threads: &mut dyn Threads,
    ) -> Result<Duration, CommError> {
        let Elements::F32(data) = data;
        self.shm.0.all_reduce(data, site, threads, Some(&mut self.sockets))
    }
}

impl Bridge<Arc<Mapping>> for Sockets {
    fn cross(&mut self, segment: &Arc<Mapping>, beat: &Beat<'_>, site: ReduceSite) -> Result<Duration, CommError> {
        let rank = self.rank;
        let words = [beat.number, TYPE_F32, beat.message.len() as u32].map(u32::to_le_bytes);
        let header: &[u8] = words.as_flattened();
        let mut headers = vec![[0; HEADER_BYTES]; self.peers.len()];
        let ways =
            self.peers.iter().zip(&mut headers).enumerate().filter_map(|(host, (peer, theirs))| {
                Some(self.way(host, peer.as_ref()?, segment, beat, header, theirs))
            });
        let waited = exchange(rank, ways.collect(), site)?;
        let strange = |host: &usize| self.peers[*host].is_some() && headers[*host] != header;
        match (0..self.peers.len()).find(strange) {
            Some(host) => Err(CommError::OutOfStep { rank, peer: self.hosts.ranks(host).start, site }),
            None => Ok(waited),
        }
    }
}

impl Sockets {
    /// What goes to a host in a beat, and what comes from there.
    #[allow(unsafe_code)]
    fn way<'a>(
        &self,
        host: usize,
        socket: &'a TcpStream,
        segment: &'a Mapping,
        beat: &'a Beat<'_>,
        header: &'a [u8],
        theirs: &'a mut [u8],
    ) -> Way<'a> {
        let (here, there) = (self.hosts.ranks(self.hosts.of(self.rank)), self.hosts.ranks(host));
        let (mut out, mut into) = (vec![IoSlice::new(header)], vec![IoSliceMut::new(theirs)]);
        let mut send = |rank: usize, beats_ago: usize, owners: &Range<usize>| {
            let Some(part) = beat.part(beats_ago, owners) else { return };
            // SAFETY: the ranks of this host have published the beat and go on with the next only when this one has published those
            // of others for it; nobody writes here before. A rank that is alone leaves all in its message.
            let elements: &[f32] = unsafe {
                match here.len() {
                    1 => beat.elements(&part),
                    _ => segment.elements(rank, part.slot, part.range),
                }
            };
            out.push(IoSlice::new(bytemuck::cast_slice(elements)));
        };
        here.clone().for_each(|rank| send(rank, 0, &there));
        if beat.owners == Owners::EachOne {
            here.clone().for_each(|rank| send(rank, 1, &(rank..rank + 1)));
        }
        let mut receive = |rank: usize, beats_ago: usize, owners: &Range<usize>| {
            let Some(part) = beat.part(beats_ago, owners) else { return };
            // SAFETY: the slots of ranks elsewhere are this rank's to fill, these elements once, and are read in the next beat only.
            let elements = unsafe { segment.elements_mut(rank, part.slot, part.range) };
            into.push(IoSliceMut::new(bytemuck::cast_slice_mut(elements)));
        };
        there.clone().for_each(|rank| receive(rank, 0, &here));
        if beat.owners == Owners::EachOne {
            there.clone().for_each(|rank| receive(rank, 1, &(rank..rank + 1)));
        }
        // What is empty would look like an end.
        out.retain(|slice| !slice.is_empty());
        into.retain(|slice| !slice.is_empty());
        Way { peer: there.start, socket, out, sent: 0, into, filled: 0 }
    }
}

/// One beat of one socket.
struct Way<'a> {
    /// The rank at the other end.
    peer: usize,
    socket: &'a TcpStream,
    out: Vec<IoSlice<'a>>,
    /// Of `out`, what is sent whole.
    sent: usize,
    into: Vec<IoSliceMut<'a>>,
    /// Of `into`, what is full.
    filled: usize,
}

/// Sends and receives all of these; returns how long it waited.
fn exchange(rank: usize, mut ways: Vec<Way<'_>>, site: ReduceSite) -> Result<Duration, CommError> {
    let mut begun: Option<Instant> = None;
    loop {
        let mut waiting = Vec::with_capacity(ways.len());
        let mut late = None;
        for way in &mut ways {
            let peer = way.peer;
            let failed = |source| CommError::Link { rank, peer, site, source };
            let sending = !way.send().map_err(failed)?;
            let receiving = !way.receive().map_err(failed)?;
            if sending || receiving {
                late = late.or(Some(peer));
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::OUT, sending);
                flags.set(PollFlags::IN, receiving);
                waiting.push(PollFd::from_borrowed_fd(way.socket.as_fd(), flags));
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

impl Way<'_> {
    /// Sends what the socket takes; true when all is sent.
    fn send(&mut self) -> io::Result<bool> {
        while self.sent < self.out.len() {
            let mut rest = &mut self.out[self.sent..];
            let slices = rest.len();
            match (&mut &*self.socket).write_vectored(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            self.sent += slices - rest.len();
        }
        Ok(true)
    }

    /// Receives what is there; true when all is.
    fn receive(&mut self) -> io::Result<bool> {
        while self.filled < self.into.len() {
            let mut rest = &mut self.into[self.filled..];
            let slices = rest.len();
            match (&mut &*self.socket).read_vectored(rest) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => IoSliceMut::advance_slices(&mut rest, n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            self.filled += slices - rest.len();
        }
        Ok(true)
    }
}
