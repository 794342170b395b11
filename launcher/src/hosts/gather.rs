//! The `coordinator` subcommand's door: waits for ranks that were started elsewhere, and again for one that was lost, which its
//! host starts again.
//!
//! Opens before the model is known: schedulers start ranks at the same moment, and a download takes minutes. A place is taken
//! once, until its rank is lost. Does not know what ranks are for.

use std::{
    io, mem,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nanoinfer_coordinator::engine::{Lost, RankSource, SourceError};
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

use super::secret::Secret;
use crate::{build::BUILD_ID, error::LaunchError};

/// How often the missing ranks are named.
const REMINDER: Duration = Duration::from_secs(5);
/// How often it is looked whether all are there.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// Handshakes under way at the same time.
const MAX_KNOCKS: usize = 64;
/// Pause after a knock that the system could not take, so that what it lacks may come back.
const RECOVERY: Duration = Duration::from_secs(1);
/// How long the host of a rank that was lost may take to start it again.
const REJOIN_DEADLINE: Duration = Duration::from_secs(60);

type Link = ControlLink<ToRank, FromRank>;

/// A rank that is there: the way to it, and the host that it named.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) link: Link,
    pub(crate) host: String,
    /// The link's socket, to see whether the rank is still there.
    socket: TcpStream,
}

/// A door, before it is known how many ranks there are.
#[derive(Debug)]
pub(crate) struct Door {
    listener: TcpListener,
    secret: Secret,
}

/// Where the ranks of one cluster may join.
#[derive(Debug)]
pub(crate) struct Gathering {
    listener: TcpListener,
    secret: Arc<Secret>,
    epoch: u32,
    places: Places,
}

/// By number of rank. A mutex, as several handshakes may end at once.
type Places = Arc<Mutex<Vec<Place>>>;

#[derive(Debug)]
enum Place {
    Free,
    Arrived(Arrived),
    /// Its rank is part of the cluster.
    Taken,
}

impl Place {
    /// Whether a rank may have it: also where the one that had come has gone again.
    fn is_open(&self) -> bool {
        match self {
            Self::Free => true,
            Self::Arrived(guest) => guest.is_gone(),
            Self::Taken => false,
        }
    }
}

impl Arrived {
    /// The rank has gone again: a scheduler that restarts it sends another.
    fn is_gone(&self) -> bool {
        // A rank says nothing before it is told to load, so there is either nothing to read or the end.
        let (_, read) = match recv(&self.socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok(read) => read,
            Err(errno) => return !matches!(errno, Errno::AGAIN | Errno::INTR),
        };
        read == 0
    }
}

impl Door {
    /// Listens at `address` for ranks that hold `secret`.
    ///
    /// # Errors
    /// When the address is taken, or none of this host.
    pub(crate) fn listen(address: &str, secret: Secret) -> Result<Self, LaunchError> {
        let listener = TcpListener::bind(address).map_err(|source| LaunchError::Bind {
            address: address.into(),
            source,
            hint: "--listen takes HOST:PORT with an address of this machine that the ranks can reach",
        })?;
        Ok(Self { listener, secret })
    }

    /// Opens it for `world` ranks, on a thread of its own.
    ///
    /// # Errors
    /// When the system gives none.
    pub(crate) fn open(self, world: usize) -> Result<Arrivals, LaunchError> {
        let places = Arc::new(Mutex::new((0..world).map(|_| Place::Free).collect()));
        let gathering = Gathering { listener: self.listener, secret: Arc::new(self.secret), epoch: epoch()?, places };
        let waiting = thread::Builder::new().name("gather".into()).spawn(move || {
            tracing::info!("waiting for {world} ranks at {}", gathering.address()?);
            let arrived = gathering.wait(&|| None)?;
            Ok((arrived, gathering))
        });
        waiting.map(Arrivals).map_err(LaunchError::system("start a thread"))
    }
}

impl Gathering {
    fn address(&self) -> Result<SocketAddr, LaunchError> {
        self.listener.local_addr().map_err(LaunchError::system("ask for the bound address"))
    }

