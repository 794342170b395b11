//! A connection's stream, watched while it waits.
//!
//! Two things that the layer above cannot see. A client that does not read: a write that makes no progress for too long fails.
//! And a client that has gone: while a request is answered its end of the stream is looked for, behind whatever it sent after
//! the request. Does not know HTTP.
//! Invariant: what comes early is kept up to a bound, and nothing behind it is read as a request.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::exchange::Exchange;

/// Most bytes that are kept of what comes before its turn. Who sends more gets no answer to it.
const MOST_AHEAD: usize = 16 << 10;

/// A watched stream.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    exchange: Arc<Exchange>,
    /// Longest that a write may make no progress.
    write_deadline: Duration,
    /// Ends a write; there while one waits.
    timer: Option<Pin<Box<Sleep>>>,
    /// What came before its turn.
    ahead: Vec<u8>,
    /// That was too much.
    spilled: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    pub(crate) fn new(stream: S, exchange: Arc<Exchange>, write_deadline: Duration) -> Self {
        Self { stream, exchange, write_deadline, timer: None, ahead: Vec::new(), spilled: false }
    }

    /// Reads what comes before its turn, until the end of the stream: then it is ready.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [0; 4096];
        loop {
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
            let read = read.filled();
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.spilled |= self.ahead.len() + read.len() > MOST_AHEAD;
            if self.spilled {
                self.ahead = Vec::new();
            } else {
                self.ahead.extend_from_slice(read);
            }
        }
    }

    /// Fails a write that has waited too long.
    fn in_time(&mut self, written: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.write_deadline)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.exchange.is_ahead() {
            return this.poll_end(context);
        }
        if this.spilled {
            return Poll::Ready(Ok(()));
        }
        if this.ahead.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let count = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..count]);
        this.ahead.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.in_time(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called whenever the connection is looked at, also where there is nothing to send yet.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.exchange.is_answering() && this.poll_end(context)?.is_ready() {
            return Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionAborted, "the client has hung up")));
        }
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        if this.exchange.flushed() {
            // What came ahead may be read from now on.
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::{Instant, timeout},
    };

    use super::*;
    use crate::http::operate::places::Places;

    const DEADLINE: Duration = Duration::from_secs(60);

    async fn watched(room: usize) -> (Watched<DuplexStream>, Arc<Exchange>, DuplexStream) {
        let exchange = Exchange::new(Places::new(1).enter().await);
        let (ours, theirs) = duplex(room);
        (Watched::new(ours, exchange.clone(), DEADLINE), exchange, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_fails_once_it_makes_no_progress_for_too_long() {
        let (mut ours, _, mut theirs) = watched(10).await;
        let begun = Instant::now();
        let reader = tokio::spawn(async move {
            // A slow one is none that does not read.
            for _ in 0..3 {
                tokio::time::sleep(DEADLINE * 9 / 10).await;
                theirs.read_exact(&mut [0; 10]).await.unwrap();
            }
            theirs
        });
        let error = ours.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), DEADLINE * 27 / 10 + DEADLINE);
        drop(reader.await.unwrap());
    }

    #[tokio::test]
    async fn the_end_is_seen_behind_what_came_early_and_only_while_there_is_an_answer() {
        for early in [0, 1, MOST_AHEAD, 10 * MOST_AHEAD] {
            let (mut ours, exchange, mut theirs) = watched(20 * MOST_AHEAD).await;
            let (asking, answering) = exchange.begin();
            theirs.write_all(&vec![b'x'; early]).await.unwrap();
            ours.flush().await.expect("the request is not read yet");
            drop(asking);
            ours.flush().await.expect("the client is there");
            drop(theirs);
            let seen = async {
                loop {
                    if let Err(error) = ours.flush().await {
                        break error.kind();
                    }
                    // A task reads so much at a time.
                    tokio::task::yield_now().await;
                }
            };
            assert_eq!(timeout(DEADLINE, seen).await, Ok(ErrorKind::ConnectionAborted), "{early} bytes");
            drop(answering);
        }
    }

    #[tokio::test]
    async fn what_came_early_is_read_in_its_turn_and_too_much_of_it_ends_the_connection() {
        for (early, read) in [(1, 1), (MOST_AHEAD, MOST_AHEAD), (MOST_AHEAD + 1, 0)] {
            let (mut ours, exchange, mut theirs) = watched(20 * MOST_AHEAD).await;
            let (asking, answering) = exchange.begin();
            drop(asking);
            theirs.write_all(&vec![b'x'; early]).await.unwrap();
            assert!(ours.read_u8().now_or_never().is_none(), "not before the answer is over");
            drop(answering);
            ours.flush().await.unwrap();
            theirs.shutdown().await.unwrap();
            let mut rest = Vec::new();
            ours.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest.len(), read, "{early} bytes");
        }
    }
}
