//! Reduction between ranks of several hosts, over one socket for each pair of hosts.
//!
//! A host's first rank is its bridge: in each beat of the [`ring`](super::ring) it sends what the ranks of its host have given and
//! added up to every other host that needs it, and receives theirs into their slots, both ways at once. On the wire a beat is
//! `[beat: u32][element type: u32][elements of the message: u32]`, then of each rank of the host what the other is to add up, then
//! of each the sums that it owns; all little-endian. It goes out from where ranks have it, and comes in where it is added up: the
//! kernel's copies are the only ones, but for contributions in bf16 and where each of these pieces is sealed.

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
    Abort, CommDType, CommError, Communicator, Hosts, REDUCE_DEADLINE, ReduceSite, Shm, Threads,
    beat::{Beat, Owners},
    dtype::{bf16_bits, from_bf16_bits},
    meet::{Meeting, Met, TcpListenerForPeers, meet},
    ring::Bridge,
    shm::Mapping,
};
use crate::seal::{Seal, sealed_bytes};

const HEADER_BYTES: usize = 12;
/// Values of the element type field: of contributions, as sums are f32.
const TYPE_F32: u32 = 1;
const TYPE_BF16: u32 = 2;
// Elements are sent as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the wire is little-endian");

/// The first rank of one of several hosts.
#[derive(Debug)]
pub struct Tcp {
    shm: Shm,
    bridge: Sockets,
}

/// The ways from this host to the others.
#[derive(Debug)]
struct Sockets {
    rank: usize,
    hosts: Hosts,
    dtype: CommDType,
    /// Other hosts.
    peers: Vec<Peer>,
}

/// The way to another host.
#[derive(Debug)]
struct Peer {
    /// Its ranks.
    there: Range<usize>,
    /// Shared with the way out.
    socket: Arc<TcpStream>,
    seal: Option<Seal>,
    beat: Buffers,
}

/// What of one beat is not sent from where ranks have it, nor received where it is added up.
#[derive(Debug, Default)]
struct Buffers {
    header: [u8; HEADER_BYTES],
    /// Contributions in bf16.
    given: Vec<u16>,
    taken: Vec<u16>,
    /// All of it, sealed.
    out: Vec<u8>,
    into: Vec<u8>,
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
        let (hosts, dtype) = (shm.0.hosts().clone(), shm.0.dtype());
        let peer =
            |Met { host, socket, seal }| Peer { there: hosts.ranks(host), socket, seal, beat: Buffers::default() };
        let peers = meet(listener, meeting, &hosts, abort)?.into_iter().map(peer).collect();
        Ok(Self { shm, bridge: Sockets { rank: meeting.identity.rank, hosts, dtype, peers } })
    }
}

impl Communicator for Tcp {
    fn rank(&self) -> usize {
        self.bridge.rank
    }

    fn world(&self) -> usize {
        self.bridge.hosts.world()
    }

    fn all_reduce(
        &mut self,
        data: &mut [f32],
        site: ReduceSite,
        threads: &mut dyn Threads,
    ) -> Result<Duration, CommError> {
        self.shm.0.all_reduce(data, site, threads, Some(&mut self.bridge))
    }
}

impl Bridge<Arc<Mapping>> for Sockets {
    fn cross(&mut self, segment: &Arc<Mapping>, beat: &Beat<'_>, site: ReduceSite) -> Result<Duration, CommError> {
        let Self { rank, hosts, dtype, peers } = self;
        let element = if *dtype == CommDType::Bf16 { TYPE_BF16 } else { TYPE_F32 };
        let words = [beat.number, element, beat.message.len() as u32].map(u32::to_le_bytes);
        let header: &[u8] = words.as_flattened();
        let crossing = Crossing { here: hosts.ranks(hosts.of(*rank)), dtype: *dtype, segment, beat };
        let ways = peers.iter_mut().map(|peer| peer.way(&crossing, header)).collect();
        let waited = exchange(*rank, ways, site)?;
        for peer in peers {
            let (rank, other) = (*rank, peer.there.start);
            let broken = |error| CommError::Link { rank, peer: other, site, source: io::Error::other(error) };
            peer.finish(&crossing).map_err(broken)?;
            if peer.beat.header != header {
                return Err(CommError::OutOfStep { rank, peer: other, site });
            }
        }
        Ok(waited)
    }
}

/// One beat, as it crosses from this host and to it.
struct Crossing<'a> {
    here: Range<usize>,
    dtype: CommDType,
    segment: &'a Mapping,
    beat: &'a Beat<'a>,
}

