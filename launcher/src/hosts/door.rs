//! Where others of a cluster come in at node 0: its nodes, which prove the secret, and their ranks, which prove a key of this life. Opens
//! again for those that were lost.
//!
//! The nodes' door opens before the model is known: schedulers start hosts at the same moment, and a download takes minutes. A place
//! is taken once, until its guest is lost. Does not know what guests are for.

use std::{
    io, mem,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    door::Knocks,
    handshake::{self, Admission, HANDSHAKE_TIMEOUT, HandshakeError, Identity},
    link::{ControlLink, LinkError, Socket},
    protocol::{FromRank, ToRank},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{RecvFlags, recv},
    time::Timespec,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    messages::{FromNode, Hello, ToNode},
    secret::Secret,
};
use crate::{build::BUILD_ID, error::LaunchError};

/// How often the missing are named.
const REMINDER: Duration = Duration::from_secs(5);
/// How often it is looked whether all are there.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// Handshakes under way at the same time.
const MAX_KNOCKS: usize = 64;
/// Pause after a knock that the system could not take, so that what it lacks may come back.
const RECOVERY: Duration = Duration::from_secs(1);

/// Who comes in, and takes a place.
pub(crate) trait Guest: Send + Sized + 'static {
    /// What it is called.
    const NOUN: &'static str;
    /// The number of the first place.
    const FIRST: usize;

    /// Lets one in that is who it says, and says which place it wants, if it minds. `is_open` tells whether a place is.
    fn admit(
        stream: TcpStream,
        door: &Proof,
        places: usize,
        is_open: &dyn Fn(Option<usize>) -> bool,
    ) -> Result<(Option<usize>, Self), HandshakeError>;

    /// Its link's socket, on which it says nothing before it is told to.
    fn socket(&self) -> &TcpStream;
}

/// What guests go by.
#[derive(Debug)]
pub(crate) struct Proof {
    key: Secret,
    /// A number for this life of the cluster, so that a guest of an earlier one is not taken for one of this.
    epoch: u32,
    /// Whether what guests say behind the door is sealed.
    is_sealed: bool,
}

/// A door, and places behind it.
#[derive(Debug)]
pub(crate) struct Door<G> {
    listener: TcpListener,
    proof: Arc<Proof>,
    /// A mutex, as several handshakes may end at once.
    places: Arc<Mutex<Vec<Place<G>>>>,
}

#[derive(Debug)]
enum Place<G> {
    Free,
    Arrived(G),
    /// Its guest is part of the cluster.
    Taken,
}

impl<G: Guest> Place<G> {
    /// Whether somebody may have it: also where the one that had come has gone again.
    fn is_open(&self) -> bool {
        match self {
            Self::Free => true,
            Self::Arrived(guest) => is_gone(guest.socket()),
            Self::Taken => false,
        }
    }
}

/// Whether the other side has gone: a guest says nothing before it is told to, so there is either nothing to read or the end.
fn is_gone(socket: &TcpStream) -> bool {
    match recv(socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, read)) => read == 0,
        Err(errno) => !matches!(errno, Errno::AGAIN | Errno::INTR),
    }
}

