//! A hub of our own on loopback with one repository: the routes that the real one answers, and nothing else.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

/// The commit that its `main` is.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one repository.
pub(crate) struct FakeHub {
    pub(crate) endpoint: String,
    state: Arc<State>,
}

struct State {
    id: &'static str,
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Without it the hub says 401.
    token: Option<&'static str>,
    /// How many more answers break off in the middle.
    breaks: AtomicUsize,
    /// Paths asked for and the byte from which, in order; a mutex because every connection has its thread.
    asked: Mutex<Vec<(String, usize)>>,
}

impl FakeHub {
    /// Starts it; with a token, for those who show it.
    pub(crate) fn start(id: &'static str, files: BTreeMap<&'static str, Vec<u8>>, token: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State { id, files, token, breaks: AtomicUsize::new(0), asked: Mutex::default() });
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let served = Arc::clone(&served);
                std::thread::spawn(move || converse(stream.unwrap(), &served));
            }
        });
        Self { endpoint, state }
    }

    /// Breaks off the next `count` long answers in the middle.
    pub(crate) fn break_off(&self, count: usize) {
        self.state.breaks.store(count, SeqCst);
    }

    /// What was asked for since the last call: paths, and the byte from which.
    pub(crate) fn asked(&self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }
}

fn converse(mut stream: TcpStream, hub: &State) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        let head: Vec<(String, String)> = lines
            .by_ref()
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
            .collect();
        let header = |name: &str| head.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let path = request.split([' ', '?']).nth(1).unwrap();
        let range = header("range").and_then(|value| {
            let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse::<usize>().unwrap(), to.parse::<usize>().ok()))
        });
        let (from, to) = range.unwrap_or((0, None));
        hub.asked.lock().unwrap().push((path.to_string(), from));
        let allowed = hub.token.is_none_or(|token| header("authorization") == Some(&format!("Bearer {token}")));
        let listing = path == format!("/api/models/{}/revision/main", hub.id);
        let file =
            path.strip_prefix(&format!("/{}/resolve/{COMMIT}/", hub.id)).and_then(|name| hub.files.get_key_value(name));
        let (status, headers, body) = if !allowed {
            ("401 Unauthorized", String::new(), Vec::new())
        } else if listing {
            let sibling =
                |(name, content): (&&str, &Vec<u8>)| serde_json::json!({"rfilename": name, "size": content.len()});
            let siblings: Vec<_> = hub.files.iter().map(sibling).collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            ("200 OK", String::new(), body.into_bytes())
        } else if let Some((name, content)) = file {
            let to = to.map_or(content.len(), |to| to + 1).min(content.len());
            let headers = format!(
                "ETag: \"tag-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
                name.replace('.', "-"),
                to.saturating_sub(1),
                content.len()
            );
            ("206 Partial Content", headers, content[from..to].to_vec())
        } else {
            ("404 Not Found", String::new(), Vec::new())
        };
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        let breaks = body.len() > 4096 && hub.breaks.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        let sent = if breaks { body.len() / 2 } else { body.len() };
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent])).is_err() || breaks {
            // A client that reads on must see the end.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}
