//! Signals, killed ranks, killed launchers, draining: nothing survives, and every end says why.

use std::{
    io::{BufReader, Read},
    net::TcpStream,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::server::{Server, cpu_time, is_alive, launcher, send_signal, through, wait_until};

#[test]
fn sigterm_and_sigint_stop_everything_with_exit_code_0() {
    for (signal, nproc) in [(Signal::TERM, "2"), (Signal::INT, "3"), (Signal::TERM, "1")] {
        let mut server = Server::start(&["--nproc", nproc]);
        let ranks = server.rank_pids();
        assert_eq!(ranks.len(), if nproc == "1" { 0 } else { nproc.parse().unwrap() });
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(ranks.iter().all(|&pid| !is_alive(pid)));
    }
}

/// A request that streams some 250 tokens.
fn long_stream() -> Value {
    json!({ "prompt": "Once", "raw": true, "max_tokens": 250, "temperature": 1.5, "seed": 1, "stream": true })
}

/// The rest of a stream.
fn rest(mut stream: BufReader<TcpStream>) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_signal_lets_running_requests_finish_and_takes_no_new_ones() {
    let mut server = Server::start(&["--nproc", "2"]);
    let (running, _) = server.open_stream("/api/chat", &long_stream());
    server.signal(Signal::TERM);
    server.await_line("SIGTERM");
    let (status, refusal) = server.post_text("/api/chat", r#"{"prompt":"Hello!"}"#);
    assert_eq!(status, 503, "{refusal}");
    assert!(rest(running).trim_end().ends_with("data: [DONE]"));
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn a_signal_to_the_process_and_its_group_is_one() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        // Passes what it gets on to its child, and then to its whole group.
        let mut server = Server::spawn(through(&["timeout", "600"], &launcher(&["--nproc", "2", "--port", "0"])));
        server.await_ready();
        let (running, _) = server.open_stream("/api/chat", &long_stream());
        server.signal(signal);
        assert!(rest(running).trim_end().ends_with("data: [DONE]"), "{signal:?}: {}", server.log());
        server.wait();
        let log = server.log();
        assert!(log.contains(": finishing") && !log.contains("cutting off"), "{signal:?}: {log}");
    }
}

#[test]
fn ranks_leave_stopping_to_the_launcher() {
    let mut server = Server::start(&["--nproc", "2"]);
    let (running, _) = server.open_stream("/api/chat", &long_stream());
    // As systemd and `pkill` signal all processes of a service.
    for rank in server.rank_pids() {
        [Signal::TERM, Signal::INT, Signal::HUP].into_iter().for_each(|signal| send_signal(rank, signal));
    }
    server.signal(Signal::TERM);
    assert!(rest(running).trim_end().ends_with("data: [DONE]"), "{}", server.log());
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn a_server_that_nohup_started_outlives_its_terminal() {
    let mut server = Server::spawn(through(&["nohup"], &launcher(&["--port", "0"])));
    server.await_ready();
    server.signal(Signal::HUP);
    server.ask("/api/chat", &json!({ "prompt": "Hello!", "max_tokens": 3 }));
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(!server.log().contains("SIGHUP"), "{}", server.log());
}

#[test]
fn a_stream_that_is_cut_off_ends_with_an_error() {
    // Twelve sequences of 250 tokens, one after the other, take far longer than the time-out.
    let body = json!({ "prompt": "Once", "max_tokens": 250, "n": 12, "ignore_eos": true, "stream": true });
    for (timeout, second_signal, code) in [("10ms", false, 0), ("1h", true, 1)] {
        let mut server = Server::start(&["--threads", "1", "--max-seqs", "1", "--shutdown-timeout", timeout]);
        let (running, _) = server.open_stream("/v1/completions", &body);
        server.signal(Signal::TERM);
        if second_signal {
            server.await_line("finishing");
            // What comes too soon is the first one's echo.
            wait_until("a second wish", || {
                server.signal(Signal::TERM);
                server.log().contains("a second signal")
            });
        }
        let events = rest(running);
        let last = events.trim_end().lines().last().unwrap_or_default();
        assert!(last.contains("error") && last.contains("shutting down"), "{events}");
        assert_eq!(server.wait().code(), Some(code), "{}", server.log());
    }
}

#[test]
fn a_rank_that_dies_under_load_ends_streams_with_an_error() {
    let mut server = Server::start(&["--nproc", "3", "--on-rank-loss", "exit"]);
    let ranks = server.rank_pids();
    let (running, _) = server.open_stream("/api/chat", &long_stream());
    send_signal(ranks[2], Signal::KILL);
    let events = rest(running);
    let last = events.trim_end().lines().last().unwrap_or_default();
    assert!(last.starts_with("data: {\"error\""), "{events}");
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(server.log().contains("rank 2 was killed"), "{}", server.log());
    assert!(ranks.iter().all(|&pid| !is_alive(pid)));
}

#[test]
fn no_rank_survives_a_killed_launcher() {
    let mut server = Server::start(&["--nproc", "3"]);
    let ranks = server.rank_pids();
    assert_eq!(ranks.len(), 3);
    server.signal(Signal::KILL);
    server.wait();
    wait_until("the ranks' end", || ranks.iter().all(|&pid| !is_alive(pid)));
}

#[test]
fn a_dead_rank_ends_the_cluster_and_is_named() {
    let mut server = Server::start(&["--nproc", "3", "--on-rank-loss", "exit"]);
    let ranks = server.rank_pids();
    send_signal(ranks[1], Signal::KILL);
    let status = server.wait();
    assert_eq!(status.code(), Some(1), "{}", server.log());
    server.await_line("rank 1");
    assert!(server.log().contains("SIGKILL") || server.log().contains("signal: 9"), "{}", server.log());
    assert!(ranks.iter().all(|&pid| !is_alive(pid)));
}

#[test]
fn a_stopped_rank_makes_the_server_unready_and_a_continued_one_ready_again() {
    let server = Server::start(&["--nproc", "2"]);
    assert_eq!(server.get("/readyz").0, 200);
    let rank = server.rank_pids()[1];
    send_signal(rank, Signal::STOP);
    wait_until("unreadiness", || server.get("/readyz").0 == 503);
    assert_eq!(server.get("/livez").0, 200);
    send_signal(rank, Signal::CONT);
    wait_until("readiness", || server.get("/readyz").0 == 200);
    server.ask("/api/chat", &json!({ "prompt": "Hello!" }));
}

#[test]
fn a_client_that_hangs_up_frees_its_place() {
    let server = Server::start(&["--max-seqs", "1"]);
    let url = server.url.strip_prefix("http://").unwrap().to_owned();
    let body =
        json!({ "prompt": "Once", "raw": true, "max_tokens": 250, "temperature": 2.0, "stream": true }).to_string();
    for _ in 0..3 {
        // A client that sends its request, reads the first bytes of the answer, and is gone.
        use std::io::Write;
        let mut socket = std::net::TcpStream::connect(&url).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!("POST /api/chat HTTP/1.1\r\nHost: {url}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        socket.write_all(head.as_bytes()).unwrap();
        socket.read_exact(&mut [0; 64]).unwrap();
    }
    // The only place is free again.
    server.ask("/api/chat", &json!({ "prompt": "Hello!", "max_tokens": 3 }));
}

#[test]
fn a_second_after_an_answer_nothing_spins() {
    for nproc in ["1", "2"] {
        let server = Server::start(&["--nproc", nproc]);
        server.ask("/api/chat", &json!({ "prompt": "What is a cat?" }));
        std::thread::sleep(Duration::from_secs(1));
        let pids = || [&[server.pid()][..], &server.rank_pids()].concat();
        let used = || pids().into_iter().map(cpu_time).sum::<Duration>();
        let (before, watched) = (used(), Duration::from_secs(5));
        std::thread::sleep(watched);
        // Its own time, which no other process lengthens: 1 % of a core.
        assert!(used() - before < watched / 100, "nproc {nproc}: {:?}", used() - before);
    }
}
