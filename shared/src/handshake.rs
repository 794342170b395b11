//! Who may join whom: the first bytes on every control and data socket.
//!
//! ```text
//! joiner                                        admitter
//!   Knock { protocol, [e, identity] } ───────►  speaks the protocol and opens it, or Refused { reason }
//!          ◄── Challenge [e, epoch, is sealed]
//!   [proof] ─────────────────────────────────►  opens it; then build id, world and rank
//!          ◄── [Welcome or Refused { reason }]
//! ```
//! What stands in brackets is Noise (`NNpsk0`, X25519, AES-256-GCM, SHA-256) with a key made of the secret: it opens only for who holds
//! that, and a proof that was said before does not open again. The protocol's number is part of all of it, so that nobody on the way
//! can exchange it. Before its proof a joiner is told nothing of the cluster, and nothing that it said is repeated. Between processes
//! that inherited a socket pair the secret is empty: the pair itself is the proof. What follows the handshake is sealed with its keys
//! where the admitter says so. Reference: the Noise Protocol Framework, revision 34.

use std::{
    io::{self, ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use snow::{Builder, HandshakeState};

use crate::{
    link::{LinkError, Socket, Terms, read_frame, receive_sealed, send_sealed, write_frame},
    protocol::PROTOCOL_VERSION,
    seal::Seal,
};

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// No message of a handshake is larger.
const MAX_HANDSHAKE_BYTES: usize = 4096;
/// How long a whole handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most characters of a build id that an error repeats.
const SHOWN_CHARS: usize = 64;

/// Who a joiner says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version and commit of the program: messages have no other compatibility rule.
    pub build_id: String,
    /// Ranks in the cluster.
    pub world: usize,
    /// Which of them.
    pub rank: usize,
}

/// Why two processes did not come together.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed, or something else speaks on it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The other side said no.
    #[error("refused by the other side: {0}")]
    Refused(String),
    /// We said no.
    #[error("{0}")]
    Rejected(String),
    /// Noise could not be begun.
    #[error("the handshake failed: {0}")]
    Noise(#[from] snow::Error),
    /// The operating system gave no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(getrandom::Error),
}

#[derive(Serialize, Deserialize)]
struct Knock {
    protocol: u32,
    hello: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Challenge(Vec<u8>),
    Refused { reason: String },
}

#[derive(Serialize, Deserialize)]
struct Challenge {
    epoch: u32,
    is_sealed: bool,
}

#[derive(Serialize, Deserialize)]
enum Verdict {
    Welcome,
    Refused { reason: String },
}

/// What an admitter goes by.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// Build and world that joiners must be of. The rank is not compared.
    pub expected: &'a Identity,
    /// The cluster's secret.
    pub key: &'a [u8],
    /// This life of the cluster.
    pub epoch: u32,
    /// Whether what follows is sealed.
    pub is_sealed: bool,
    /// When a handshake is given up.
    pub until: Instant,
}

/// Joins as `identity`; returns what was agreed on.
///
/// # Errors
/// When the other side refuses, does not hold the key, or is not done by `until`.
pub fn join(socket: &mut Socket, identity: &Identity, key: &[u8], until: Instant) -> Result<Terms, HandshakeError> {
    let mut socket = Bounded { socket, until };
    let mut noise = noise(key, true)?;
    send(&mut socket, &Knock { protocol: PROTOCOL_VERSION, hello: said(&mut noise, identity)? })?;
    let challenge = match receive(&mut socket)? {
        Answer::Challenge(challenge) => heard::<Challenge>(&mut noise, &challenge),
        Answer::Refused { reason } => return Err(HandshakeError::Refused(reason)),
    };
    let without_key = || HandshakeError::Rejected("the other side does not hold this cluster's secret".into());
    let Challenge { epoch, is_sealed } = challenge.ok_or_else(without_key)?;
    let mut seal = Seal::new(noise.into_stateless_transport_mode()?);
    send_sealed(&mut socket, Some(&mut seal.sealer), PROOF, MAX_HANDSHAKE_BYTES)?;
    let verdict = receive_sealed(&mut socket, Some(&mut seal.opener), MAX_HANDSHAKE_BYTES)?;
    match postcard::from_bytes(&verdict).map_err(LinkError::from)? {
        Verdict::Welcome => Ok(Terms { epoch, seal: is_sealed.then_some(seal) }),
        Verdict::Refused { reason } => Err(HandshakeError::Refused(reason)),
    }
}

