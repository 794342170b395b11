//! Rank processes of this host: started, listened to, started again, and never left behind.
//!
//! ```text
//! launcher ── socket pair ──► standard input of the rank   the control link, no path and no secret
//!          ── memfds over it ►                             the KV pool's memory, and a channel for that of the data link
//!          ── then [`Way`] ──►                             whether that socket is the control link too, or node 0 is elsewhere
//!          ◄── standard error of the rank                  forwarded line by line as `[rank R] …`
//! ```
//! Three things keep a rank from outliving its parent: the control link closes, the kernel kills it when the thread
//! that started it ends (`PR_SET_PDEATHSIG`, hence one permanent thread), and dropping [`RankProcesses`] kills and waits.
//! Each rank is a process group of its own: a terminal's Ctrl-C reaches the launcher alone, which stops the ranks. What signals a
//! whole service nevertheless (systemd, `pkill`) does not end them either: [`leave_stopping_to_the_launcher`].

use std::{
    fmt,
    fs::File,
    io::{self, BufReader, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    ops::RangeInclusive,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nanoinfer_shared::comm::ShmSegment;
use nanoinfer_worker::rank::HostMemory;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
    process::{Pid, WaitId, WaitIdOptions, waitid},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::LaunchError,
    last_lines::{LastLines, next_line},
    log::Log,
    rank_end::{HowEnded, RankEnd, Reports},
};

/// How long a rank that was told to end may take before it is killed.
pub(crate) const END_DEADLINE: Duration = Duration::from_secs(5);
/// How long a rank that is lost may take to end by itself, so that its own end is known and not ours.
const LAST_MOMENTS: Duration = Duration::from_millis(300);
/// Data of the message that carries the descriptors of a rank's memory.
const MEMORY: [u8; 4] = *b"pool";

/// Which program runs a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerBinary {
    /// The program that is running, for those that know the `worker` subcommand: the same file, even if it was replaced
    /// on disk since.
    ThisProgram,
    /// A `nanoinfer-launch` of the same build.
    At(PathBuf),
}

/// Processes of all ranks of one cluster. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct RankProcesses {
    /// None where one could not be started again. A mutex, as the engine starts ranks again while the launcher waits for them.
    ranks: Mutex<Vec<Option<RankProcess>>>,
    /// Ends the thread that starts the ranks; only after they have ended, since they die with it.
    spawner: Option<(mpsc::Sender<Order>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct RankProcess {
    /// Shared with the thread that waits for its end: a process may only be killed while it is certain that its number
    /// was not given to another, that is, under this mutex and before it was waited for.
    child: Arc<Mutex<Child>>,
    /// Set before it is ended from here, which is nothing to report.
    is_ended: Arc<AtomicBool>,
    watcher: JoinHandle<RankEnd>,
}

/// A rank to start, and where to answer.
type Order = (usize, mpsc::Sender<Result<(RankProcess, UnixStream), LaunchError>>);

impl RankProcesses {
    /// Places for `world` ranks, of which none is started. Every rank's end is reported to `ends`, whatever the reason.
    ///
    /// # Errors
    /// When the system gives no thread, or there is no such program.
    pub(crate) fn new(world: usize, binary: &WorkerBinary, log: &Log, ends: &Reports) -> Result<Self, LaunchError> {
        let (to_spawner, orders) = mpsc::channel::<Order>();
        let (program, ends, log) = (Program::find(binary)?, ends.clone(), log.clone());
        let spawner = thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                // Ends when the other end is dropped. The ranks would be killed if this thread ended earlier.
                for (rank, started) in orders {
                    // Nobody listens only if the launcher's thread is gone; the link ends the rank then.
                    let _ = started.send(start_one(rank, world, &program, &log, &ends));
                }
            })
            .map_err(LaunchError::system("start a thread"))?;
        let ranks = Mutex::new((0..world).map(|_| None).collect());
        Ok(Self { ranks, spawner: Some((to_spawner, spawner)) })
    }

    /// Starts a rank where there is none, and returns our end of its socket, before any handshake.
    ///
    /// # Errors
    /// When the system gives no process.
    pub(crate) fn start_rank(&self, rank: usize) -> Result<UnixStream, LaunchError> {
        let (answer, started) = mpsc::channel();
        let (spawner, _) = self.spawner.as_ref().expect("it is there until this is dropped");
        spawner.send((rank, answer)).expect("the spawner waits for orders");
        let (process, socket) = started.recv().expect("the spawner answers every order")?;
        self.ranks.lock().unwrap_or_else(PoisonError::into_inner)[rank] = Some(process);
        Ok(socket)
    }

    /// Ends what is left of a rank, and waits for it; says how it ended where it did so by itself.
    pub(crate) fn end_rank(&self, rank: usize) -> Option<RankEnd> {
        let process = self.ranks.lock().unwrap_or_else(PoisonError::into_inner)[rank].take()?;
        wait_for([&process.watcher], LAST_MOMENTS);
        let by_itself = process.watcher.is_finished();
        process.kill();
        process.watcher.join().ok().filter(|_| by_itself)
    }

    /// Waits for all ranks to end by themselves, up to a deadline; what is left is killed when this is dropped.
    pub(crate) fn wait(&self) {
        let ranks = self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        wait_for(ranks.iter().flatten().map(|rank| &rank.watcher), END_DEADLINE);
    }
}

