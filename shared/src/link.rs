//! The control link between the coordinator and one rank: messages in order, over a socket or in memory.
//!
//! A frame on a socket is `[length: u32 LE]`, then `[epoch: u32 LE][message: postcard]`, which is sealed where that was agreed on. The
//! epoch is that of the cluster's start, so that a message of an earlier life is never taken for one of this.
//! Does not know what the messages mean.

use std::{
    io::{self, Read, Write},
    marker::PhantomData,
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    sync::mpsc,
    time::Duration,
};

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::seal::{Broken, Opener, Seal, Sealer, plain_bytes, sealed_bytes};

/// Largest frame: the rows of a full step's `FetchRows` of one rank stay below it.
pub const MAX_FRAME_BYTES: usize = 256 << 20;
/// How long a message may take to leave: the other side has stopped reading, and a socket's buffer holds most messages.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// A TCP connection that is idle is probed after so long,
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// then so often,
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// and given up after so many probes without an answer: 25 s after the cable was cut.
const PROBES: u32 = 3;
/// So long may what was sent stay unacknowledged, which is when no probes are sent.
const UNACKNOWLEDGED_MS: u32 = 25_000;
/// Messages that may wait in an in-memory link; the protocol has at most a step and a heartbeat under way.
const CHANNEL_BOUND: usize = 16;

/// Why a link failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side is gone.
    #[error("the other side closed the link")]
    Closed,
    /// The socket failed.
    #[error("the link failed: {0}")]
    Io(#[from] io::Error),
    /// A frame over the bound: a bug, or something else is talking.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Announced size.
        bytes: usize,
        /// [`MAX_FRAME_BYTES`], or less during a handshake.
        limit: usize,
    },
    /// Bytes that are no message.
    #[error("a frame holds no message of this protocol: {0}")]
    Malformed(#[from] postcard::Error),
    /// Bytes that the other side did not seal.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// A message of another life of the cluster.
    #[error("a message of epoch {got} arrived in epoch {expected}")]
    Epoch {
        /// Ours.
        expected: u32,
        /// The message's.
        got: u32,
    },
}

impl LinkError {
    /// Whether bytes came that are no message: who sent them may have done anything before.
    pub fn is_no_message(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Malformed(_) | Self::Broken(_) | Self::Epoch { .. })
    }
}

/// A connected stream socket.
#[derive(Debug)]
pub enum Socket {
    /// Within a host.
    Unix(UnixStream),
    /// Between hosts.
    Tcp(TcpStream),
}

