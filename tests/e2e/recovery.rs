//! Ranks that are lost while requests run: every answer is, to the last bit of its log-probabilities, what it would have been.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::server::{Server, golden_folder, is_alive, launcher, run_to_end, send_signal, wait_until};

/// Enough for every kill of a test; a budget that is used up is a test of its own.
pub(crate) const BUDGET: [&str; 2] = ["--rank-restarts", "100/1m"];

/// Requests of several kinds to `heads5`, which has 64 positions; none ends early.
pub(crate) fn requests(count: u64) -> Vec<Value> {
    let body = |seed: u64| {
        let temperature = if seed.is_multiple_of(4) { 0.0 } else { 1.0 };
        json!({ "prompt": vec![3 + seed; 1 + seed as usize * 5 % 23], "max_tokens": 40, "ignore_eos": true, "seed": seed,
            "temperature": temperature, "top_p": if seed.is_multiple_of(3) { 0.9 } else { 1.0 }, "logprobs": 3,
            "return_token_ids": true })
    };
    (0..count).map(body).collect()
}

pub(crate) fn choices(server: &Server, body: &Value) -> Value {
    server.ask("/v1/completions", body)["choices"].clone()
}

/// As long as `disturb` does what it does, and once more, every answer is what it was before.
pub(crate) fn assert_undisturbed(server: &Server, requests: &[Value], disturb: impl FnOnce() + Send) {
    let undisturbed: Vec<Value> = requests.iter().map(|body| choices(server, body)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (body, undisturbed) in requests.iter().zip(&undisturbed) {
            let over = &over;
            scope.spawn(move || {
                while !over.load(SeqCst) {
                    assert_eq!(&choices(server, body), undisturbed, "{body}\n{}", server.log());
                }
            });
        }
        // A failure ends the others too.
        let ended = catch_unwind(AssertUnwindSafe(disturb));
        over.store(true, SeqCst);
        ended.unwrap_or_else(|panic| resume_unwind(panic));
    });
    requests.iter().zip(&undisturbed).for_each(|(body, undisturbed)| assert_eq!(&choices(server, body), undisturbed));
}

pub(crate) fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").1;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not among\n{text}")).parse().unwrap()
}

pub(crate) fn wait_for_restarts(server: &Server, count: f64) {
    wait_until("a rank in the place of the lost one", || {
        metric(server, "nanoinfer_rank_restarts_total") >= count && server.get("/readyz").0 == 200
    });
}

/// Ends each rank once, one after the other.
fn end_each(server: &Server, signal: Signal) {
    for rank in 0..server.rank_pids().len() {
        thread::sleep(Duration::from_millis(150));
        let before = metric(server, "nanoinfer_rank_restarts_total");
        send_signal(server.rank_pids()[rank], signal);
        wait_for_restarts(server, before + 1.0);
    }
}

#[test]
fn killed_ranks_change_no_bit_of_any_answer() {
    let requests = requests(12);
    for (world, comm, options) in [
        ("2", "shm", &["--dtype", "f32"][..]),
        ("3", "tcp", &["--dtype", "bf16", "--kv-dtype", "int8"]),
        ("3", "shm", &["--dtype", "int8", "--max-seqs", "3", "--no-prefix-cache"]),
    ] {
        let model = golden_folder("heads5");
        let common =
            ["--model", model.to_str().unwrap(), "--nproc", world, "--comm", comm, "--max-batched-tokens", "40"];
        let server = Server::start(&[&common[..], options, &BUDGET].concat());
        for signal in [Signal::KILL, Signal::ABORT] {
            assert_undisturbed(&server, &requests, || end_each(&server, signal));
        }
        let restarts = 2.0 * world.parse::<f64>().unwrap();
        assert_eq!(metric(&server, "nanoinfer_rank_restarts_total"), restarts, "{}", server.log());
        assert_eq!(metric(&server, "nanoinfer_recovery_seconds_count"), restarts);
        assert_eq!(metric(&server, "nanoinfer_scheduler_invariants_hold"), 1.0);
        for pools in ["pools=Kept", "pools=Blank"] {
            server.await_line(pools);
        }
    }
}

