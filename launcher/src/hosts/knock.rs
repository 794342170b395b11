//! How a node, or its rank, gets in at node 0: it knocks until a deadline, as schedulers start hosts in any order.

use std::{
    io,
    net::{IpAddr, TcpStream, ToSocketAddrs},
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    handshake::{self, HANDSHAKE_TIMEOUT, HandshakeError, Identity},
    link::{LinkError, Socket, Terms},
};

use crate::error::LaunchError;

/// How long somebody knocks who is expected.
pub(crate) const KNOCK_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two attempts.
const KNOCK_INTERVAL: Duration = Duration::from_millis(200);

/// Who is in.
#[derive(Debug)]
pub(crate) struct Joined {
    /// Past its handshake.
    pub(crate) socket: Socket,
    /// What was agreed on.
    pub(crate) terms: Terms,
    /// The address of this host that reaches the other.
    pub(crate) local: IpAddr,
    /// The other's.
    pub(crate) peer: IpAddr,
}

/// Knocks at `address` as `identity`, which holds `key`. A name that does not resolve yet is knocked at again.
///
/// # Errors
/// When it is refused in words, or nobody answers until `deadline`.
pub(crate) fn knock_until(
    who: &str,
    identity: &Identity,
    address: &str,
    key: &[u8],
    deadline: Instant,
) -> Result<Joined, LaunchError> {
    let failed = |reason: String| LaunchError::Join { who: who.into(), address: address.into(), reason };
    let begun = Instant::now();
    let mut said = false;
    loop {
        match introduce(identity, address, key, deadline) {
            Ok(joined) => {
                tracing::info!("{who} joined the coordinator at {address}");
                return Ok(joined);
            }
            Err(error) if error.is_final() => return Err(failed(error.to_string())),
            Err(error) if Instant::now() >= deadline => {
                return Err(failed(format!("{error}, for {} s", begun.elapsed().as_secs())));
            }
            Err(error) => {
                if !said {
                    tracing::info!("{who} waits for the coordinator at {address}: {error}");
                    said = true;
                }
                thread::sleep(KNOCK_INTERVAL);
            }
        }
    }
}

/// Why somebody was not let in this time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
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

fn introduce(identity: &Identity, address: &str, key: &[u8], deadline: Instant) -> Result<Joined, Refusal> {
    let stream = knock(address, deadline)?;
    let (local, peer) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
    stream.set_nodelay(true)?;
    let mut socket = Socket::Tcp(stream);
    let terms = handshake::join(&mut socket, identity, key, Instant::now() + HANDSHAKE_TIMEOUT)?;
    Ok(Joined { socket, terms, local, peer })
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
    use crate::build::BUILD_ID;

    fn soon() -> Instant {
        Instant::now() + KNOCK_DEADLINE
    }

    #[test]
    fn a_door_that_is_shut_before_an_answer_is_knocked_at_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let identity = Identity { build_id: BUILD_ID.into(), world: 1, rank: 0 };
        thread::scope(|scope| {
            let joined = scope.spawn(|| {
                knock_until("rank 0", &identity, &address, b"0123456789abcdef", soon()).map(|joined| joined.terms.epoch)
            });
            drop(listener.accept().unwrap());
            let mut socket = Socket::Tcp(listener.accept().unwrap().0);
            let until = Instant::now() + HANDSHAKE_TIMEOUT;
            let admission = handshake::Admission {
                expected: &identity,
                key: b"0123456789abcdef",
                epoch: 5,
                is_sealed: true,
                until,
            };
            assert_eq!(handshake::admit(&mut socket, admission, |_| Ok(())).unwrap().0, identity);
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
