//! Who may join whom: the first bytes on every control and data socket.
//!
//! ```text
//! joiner                                    admitter
//!   Hello { protocol, identity, nonce } ──►  compares build id and world, knows the rank
//!          ◄── Challenge { nonce, proof } or Refused { reason }
//!   Proof ───────────────────────────────►  compares
//!          ◄── Welcome { epoch } or Refused { reason }
//! ```
//! Both sides prove that they hold the key (HMAC-SHA256 over both nonces), so neither sends it. Between processes
//! that inherited a socket pair the key is empty: the pair itself is the proof.
//! Nothing after the handshake is encrypted: links between hosts belong on a private network.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{
    link::{LinkError, Socket, read_frame, write_frame},
    protocol::PROTOCOL_VERSION,
};

/// No message of a handshake is larger.
const MAX_HANDSHAKE_BYTES: usize = 4096;
/// How long either side waits for the other's next word.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// The operating system gave no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(rustix::io::Errno),
}

type Nonce = [u8; 16];
type Digest = [u8; 32];

#[derive(Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    identity: Identity,
    nonce: Nonce,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Challenge { nonce: Nonce, proof: Digest },
    Welcome { epoch: u32 },
    Refused { reason: String },
}

/// Joins as `identity`; returns the cluster's epoch.
///
/// # Errors
/// When the other side refuses, does not hold the key, or does not answer in time.
pub fn join(socket: &mut Socket, identity: &Identity, key: &[u8]) -> Result<u32, HandshakeError> {
    socket.set_deadlines(Some(HANDSHAKE_TIMEOUT), Some(HANDSHAKE_TIMEOUT)).map_err(LinkError::from)?;
    let ours = nonce()?;
    send(socket, &Hello { protocol: PROTOCOL_VERSION, identity: identity.clone(), nonce: ours })?;
    let theirs = match receive(socket)? {
        Answer::Challenge { nonce, proof } if mac(key, b"admitter", &ours, &nonce).verify_slice(&proof).is_ok() => {
            nonce
        }
        Answer::Refused { reason } => return Err(HandshakeError::Refused(reason)),
        _ => return Err(HandshakeError::Rejected("the other side does not hold this cluster's secret".into())),
    };
    send(socket, &proof(key, b"joiner", &ours, &theirs))?;
    match receive(socket)? {
        Answer::Welcome { epoch } => Ok(epoch),
        Answer::Refused { reason } => Err(HandshakeError::Refused(reason)),
        Answer::Challenge { .. } => Err(HandshakeError::Rejected("the other side challenged twice".into())),
    }
}

/// Admits one joiner that `accept` finds fit, and tells it `epoch`; returns its rank.
/// `accept` sees the identity after build id and world were compared with `expected`'s (its rank is not compared).
///
/// # Errors
/// When the joiner is of another build or world, is not accepted, or does not hold the key; it is told why.
pub fn admit(
    socket: &mut Socket,
    expected: &Identity,
    key: &[u8],
    epoch: u32,
    accept: impl FnOnce(usize) -> Result<(), String>,
) -> Result<usize, HandshakeError> {
    socket.set_deadlines(Some(HANDSHAKE_TIMEOUT), Some(HANDSHAKE_TIMEOUT)).map_err(LinkError::from)?;
    let hello: Hello = receive(socket)?;
    let identity = &hello.identity;
    let fit = if hello.protocol != PROTOCOL_VERSION || identity.build_id != expected.build_id {
        Err(format!(
            "build {} (protocol {}) cannot join build {} (protocol {PROTOCOL_VERSION}): all ranks must run the same build",
            identity.build_id, hello.protocol, expected.build_id
        ))
    } else if identity.world != expected.world {
        Err(format!("rank {} expects {} ranks, the cluster has {}", identity.rank, identity.world, expected.world))
    } else if identity.rank >= expected.world {
        Err(format!("there is no rank {} among {} ranks", identity.rank, expected.world))
    } else {
        accept(identity.rank)
    };
    if let Err(reason) = fit {
        return refuse(socket, reason);
    }
    let ours = nonce()?;
    send(socket, &Answer::Challenge { nonce: ours, proof: proof(key, b"admitter", &hello.nonce, &ours) })?;
    let theirs: Digest = receive(socket)?;
    if mac(key, b"joiner", &hello.nonce, &ours).verify_slice(&theirs).is_err() {
        return refuse(socket, format!("rank {} does not hold this cluster's secret", identity.rank));
    }
    send(socket, &Answer::Welcome { epoch })?;
    Ok(identity.rank)
}

/// 32 random bytes, for the key of one cluster's data links.
///
/// # Errors
/// When the operating system gives none.
pub fn random_key() -> Result<[u8; 32], HandshakeError> {
    random()
}

fn refuse<T>(socket: &mut Socket, reason: String) -> Result<T, HandshakeError> {
    // The joiner may already be gone; our own error says the same.
    let _ = send(socket, &Answer::Refused { reason: reason.clone() });
    Err(HandshakeError::Rejected(reason))
}

fn mac(key: &[u8], role: &[u8], joiner: &Nonce, admitter: &Nonce) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in [role, joiner, admitter] {
        mac.update(part);
    }
    mac
}

fn proof(key: &[u8], role: &[u8], joiner: &Nonce, admitter: &Nonce) -> Digest {
    mac(key, role, joiner, admitter).finalize().into_bytes().into()
}

fn nonce() -> Result<Nonce, HandshakeError> {
    random()
}

fn random<const N: usize>() -> Result<[u8; N], HandshakeError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(HandshakeError::Random)?;
    }
    Ok(bytes)
}

fn send<T: Serialize>(socket: &mut Socket, message: &T) -> Result<(), HandshakeError> {
    let bytes = postcard::to_stdvec(message).map_err(LinkError::from)?;
    Ok(write_frame(socket, &bytes, MAX_HANDSHAKE_BYTES)?)
}

fn receive<T: for<'a> Deserialize<'a>>(socket: &mut Socket) -> Result<T, HandshakeError> {
    let bytes = read_frame(socket, MAX_HANDSHAKE_BYTES)?;
    Ok(postcard::from_bytes(&bytes).map_err(LinkError::from)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn identity(build_id: &str, world: usize, rank: usize) -> Identity {
        Identity { build_id: build_id.into(), world, rank }
    }

    /// What (joiner, admitter) end with.
    fn meet(
        joiner: Identity,
        joiner_key: &'static [u8],
        admitter_key: &[u8],
    ) -> (Result<u32, String>, Result<usize, String>) {
        let (a, b) = UnixStream::pair().unwrap();
        let thread =
            std::thread::spawn(move || join(&mut Socket::Unix(a), &joiner, joiner_key).map_err(|e| e.to_string()));
        let taken = |rank| if rank == 3 { Err("rank 3 has already joined".to_string()) } else { Ok(()) };
        let mut socket = Socket::Unix(b);
        let admitted = admit(&mut socket, &identity("v1", 4, 0), admitter_key, 9, taken).map_err(|e| e.to_string());
        drop(socket);
        (thread.join().unwrap(), admitted)
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
        let (joined, admitted) = meet(identity("v1", 4, 1), b"wrong", b"key");
        assert!(joined.unwrap_err().contains("secret"));
        admitted.unwrap_err();
    }
}