impl Socket {
    /// A second handle to the same socket.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(s) => Self::Unix(s.try_clone()?),
            Self::Tcp(s) => Self::Tcp(s.try_clone()?),
        })
    }

    /// Bounds every later read and write; `None` waits forever.
    ///
    /// # Errors
    /// When the socket refuses the option.
    pub fn set_deadlines(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_read_timeout(read).and_then(|()| s.set_write_timeout(write)),
            Self::Tcp(s) => s.set_read_timeout(read).and_then(|()| s.set_write_timeout(write)),
        }
    }

    /// Has the system find out when the other host is gone without a word: power or a cable, which close no connection.
    /// Within a host every end is told.
    ///
    /// # Errors
    /// When the socket refuses the options.
    pub fn notice_silence(&self) -> io::Result<()> {
        match self {
            Self::Unix(_) => Ok(()),
            Self::Tcp(stream) => notice_silence(stream),
        }
    }

    /// Ends both directions, so that every handle's reads return.
    pub fn shutdown(&self) {
        // An error means that the other side was faster.
        let _ = match self {
            Self::Unix(s) => s.shutdown(Shutdown::Both),
            Self::Tcp(s) => s.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(buffer),
            Self::Tcp(s) => s.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(buffer),
            Self::Tcp(s) => s.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One end of a control link that sends `Out` and receives `In`.
#[derive(Debug)]
pub struct ControlLink<Out, In> {
    /// The sending half.
    pub sender: Sender<Out>,
    /// The receiving half.
    pub receiver: Receiver<In>,
}

/// Sends messages of one type.
#[derive(Debug)]
pub struct Sender<T>(SendHalf<T>);

#[derive(Debug)]
enum SendHalf<T> {
    Memory(mpsc::SyncSender<T>),
    Socket { socket: Socket, epoch: u32, sealer: Option<Sealer> },
}

/// Receives messages of one type.
#[derive(Debug)]
pub struct Receiver<T>(ReceiveHalf<T>);

#[derive(Debug)]
enum ReceiveHalf<T> {
    Memory(mpsc::Receiver<T>),
    Socket { socket: Socket, epoch: u32, opener: Option<Opener>, message: PhantomData<T> },
}

/// What both ends of a socket agreed on in their handshake.
#[derive(Debug)]
pub struct Terms {
    /// This life of the cluster.
    pub epoch: u32,
    /// How messages are sealed, where they are.
    pub seal: Option<Seal>,
}

/// Nothing is sealed: within a host.
impl From<u32> for Terms {
    fn from(epoch: u32) -> Self {
        Self { epoch, seal: None }
    }
}

/// Two ends of a link within one process.
pub fn in_memory<A, B>() -> (ControlLink<A, B>, ControlLink<B, A>) {
    let (to_b, from_a) = mpsc::sync_channel(CHANNEL_BOUND);
    let (to_a, from_b) = mpsc::sync_channel(CHANNEL_BOUND);
    (
        ControlLink { sender: Sender(SendHalf::Memory(to_b)), receiver: Receiver(ReceiveHalf::Memory(from_b)) },
        ControlLink { sender: Sender(SendHalf::Memory(to_a)), receiver: Receiver(ReceiveHalf::Memory(from_a)) },
    )
}

impl<Out: Serialize, In: DeserializeOwned> ControlLink<Out, In> {
    /// A link over a socket that has passed its handshake.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn over(socket: Socket, terms: impl Into<Terms>) -> Result<Self, LinkError> {
        let Terms { epoch, seal } = terms.into();
        let (sealer, opener) = seal.map(|seal| (seal.sealer, seal.opener)).unzip();
        socket.set_deadlines(None, Some(SEND_DEADLINE))?;
        socket.notice_silence()?;
        let reader = socket.try_clone()?;
        Ok(Self {
            sender: Sender(SendHalf::Socket { socket, epoch, sealer }),
            receiver: Receiver(ReceiveHalf::Socket { socket: reader, epoch, opener, message: PhantomData }),
        })
    }
}

impl<T> Sender<T> {
    /// Ends the link at both ends, so that whoever reads from it is told.
    pub fn close(&self) {
        if let SendHalf::Socket { socket, .. } = &self.0 {
            socket.shutdown();
        }
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends one message.
    ///
    /// # Errors
    /// [`LinkError::Closed`] when the other side is gone; otherwise as the socket fails.
    pub fn send(&mut self, message: T) -> Result<(), LinkError> {
        match &mut self.0 {
            SendHalf::Memory(sender) => sender.send(message).map_err(|_| LinkError::Closed),
            SendHalf::Socket { socket, epoch, sealer } => {
                let mut frame = epoch.to_le_bytes().to_vec();
                frame = postcard::to_extend(&message, frame)?;
                send_sealed(socket, sealer.as_mut(), &frame, MAX_FRAME_BYTES)
            }
        }
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Waits for the next message.
    ///
    /// # Errors
    /// [`LinkError::Closed`] at the end of the link; otherwise as the socket or the message fails.
    pub fn receive(&mut self) -> Result<T, LinkError> {
        match &mut self.0 {
            ReceiveHalf::Memory(receiver) => receiver.recv().map_err(|_| LinkError::Closed),
            ReceiveHalf::Socket { socket, epoch, opener, .. } => {
                let frame = receive_sealed(socket, opener.as_mut(), MAX_FRAME_BYTES)?;
                let (head, body) = frame.split_first_chunk::<4>().ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
                let got = u32::from_le_bytes(*head);
                if got != *epoch {
                    return Err(LinkError::Epoch { expected: *epoch, got });
                }
                Ok(postcard::from_bytes(body)?)
            }
        }
    }
}

/// As [`Socket::notice_silence`].
pub(crate) fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, PROBE_AFTER)?;
    set_tcp_keepintvl(stream, PROBE_EVERY)?;
    set_tcp_keepcnt(stream, PROBES)?;
    Ok(set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?)
}

/// Writes `[length][bytes]`, sealed where that was agreed on.
pub(crate) fn send_sealed(
    socket: &mut impl Write,
    sealer: Option<&mut Sealer>,
    bytes: &[u8],
    limit: usize,
) -> Result<(), LinkError> {
    // Before anything is numbered.
    if bytes.len() > limit {
        return Err(LinkError::TooLarge { bytes: bytes.len(), limit });
    }
    let Some(sealer) = sealer else { return write_frame(socket, bytes, limit) };
    let mut sealed = Vec::with_capacity(sealed_bytes(bytes.len()));
    sealer.seal(bytes, &mut sealed);
    write_frame(socket, &sealed, sealed_bytes(limit))
}

/// Reads what [`send_sealed`] wrote.
pub(crate) fn receive_sealed(
    socket: &mut impl Read,
    opener: Option<&mut Opener>,
    limit: usize,
) -> Result<Vec<u8>, LinkError> {
    let Some(opener) = opener else { return read_frame(socket, limit) };
    let sealed = read_frame(socket, sealed_bytes(limit))?;
    let mut bytes = vec![0; plain_bytes(sealed.len()).ok_or(Broken)?];
    opener.open(&sealed, &mut bytes)?;
    Ok(bytes)
}

/// Writes `[length][bytes]`.
pub(crate) fn write_frame(socket: &mut impl Write, bytes: &[u8], limit: usize) -> Result<(), LinkError> {
    if bytes.len() > limit {
        return Err(LinkError::TooLarge { bytes: bytes.len(), limit });
    }
    let mut frame = Vec::with_capacity(4 + bytes.len());
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(bytes);
    socket.write_all(&frame).map_err(closed_or_io)
}

/// Reads what [`write_frame`] wrote; allocates only as bytes arrive.
pub(crate) fn read_frame(socket: &mut impl Read, limit: usize) -> Result<Vec<u8>, LinkError> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).map_err(closed_or_io)?;
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > limit {
        return Err(LinkError::TooLarge { bytes, limit });
    }
    let mut frame = Vec::new();
    socket.take(bytes as u64).read_to_end(&mut frame).map_err(closed_or_io)?;
    if frame.len() < bytes {
        return Err(LinkError::Closed);
    }
    Ok(frame)
}

