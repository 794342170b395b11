//! Connections: each is served until its client hangs up, or takes too long: to say what it wants, or to read what it asked for.
//!
//! Knows how long who may wait; [`places`](super::places) knows how many there may be. Does not know routes, but for the few
//! that are answered where there is no place.

use std::{
    convert::Infallible,
    future::Future,
    io::{self, ErrorKind},
    pin::pin,
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

use super::{
    access,
    exchange::Exchange,
    places::{Kind, Place, Places},
    watched::Watched,
};
use crate::{
    http::{Failure, HttpOptions},
    request::Client,
};

/// How long a connection lives that only probes may use.
const BRIEF_LIFE: Duration = Duration::from_secs(5);
/// How long to wait where a connection could not be taken: what it lacked, others may give back meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Of a request on a connection that only probes may use.
#[derive(Clone, Copy, Debug)]
struct Brief;

/// Serves until `shutdown` resolves; then finishes the requests under way.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    options: HttpOptions,
    shutdown: impl Future<Output = ()>,
) {
    let places = Places::new(options.max_connections.unwrap_or(usize::MAX));
    let (server, mut shutdown) = (Server::new(router, options), pin!(shutdown));
    let mut told = None;
    loop {
        let next = async {
            let accepted = accept(|| listener.accept(), &mut told).await;
            (accepted, places.enter().await)
        };
        let ((stream, address), place) = tokio::select! {
            next = next => next,
            () = &mut shutdown => break,
        };
        // Tokens are small packets, and each should leave at once.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        server.take(stream, place, Client::at(address.ip()));
    }
    drop(listener);
    server.connections.shutdown().await;
}

/// What all connections have in common.
struct Server {
    http: http1::Builder,
    router: Router,
    options: HttpOptions,
    connections: GracefulShutdown,
}

impl Server {
    fn new(router: Router, options: HttpOptions) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(options.read_deadline);
        Self { http, router, options, connections: GracefulShutdown::new() }
    }

    /// Serves one connection, on a task of its own.
    fn take(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, place: Place, client: Client) {
        let is_brief = place.kind == Kind::Brief;
        let exchange = Exchange::new(place);
        let (served, router) = (exchange.clone(), TowerToHyperService::new(self.router.clone()));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (asking, answering) = served.begin();
            let mut request = request.map(|body| with(body, asking));
            request.extensions_mut().insert(client);
            if is_brief {
                request.extensions_mut().insert(Brief);
            }
            let answer = router.call(request);
            async move {
                let mut answer = answer.await?;
                if is_brief {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| with(body, answering)))
            }
        });
        let stream = Watched::new(stream, exchange.clone(), self.options.write_deadline);
        let connection = self.connections.watch(self.http.serve_connection(TokioIo::new(stream), service));
        let head_deadline = self.options.head_deadline;
        // Sees it to its end, one way or another.
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended early");
                    }
                }
                Err(_) = timeout(head_deadline, exchange.asked.notified()) => {
                    tracing::debug!("a connection that said nothing was closed");
                }
                () = exchange.place.yields() => {
                    tracing::debug!("a connection that said nothing gave its place to another");
                }
                () = sleep(BRIEF_LIFE), if is_brief => tracing::debug!("a connection for probes was closed"),
            }
        });
    }
}

/// A body that `guard` is dropped with.
fn with<B>(body: B, guard: impl Send + 'static) -> Body
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    Body::new(body.map_err(move |error| {
        let _ = &guard;
        error
    }))
}

/// Middleware that answers only probes where there is no place for more.
pub(crate) async fn place(request: Request, next: Next) -> Response {
    if request.extensions().get::<Brief>().is_some() && !access::PROBES.contains(&request.uri().path()) {
        return Failure::no_place().into_response();
    }
    next.run(request).await
}

/// The next connection. Where the system gives none, that is told, now and then, and tried again; `told` is when it last was.
async fn accept<T, F: Future<Output = io::Result<T>>>(mut next: impl FnMut() -> F, told: &mut Option<Instant>) -> T {
    loop {
        let error = match next().await {
            Ok(accepted) => return accepted,
            Err(error) => error,
        };
        if let ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused = error.kind() {
            // Its client has gone already.
            continue;
        }
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::error!(%error, "connections cannot be taken; they wait, and this is told again in {TELL_EVERY:?}");
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use axum::{Extension, routing::get};
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::testing::Logged;

    /// A server of `router`, and the client's end of a connection to it.
    async fn connect(router: Router, room: usize, client: Client) -> (Server, DuplexStream) {
        let (ours, theirs) = duplex(room);
        let server = Server::new(router, HttpOptions::default());
        server.take(ours, Places::new(1).enter().await, client);
        (server, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_loses_the_answer_and_what_makes_it() {
        let (made, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        let endless = async move || {
            let pieces = futures_util::stream::repeat("x".repeat(1000));
            // Dropped with the body.
            let made = made.clone();
            Body::from_stream(pieces.map(move |piece| {
                let _ = &made;
                Ok::<_, Infallible>(piece)
            }))
        };
        let (server, mut theirs) = connect(Router::new().route("/", get(endless)), 4096, Client::Local).await;
        theirs.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let begun = Instant::now();
        theirs.read_u8().await.unwrap();
        // What is left of the route is the answer's.
        drop(server.router);
        assert_eq!(timeout(Duration::from_secs(3600), gone.recv()).await, Ok(None));
        assert_eq!(begun.elapsed(), HttpOptions::default().write_deadline);
    }

    #[tokio::test]
    async fn requests_know_whose_they_are() {
        let whose = async |Extension(client): Extension<Client>| format!("{client:?}");
        let client = Client::at([192, 0, 2, 7].into());
        let (_server, mut theirs) = connect(Router::new().route("/", get(whose)), 4096, client).await;
        theirs.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        theirs.read_to_string(&mut reply).await.unwrap();
        assert!(reply.ends_with("Address(192.0.2.7)"), "{reply}");
    }

    #[tokio::test]
    async fn requests_that_come_early_are_answered_in_turn() {
        let path = async |request: Request| request.uri().path().to_owned();
        let (_server, mut theirs) = connect(Router::new().fallback(path), 1 << 16, Client::Local).await;
        let requests: String = (0..20).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
        theirs.write_all(requests.as_bytes()).await.unwrap();
        theirs.write_all(b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        theirs.read_to_string(&mut reply).await.unwrap();
        let answered: Vec<&str> =
            reply.split("HTTP/1.1 200 OK").skip(1).map(|one| one.rsplit('\n').next().unwrap()).collect();
        let expected: Vec<String> = (0..20).map(|i| format!("/{i}")).chain(["/last".into()]).collect();
        assert_eq!(answered, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_cannot_be_taken_are_told_of_now_and_then_and_tried_again() {
        let logged = Logged::start();
        let (begun, tries) = (Instant::now(), AtomicUsize::new(0));
        let next = async || match tries.fetch_add(1, Relaxed) {
            0 => Err(ErrorKind::ConnectionAborted.into()),
            // No descriptor is left.
            1..=250 => Err(io::Error::from_raw_os_error(24)),
            _ => Ok("a connection"),
        };
        assert_eq!(accept(next, &mut None).await, "a connection");
        assert_eq!(begun.elapsed(), 250 * ACCEPT_PAUSE);
        let text = logged.text();
        assert_eq!(text.matches("connections cannot be taken").count(), 3, "in 25 s: {text}");
        assert!(text.contains("Too many open files"), "{text}");
    }
}
