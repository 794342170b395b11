//! From a running cluster to its end: requests, signals, deaths, and the exit code.
//!
//! ```text
//!         SIGINT, SIGTERM, SIGHUP     nothing running, or --shutdown-timeout
//!  serving ─────────────────► draining ───────────────────────────────────► stopped, exit 0
//!     │                          │ a second signal ──────────────────────► stopped at once, exit 1
//!     └── a rank or the engine ends ──────────────────────────────────────► stopped, exit 1
//! ```
//! What comes within half a second of a signal is the same one: `timeout`, npm and IDEs signal a process and then its group. A
//! SIGHUP that was ignored when we were started, as by `nohup`, stays so.
//! Requests that are cut off are told so: their replies end with an error, and have a moment to leave.
//! The port is bound before the model is loaded, so that a taken one is told at once; it answers when all is ready.

use std::{
    fs,
    future::pending,
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use nanoinfer_coordinator::{
    handle::EngineHandle,
    http::{self, HttpOptions},
};
use nanoinfer_worker::rank::end_process;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::JoinError,
    time::{Instant, timeout},
};

use crate::{cluster::Cluster, descriptors, error::LaunchError, progress};

/// Threads for HTTP and text.
const FRONT_THREADS: usize = 2;
/// How long after a signal another one is its echo.
const ECHO: Duration = Duration::from_millis(500);
/// How often a draining server looks whether all is done.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// How long replies that are complete, or cut off, may take to reach their clients.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
/// The socket of the HTTP server, taken before anything else.
///
/// # Errors
/// Names the address, and what to do.
pub fn bind(host: &str, port: u16) -> Result<TcpListener, LaunchError> {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
    TcpListener::bind((host, port)).map_err(|source| LaunchError::Bind {
        address: format!("{host}:{port}"),
        hint: match source.kind() {
            AddrInUse => "another program listens there; --port 0 takes any free port",
            PermissionDenied => "ports below 1024 are for root; try --port 8000, or --port 0 for any free one",
            AddrNotAvailable => "--host must be an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them",
            _ => "--host takes an address of this machine, or a name of one: 127.0.0.1, or 0.0.0.0 for all of them",
        },
        source,
    })
}

/// Starts a cluster with `start`, serves it on `listener`, and ends it: on a signal, or because it failed.
///
/// # Errors
/// Says why the cluster did not start, or ended.
pub fn serve(
    listener: TcpListener,
    mut options: HttpOptions,
    shutdown_timeout: Duration,
    start: impl FnOnce() -> Result<Cluster, LaunchError> + Send + 'static,
) -> Result<(), LaunchError> {
    let connections = descriptors::raise();
    options.max_connections.get_or_insert(connections);
    // Front-end work only: the ranks compute on threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(FRONT_THREADS)
        .enable_all()
        .build()
        .map_err(LaunchError::system("start the threads of the server"))?;
    let (cluster, result) = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut cluster = tokio::select! {
            started = tokio::task::spawn_blocking(start) => started.expect("a start does not panic")?,
            // Nothing has been promised to anybody yet. The start cannot be interrupted; its ranks die with this process.
            name = signals.next() => {
                tracing::info!("{name} before the server was ready");
                end_process(0);
            }
        };
        let result = answer(listener, options, shutdown_timeout, &mut cluster, &mut signals).await;
        Ok::<_, LaunchError>((cluster, result))
    })?;
    // Drops every connection, and with it every sequence that is still running, so that the engine can end.
    runtime.shutdown_timeout(FLUSH_DEADLINE);
    cluster.shutdown();
    result
}

async fn answer(
    listener: TcpListener,
    options: HttpOptions,
    shutdown_timeout: Duration,
    cluster: &mut Cluster,
    signals: &mut Signals,
) -> Result<(), LaunchError> {
    let system = LaunchError::system;
    let handle = &cluster.handle().clone();
    let address = listener.local_addr().map_err(system("ask for the bound address"))?;
    listener.set_nonblocking(true).map_err(system("prepare the socket"))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(system("watch the socket"))?;
    let (close, closed) = oneshot::channel::<()>();
    let closing = async move {
        // Sent or dropped: either closes.
        let _ = closed.await;
    };
    let is_open = options.api_key.is_none();
    let mut server = tokio::spawn(http::serve(listener, cluster.text_engine(), options, closing));
    if is_open && !address.ip().is_loopback() {
        tracing::warn!(
            "{address} can be reached from other machines, and whoever reaches it may use it: --api-key-file asks for a key"
        );
    }
    crate::say(format_args!("ready on http://{address}"));
    progress::tell_where(address);

    tokio::select! {
        error = cluster.failed() => return Err(error),
        ended = &mut server => return Err(http_ended(address, ended)),
        name = signals.next() => tracing::info!("{name}: finishing {}", requests(handle)),
    }
    cluster.stop();
    let deadline = Instant::now() + shutdown_timeout;
    let stopped_twice = tokio::select! {
        error = cluster.failed() => return Err(error),
        () = drained(handle, deadline) => false,
        _ = signals.next() => true,
    };
    if stopped_twice || is_busy(handle) {
        let why = if stopped_twice { "a second signal" } else { "--shutdown-timeout is over" };
        tracing::warn!("{why}: cutting off {}", requests(handle));
        handle.cut_off();
    }
    drop(close);
    tokio::select! {
        // A client that does not read, or keeps its connection open, does not hold the server.
        _ = timeout(FLUSH_DEADLINE, &mut server) => {}
        _ = signals.next() => return Err(LaunchError::StoppedTwice),
    }
    if stopped_twice { Err(LaunchError::StoppedTwice) } else { Ok(()) }
}