impl RankProcess {
    fn kill(&self) {
        self.is_ended.store(true, SeqCst);
        // An error means that it has ended already.
        let _ = self.child.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }
}

/// Waits until all `threads`, which end with their ranks, have ended, up to a deadline.
pub(crate) fn wait_for<'a, T: 'a>(threads: impl IntoIterator<Item = &'a JoinHandle<T>>, patience: Duration) {
    let deadline = Instant::now() + patience;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for RankProcesses {
    fn drop(&mut self) {
        let ranks: Vec<_> = self.ranks.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..).flatten().collect();
        ranks.iter().for_each(RankProcess::kill);
        for rank in ranks {
            // A panic there has been printed; there is nothing left to do for that rank.
            let _ = rank.watcher.join();
        }
        if let Some((orders, spawner)) = self.spawner.take() {
            drop(orders);
            // As above.
            let _ = spawner.join();
        }
    }
}

/// The program that runs ranks.
struct Program {
    path: PathBuf,
    /// Open as long as ranks may be started: the name of the descriptor is the program to run.
    _open: Option<File>,
}

impl Program {
    fn find(binary: &WorkerBinary) -> Result<Self, LaunchError> {
        match binary {
            WorkerBinary::At(path) => Ok(Self { path: path.clone(), _open: None }),
            WorkerBinary::ThisProgram => {
                let open = File::open("/proc/self/exe").map_err(LaunchError::system("open /proc/self/exe"))?;
                Ok(Self { path: format!("/proc/self/fd/{}", open.as_raw_fd()).into(), _open: Some(open) })
            }
        }
    }
}

fn start_one(
    rank: usize,
    world: usize,
    program: &Program,
    log: &Log,
    ends: &Reports,
) -> Result<(RankProcess, UnixStream), LaunchError> {
    ends.began(rank);
    let (ours, theirs) = UnixStream::pair().map_err(LaunchError::system("make a socket pair"))?;
    let mut child = Command::new(&program.path)
        .arg0("nanoinfer-launch")
        .args(["worker", "--rank", &rank.to_string(), "--world", &world.to_string()])
        .args(["--parent", &std::process::id().to_string()])
        .args(log.arguments())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(LaunchError::system(format!("start rank {rank} ({})", program.path.display())))?;
    let stderr = child.stderr.take().expect("it was asked for");
    let pid = Pid::from_child(&child);
    let (child, is_ended) = (Arc::new(Mutex::new(child)), Arc::new(AtomicBool::new(false)));
    let (watched, by_us, ends, log) = (child.clone(), is_ended.clone(), ends.clone(), log.clone());
    let watcher = thread::Builder::new().name(format!("watch rank {rank}")).spawn(move || {
        let end = watch(rank, pid, &watched, stderr, &log);
        if !by_us.load(SeqCst) {
            ends.ended(end.clone());
        }
        end
    });
    match watcher {
        Ok(watcher) => Ok((RankProcess { child, is_ended, watcher }, ours)),
        Err(error) => {
            // Its control link closes as `ours` is dropped, and so the rank ends; kill it all the same.
            let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
            Err(LaunchError::system("start a thread")(error))
        }
    }
}