/// Admits one joiner that `accept` finds fit; returns who it is, and what was agreed on. `accept` sees a rank of the right build and
/// world that holds the key.
///
/// # Errors
/// When the joiner does not hold the key, is of another build or world, is not accepted, or is not done in time. Who holds
/// the key is told why.
pub fn admit(
    socket: &mut Socket,
    admission: Admission<'_>,
    accept: impl FnOnce(usize) -> Result<(), String>,
) -> Result<(Identity, Terms), HandshakeError> {
    let Admission { expected, key, epoch, is_sealed, until } = admission;
    let mut socket = Bounded { socket, until };
    let Knock { protocol, hello } = receive(&mut socket)?;
    let mut refuse = |reason: String| {
        // The joiner may already be gone; our own error says the same.
        let _ = send(&mut socket, &Answer::Refused { reason: reason.clone() });
        HandshakeError::Rejected(reason)
    };
    if protocol != PROTOCOL_VERSION {
        return Err(refuse(format!("protocol {protocol} is spoken there, {PROTOCOL_VERSION} here")));
    }
    let mut noise = noise(key, false)?;
    let without_key = "the joiner does not hold this cluster's secret";
    let identity: Identity = heard(&mut noise, &hello).ok_or_else(|| refuse(without_key.into()))?;
    send(&mut socket, &Answer::Challenge(said(&mut noise, &Challenge { epoch, is_sealed })?))?;
    let mut seal = Seal::new(noise.into_stateless_transport_mode()?);
    match receive_sealed(&mut socket, Some(&mut seal.opener), MAX_HANDSHAKE_BYTES) {
        Ok(proof) if proof == PROOF => {}
        // What was said before, by whom; a frame of nothing was never sealed.
        Ok(_) | Err(LinkError::Broken(_)) => return Err(HandshakeError::Rejected(without_key.into())),
        Err(error) => return Err(error.into()),
    }
    let rank = identity.rank;
    let fit = if identity.build_id != expected.build_id {
        let theirs: String = identity.build_id.chars().take(SHOWN_CHARS).collect();
        Err(format!(
            "build {} cannot join build {}: all ranks must run the same build",
            theirs.escape_debug(),
            expected.build_id
        ))
    } else if identity.world != expected.world {
        Err(format!("rank {rank} expects {} ranks, the cluster has {}", identity.world, expected.world))
    } else if rank >= expected.world {
        Err(format!("there is no rank {rank} among {} ranks", expected.world))
    } else {
        accept(rank)
    };
    let verdict = match &fit {
        Ok(()) => Verdict::Welcome,
        Err(reason) => Verdict::Refused { reason: reason.clone() },
    };
    let verdict = postcard::to_stdvec(&verdict).map_err(LinkError::from)?;
    let told = send_sealed(&mut socket, Some(&mut seal.sealer), &verdict, MAX_HANDSHAKE_BYTES);
    // Who is refused may already be gone; our own error says the same.
    fit.map_err(HandshakeError::Rejected)?;
    told?;
    Ok((identity, Terms { epoch, seal: is_sealed.then_some(seal) }))
}

/// A socket on which everything is over at one moment, however the other side spreads its bytes.
struct Bounded<'a> {
    socket: &'a mut Socket,
    until: Instant,
}

impl Bounded<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(late()) } else { Ok(left) }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_deadlines(Some(self.left()?), None)?;
        self.socket.read(buffer).map_err(timed_out)
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_deadlines(None, Some(self.left()?))?;
        self.socket.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket's own word for a deadline that passed is that it would block.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { late() } else { error }
}

fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "the other side did not finish its introduction in time")
}

/// 32 random bytes, for the key of one cluster's data links.
///
/// # Errors
/// When the operating system gives none.
pub fn random_key() -> Result<[u8; 32], HandshakeError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(HandshakeError::Random)?;
    Ok(key)
}

/// That it is sealed is the proof.
const PROOF: &[u8] = b"proof";

