//! A server of our own for one command: this program again, as `nanoinfer serve`, on a free port of loopback.
//!
//! It never outlives us: dropping it stops it, and the kernel kills it if we are killed (`--parent`). Ctrl-C in a terminal
//! reaches only us, since it is a process group of its own.

use std::{
    io::{self, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use nanoinfer_launch::{
    last_lines::{LastLines, next_line},
    say,
};

use crate::{failure::Failure, model_options::ModelOptions};

/// The verb that is `nanoinfer-launch serve`.
pub(crate) const SERVE: &str = "serve";
/// How the server says where it is; everything before is about its start.
const READY: &str = "ready on ";
/// How long it may take to end before it is killed.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct PrivateServer {
    child: Child,
    /// Where it listens.
    pub(crate) url: String,
    last_lines: LastLines,
    reader: Option<JoinHandle<()>>,
}

impl PrivateServer {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// With its own words, and its exit code, if it does not come up.
    pub(crate) fn start(options: &ModelOptions) -> Result<Self, Failure> {
        // Found here first, so that a download shows its progress on our terminal.
        options.resolve()?;
        // A number, not a path: the same program even if it was replaced on disk since.
        let program = std::fs::File::open("/proc/self/exe").context("cannot open /proc/self/exe")?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program));
        let mut command = Command::new(path);
        command.arg0("nanoinfer").args([SERVE, "--host", "127.0.0.1", "--port", "0"]);
        command.args(["--parent", &std::process::id().to_string()]);
        command.args(options.flags());
        // Keys are for servers that others can reach.
        command.env_remove("NANOINFER_API_KEY").env_remove("NANOINFER_API_KEY_FILE");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("cannot start a private server")?;
        let mut stderr = BufReader::new(child.stderr.take().expect("it was asked for"));
        let last_lines = LastLines::default();
        let url = loop {
            let Some(line) = next_line(&mut stderr) else {
                let status = child.wait().context("cannot wait for the private server")?;
                let error = anyhow!("the private server did not start ({status}):\n{}", joined(&last_lines));
                return Err(Failure { error, exit_code: if status.code() == Some(2) { 2 } else { 1 } });
            };
            match line.strip_prefix(READY) {
                Some(url) => break url.to_string(),
                None => last_lines.keep(line),
            }
        };
        let kept = last_lines.clone();
        // Reads on, so that the server never waits for a full pipe.
        let reader = thread::spawn(move || {
            while let Some(line) = next_line(&mut stderr) {
                kept.keep(line);
            }
        });
        Ok(Self { child, url, last_lines, reader: Some(reader) })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended, if it has within `deadline`.
    fn ended_within(&mut self, deadline: Duration) -> io::Result<Option<ExitStatus>> {
        let begun = Instant::now();
        loop {
            let ended = self.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > deadline {
                return Ok(ended);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Writes the end of its log to standard error, if it has ended: an answer that says no needs no log.
    pub(crate) fn tell_its_end(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            say(format_args!("the private server has ended ({status}):\n{}", joined(&self.last_lines)));
        }
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let pid = rustix::process::Pid::from_child(&self.child);
            // Still its own number: a process that has not been waited for keeps it. An error means that it is ending.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if let Ok(None) = self.ended_within(END_DEADLINE) {
            // Either it ends now or it has ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(reader) = self.reader.take() {
            // It ends with the pipe; a panic there has been printed.
            let _ = reader.join();
        }
    }
}

/// The last lines, set apart from what is said before them.
fn joined(lines: &LastLines) -> String {
    lines.lines().iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
