//! What a terminal is told while a cluster starts: the plan, a bar while weights are loaded, and where to go then.
//!
//! Logs and pipes get none of it: there the log says the same. Does not know how a cluster starts.
//! The bar compares the memory of this process and its children with what the plan says that weights will take.

use std::{
    fs,
    io::{self, IsTerminal},
    net::SocketAddr,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use crate::plan::Plan;
use indicatif::{ProgressBar, ProgressStyle};
use nanoinfer_shared::say::is_in_the_log;

/// How often the bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Whether a person sees standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal() && !is_in_the_log()
}

/// Tells the plan and draws while `start` runs; nothing where nobody sees it.
pub(crate) fn during<T>(plan: &Plan, start: impl FnOnce() -> T) -> T {
    if !is_watched() {
        return start();
    }
    crate::say(format_args!("\n{plan}\n"));
    let (stop, stopped) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let progress = thread::Builder::new().name("progress".into());
        // Without a thread there is no bar, and all else goes on.
        let thread = progress.spawn_scoped(scope, move || draw(plan, &stopped)).ok();
        let started = start();
        drop(stop);
        // A panic there has been printed.
        let _ = thread.map(ScopedJoinHandle::join);
        started
    })
}

/// Draws until the other end of `stopped` is gone.
fn draw(plan: &Plan, stopped: &Receiver<()>) {
    let weights = plan.memory.iter().map(|memory| memory.weights).sum();
    // Memory of this host that grows as weights arrive.
    let shows = plan.hosts.len() == 1 && !plan.on_gpus();
    let bar = if shows { bar(weights) } else { waiting(plan.partition.world()) };
    let before = resident_bytes();
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(DRAW_EVERY) {
        // Other memory grows too: the bar is full at most.
        bar.set_position(resident_bytes().saturating_sub(before).min(weights));
        bar.tick();
    }
    bar.finish_and_clear();
}

/// What a person can do now.
pub(crate) fn tell_where(address: SocketAddr) {
    if is_watched() {
        crate::say(format_args!(
            "  chat      http://{address}/\n  reference http://{address}/docs\n  OpenAI    http://{address}/v1\n  \
             Ollama    http://{address}\n  Ctrl-C stops it; a second Ctrl-C at once"
        ));
    }
}

fn bar(weights: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("loading weights {wide_bar} {bytes} of {total_bytes}, {elapsed}");
    ProgressBar::new(weights).with_style(style.expect("the template is well-formed"))
}

fn waiting(world: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}").expect("the template is well-formed");
    ProgressBar::new_spinner().with_style(style).with_message(format!("waiting for {world} ranks and their weights"))
}

/// Anonymous memory of this process and its children; what cannot be read counts as none.
fn resident_bytes() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children = children.flat_map(|pids| pids.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    std::iter::once("self".to_owned()).chain(children).filter_map(|pid| anonymous_bytes(&pid)).sum()
}

fn anonymous_bytes(pid: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_is_counted() {
        // Else the compiler does without it, as nothing but its length is asked for.
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(resident_bytes() >= touched.len() as u64);
    }
}
