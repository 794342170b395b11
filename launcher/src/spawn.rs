//! Rank processes of this host: started, listened to, and never left behind.
//!
//! ```text
//! launcher ── socket pair ──► standard input of the rank   the control link, no path and no secret
//!          ── memfd over it ─►                             the data link, where that is shared memory
//!          ◄── standard error of the rank                  forwarded line by line as `[rank R] …`
//! ```
//! Three things keep a rank from outliving its parent: the control link closes, the kernel kills it when the thread
//! that started it ends (`PR_SET_PDEATHSIG`, hence one permanent thread), and dropping [`RankProcesses`] kills and waits.
//! Each rank is a process group of its own: a terminal's Ctrl-C reaches the launcher alone, which stops the ranks. What signals a
//! whole service nevertheless (systemd, `pkill`) does not end them either: [`leave_stopping_to_the_launcher`].

use std::{
    fs::File,
    io::{self, BufReader, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nanoinfer_shared::comm::ShmSegment;
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

use crate::{
    error::LaunchError,
    last_lines::{LastLines, next_line},
    rank_end::{HowEnded, RankEnd},
};

/// How long a rank that was told to end may take before it is killed.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Data of the message that carries the descriptor of the shared memory, or says that there is none.
const WITH_SEGMENT: u8 = b'S';
const WITHOUT_SEGMENT: u8 = b'-';

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
    ranks: Vec<RankProcess>,
    /// Ends the thread that started the ranks; only after they have ended, since they die with it.
    spawner: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct RankProcess {
    /// Shared with the thread that waits for its end: a process may only be killed while it is certain that its number
    /// was not given to another, that is, under this mutex and before it was waited for.
    child: Arc<Mutex<Child>>,
    watcher: JoinHandle<()>,
}

impl RankProcesses {
    /// Starts `world` ranks and returns our ends of their control links in rank order, before any handshake.
    /// Every rank's end is reported to `ends`, whatever the reason.
    ///
    /// # Errors
    /// When a process cannot be started; those that were are ended.
    pub(crate) fn start(
        world: usize,
        binary: &WorkerBinary,
        log: &str,
        ends: &tokio::sync::mpsc::Sender<RankEnd>,
    ) -> Result<(Self, Vec<UnixStream>), LaunchError> {
        let (started, result) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (binary, log, ends) = (binary.clone(), log.to_string(), ends.clone());
        let spawner = thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                // Nobody listens only if the launcher's thread is gone; the drop of the result ends the ranks then.
                let _ = started.send(start_all(world, &binary, &log, &ends));
                // Returns when the other end is dropped. The ranks would be killed if this thread ended earlier.
                let _ = released.recv();
            })
            .map_err(LaunchError::system("start a thread"))?;
        let (ranks, sockets) = result.recv().expect("the spawner sends before it ends")?;
        Ok((Self { ranks, spawner: Some((release, spawner)) }, sockets))
    }

    /// Waits for all ranks to end by themselves, up to a deadline; what is left is killed when this is dropped.
    pub(crate) fn wait(&self) {
        wait_for(self.ranks.iter().map(|rank| &rank.watcher));
    }
}