impl<'a> Crossing<'a> {
    /// What a rank of this host has for `owners`, of the chunk that was given so many beats ago.
    #[allow(unsafe_code)]
    fn leaving(&self, rank: usize, beats_ago: usize, owners: &Range<usize>) -> &'a [f32] {
        let Some(part) = self.beat.part(beats_ago, owners) else { return &[] };
        // SAFETY: the ranks of this host have published the beat and go on with the next only when this one has published those of
        // others for it; nobody writes here before. A rank that is alone leaves all in its message.
        unsafe {
            match self.here.len() {
                1 => self.beat.elements(&part),
                _ => self.segment.elements(rank, part.slot, part.range),
            }
        }
    }

    /// Where that of a rank elsewhere goes.
    #[allow(unsafe_code)]
    fn arriving(&self, rank: usize, beats_ago: usize, owners: &Range<usize>) -> &'a mut [f32] {
        let Some(part) = self.beat.part(beats_ago, owners) else { return &mut [] };
        // SAFETY: the slots of ranks elsewhere are this rank's to fill, these elements once, and are read in the next beat only.
        unsafe { self.segment.elements_mut(rank, part.slot, part.range) }
    }

    /// Ranks with the sums that they own, where they own some.
    fn owned(&self, ranks: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let has_owners = self.beat.owners == Owners::EachOne;
        ranks.clone().filter(move |_| has_owners).map(|rank| (rank, rank..rank + 1))
    }
}

impl Peer {
    /// What goes to this host in a beat, and where goes what comes.
    fn way<'a>(&'a mut self, crossing: &Crossing<'a>, header: &'a [u8]) -> Way<'a> {
        let Self { there, socket, seal, beat: Buffers { header: theirs, given, taken, out: sealed, into: to_open } } =
            self;
        let here = &crossing.here;
        let mut out = vec![header];
        if crossing.dtype == CommDType::Bf16 {
            given.clear();
            for rank in here.clone() {
                given.extend(crossing.leaving(rank, 0, there).iter().map(|&x| bf16_bits(x)));
            }
            out.push(bytemuck::cast_slice(given));
        } else {
            out.extend(here.clone().map(|rank| bytemuck::cast_slice(crossing.leaving(rank, 0, there))));
        }
        out.extend(crossing.owned(here).map(|(rank, own)| bytemuck::cast_slice(crossing.leaving(rank, 1, &own))));
        let mut into = pieces(crossing, there, theirs, taken);
        if let Some(seal) = seal {
            sealed.clear();
            out.iter().for_each(|piece| seal.sealer.seal(piece, sealed));
            to_open.resize(into.iter().map(|piece| sealed_bytes(piece.len())).sum(), 0);
            (out, into) = (vec![&sealed[..]], vec![&mut to_open[..]]);
        }
        // What is empty would look like an end.
        let out = out.into_iter().filter(|piece| !piece.is_empty()).map(IoSlice::new).collect();
        let into = into.into_iter().filter(|piece| !piece.is_empty()).map(IoSliceMut::new).collect();
        Way { peer: there.start, socket, out, sent: 0, into, filled: 0 }
    }

    /// Puts what has come where it belongs.
    fn finish(&mut self, crossing: &Crossing<'_>) -> Result<(), crate::seal::Broken> {
        let Self { there, seal, beat: Buffers { header, taken, into, .. }, .. } = self;
        if let Some(seal) = seal {
            let mut sealed = &into[..];
            for piece in pieces(crossing, there, header, taken) {
                let (of_piece, rest) = sealed.split_at(sealed_bytes(piece.len()));
                seal.opener.open(of_piece, piece)?;
                sealed = rest;
            }
        }
        if crossing.dtype == CommDType::Bf16 {
            let mut halves = taken.iter();
            for rank in there.clone() {
                let elements = crossing.arriving(rank, 0, &crossing.here);
                elements.iter_mut().zip(&mut halves).for_each(|(x, &half)| *x = from_bf16_bits(half));
            }
        }
        Ok(())
    }
}

/// Where what comes from a host's ranks in a beat goes, in its order.
fn pieces<'a>(
    crossing: &Crossing<'a>,
    there: &Range<usize>,
    header: &'a mut [u8],
    halves: &'a mut Vec<u16>,
) -> Vec<&'a mut [u8]> {
    let mut into = vec![header];
    if crossing.dtype == CommDType::Bf16 {
        let of_each = crossing.beat.part(0, &crossing.here).map_or(0, |part| part.range.len());
        halves.resize(of_each * there.len(), 0);
        into.push(bytemuck::cast_slice_mut(halves));
    } else {
        let of_each = |rank| bytemuck::cast_slice_mut(crossing.arriving(rank, 0, &crossing.here));
        into.extend(there.clone().map(of_each));
    }
    into.extend(crossing.owned(there).map(|(rank, own)| bytemuck::cast_slice_mut(crossing.arriving(rank, 1, &own))));
    into
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
