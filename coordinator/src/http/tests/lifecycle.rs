//! Readiness, load, hang-ups and the end.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use super::{HttpOptions, Server, hang_up};
use crate::testing::{Act, Logged, engine, saying, scripted, silent, speak};

const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn probes_tell_ready_from_not() {
    let (handle, _receiver) = silent(1);
    let status = handle.status.clone();
    let server = Server::start(engine(handle)).await;
    let codes = async || {
        let mut codes = Vec::new();
        for path in ["/livez", "/readyz", "/health", "/api/health"] {
            codes.push(server.get(path).await.status);
        }
        codes
    };
    assert_eq!(codes().await, [200, 503, 503, 503]);
    status.set_ready(true);
    assert_eq!(codes().await, [200, 200, 200, 200]);
    assert_eq!(server.get("/api/health").await.json(), json!({"status": "healthy", "model_loaded": true}));
    status.fail("rank 1 died");
    assert_eq!(codes().await, [200, 503, 503, 503]);
    assert!(server.get("/readyz").await.body.contains("rank 1 died"));
}

#[tokio::test]
async fn who_is_there_is_told() {
    let server = Server::start(saying("x")).await;
    let version = server.get("/api/version").await.json();
    assert_eq!(version["nanoinfer"], "0.1.0-test");
    // As Open WebUI reads it.
    let parts: Vec<u32> = version["version"].as_str().unwrap().split('.').map(|part| part.parse().unwrap()).collect();
    assert!(parts >= vec![0, 6, 4], "{parts:?}");
    let tags = server.get("/api/tags").await.json();
    assert_eq!(
        (&tags["models"][0]["name"], &tags["models"][0]["model"]),
        (&json!("someone/nano-chat"), &json!("someone/nano-chat"))
    );
    let models = server.get("/v1/models").await.json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("someone/nano-chat")));
    let info = server.get("/api/model_info").await.json();
    assert_eq!((&info["config"]["n_positions"], &info["nproc"]), (&json!(256), &json!(2)));
    assert_eq!(server.get("/").await.status, 200);
    let head = server.send("HEAD", "/", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_full_queue_says_when_to_try_again() {
    let (handle, receiver) = silent(1);
    let server = Server::start(engine(handle.clone())).await;
    let _held = engine(handle.clone())
        .generate(crate::text::GenerateRequest::new(
            crate::text::Prompt::single_turn("x"),
            crate::request::SamplingParams::greedy(),
            crate::text::MaxTokens::Given(1),
        ))
        .await
        .unwrap();
    for (path, body) in
        [("/api/chat", json!({"prompt": "x"})), ("/v1/completions", json!({"prompt": "x", "stream": true}))]
    {
        let reply = server.post(path, body).await;
        assert_eq!(reply.status, 429, "{}", reply.body);
        assert!(reply.head.contains("retry-after: 1"));
    }
    handle.stop();
    assert_eq!(server.post("/api/chat", json!({"prompt": "x"})).await.status, 503);
    assert_eq!(server.get("/v1/nothing").await.status, 404);
    let metrics = server.get("/metrics").await.body;
    for (status, times) in [(429, 2), (503, 1), (404, 1)] {
        let line = format!("\nnanoinfer_http_requests_refused_total{{status=\"{status}\"}} {times}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    assert_eq!(server.get("/readyz").await.status, 503);
    drop(receiver);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_sequences() {
    for stream in [true, false] {
        hang_up(stream, 0).await;
    }
}

#[tokio::test]
async fn a_deadline_is_kept_and_no_error_of_the_server() {
    let logged = Logged::start();
    let (dropped, mut cancelled) = mpsc::unbounded_channel();
    let handle = scripted(4, move |_| Act::Hang(vec![], dropped.clone()));
    let server = Server::start(engine(handle)).await;
    let reply = server.post("/v1/completions", json!({"prompt": "x", "timeout_s": 0.07})).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &json!("timeout")));
    assert!(reply.body.contains("timeout of 0.07 s has passed"), "{}", reply.body);
    assert_eq!(cancelled.recv().await, Some(0));
    let text = logged.text();
    assert!(text.contains("WARN") && text.contains("own time ran out") && !text.contains("ERROR"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_too_long_to_ask_is_cut_off_and_who_waits_for_an_answer_is_not() {
    let read_deadline = Duration::from_millis(200);
    let handle = scripted(4, move |request| {
        tokio::task::block_in_place(|| std::thread::sleep(3 * read_deadline));
        Act::Events(speak(request, " Hello"))
    });
    let server = Server::with(engine(handle), HttpOptions { read_deadline, ..HttpOptions::default() }).await;
    let body = json!({"prompt": "x"}).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", body.len() + 1);
    for (said, answer) in [("", ""), (&head[..20], ""), (&head, ""), (&format!("{head}\r\n{body}"), "HTTP/1.1 408 ")] {
        let mut connection = TcpStream::connect(server.address).await.unwrap();
        connection.write_all(said.as_bytes()).await.unwrap();
        let mut reply = String::new();
        timeout(DEADLINE, connection.read_to_string(&mut reply)).await.expect("closed in time").unwrap();
        assert!(reply.starts_with(answer) && reply.is_empty() == answer.is_empty(), "{said:?}: {reply}");
    }
    assert_eq!(server.post("/v1/completions", json!({"prompt": "x"})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_what_runs_and_takes_nothing_new() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (seen, mut started) = mpsc::unbounded_channel();
    let handle = scripted(4, move |request| {
        let _ = seen.send(());
        // Blocks the script's own task only: other worker threads serve.
        tokio::task::block_in_place(|| wait.recv().ok());
        Act::Events(speak(request, " Hello"))
    });
    let mut server = Server::start(engine(handle)).await;
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    let body = json!({"prompt": "x", "stream": true}).to_string();
    let request = format!("POST /api/chat HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    connection.write_all(request.as_bytes()).await.unwrap();
    started.recv().await.unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    let refused = async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, refused).await.expect("the listener closes");
    go.send(()).unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).await.unwrap();
    assert!(reply.ends_with("data: [DONE]\n\n"), "{reply}");
    timeout(DEADLINE, &mut server.task).await.expect("serve returns").unwrap().unwrap();
}