/// Waits until all `threads`, which end with their ranks, have ended, up to a deadline.
pub(crate) fn wait_for<'a>(threads: impl IntoIterator<Item = &'a JoinHandle<()>>) {
    let deadline = Instant::now() + END_DEADLINE;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RankProcesses {
    fn drop(&mut self) {
        for rank in &self.ranks {
            // An error means that it has ended already.
            let _ = rank.child.lock().unwrap_or_else(PoisonError::into_inner).kill();
        }
        for rank in self.ranks.drain(..) {
            // A panic there has been printed; there is nothing left to do for that rank.
            let _ = rank.watcher.join();
        }
        if let Some((release, spawner)) = self.spawner.take() {
            drop(release);
            // As above.
            let _ = spawner.join();
        }
    }
}

type Started = (Vec<RankProcess>, Vec<UnixStream>);

fn start_all(
    world: usize,
    binary: &WorkerBinary,
    log: &str,
    ends: &tokio::sync::mpsc::Sender<RankEnd>,
) -> Result<Started, LaunchError> {
    // Open until all are started: the name of the descriptor is the program to run.
    let this_program;
    let program: PathBuf = match binary {
        WorkerBinary::At(path) => path.clone(),
        WorkerBinary::ThisProgram => {
            this_program = File::open("/proc/self/exe").map_err(LaunchError::system("open /proc/self/exe"))?;
            format!("/proc/self/fd/{}", this_program.as_raw_fd()).into()
        }
    };
    let mut all = RankProcesses { ranks: Vec::new(), spawner: None };
    let mut sockets = Vec::new();
    for rank in 0..world {
        let (ours, theirs) = UnixStream::pair().map_err(LaunchError::system("make a socket pair"))?;
        let mut child = Command::new(&program)
            .arg0("nanoinfer-launch")
            .args(["worker", "--inherited", "--rank", &rank.to_string(), "--world", &world.to_string()])
            .args(["--parent", &std::process::id().to_string(), "--log", log])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(LaunchError::system(format!("start rank {rank} ({})", program.display())))?;
        let stderr = child.stderr.take().expect("it was asked for");
        let pid = Pid::from_child(&child);
        let child = Arc::new(Mutex::new(child));
        let (watched, ends) = (child.clone(), ends.clone());
        let watcher = thread::Builder::new()
            .name(format!("watch rank {rank}"))
            .spawn(move || watch(rank, pid, &watched, stderr, &ends))
            .map_err(LaunchError::system("start a thread"));
        match watcher {
            Ok(watcher) => all.ranks.push(RankProcess { child, watcher }),
            Err(error) => {
                // Its control link closes as `ours` is dropped, and so the rank ends; kill it all the same.
                let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
                return Err(error);
            }
        }
        sockets.push(ours);
    }
    Ok((std::mem::take(&mut all.ranks), sockets))
}

/// Forwards what the rank says until it ends, then reports how.
fn watch(rank: usize, pid: Pid, child: &Mutex<Child>, stderr: ChildStderr, ends: &tokio::sync::mpsc::Sender<RankEnd>) {
    let last_lines = forward_lines(rank, stderr);
    // Waits without taking the exit status, hence without the mutex.
    while let Err(Errno::INTR) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {}
    let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait();
    let how = match status {
        Ok(status) => HowEnded::Status(status),
        Err(error) => HowEnded::Failed(format!("its status is unknown: {error}")),
    };
    // The queue holds one end of every rank; a closed one means that nobody asks any more.
    let _ = ends.try_send(RankEnd { rank, how, last_lines });
}

/// Writes every line to our standard error, marked; returns the last ones.
fn forward_lines(rank: usize, stderr: ChildStderr) -> Vec<String> {
    let (kept, mut stderr) = (LastLines::default(), BufReader::new(stderr));
    while let Some(line) = next_line(&mut stderr) {
        crate::say(format_args!("[rank {rank}] {line}"));
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

/// Hands the memory of the data link, or the word that there is none, to a rank that has passed its handshake.
///
/// # Errors
/// When the rank is gone.
pub(crate) fn send_segment(socket: &UnixStream, segment: Option<&ShmSegment>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = segment.map(|segment| [segment.as_fd()]);
    if let Some(descriptors) = &descriptors {
        let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "the buffer has the size of one descriptor");
    }
    let word = [if segment.is_some() { WITH_SEGMENT } else { WITHOUT_SEGMENT }];
    sendmsg(socket, &[IoSlice::new(&word)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes what [`send_segment`] sent.
///
/// # Errors
/// When the launcher is gone, or sent something else.
pub(crate) fn receive_segment(socket: &UnixStream) -> io::Result<Option<ShmSegment>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    match (word[0], descriptor) {
        (WITH_SEGMENT, Some(descriptor)) => Ok(Some(ShmSegment::from_fd(descriptor))),
        (WITHOUT_SEGMENT, None) => Ok(None),
        (word, _) => Err(io::Error::other(format!("the launcher sent {word} where the data link was due"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_arrives_as_the_same_memory_and_none_as_none() {
        let (a, b) = UnixStream::pair().unwrap();
        let segment = ShmSegment::create(2).unwrap();
        send_segment(&a, Some(&segment)).unwrap();
        let received = receive_segment(&b).unwrap().expect("one was sent");
        let inode = |segment: &ShmSegment| rustix::fs::fstat(segment).unwrap().st_ino;
        assert_eq!(inode(&received), inode(&segment));
        send_segment(&a, None).unwrap();
        assert!(receive_segment(&b).unwrap().is_none());
        drop(a);
        assert!(receive_segment(&b).is_err());
    }

    #[test]
    fn a_program_that_ends_is_reported_with_its_status_and_last_lines() {
        let (ends, mut reports) = tokio::sync::mpsc::channel(2);
        // `false` takes any arguments and ends with 1.
        let binary = WorkerBinary::At("/bin/false".into());
        let (processes, sockets) = RankProcesses::start(2, &binary, "info", &ends).unwrap();
        assert_eq!(sockets.len(), 2);
        let mut ranks: Vec<_> = (0..2).map(|_| reports.blocking_recv().unwrap()).collect();
        ranks.sort_by_key(|end| end.rank);
        assert_eq!(ranks[1].to_string(), "rank 1 ended with exit status 1");
        drop(processes);
        let missing = WorkerBinary::At("/nonexistent/nanoinfer-launch".into());
        let message = RankProcesses::start(1, &missing, "info", &ends).unwrap_err().to_string();
        assert!(message.contains("/nonexistent/nanoinfer-launch"), "{message}");
    }

    #[test]
    fn dropping_the_processes_kills_them() {
        let (ends, mut reports) = tokio::sync::mpsc::channel(1);
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("sleeper");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (processes, _sockets) = RankProcesses::start(1, &WorkerBinary::At(script), "info", &ends).unwrap();
        drop(processes);
        let end = reports.blocking_recv().unwrap().to_string();
        assert!(end.starts_with("rank 0 was killed by signal 9 (SIGKILL)"), "{end}");
    }
}
