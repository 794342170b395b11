//! Many connections, silent ones, and clients that go without a word.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{HttpOptions, Server, hang_up};
use crate::testing::{Act, Logged, engine, saying, scripted, silent, speak};

const DEADLINE: Duration = Duration::from_secs(10);

/// A request that is never answered.
async fn hanging(server: &Server, started: &mut mpsc::UnboundedReceiver<()>) -> TcpStream {
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    let body = json!({"prompt": "x"}).to_string();
    let request = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    connection.write_all(request.as_bytes()).await.unwrap();
    started.recv().await.unwrap();
    connection
}

#[tokio::test]
async fn a_thousand_connections_that_say_nothing_keep_nobody_out() {
    let options = HttpOptions { max_connections: Some(20), ..HttpOptions::default() };
    let server = Server::with(saying(" ok"), options).await;
    let mut silent = std::collections::VecDeque::new();
    for i in 0..1100 {
        silent.push_back(TcpStream::connect(server.address).await.unwrap());
        if silent.len() > 100 {
            // The oldest ones have lost their places long ago.
            let mut oldest = silent.pop_front().unwrap();
            let read = timeout(DEADLINE, oldest.read(&mut [0; 1])).await.expect("closed by the server");
            assert!(matches!(read, Ok(0) | Err(_)));
        }
        if i % 100 == 99 {
            assert_eq!(server.get("/livez").await.status, 200);
            assert_eq!(server.post("/api/chat", json!({"prompt": "x"})).await.status, 200);
        }
    }
}

#[tokio::test]
async fn where_every_place_is_at_work_probes_are_answered_and_others_told_to_come_back() {
    let (dropped, mut cancelled) = mpsc::unbounded_channel();
    let (seen, mut started) = mpsc::unbounded_channel();
    let handle = scripted(8, move |request| {
        let _ = seen.send(());
        if request.max_tokens == 1 { Act::Events(speak(request, " ok")) } else { Act::Hang(vec![], dropped.clone()) }
    });
    let server = Server::with(engine(handle), HttpOptions { max_connections: Some(2), ..HttpOptions::default() }).await;
    let held = [hanging(&server, &mut started).await, hanging(&server, &mut started).await];
    for path in ["/livez", "/readyz", "/health", "/metrics", "/livez/"] {
        let reply = server.exchange(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(reply.status == 200 && reply.head.contains("connection: close"), "{path}: {}", reply.head);
    }
    let small = json!({"prompt": "x", "max_tokens": 1});
    for _ in 0..100 {
        let reply = server.post("/v1/completions", small.clone()).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("connections_full")));
        assert!(reply.head.contains("retry-after: 1") && reply.head.contains("connection: close"), "{}", reply.head);
    }
    assert_eq!(server.get("/api/tags").await.status, 503);
    drop(held);
    cancelled.recv().await.unwrap();
    cancelled.recv().await.unwrap();
    let served = async { while server.post("/v1/completions", small.clone()).await.status != 200 {} };
    timeout(DEADLINE, served).await.expect("there is a place again");
}

#[tokio::test(start_paused = true)]
async fn the_first_head_must_come_soon_and_a_kept_connection_may_wait_longer() {
    let server = Server::with(saying(" ok"), HttpOptions::default()).await;
    for (said, answers, patience) in
        [("", 0, 10), ("GET /livez HT", 0, 10), ("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 1, 60)]
    {
        let begun = Instant::now();
        let mut connection = TcpStream::connect(server.address).await.unwrap();
        connection.write_all(said.as_bytes()).await.unwrap();
        let mut reply = String::new();
        connection.read_to_string(&mut reply).await.unwrap();
        assert_eq!((reply.matches("200 OK").count(), begun.elapsed().as_secs()), (answers, patience), "{said:?}");
    }
}

#[tokio::test]
async fn bytes_behind_a_body_do_not_hide_that_its_client_has_gone() {
    for (stream, behind) in [(true, 1), (false, 1), (false, 100_000)] {
        hang_up(stream, behind).await;
    }
}

#[tokio::test]
async fn what_is_not_answered_now_is_a_warning_with_its_route() {
    let logged = Logged::start();
    let (handle, _engine) = silent(1);
    let server = Server::start(engine(handle.clone())).await;
    assert_eq!(server.get("/readyz").await.status, 503);
    handle.stop();
    assert_eq!(server.post("/api/chat", json!({"prompt": "x"})).await.status, 503);
    let text = logged.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, method, path) in [(lines[0], "GET", "/readyz"), (lines[1], "POST", "/api/chat")] {
        assert!(line.contains("WARN") && line.contains(method) && line.contains(path), "{line}");
    }
}
