//! Signals, killed ranks, killed launchers, draining: nothing survives, and every end says why.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::server::{Server, is_alive, send_signal, wait_until};

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

#[test]
fn a_signal_lets_running_requests_finish_and_takes_no_new_ones() {
    let mut server = Server::start(&["--nproc", "2"]);
    let body =
        json!({ "prompt": "What is water?", "raw": true, "max_tokens": 200, "temperature": 1.5, "stream": true });
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.post_text("/api/chat", &body.to_string()));
        wait_until("a running request", || server.get("/health").1.contains("running") || running.is_finished());
        server.signal(Signal::TERM);
        let (status, events) = running.join().unwrap();
        assert_eq!(status, 200);
        assert!(events.trim_end().ends_with("data: [DONE]"), "{events}");
    });
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
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
    let mut server = Server::start(&["--nproc", "3"]);
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
        use std::io::{Read, Write};
        let mut socket = std::net::TcpStream::connect(&url).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!("POST /api/chat HTTP/1.1\r\nHost: {url}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        socket.write_all(head.as_bytes()).unwrap();
        socket.read_exact(&mut [0; 64]).unwrap();
    }
    // The only place is free again.
    server.ask("/api/chat", &json!({ "prompt": "Hello!", "max_tokens": 3 }));
}
