//! A server under test: the real binary on a free loopback port, stopped when dropped.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for anything a server does.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    stderr: Arc<Mutex<Vec<String>>>,
}

/// A model of `tests/golden`.
pub(crate) fn golden_folder(model: &str) -> PathBuf {
    root().join("tests/golden").join(model)
}

/// The workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the launcher lies in the workspace").to_owned()
}

/// The launcher, with nothing of the surrounding environment's settings.
pub(crate) fn launcher(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nanoinfer-launch"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NANOINFER_")) {
        command.env_remove(name);
    }
    // Golden data is of f32, which the default is not on every CPU. A flag wins.
    command.env("NANOINFER_DTYPE", "f32");
    command
}

/// A command that another program is to run, given as its words.
pub(crate) fn through(program: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(program[0]);
    outer.args(&program[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    outer
}

/// Runs a command that is expected to end by itself: its status and stderr.
pub(crate) fn run_to_end(mut command: Command) -> (ExitStatus, String) {
    let mut child = command.spawn().unwrap();
    let stderr = collect(child.stderr.take().unwrap());
    let status = wait(&mut child);
    // As in [`Server::wait`].
    wait_until("end of stderr", || Arc::strong_count(&stderr) == 1);
    let text = stderr.lock().unwrap().join("\n");
    (status, text)
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the process did not end by itself");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Polls until `condition` holds, or fails.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn collect(pipe: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            sink.lock().unwrap().push(line);
        }
    });
    lines
}

impl Server {
    /// Starts the launcher with `arguments` on a free port and waits for its ready line.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut server = Self::spawn(launcher(&[arguments, &["--port", "0"]].concat()));
        server.await_ready();
        server
    }

    /// Starts a command without waiting.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = collect(child.stderr.take().unwrap());
        Self { child, url: String::new(), stderr }
    }

    /// Waits for `ready on URL`.
    pub(crate) fn await_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.url.is_empty() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status} before it was ready:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "the server is not ready:\n{}", self.log());
            let lines = self.stderr.lock().unwrap();
            if let Some(url) = lines.iter().find_map(|line| line.strip_prefix("ready on ")) {
                self.url = url.trim().to_owned();
            }
            drop(lines);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a line of stderr that contains `text`.
    pub(crate) fn await_line(&self, text: &str) -> String {
        let mut found = None;
        wait_until(text, || {
            found = self.stderr.lock().unwrap().iter().find(|line| line.contains(text)).cloned();
            found.is_some()
        });
        found.unwrap()
    }

    /// Everything on stderr so far.
    pub(crate) fn log(&self) -> String {
        self.stderr.lock().unwrap().join("\n")
    }

    /// Process id of the launcher.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process ids of its ranks, by rank.
    pub(crate) fn rank_pids(&self) -> Vec<u32> {
        Self::ranks_of(self.pid()).into_iter().map(|(_, pid)| pid).collect()
    }

    /// Ranks and their process ids of the launcher with process id `parent`, by rank.
    pub(crate) fn ranks_of(parent: u32) -> Vec<(usize, u32)> {
        let mut ranks: Vec<_> = children_of(parent).into_iter().filter_map(|pid| Some((rank_of(pid)?, pid))).collect();
        ranks.sort_unstable();
        ranks
    }

    /// Sends a signal to the launcher.
    pub(crate) fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for the launcher's end, and for all that it said.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = wait(&mut self.child);
        // The pipe closes with the last process that holds it; its lines follow the end of the process.
        wait_until("end of stderr", || Arc::strong_count(&self.stderr) == 1);
        status
    }

    /// POST with a JSON body; status and body as text.
    pub(crate) fn post_text(&self, path: &str, body: &str) -> (u16, String) {
        let response = agent().post(format!("{}{path}", self.url)).content_type("application/json").send(body).unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().read_to_string().unwrap())
    }

    /// POST with a JSON body; status and JSON.
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.post_text(path, &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    /// POST that must succeed.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// POST with a JSON body, whose answer nobody has read yet.
    pub(crate) fn send(&self, path: &str, body: &Value) -> TcpStream {
        let mut socket = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // HTTP/1.0, so that the body comes as it is, without chunks.
        let body = body.to_string();
        write!(socket, "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        socket
    }

    /// POST whose streamed answer is read only up to its first event: a reader of the rest, and
    /// that event's line.
    pub(crate) fn open_stream(&self, path: &str, body: &Value) -> (BufReader<TcpStream>, String) {
        let mut reader = BufReader::new(self.send(path, body));
        let mut line = String::new();
        while !line.starts_with("data:") {
            line.clear();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the stream ended before its first event");
        }
        (reader, line)
    }

    /// GET; status and body as text.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let response = agent().get(format!("{}{path}", self.url)).call().unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().read_to_string().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    // Servers under test are on this machine, whatever the environment says of proxies.
    config.proxy(None).build().into()
}

/// Sends a signal to a process.
pub(crate) fn send_signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields follow its end.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| stat(pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// The rank that a process was started as.
fn rank_of(pid: u32) -> Option<usize> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|&byte| byte == 0);
    words.find(|word| word == b"--rank")?;
    std::str::from_utf8(words.next()?).ok()?.parse().ok()
}

/// Memory of a process that is resident, anonymous or shared: mapped files not counted.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some((kilobytes("RssAnon:")? + kilobytes("RssShmem:")?) * 1024)
}

/// Time that the threads of a process have run, to a clock tick (10 ms).
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may hold anything: utime and stime are fields 14 and 15 of the whole.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
