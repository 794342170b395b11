//! The body of a request, on its way into memory.
//!
//! A large one first takes its share of the bytes that bodies may take together, and waits for it: until then its client's
//! bytes stay with the client. Small ones are bounded by the number of connections. Does not know JSON.
//! Invariant: whoever waits, for a share or for bytes, waits no longer than the deadline.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::header,
};
use futures_util::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{Failure, HttpOptions};
use crate::off_runtime::{self, OffRuntime};

/// Bodies up to here take no share, and are parsed where they are read.
pub(super) const SMALL_BYTES: usize = 64 << 10;

/// What bodies may take.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    /// Most bytes of one.
    most_bytes: usize,
    /// Most bytes of all large ones in work.
    together_bytes: usize,
    /// What of that is free.
    room: Arc<Semaphore>,
    /// Places for large ones that are being parsed.
    parsers: OffRuntime,
    deadline: Duration,
}

/// A body, and its share. Dropping the share gives it back.
#[derive(Debug)]
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    pub(super) share: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(super) fn new(options: &HttpOptions) -> Self {
        // The library counts no further.
        let together_bytes = options.max_bodies_bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        let room = Arc::new(Semaphore::new(together_bytes));
        // The cores are the ranks'.
        let parsers = OffRuntime::new(off_runtime::cores().div_ceil(8));
        Self { most_bytes: options.max_body_bytes, together_bytes, room, parsers, deadline: options.read_deadline }
    }

    /// Parses a large body, where that holds up nobody who serves, and few at a time.
    ///
    /// # Errors
    /// When it panics.
    pub(super) async fn parse<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.parsers.run(work).await.map_err(|_| Failure::panicked())
    }

    /// Reads all of a body.
    pub(super) async fn read(&self, request: Request) -> Result<ReadBody, Failure> {
        let encodings = request.headers().get_all(header::CONTENT_ENCODING).iter();
        for encoding in encodings.map(|encoding| String::from_utf8_lossy(encoding.as_bytes())) {
            if !encoding.trim().is_empty() && !encoding.trim().eq_ignore_ascii_case("identity") {
                return Err(Failure::encoded_body(&encoding));
            }
        }
        let body = request.into_body();
        // The length that the head tells of, if it does.
        let told = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if told.is_some_and(|bytes| bytes > self.most_bytes) {
            return Err(Failure::body_too_large(self.most_bytes));
        }
        self.collect(body, told.unwrap_or(self.most_bytes)).await
    }

    /// `expected` is the most that it can be.
    async fn collect(&self, body: Body, expected: usize) -> Result<ReadBody, Failure> {
        let mut pieces = body.into_data_stream();
        let (mut bytes, mut share) = (Vec::new(), None);
        let mut until = Instant::now() + self.deadline;
        loop {
            let next = timeout_at(until, pieces.next()).await;
            let Some(piece) = next.map_err(|_| Failure::body_too_slow(self.deadline))? else { break };
            let piece =
                piece.map_err(|error| Failure::no_request(format!("the request's body could not be read: {error}")))?;
            if bytes.len() + piece.len() > self.most_bytes {
                return Err(Failure::body_too_large(self.most_bytes));
            }
            if bytes.len() + piece.len() > SMALL_BYTES && share.is_none() {
                share = Some(self.share(expected, until).await?);
                bytes.reserve_exact(expected - bytes.len());
                // Its client has waited for us meanwhile.
                until = Instant::now() + self.deadline;
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(ReadBody { bytes: bytes.into(), share })
    }

    async fn share(&self, bytes: usize, until: Instant) -> Result<OwnedSemaphorePermit, Failure> {
        let share = u32::try_from(bytes.min(self.together_bytes)).unwrap_or(u32::MAX);
        let share = timeout_at(until, self.room.clone().acquire_many_owned(share)).await;
        Ok(share.map_err(|_| Failure::bodies_full(self.together_bytes))?.expect("nobody closes it"))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{FutureExt, stream};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn large_bodies_are_parsed_few_at_a_time_and_a_panic_gives_its_place_back() {
        let bodies = Bodies { parsers: OffRuntime::new(1), ..bodies(1 << 20, 1 << 20) };
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let bodies = bodies.clone();
            async move { bodies.parse(move || wait.recv().is_ok()).await }
        });
        while bodies.parsers.free() > 0 {
            tokio::task::yield_now().await;
        }
        let mut second = Box::pin(bodies.parse(|| panic!("a bug")));
        assert!((&mut second).now_or_never().is_none());
        go_on.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert!(second.await.map(|(): ()| ()).is_err());
        assert_eq!(bodies.parse(|| 7).await, Ok(7));
    }

    fn bodies(max_body_bytes: usize, max_bodies_bytes: usize) -> Bodies {
        let options =
            HttpOptions { max_body_bytes, max_bodies_bytes, read_deadline: DEADLINE, ..HttpOptions::default() };
        Bodies::new(&options)
    }

    fn whole(bytes: usize) -> Request {
        Request::new(Body::from(vec![b' '; bytes]))
    }

    /// In pieces, without a length.
    fn chunked(bytes: usize) -> Request {
        let pieces =
            vec![b' '; bytes].chunks(1000).map(|piece| Ok::<_, Infallible>(piece.to_vec())).collect::<Vec<_>>();
        Request::new(Body::from_stream(stream::iter(pieces)))
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_take_their_share_before_they_are_read_and_wait_for_it() {
        let bodies = bodies(1 << 20, 1 << 20);
        let first = bodies.read(whole(700 << 10)).await.unwrap();
        assert_eq!((first.bytes.len(), bodies.room.available_permits()), (700 << 10, 324 << 10));
        let others = [whole(700 << 10), chunked(SMALL_BYTES + 1)].map(|request| {
            let bodies = bodies.clone();
            tokio::spawn(async move { bodies.read(request).await.map(|body| body.bytes.len()) })
        });
        for small in [whole(SMALL_BYTES), chunked(SMALL_BYTES), whole(0)] {
            assert!(bodies.read(small).await.unwrap().share.is_none());
        }
        assert!(others.iter().all(|other| !other.is_finished()), "no room for two");
        drop(first);
        let mut read = Vec::new();
        for other in others {
            read.push(other.await.unwrap().unwrap());
        }
        assert_eq!(read, [700 << 10, SMALL_BYTES + 1]);
        assert_eq!(bodies.room.available_permits(), 1 << 20, "all was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let bodies = bodies(1 << 20, 1 << 20);
        let first = bodies.read(whole(1 << 20)).await.unwrap();
        let (begun, refused) = (Instant::now(), bodies.read(whole(100 << 10)).await.unwrap_err());
        assert_eq!((refused.status.as_u16(), begun.elapsed().as_secs()), (429, DEADLINE.as_secs()));
        drop(first);
        let endless = Body::from_stream(stream::once(async { Ok::<_, Infallible>("{") }).chain(stream::pending()));
        let slow = bodies.read(Request::new(endless)).await.unwrap_err();
        assert_eq!(slow.status.as_u16(), 408);
    }

    #[tokio::test]
    async fn one_body_is_bounded_with_and_without_a_length_and_may_be_all_that_there_is_room_for() {
        let bodies = bodies(1 << 20, 100 << 10);
        for too_large in [whole((1 << 20) + 1), chunked((1 << 20) + 1)] {
            assert_eq!(bodies.read(too_large).await.unwrap_err().status.as_u16(), 413);
        }
        assert_eq!(bodies.read(whole(1 << 20)).await.unwrap().bytes.len(), 1 << 20);
        assert_eq!(bodies.room.available_permits(), 100 << 10);
    }
}