fn noise(key: &[u8], joins: bool) -> Result<HandshakeState, snow::Error> {
    // A key of Noise has 32 bytes, a secret any number.
    let key: [u8; 32] = Sha256::new().chain_update(b"nanoinfer: a key of links").chain_update(key).finalize().into();
    let prologue = [&b"nanoinfer"[..], &PROTOCOL_VERSION.to_le_bytes()].concat();
    let builder = Builder::new(PATTERN.parse()?).psk(0, &key)?.prologue(&prologue)?;
    if joins { builder.build_initiator() } else { builder.build_responder() }
}

/// The next message of the handshake, with `content` in it.
fn said<T: Serialize>(noise: &mut HandshakeState, content: &T) -> Result<Vec<u8>, HandshakeError> {
    let content = postcard::to_stdvec(content).map_err(LinkError::from)?;
    let mut message = vec![0; MAX_HANDSHAKE_BYTES];
    let length = noise.write_message(&content, &mut message)?;
    message.truncate(length);
    Ok(message)
}

/// What is in it; none where it does not open, or holds something else.
fn heard<T: for<'a> Deserialize<'a>>(noise: &mut HandshakeState, message: &[u8]) -> Option<T> {
    let mut content = vec![0; MAX_HANDSHAKE_BYTES];
    let length = noise.read_message(message, &mut content).ok()?;
    postcard::from_bytes(&content[..length]).ok()
}

fn send<T: Serialize>(socket: &mut Bounded<'_>, message: &T) -> Result<(), HandshakeError> {
    let bytes = postcard::to_stdvec(message).map_err(LinkError::from)?;
    Ok(write_frame(socket, &bytes, MAX_HANDSHAKE_BYTES)?)
}