#[test]
fn a_stream_goes_on_where_it_was_and_the_server_says_what_it_waits_for() {
    let server = Server::start(&[&["--nproc", "2"][..], &BUDGET].concat());
    let body = json!({ "prompt": "Once", "max_tokens": 200, "ignore_eos": true, "seed": 7, "stream": true });
    let text = |events: &str| -> String {
        let chunks = events.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        chunks.filter_map(|chunk| chunk["choices"][0]["text"].as_str().map(str::to_owned)).collect()
    };
    let whole = |disturb: &dyn Fn()| {
        let (mut running, first) = server.open_stream("/v1/completions", &body);
        disturb();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut running, &mut rest).unwrap();
        text(&(first + &rest))
    };
    let undisturbed = whole(&|| ());
    let disturbed = whole(&|| {
        // One that does not answer is ready no more; what is said then is that it is not.
        let rank = server.rank_pids()[1];
        send_signal(rank, Signal::STOP);
        wait_until("unreadiness", || {
            let (status, body) = server.get("/readyz");
            status == 503 && body.contains("not every rank answers")
        });
        assert_eq!(server.get("/livez").0, 200);
        send_signal(rank, Signal::KILL);
    });
    assert_eq!(disturbed, undisturbed);
    wait_for_restarts(&server, 1.0);
}

#[test]
fn idle_ranks_are_had_again_and_all_at_once_too() {
    let server = Server::start(&[&["--nproc", "3"][..], &BUDGET].concat());
    let ask = || server.ask("/api/chat", &json!({ "prompt": "Hello!", "temperature": 0 }))["reply"].clone();
    let reply = ask();
    let ranks = server.rank_pids();
    ranks.iter().for_each(|&rank| send_signal(rank, Signal::KILL));
    wait_for_restarts(&server, 3.0);
    assert!(ranks.iter().all(|&rank| !is_alive(rank)));
    assert_eq!(ask(), reply);
    // Nothing is left of those that went.
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let before = descriptors();
    for round in 0..5 {
        send_signal(server.rank_pids()[round % 3], Signal::KILL);
        wait_for_restarts(&server, 4.0 + round as f64);
        assert_eq!(ask(), reply);
    }
    wait_until("as many descriptors as before", || descriptors() <= before);
}

#[test]
fn a_budget_that_is_used_up_ends_the_server_and_names_every_cause() {
    let mut server = Server::start(&["--nproc", "2", "--rank-restarts", "1/10m"]);
    send_signal(server.rank_pids()[0], Signal::KILL);
    wait_for_restarts(&server, 1.0);
    send_signal(server.rank_pids()[1], Signal::ABORT);
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    let log = server.log();
    assert!(log.contains("--rank-restarts") && log.contains("SIGKILL") && log.contains("SIGABRT"), "{log}");

    for (wrong, what) in [("3", "like 3/10m"), ("x/1m", "no number of restarts"), ("3/1y", "no unit of time")] {
        let (status, log) = run_to_end(launcher(&["--rank-restarts", wrong]));
        assert!(status.code() == Some(2) && log.contains(what), "{wrong}: {log}");
    }
}

#[test]
fn a_checkpoint_that_was_replaced_meanwhile_is_refused_and_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &Path| fs::copy(name, folder.path().join(name.file_name().unwrap())).unwrap();
    let files = || fs::read_dir(golden_folder("heads5")).unwrap().map(|entry| entry.unwrap().path());
    files().filter(|path| path.is_file()).for_each(|path| assert_ne!(copy(&path), 0));
    let mut server = Server::start(&["--nproc", "2", "--model", folder.path().to_str().unwrap()]);
    let weights = folder.path().join("model.safetensors");
    // The same bytes, in another file of the same name.
    fs::copy(&weights, folder.path().join("other")).unwrap();
    fs::rename(folder.path().join("other"), &weights).unwrap();
    send_signal(server.rank_pids()[0], Signal::KILL);
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(
        server.log().contains("another checkpoint") && server.log().contains("hint: a new start"),
        "{}",
        server.log()
    );
}