fn closed_or_io(error: io::Error) -> LinkError {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error.kind() {
        UnexpectedEof | BrokenPipe | ConnectionReset => LinkError::Closed,
        _ => LinkError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(epoch_a: u32, epoch_b: u32) -> (ControlLink<String, u64>, ControlLink<u64, String>) {
        let (a, b) = UnixStream::pair().unwrap();
        (ControlLink::over(Socket::Unix(a), epoch_a).unwrap(), ControlLink::over(Socket::Unix(b), epoch_b).unwrap())
    }

    #[test]
    fn messages_arrive_in_order_by_socket_and_in_memory() {
        for (mut a, mut b) in [sockets(7, 7), in_memory()] {
            a.sender.send("one".into()).unwrap();
            a.sender.send("two".into()).unwrap();
            b.sender.send(3).unwrap();
            assert_eq!(b.receiver.receive().unwrap(), "one");
            assert_eq!(b.receiver.receive().unwrap(), "two");
            assert_eq!(a.receiver.receive().unwrap(), 3);
            drop(b);
            assert!(matches!(a.receiver.receive(), Err(LinkError::Closed)));
        }
    }

    #[test]
    fn sealed_messages_arrive_in_order_and_none_that_was_changed() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut between, far) = UnixStream::pair().unwrap();
        let (near_seal, far_seal) = crate::handshake::tests::ends();
        let terms = |seal| Terms { epoch: 7, seal: Some(seal) };
        let mut near = ControlLink::<String, u64>::over(Socket::Unix(a), terms(near_seal)).unwrap();
        let mut far = ControlLink::<u64, String>::over(Socket::Unix(far), terms(far_seal)).unwrap();
        let mut said = Socket::Unix(b);
        for word in ["one", "two"] {
            near.sender.send(word.into()).unwrap();
            let frame = read_frame(&mut said, 100).unwrap();
            assert!(!frame.windows(3).any(|bytes| bytes == word.as_bytes()));
            write_frame(&mut between, &frame, 100).unwrap();
            assert_eq!(far.receiver.receive().unwrap(), word);
        }
        near.sender.send("three".into()).unwrap();
        let mut frame = read_frame(&mut said, 100).unwrap();
        *frame.last_mut().unwrap() ^= 1;
        write_frame(&mut between, &frame, 100).unwrap();
        let error = far.receiver.receive().unwrap_err();
        assert!(matches!(error, LinkError::Broken(_)) && error.is_no_message(), "{error}");
    }

    #[test]
    fn another_epoch_and_foreign_bytes_are_refused() {
        let (mut a, mut b) = sockets(1, 2);
        a.sender.send("late".into()).unwrap();
        assert!(matches!(b.receiver.receive(), Err(LinkError::Epoch { expected: 2, got: 1 })));

        let (mut raw, socket) = UnixStream::pair().unwrap();
        let mut link = ControlLink::<u64, String>::over(Socket::Unix(socket), 0).unwrap();
        raw.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert!(matches!(link.receiver.receive(), Err(LinkError::TooLarge { .. })));
    }

    #[test]
    fn a_frame_cut_short_is_a_closed_link() {
        let (mut raw, socket) = UnixStream::pair().unwrap();
        let mut link = ControlLink::<u64, String>::over(Socket::Unix(socket), 0).unwrap();
        raw.write_all(&[200, 0, 0, 0, 1, 2, 3]).unwrap();
        drop(raw);
        assert!(matches!(link.receiver.receive(), Err(LinkError::Closed)));
    }
}