/// Forwards what the rank says until it ends, and tells how it did.
fn watch(rank: usize, pid: Pid, child: &Mutex<Child>, stderr: ChildStderr, log: &Log) -> RankEnd {
    let last_lines = forward_lines(rank, stderr, log);
    // Waits without taking the exit status, hence without the mutex.
    while let Err(Errno::INTR) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {}
    let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait();
    let how = match status {
        Ok(status) => HowEnded::Status(status),
        Err(error) => HowEnded::Failed(format!("its status is unknown: {error}")),
    };
    RankEnd { rank, how, last_lines }
}

/// Writes every line to our standard error, marked; returns the last ones.
fn forward_lines(rank: usize, stderr: ChildStderr, log: &Log) -> Vec<String> {
    let (kept, mut stderr) = (LastLines::default(), BufReader::new(stderr));
    while let Some(line) = next_line(&mut stderr) {
        log.forward(rank, &line);
        kept.keep(line);
    }
    kept.lines()
}

/// Makes this process, a rank, ignore the signals that ask to stop: the launcher gets them too, and ends its ranks when running
/// requests are done. Whatever becomes of the launcher, the kernel and the control link end them.
#[allow(unsafe_code)]
pub(crate) fn leave_stopping_to_the_launcher() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: to ignore a signal installs no handler, so that no code runs at odd times, and touches no memory of ours; it
        // may be done in any thread at any time.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// What a rank is told by who started it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Way {
    /// Where its coordinator is, and what to show there; none for the other end of the socket that it inherited.
    pub(crate) node_zero: Option<(SocketAddr, [u8; 32])>,
    pub(crate) of_host: OfHost,
}

/// What a host has for ranks that reach over to others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OfHost {
    /// Own copy of the checkpoint; none if the coordinator's paths are valid here.
    pub(crate) weights: Option<Vec<PathBuf>>,
    /// Address that the other ranks can reach.
    pub(crate) data_host: String,
    /// Ports for that; any free one where none are named.
    pub(crate) data_ports: Option<RangeInclusive<u16>>,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node_zero, of_host } = self;
        f.debug_struct("Way").field("node_zero", &node_zero.map(|(at, _)| at)).field("of_host", of_host).finish()
    }
}

impl OfHost {
    /// Of the only host, where all paths are valid.
    pub(crate) fn only() -> Self {
        Self { weights: None, data_host: "127.0.0.1".into(), data_ports: None }
    }
}

/// The launcher's hold on the memory of one rank.
#[derive(Debug)]
pub(crate) struct MemoryOfRank {
    /// Where its KV pool lies: outlives it.
    pool: OwnedFd,
    /// Where it is handed the memory of data links; of this life of the rank.
    channel: Option<UnixStream>,
}

impl MemoryOfRank {
    /// Memory without a size yet.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { pool: memfd_create("nanoinfer-kv", MemfdFlags::CLOEXEC)?, channel: None })
    }

    /// Hands it to a rank that has passed its handshake on `socket`.
    ///
    /// # Errors
    /// When the rank is gone.
    pub(crate) fn hand_over(&mut self, socket: &UnixStream) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        send_with(socket, MEMORY, &[self.pool.as_fd(), theirs.as_fd()])?;
        self.channel = Some(ours);
        Ok(())
    }

    /// Hands the rank the data link's memory for the start of this number.
    ///
    /// # Errors
    /// When the rank is gone.
    pub(crate) fn send_segment(&self, group: u32, segment: &ShmSegment) -> io::Result<()> {
        match &self.channel {
            Some(channel) => send_with(channel, group.to_le_bytes(), &[segment.as_fd()]),
            None => Ok(()),
        }
    }
}

/// Takes what [`MemoryOfRank`] hands over.
///
/// # Errors
/// When the launcher is gone, or sent something else.
pub(crate) fn receive_memory(socket: &UnixStream) -> io::Result<HostMemory> {
    let strange = |what: &str| io::Error::other(format!("the launcher sent {what} where memory was due"));
    let (word, descriptors) = receive_with(socket)?;
    let [pool, channel] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| strange("too little"))?;
    if word != MEMORY {
        return Err(strange("something else"));
    }
    let channel = UnixStream::from(channel);
    // Those of starts that came to nothing are passed over.
    let segments = move |group: u32| loop {
        let (word, mut descriptors) = receive_with(&channel)?;
        let (sent, segment) = (u32::from_le_bytes(word), descriptors.pop().ok_or_else(|| strange("none"))?);
        if sent == group {
            return Ok(ShmSegment::from_fd(segment));
        }
    };
    Ok(HostMemory { pool: pool.into(), segments: Box::new(segments) })
}