    /// Waits until all places that are not taken have their ranks, and takes those, in rank order; says every few seconds who is
    /// missing. Ends with the error that `give_up` has.
    fn wait(&self, give_up: &dyn Fn() -> Option<LaunchError>) -> Result<Vec<Arrived>, LaunchError> {
        let address = self.address()?;
        let mut knocks = Knocks::new(MAX_KNOCKS);
        let mut reminded = Instant::now();
        loop {
            for (rank, from, guest) in knocks.arrivals() {
                self.take_in(rank, from, guest);
            }
            let missing = self.missing();
            if missing.is_empty() {
                // Handshakes that are still under way find their rank taken.
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
                tracing::info!("still waiting at {address} for {}", named(&missing, self.places().len()));
                reminded = Instant::now();
            }
            let mut descriptors = [PollFd::new(&self.listener, PollFlags::IN)];
            // Interrupted, timed out or readable: all lead to another look.
            if !matches!(poll(&mut descriptors, Some(&TICK)), Ok(1..)) {
                continue;
            }
            let (stream, from) = match self.listener.accept() {
                Ok(knock) => knock,
                Err(error) if is_final(&error) => return Err(LaunchError::system("accept a rank")(error)),
                Err(error) => {
                    tracing::warn!("somebody could not be let in at {address}: {error}");
                    thread::sleep(RECOVERY);
                    continue;
                }
            };
            let (places, secret, epoch) = (self.places.clone(), self.secret.clone(), self.epoch);
            let answered = knocks.answer(stream, move |stream| {
                let refused = |error: &HandshakeError| tracing::warn!("{from} was refused: {error}");
                let (rank, guest) = admit(stream, &secret, epoch, &places).inspect_err(refused).ok()?;
                Some((rank, from, guest))
            });
            if let Err(error) = answered {
                tracing::warn!("{from} was turned away, as there is no thread for it: {error}");
            }
        }
    }

    /// Puts a guest in its place.
    fn take_in(&self, rank: usize, from: SocketAddr, guest: Arrived) {
        let place = &mut self.places()[rank];
        if place.is_open() {
            *place = Place::Arrived(guest);
            tracing::info!(rank, "joined from {from}");
        } else {
            // Two of the same number came at once; the link of the second closes.
            tracing::warn!("{from} was refused: rank {rank} has already joined");
        }
    }