fn http_ended(address: SocketAddr, ended: Result<io::Result<()>, JoinError>) -> LaunchError {
    let failure = ended.unwrap_or_else(|error| Err(io::Error::other(error))).err();
    let source = failure.unwrap_or_else(|| io::Error::other("nobody asked it to"));
    LaunchError::Http { address, source }
}

/// Returns when no sequence runs or waits, the engine has ended, or at `deadline`.
async fn drained(handle: &EngineHandle, deadline: Instant) {
    let idle = async {
        // Twice in a row: a sequence on its way from the queue to the engine may be in neither count for a moment.
        let mut quiet = 0;
        while quiet < 2 {
            tokio::time::sleep(DRAIN_POLL).await;
            quiet = if is_busy(handle) { 0 } else { quiet + 1 };
        }
    };
    // Whichever comes first; the caller looks at what is left.
    tokio::select! {
        () = idle => {}
        () = handle.ended() => {}
        () = tokio::time::sleep_until(deadline) => {}
    }
}

fn is_busy(handle: &EngineHandle) -> bool {
    handle.status().running() + handle.status().waiting() > 0
}

fn requests(handle: &EngineHandle) -> String {
    let (running, waiting) = (handle.status().running(), handle.status().waiting());
    format!("{running} running and {waiting} waiting requests")
}

/// The signals that ask a server to stop.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
    wishes: Wishes,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, LaunchError> {
        let listen = |kind| signal(kind).map_err(LaunchError::system("listen for signals"));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hangup = SignalKind::hangup();
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: if is_ignored(&status, hangup) { None } else { Some(listen(hangup)?) },
            wishes: Wishes::default(),
        })
    }

    /// The next wish to stop, by the name of its signal.
    pub(crate) async fn next(&mut self) -> &'static str {
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => drop(hangup.recv().await),
                    None => pending().await,
                }
            };
            let name = tokio::select! {
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.terminate.recv() => "SIGTERM",
                () = hangup => "SIGHUP",
            };
            if self.wishes.is_new(Instant::now()) {
                return name;
            }
        }
    }
}

/// Tells a wish to stop from the echo of the one before.
#[derive(Debug, Default)]
struct Wishes {
    last: Option<Instant>,
}

impl Wishes {
    /// Whether a signal that came `at` is a wish of its own.
    fn is_new(&mut self, at: Instant) -> bool {
        let is_new = self.last.is_none_or(|last| at.duration_since(last) >= ECHO);
        if is_new {
            self.last = Some(at);
        }
        is_new
    }
}

/// Whether a process ignores a signal, by its `/proc/PID/status`.
fn is_ignored(status: &str, signal: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_signal_at_once_is_its_echo() {
        let begun = Instant::now();
        let new = |milliseconds: &[u64]| {
            let mut wishes = Wishes::default();
            milliseconds
                .iter()
                .filter(|&&ms| wishes.is_new(begun + Duration::from_millis(ms)))
                .copied()
                .collect::<Vec<_>>()
        };
        assert_eq!(new(&[0, 0, 1, 499]), [0]);
        assert_eq!(new(&[0, 500]), [0, 500]);
        // Echoes have none of their own, and a second wish has.
        assert_eq!(new(&[0, 300, 600, 601, 1099, 1100]), [0, 600, 1100]);
    }

    #[test]
    fn what_nohup_ignores_is_known() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\nSigCgt:\t0\n");
        assert!(is_ignored(&status("0000000000001001"), SignalKind::hangup()));
        assert!(!is_ignored(&status("0000000000001002"), SignalKind::hangup()));
        assert!(is_ignored(&status("0000000000004000"), SignalKind::terminate()));
        assert!(!is_ignored("", SignalKind::hangup()));
    }

    #[test]
    fn a_taken_port_is_refused_with_a_hint() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind("127.0.0.1", taken.local_addr().unwrap().port()).unwrap_err();
        assert!(error.to_string().contains("hint: another program listens there; --port 0"), "{error}");
        assert_eq!(error.exit_code(), 1);
        for host in ["192.0.2.1", "no.such.host.invalid"] {
            let error = bind(host, 0).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("hint: --host"), "{error}");
        }
    }
}