fn receive<T: for<'a> Deserialize<'a>>(socket: &mut Bounded<'_>) -> Result<T, HandshakeError> {
    let bytes = read_frame(socket, MAX_HANDSHAKE_BYTES)?;
    Ok(postcard::from_bytes(&bytes).map_err(LinkError::from)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{os::unix::net::UnixStream, thread};

    use super::*;

    fn identity(build_id: &str, world: usize, rank: usize) -> Identity {
        Identity { build_id: build_id.into(), world, rank }
    }

    fn soon() -> Instant {
        Instant::now() + HANDSHAKE_TIMEOUT
    }

    fn admitting(socket: UnixStream, key: &[u8], until: Instant) -> Result<usize, String> {
        let taken = |rank| if rank == 3 { Err("rank 3 has already joined".to_string()) } else { Ok(()) };
        let admission = Admission { expected: &identity("v1", 4, 0), key, epoch: 9, is_sealed: false, until };
        admit(&mut Socket::Unix(socket), admission, taken).map(|joiner| joiner.0.rank).map_err(|e| e.to_string())
    }

    /// The seals of two that have met.
    pub(crate) fn ends() -> (Seal, Seal) {
        let (a, b) = UnixStream::pair().unwrap();
        let who = identity("v1", 2, 1);
        thread::scope(|scope| {
            let joined = scope.spawn(|| join(&mut Socket::Unix(a), &who, b"key", soon()).unwrap());
            let admission = Admission { expected: &who, key: b"key", epoch: 9, is_sealed: true, until: soon() };
            let (_, admitted) = admit(&mut Socket::Unix(b), admission, |_| Ok(())).unwrap();
            (joined.join().unwrap().seal.unwrap(), admitted.seal.unwrap())
        })
    }

    /// What (joiner, admitter) end with.
    fn meet(
        joiner: Identity,
        joiner_key: &'static [u8],
        admitter_key: &[u8],
    ) -> (Result<u32, String>, Result<usize, String>) {
        let (a, b) = UnixStream::pair().unwrap();
        let joining = move || {
            join(&mut Socket::Unix(a), &joiner, joiner_key, soon()).map(|terms| terms.epoch).map_err(|e| e.to_string())
        };
        let joiner = thread::spawn(joining);
        let admitted = admitting(b, admitter_key, soon());
        (joiner.join().unwrap(), admitted)
    }

    #[test]
    fn the_same_build_and_key_come_together() {
        assert_eq!(meet(identity("v1", 4, 2), b"key", b"key"), (Ok(9), Ok(2)));
    }

    #[test]
    fn each_mismatch_is_named_on_both_sides() {
        for (joiner, key, word) in [
            (identity("v2", 4, 2), &b"key"[..], "build v2"),
            (identity("v1", 5, 2), b"key", "expects 5 ranks"),
            (identity("v1", 4, 4), b"key", "no rank 4"),
            (identity("v1", 4, 3), b"key", "already joined"),
        ] {
            let (joined, admitted) = meet(joiner, key, b"key");
            assert!(joined.unwrap_err().contains(word), "{word}");
            assert!(admitted.unwrap_err().contains(word), "{word}");
        }
    }

    #[test]
    fn without_the_key_nothing_is_told_and_nothing_repeated() {
        let forged = "v9\n2026-01-01T00:00:00Z  INFO joined from 10.0.0.1 rank=0";
        let (joined, admitted) = meet(identity(forged, 7, 1), b"wrong", b"key");
        assert!(joined.unwrap_err().contains("secret"));
        let told = admitted.unwrap_err();
        assert!(!told.contains("v9") && !told.contains('7'), "{told}");
        // Who holds the key cannot break a line of the log either.
        let (joined, admitted) = meet(identity(&forged.repeat(30), 4, 1), b"key", b"key");
        let (joined, admitted) = (joined.unwrap_err(), admitted.unwrap_err());
        assert!(admitted.contains("build v9\\n2026") && admitted.len() < 300, "{admitted}");
        assert!(!joined.contains('\n') && !admitted.contains('\n'));
    }

    /// Passes everything on, and exchanges one byte of what the joiner says.
    fn meet_through(changed: usize) -> (Result<u32, String>, Result<usize, String>) {
        let (joiner, mut near) = UnixStream::pair().unwrap();
        let (mut far, admitter) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let joined = scope.spawn(|| {
                let mut socket = Socket::Unix(joiner);
                join(&mut socket, &identity("v1", 4, 2), b"key", soon())
                    .map(|terms| terms.epoch)
                    .map_err(|e| e.to_string())
            });
            let admitted = scope.spawn(|| admitting(admitter, b"key", soon()));
            let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            scope.spawn(move || {
                // Ends as either side does.
                let _ = io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(std::net::Shutdown::Both);
            });
            scope.spawn(move || {
                let (mut byte, mut at) = ([0], 0);
                while near.read_exact(&mut byte).is_ok() {
                    byte[0] ^= u8::from(at == changed);
                    at += 1;
                    if far.write_all(&byte).is_err() {
                        break;
                    }
                }
                let _ = far.shutdown(std::net::Shutdown::Both);
            });
            (joined.join().unwrap(), admitted.join().unwrap())
        })
    }

    #[test]
    fn nothing_that_the_joiner_says_can_be_exchanged_on_the_way() {
        assert_eq!(meet_through(usize::MAX), (Ok(9), Ok(2)));
        // A length of four bytes, then protocol, a length, a key of 32, an identity of five bytes and a tag of 16; a length, and a proof.
        for changed in (4..4 + 2 + 32 + 5 + 16).chain(4 + 55 + 4..4 + 55 + 4 + 21) {
            let (joined, admitted) = meet_through(changed);
            assert!(joined.is_err() && admitted.is_err(), "byte {changed}: {joined:?} {admitted:?}");
        }
    }

    #[test]
    fn a_trickle_ends_at_the_deadline_of_the_whole() {
        let (a, mut slow) = UnixStream::pair().unwrap();
        let until = Instant::now() + Duration::from_millis(200);
        let admitted = thread::spawn(move || admitting(a, b"key", until));
        // 4,000 bytes are announced, and one comes now and then: each in time for a deadline of its own.
        slow.write_all(&4000_u32.to_le_bytes()).unwrap();
        let mut sent = 0;
        while slow.write_all(&[0]).is_ok() {
            sent += 1;
            thread::sleep(Duration::from_millis(10));
        }
        let error = admitted.join().unwrap().unwrap_err();
        assert!(error.contains("did not finish its introduction in time") && sent < 4000, "{error}");
    }
}