    /// Who is not there, or not any more.
    fn missing(&self) -> Vec<usize> {
        let mut missing = Vec::new();
        for (rank, place) in self.places().iter_mut().enumerate().filter(|(_, place)| place.is_open()) {
            if let Place::Arrived(_) = mem::replace(place, Place::Free) {
                tracing::warn!(rank, "gone again before the cluster started; waiting for it to come back");
            }
            missing.push(rank);
        }
        missing
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RankSource for Gathering {
    fn replace(&mut self, _group: u32, lost: &[Lost], given_up: &dyn Fn() -> bool) -> Result<Vec<Link>, SourceError> {
        lost.iter().for_each(|lost| self.places()[lost.rank] = Place::Free);
        let (begun, ranks) = (Instant::now(), lost.iter().map(|lost| lost.rank).collect::<Vec<_>>());
        let give_up = || {
            let waited = begun.elapsed();
            let error =
                || LaunchError::NotBack { ranks: named(&ranks, self.places().len()), seconds: waited.as_secs() };
            (given_up() || waited > REJOIN_DEADLINE).then(error)
        };
        Ok(self.wait(&give_up)?.into_iter().map(|rank| rank.link).collect())
    }
}

/// Ranks on their way.
#[derive(Debug)]
pub(crate) struct Arrivals(thread::JoinHandle<Result<(Vec<Arrived>, Gathering), LaunchError>>);

impl Arrivals {
    /// Waits until all are there, by rank; and where those come again that are lost.
    pub(crate) fn all(self) -> Result<(Vec<Arrived>, Gathering), LaunchError> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn admit(
    stream: TcpStream,
    secret: &Secret,
    epoch: u32,
    places: &Mutex<Vec<Place>>,
) -> Result<(usize, Arrived), HandshakeError> {
    let places = || places.lock().unwrap_or_else(PoisonError::into_inner);
    let free = |rank: usize| match places().get(rank).is_some_and(Place::is_open) {
        true => Ok(()),
        false => Err(format!("rank {rank} has already joined")),
    };
    let world = places().len();
    let probe = stream.try_clone().map_err(LinkError::from)?;
    stream.set_nodelay(true).map_err(LinkError::from)?;
    let mut socket = Socket::Tcp(stream);
    let expected = Identity { build_id: BUILD_ID.into(), world, rank: 0, host: String::new() };
    let until = Instant::now() + HANDSHAKE_TIMEOUT;
    let admission = Admission { expected: &expected, key: secret.key(), epoch, until };
    let Identity { rank, host, .. } = handshake::admit(&mut socket, admission, free)?;
    Ok((rank, Arrived { link: Link::over(socket, epoch)?, host, socket: probe }))
}

/// The listener itself is broken. All else heals: a knock that was taken back, or descriptors and memory that are used up.
fn is_final(error: &io::Error) -> bool {
    let broken = [Errno::BADF, Errno::INVAL, Errno::NOTSOCK, Errno::OPNOTSUPP, Errno::FAULT];
    Errno::from_io_error(error).is_some_and(|errno| broken.contains(&errno))
}

fn named(missing: &[usize], world: usize) -> String {
    let ranks = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    format!("rank{} {ranks} of {world}", if missing.len() == 1 { "" } else { "s" })
}

/// A number for this life of the cluster, so that a rank of an earlier one is not taken for one of this.
fn epoch() -> Result<u32, LaunchError> {
    let random = handshake::random_key().map_err(|source| LaunchError::Handshake { rank: 0, source })?;
    Ok(u32::from_le_bytes([random[0], random[1], random[2], random[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, text).unwrap();
        Secret::read(&path).unwrap()
    }

    #[test]
    fn all_ranks_come_in_once_and_strangers_do_not() {
        let door = Door::listen("127.0.0.1:0", secret("0123456789abcdef")).unwrap();
        let address = door.listener.local_addr().unwrap();
        let join = |rank: usize, key: &[u8]| {
            let mut socket = Socket::Tcp(TcpStream::connect(address).unwrap());
            let identity = Identity { build_id: BUILD_ID.into(), world: 2, rank, host: String::new() };
            // The socket is kept open: a link that closes is no rank.
            let until = Instant::now() + HANDSHAKE_TIMEOUT;
            handshake::join(&mut socket, &identity, key, until).map(|epoch| (socket, epoch)).map_err(|e| e.to_string())
        };
        thread::scope(|scope| {
            let arrivals = door.open(2).unwrap();
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
            let (all, mut gathering) = arrivals.all().unwrap();
            assert_eq!((epoch, all.len()), (same, 2));
            // One that is lost comes again, and only that one.
            let back = scope.spawn(move || {
                let lost = Lost { rank: 1, is_corrupt: false };
                gathering.replace(1, &[lost], &|| false).map(|links| links.len()).map_err(|error| error.to_string())
            });
            assert!(join(0, b"0123456789abcdef").unwrap_err().contains("already joined"));
            let (_third, again) = join(1, b"0123456789abcdef").unwrap();
            assert_eq!((again, back.join().unwrap()), (epoch, Ok(1)));
        });
    }

    #[test]
    fn a_crowd_that_says_nothing_keeps_nobody_out() {
        let door = Door::listen("127.0.0.1:0", secret("0123456789abcdef")).unwrap();
        let address = door.listener.local_addr().unwrap();
        let arrivals = door.open(1).unwrap();
        // Each begins to introduce itself, and says no more.
        let crowd: Vec<_> = (0..2 * MAX_KNOCKS)
            .map(|_| {
                let mut stranger = TcpStream::connect(address).unwrap();
                io::Write::write_all(&mut stranger, &[200, 0, 0, 0, 1]).unwrap();
                stranger
            })
            .collect();
        let identity = Identity { build_id: BUILD_ID.into(), world: 1, rank: 0, host: String::new() };
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
        let door = Door::listen("127.0.0.1:0", secret("0123456789abcdef")).unwrap();
        // It listens no longer.
        rustix::net::shutdown(&door.listener, rustix::net::Shutdown::Both).unwrap();
        assert!(door.open(1).unwrap().all().is_err());
    }

    #[test]
    fn the_missing_are_named() {
        assert_eq!(named(&[1, 3], 4), "ranks 1, 3 of 4");
        assert_eq!(named(&[0], 4), "rank 0 of 4");
    }
}