fn send_with(socket: &UnixStream, word: [u8; 4], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
    assert!(fits, "the buffer has the size of two descriptors");
    sendmsg(socket, &[IoSlice::new(&word)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_with(socket: &UnixStream) -> io::Result<([u8; 4], Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0; 4];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes != word.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((word, rights.flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank_end::RankEnds;

    fn failures(ends: &mut RankEnds) -> Option<Vec<RankEnd>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(ends.failures(Duration::MAX))
    }

    #[test]
    fn memory_arrives_as_the_same_memory_and_that_of_starts_in_vain_is_passed_over() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut memory = MemoryOfRank::new().unwrap();
        memory.hand_over(&a).unwrap();
        let mut received = receive_memory(&b).unwrap();
        let inode = |descriptor: BorrowedFd<'_>| rustix::fs::fstat(descriptor).unwrap().st_ino;
        assert_eq!(inode(received.pool.as_fd()), inode(memory.pool.as_fd()));
        let segments = [0, 3].map(|group| (group, ShmSegment::create(2).unwrap()));
        segments.iter().for_each(|(group, segment)| memory.send_segment(*group, segment).unwrap());
        assert_eq!(inode((received.segments)(3).unwrap().as_fd()), inode(segments[1].1.as_fd()));
        drop((memory, a));
        assert!((received.segments)(4).is_err() && receive_memory(&b).is_err());
    }

    #[test]
    fn a_program_that_ends_is_reported_with_its_status_and_last_lines() {
        let (report, mut ends) = RankEnds::new();
        // `false` takes any arguments and ends with 1.
        let binary = WorkerBinary::At("/bin/false".into());
        let processes = RankProcesses::new(2, &binary, &Log::default(), &report).unwrap();
        let _sockets = [0, 1].map(|rank| processes.start_rank(rank).unwrap());
        let mut ranks = Vec::new();
        while ranks.len() < 2 {
            ranks = failures(&mut ends).unwrap();
        }
        ranks.sort_by_key(|end| end.rank);
        assert_eq!(ranks[1].to_string(), "rank 1 ended with exit status 1");
        drop(processes);
        let missing = WorkerBinary::At("/nonexistent/nanoinfer-launch".into());
        let processes = RankProcesses::new(1, &missing, &Log::default(), &report).unwrap();
        let message = processes.start_rank(0).unwrap_err().to_string();
        assert!(message.contains("/nonexistent/nanoinfer-launch"), "{message}");
    }

    #[test]
    fn dropping_the_processes_kills_them_and_one_can_be_had_again() {
        let (report, mut ends) = RankEnds::new();
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("sleeper");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let processes = RankProcesses::new(2, &WorkerBinary::At(script), &Log::default(), &report).unwrap();
        let _sockets = [0, 1].map(|rank| processes.start_rank(rank).unwrap());
        let pid = |rank: usize| {
            let ranks = processes.ranks.lock().unwrap();
            Pid::from_child(&ranks[rank].as_ref().unwrap().child.lock().unwrap())
        };
        let first = pid(1);
        assert!(processes.end_rank(1).is_none(), "it was ended from here");
        let _socket = processes.start_rank(1).unwrap();
        assert_ne!(pid(1), first);
        rustix::process::kill_process(pid(0), rustix::process::Signal::KILL).unwrap();
        let end = processes.end_rank(0).expect("it was not ended from here").to_string();
        assert!(end.starts_with("rank 0 was killed by signal 9 (SIGKILL)"), "{end}");
        let last = pid(1);
        drop(processes);
        assert!(rustix::process::test_kill_process(last).is_err());
        drop(report);
        let reported: Vec<_> = failures(&mut ends).unwrap().iter().map(|end| end.rank).collect();
        assert_eq!(reported, [0], "what is ended from here is not reported");
    }
}
