//! Routes against a scripted engine, over real sockets.

mod bad_input;
mod calculator;
mod completions;
mod constraints;
mod conversations;
mod crowds;
mod lifecycle;
mod neighbours;
mod openai_fields;
mod replies;
mod responses;
mod surroundings;
mod thinking;
mod tools;
mod unbuilt;

use std::{net::SocketAddr, sync::mpsc, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::{HttpOptions, serve};
use crate::{
    request::Request,
    testing::{Act, engine, scripted, speak},
    text::TextEngine,
};

/// A server that says " ok", and tells what was asked of its engine.
async fn observed() -> (Server, mpsc::Receiver<Request>) {
    let (seen, requests) = mpsc::channel();
    let handle = scripted(64, move |request| {
        let _ = seen.send(request.clone());
        Act::Events(speak(request, " ok"))
    });
    (Server::start(engine(handle)).await, requests)
}

/// Asks for an answer, sends so many bytes behind the request, and hangs up once its sequence has begun, which must be cancelled.
async fn hang_up(stream: bool, behind: usize) {
    let (dropped, mut cancelled) = tokio::sync::mpsc::unbounded_channel();
    let (seen, mut started) = tokio::sync::mpsc::unbounded_channel();
    let handle = scripted(4, move |request| {
        let _ = seen.send(());
        Act::Hang(speak(request, " Hello")[..1].to_vec(), dropped.clone())
    });
    let server = Server::start(engine(handle)).await;
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    let body = serde_json::json!({"prompt": "x", "stream": stream}).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    // At once, so that the first of them come with the body.
    let all = head + &body + &"x".repeat(behind);
    connection.write_all(all.as_bytes()).await.unwrap();
    started.recv().await.unwrap();
    drop(connection);
    let choice = timeout(Duration::from_secs(10), cancelled.recv()).await.expect("cancelled in time");
    assert_eq!(choice, Some(0), "stream: {stream}, {behind} bytes");
}

/// A server on a port of its own.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Server {
    async fn start(engine: TextEngine) -> Self {
        Self::with(engine, HttpOptions::default()).await
    }

    async fn with(engine: TextEngine, mut options: HttpOptions) -> Self {
        // What the tests here call it.
        options.allowed_hosts.push("x".into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(listener, engine, options, shutdown));
        Self { address, stop: Some(stop), task }
    }

    /// HTTP/1.0, so that bodies come as they are and end with the connection.
    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.0\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        self.exchange(&request).await
    }

    /// Sends a request as it stands, after whose answer the connection is closed.
    async fn exchange(&self, request: &str) -> Reply {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        connection.read_to_end(&mut bytes).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, "", "").await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.send("POST", path, "Content-Type: application/json\r\n", &body.to_string()).await
    }

    /// Posts what should be answered with 200 and JSON.
    async fn ask(&self, path: &str, body: Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()
    }
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    /// Events of server-sent events; the last may be `[DONE]`.
    fn events(&self) -> Vec<String> {
        assert!(self.head.contains("content-type: text/event-stream"), "{}", self.head);
        let (events, rest) = self.body.rsplit_once("\n\n").unwrap();
        assert_eq!(rest, "");
        events.split("\n\n").map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }

    /// Objects of server-sent events that end well.
    fn objects(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    fn lines(&self) -> Vec<Value> {
        assert!(self.head.contains("content-type: application/x-ndjson"), "{}", self.head);
        assert!(self.body.ends_with('\n'));
        self.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