impl<G: Guest> Door<G> {
    /// A door with so many places, for guests that hold `key`.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub(crate) fn new(listener: TcpListener, key: Secret, is_sealed: bool, places: usize) -> Result<Self, LaunchError> {
        let random = handshake::random_key().map_err(LaunchError::NoRandom)?;
        let epoch = u32::from_le_bytes([random[0], random[1], random[2], random[3]]);
        let places = Arc::new(Mutex::new((0..places).map(|_| Place::Free).collect()));
        Ok(Self { listener, proof: Arc::new(Proof { key, epoch, is_sealed }), places })
    }

    /// Waits for all on a thread of its own.
    ///
    /// # Errors
    /// When the system gives none.
    pub(crate) fn open(self) -> Result<Arrivals<G>, LaunchError> {
        let waiting = thread::Builder::new().name("door".into()).spawn(move || {
            tracing::info!("waiting at {} for {}", self.address()?, named::<G>(&self.missing(), self.places().len()));
            let arrived = self.wait(&|| None)?;
            Ok((arrived, self))
        });
        waiting.map(Arrivals).map_err(LaunchError::system("start a thread"))
    }

    /// Whether what guests say is sealed.
    pub(crate) fn is_sealed(&self) -> bool {
        self.proof.is_sealed
    }

    pub(crate) fn address(&self) -> Result<SocketAddr, LaunchError> {
        self.listener.local_addr().map_err(LaunchError::system("ask for the bound address"))
    }

    /// Lets others have these places.
    pub(crate) fn free(&self, places: impl IntoIterator<Item = usize>) {
        places.into_iter().for_each(|place| self.places()[place - G::FIRST] = Place::Free);
    }

    /// Keeps these places from anybody.
    pub(crate) fn keep(&self, places: impl IntoIterator<Item = usize>) {
        places.into_iter().for_each(|place| self.places()[place - G::FIRST] = Place::Taken);
    }

    /// Waits until all places that are not taken have their guests, and takes those, in order; says every few seconds who is
    /// missing. Ends with the error that `give_up` has.
    pub(crate) fn wait(&self, give_up: &dyn Fn() -> Option<LaunchError>) -> Result<Vec<G>, LaunchError> {
        let address = self.address()?;
        let mut knocks = Knocks::new(MAX_KNOCKS);
        let mut reminded = Instant::now();
        loop {
            for (place, from, guest) in knocks.arrivals() {
                self.take_in(place, from, guest);
            }
            let missing = self.missing();
            if missing.is_empty() {
                // Handshakes that are still under way find their place taken.
                let mut places = self.places();
                let taken = places.iter_mut().map(|place| mem::replace(place, Place::Taken));
                let arrived =
                    taken.filter_map(|place| if let Place::Arrived(guest) = place { Some(guest) } else { None });
                return Ok(arrived.collect());
            }
            if let Some(error) = give_up() {
                return Err(error);
            }
            if reminded.elapsed() >= REMINDER {
                tracing::info!("still waiting at {address} for {}", named::<G>(&missing, self.places().len()));
                reminded = Instant::now();
            }
            let mut descriptors = [PollFd::new(&self.listener, PollFlags::IN)];
            // Interrupted, timed out or readable: all lead to another look.
            if !matches!(poll(&mut descriptors, Some(&TICK)), Ok(1..)) {
                continue;
            }
            let (stream, from) = match self.listener.accept() {
                Ok(knock) => knock,
                Err(error) if is_final(&error) => return Err(LaunchError::system("accept a connection")(error)),
                Err(error) => {
                    tracing::warn!("somebody could not be let in at {address}: {error}");
                    thread::sleep(RECOVERY);
                    continue;
                }
            };
            let (places, proof) = (self.places.clone(), self.proof.clone());
            let answered = knocks.answer(stream, move |stream| {
                let places = || places.lock().unwrap_or_else(PoisonError::into_inner);
                let is_open = |place: Option<usize>| match place {
                    Some(number) => {
                        number.checked_sub(G::FIRST).and_then(|i| places().get(i).map(Place::is_open)) == Some(true)
                    }
                    None => places().iter().any(Place::is_open),
                };
                let refused = |error: &HandshakeError| tracing::warn!("{from} was refused: {error}");
                let count = places().len();
                let (place, guest) = G::admit(stream, &proof, count, &is_open).inspect_err(refused).ok()?;
                Some((place, from, guest))
            });
            if let Err(error) = answered {
                tracing::warn!("{from} was turned away, as there is no thread for it: {error}");
            }
        }
    }

    /// Puts a guest in its place, or in the first that is open.
    fn take_in(&self, number: Option<usize>, from: SocketAddr, guest: G) {
        let mut places = self.places();
        let wanted =
            number.map_or_else(|| places.iter().position(Place::is_open), |number| number.checked_sub(G::FIRST));
        match wanted.filter(|&i| places[i].is_open()) {
            Some(i) => {
                places[i] = Place::Arrived(guest);
                tracing::info!("{} {} joined from {from}", G::NOUN, i + G::FIRST);
            }
            // Two came at once; the link of the second closes.
            None => tracing::warn!("{from} was refused: its place is taken"),
        }
    }

    /// Who is not there, or not any more.
    fn missing(&self) -> Vec<usize> {
        let mut missing = Vec::new();
        for (i, place) in self.places().iter_mut().enumerate().filter(|(_, place)| place.is_open()) {
            if let Place::Arrived(_) = mem::replace(place, Place::Free) {
                tracing::warn!("{} {} has gone again; waiting for it to come back", G::NOUN, i + G::FIRST);
            }
            missing.push(i + G::FIRST);
        }
        missing
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place<G>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All guests, in order, and the door where those come again that are lost.
type AllThere<G> = Result<(Vec<G>, Door<G>), LaunchError>;

/// Guests on their way.
#[derive(Debug)]
pub(crate) struct Arrivals<G>(thread::JoinHandle<AllThere<G>>);

impl<G> Arrivals<G> {
    /// Waits until all are there.
    pub(crate) fn all(self) -> AllThere<G> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A rank of another host that is there.
#[derive(Debug)]
pub(crate) struct RankGuest {
    pub(crate) rank: usize,
    pub(crate) link: ControlLink<ToRank, FromRank>,
    socket: TcpStream,
}

impl Guest for RankGuest {
    const NOUN: &'static str = "rank";
    const FIRST: usize = 0;

    fn admit(
        stream: TcpStream,
        proof: &Proof,
        world: usize,
        is_open: &dyn Fn(Option<usize>) -> bool,
    ) -> Result<(Option<usize>, Self), HandshakeError> {
        let free = |rank: usize| match is_open(Some(rank)) {
            true => Ok(()),
            false => Err(format!("rank {rank} has already joined")),
        };
        let (identity, link, kept) = introduced(stream, proof, world, free)?;
        Ok((Some(identity.rank), Self { rank: identity.rank, link, socket: kept }))
    }

    fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

/// The node of another host that is there.
#[derive(Debug)]
pub(crate) struct NodeGuest {
    pub(crate) hello: Hello,
    pub(crate) link: ControlLink<ToNode, FromNode>,
    socket: TcpStream,
}

impl Guest for NodeGuest {
    const NOUN: &'static str = "node";
    /// Node 0 is on this side.
    const FIRST: usize = 1;

    fn admit(
        stream: TcpStream,
        proof: &Proof,
        others: usize,
        is_open: &dyn Fn(Option<usize>) -> bool,
    ) -> Result<(Option<usize>, Self), HandshakeError> {
        let (_, mut link, kept) = introduced::<ToNode, FromNode>(stream, proof, 1, |_| Ok(()))?;
        let FromNode::Hello(hello) = link.receiver.receive()? else {
            return Err(HandshakeError::Rejected("a node did not begin with what its host has".into()));
        };
        let (number, nodes) = (hello.number, others + 1);
        let problem = match (number, hello.nodes) {
            (_, Some(counted)) if counted != nodes => {
                Some(format!("it counts {counted} nodes, and node 0 counts {nodes}"))
            }
            (Some(0), _) => Some("node 0 is on this side".into()),
            (Some(number), _) if number >= nodes => Some(format!("there is no node {number} among {nodes}")),
            (Some(number), _) if !is_open(number.into()) => Some(format!("node {number} has already joined")),
            (None, _) if !is_open(None) => Some(format!("all {nodes} nodes are there")),
            _ => None,
        };
        if let Some(reason) = problem {
            // It may already be gone; our own error says the same.
            let _ = link.sender.send(ToNode::Refused { reason: reason.clone() });
            return Err(HandshakeError::Rejected(reason));
        }
        Ok((number, Self { hello: *hello, link, socket: kept }))
    }

    fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

/// Shakes hands; a second handle to the socket tells whether the guest is still there.
fn introduced<Out: Serialize, In: DeserializeOwned>(
    stream: TcpStream,
    proof: &Proof,
    world: usize,
    accept: impl FnOnce(usize) -> Result<(), String>,
) -> Result<(Identity, ControlLink<Out, In>, TcpStream), HandshakeError> {
    let kept = stream.try_clone().map_err(LinkError::from)?;
    stream.set_nodelay(true).map_err(LinkError::from)?;
    let mut socket = Socket::Tcp(stream);
    let expected = Identity { build_id: BUILD_ID.into(), world, rank: 0 };
    let until = Instant::now() + HANDSHAKE_TIMEOUT;
    let Proof { key, epoch, is_sealed } = proof;
    let admission = Admission { expected: &expected, key: key.key(), epoch: *epoch, is_sealed: *is_sealed, until };
    let (identity, terms) = handshake::admit(&mut socket, admission, accept)?;
    Ok((identity, ControlLink::over(socket, terms)?, kept))
}

/// The listener itself is broken. All else heals: a knock that was taken back, or descriptors and memory that are used up.
fn is_final(error: &io::Error) -> bool {
    let broken = [Errno::BADF, Errno::INVAL, Errno::NOTSOCK, Errno::OPNOTSUPP, Errno::FAULT];
    Errno::from_io_error(error).is_some_and(|errno| broken.contains(&errno))
}

fn named<G: Guest>(missing: &[usize], places: usize) -> String {
    let numbers = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    format!("{}{} {numbers} of {}", G::NOUN, if missing.len() == 1 { "" } else { "s" }, places + G::FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(ranks: usize) -> Door<RankGuest> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Door::new(listener, Secret::of_this_life(b"0123456789abcdef"), true, ranks).unwrap()
    }

    #[test]
    fn all_ranks_come_in_once_and_strangers_do_not() {
        let door = door(2);
        let address = door.listener.local_addr().unwrap();
        let join = |rank: usize, key: &[u8]| {
            let mut socket = Socket::Tcp(TcpStream::connect(address).unwrap());
            let identity = Identity { build_id: BUILD_ID.into(), world: 2, rank };
            // The socket is kept open: a link that closes is no rank.
            let until = Instant::now() + HANDSHAKE_TIMEOUT;
            handshake::join(&mut socket, &identity, key, until)
                .map(|terms| (socket, terms.epoch))
                .map_err(|e| e.to_string())
        };
        thread::scope(|scope| {
            let arrivals = door.open().unwrap();
            // Says nothing at all.
            let _silent = TcpStream::connect(address).unwrap();
            assert!(join(0, b"another secret!!").unwrap_err().contains("secret"));
            let (first, epoch) = join(1, b"0123456789abcdef").unwrap();
            // It is on the list a moment after it was welcomed.
            let refused = (0..1000).find_map(|_| join(1, b"0123456789abcdef").err()).unwrap();
            assert!(refused.contains("already joined"), "{refused}");
            // A rank that is restarted gets its place back.
            drop(first);
            let (_again, _) =
                (0..1000).find_map(|_| join(1, b"0123456789abcdef").ok()).expect("its place is free again");
            let (_second, same) = join(0, b"0123456789abcdef").unwrap();
            let (all, door) = arrivals.all().unwrap();
            assert_eq!((epoch, all.len()), (same, 2));
            // One that is lost comes again, and only that one.
            let back = scope.spawn(move || {
                door.free([1]);
                door.wait(&|| None).map(|guests| guests.len()).map_err(|error| error.to_string())
            });
            assert!(join(0, b"0123456789abcdef").unwrap_err().contains("already joined"));
            let (_third, again) = join(1, b"0123456789abcdef").unwrap();
            assert_eq!((again, back.join().unwrap()), (epoch, Ok(1)));
        });
    }

    #[test]
    fn a_crowd_that_says_nothing_keeps_nobody_out() {
        let door = door(1);
        let address = door.listener.local_addr().unwrap();
        let arrivals = door.open().unwrap();
        // Each begins to introduce itself, and says no more.
        let crowd: Vec<_> = (0..2 * MAX_KNOCKS)
            .map(|_| {
                let mut stranger = TcpStream::connect(address).unwrap();
                io::Write::write_all(&mut stranger, &[200, 0, 0, 0, 1]).unwrap();
                stranger
            })
            .collect();
        let identity = Identity { build_id: BUILD_ID.into(), world: 1, rank: 0 };
        let mut socket = Socket::Tcp(TcpStream::connect(address).unwrap());
        handshake::join(&mut socket, &identity, b"0123456789abcdef", Instant::now() + HANDSHAKE_TIMEOUT).unwrap();
        assert_eq!(arrivals.all().unwrap().0.len(), 1);
        drop(crowd);
    }

    #[test]
    fn a_knock_that_fails_is_no_end_and_a_broken_listener_is() {
        for passing in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::CONNABORTED, Errno::INTR] {
            assert!(!is_final(&passing.into()), "{passing}");
        }
        let door = door(1);
        // It listens no longer.
        rustix::net::shutdown(&door.listener, rustix::net::Shutdown::Both).unwrap();
        assert!(door.open().unwrap().all().is_err());
    }

    #[test]
    fn the_missing_are_named() {
        assert_eq!(named::<RankGuest>(&[1, 3], 4), "ranks 1, 3 of 4");
        assert_eq!(named::<NodeGuest>(&[1], 3), "node 1 of 4");
    }
}
