//! A hub of our own on loopback with one repository: the routes that the real one answers, and nothing else.
//!
//! As the real one it sends small files to another path of its own, where whoever takes gzip gets it, whole; and large ones
//! to another host, which refuses whoever shows a token, as stores of signed addresses do. [`Manners`] are what else
//! is met on the way.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit that its `main` is.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one repository.
pub(crate) struct FakeHub {
    pub(crate) endpoint: String,
    state: Arc<State>,
}

/// How it behaves worse than it should; by default it does not.
#[derive(Default)]
pub(crate) struct Manners {
    /// Without it the hub says 401.
    pub(crate) token: Option<&'static str>,
    /// Status, code and words with which it refuses everything.
    pub(crate) refuses: Option<(&'static str, &'static str, &'static str)>,
    /// How many answers are this status line, with headers, before it has time.
    pub(crate) busy: (usize, &'static str),
    /// How many long answers break off in the middle.
    pub(crate) breaks: usize,
    /// How many long answers stop in the middle and never go on.
    pub(crate) stalls: usize,
    pub(crate) ranges: Ranges,
    /// Compresses for everybody.
    pub(crate) compresses: bool,
    /// What it lists instead of digests and sizes.
    pub(crate) lists: Lists,
    /// What it says that `main` is.
    pub(crate) commit: Option<&'static str>,
    /// What it lists besides.
    pub(crate) names: Option<&'static str>,
    /// A file that comes with other content of the same size.
    pub(crate) spoils: Option<&'static str>,
}

/// What happens to requests for a part.
#[derive(Default, PartialEq)]
pub(crate) enum Ranges {
    #[default]
    Answered,
    /// The whole comes.
    Ignored,
    /// The part comes and does not say which it is.
    Unsaid,
    /// 416.
    Refused,
}

#[derive(Default, PartialEq)]
pub(crate) enum Lists {
    #[default]
    SizesAndDigests,
    Sizes,
    Names,
    /// This as the digest of everything.
    Digest(&'static str),
}

struct State {
    id: &'static str,
    files: BTreeMap<&'static str, Vec<u8>>,
    manners: Manners,
    /// Where large files are.
    store: String,
    /// Of each of the manners that end.
    left: [AtomicUsize; 3],
    /// Paths asked for and the byte from which, in order; a mutex because every connection has its thread.
    asked: Mutex<Vec<(String, usize)>>,
}

impl FakeHub {
    /// Starts it.
    pub(crate) fn start(id: &'static str, files: BTreeMap<&'static str, Vec<u8>>, manners: Manners) -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [endpoint, store] = [0, 1].map(|i| format!("http://{}", listeners[i].local_addr().unwrap()));
        let left = [manners.busy.0, manners.breaks, manners.stalls].map(AtomicUsize::new);
        let state = Arc::new(State { id, files, manners, store, left, asked: Mutex::default() });
        for (listener, is_store) in listeners.into_iter().zip([false, true]) {
            let served = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let served = Arc::clone(&served);
                    std::thread::spawn(move || served.converse(stream.unwrap(), is_store));
                }
            });
        }
        Self { endpoint, state }
    }

    /// What was asked for since the last call: paths, and the byte from which.
    pub(crate) fn asked(&self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }
}

struct Request {
    path: String,
    from: Option<usize>,
    token: Option<String>,
    gzip: bool,
}

impl Request {
    fn read(lines: &mut impl Iterator<Item = String>) -> Option<Self> {
        let path = lines.next()?.split([' ', '?']).nth(1)?.to_owned();
        let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            let mut values = head.iter().filter_map(|line| line.split_once(": "));
            values.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let from = header("range").map(|range| range["bytes=".len()..].split('-').next().unwrap().parse().unwrap());
        let gzip = header("accept-encoding").is_some_and(|names| names.contains("gzip"));
        Some(Self { path, from, token: header("authorization"), gzip })
    }
}

/// Status line, headers, and body.
type Reply = (String, String, Vec<u8>);

fn reply(status: &str, headers: String, body: &[u8]) -> Reply {
    (status.into(), headers, body.to_vec())
}

impl State {
    fn converse(&self, mut stream: TcpStream, is_store: bool) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        while let Some(request) = Request::read(&mut lines) {
            self.asked.lock().unwrap().push((request.path.clone(), request.from.unwrap_or(0)));
            let (status, headers, body) = if is_store { self.stored(&request) } else { self.answer(&request) };
            let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
            let (breaks, stalls) = match body.len() > 4096 && status.starts_with("20") {
                true => (self.counts(1), self.counts(2)),
                false => (false, false),
            };
            let sent = if breaks || stalls { body.len() / 2 } else { body.len() };
            let written = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent]));
            if written.is_err() || breaks {
                // A client that reads on must see the end.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    /// Whether a manner that ends goes on for this answer.
    fn counts(&self, manner: usize) -> bool {
        self.left[manner].fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
    }

    fn answer(&self, request: &Request) -> Reply {
        let Self { id, manners, .. } = self;
        let path = &request.path;
        if let Some((status, code, words)) = manners.refuses {
            return reply(status, format!("X-Error-Code: {code}\r\nX-Error-Message: {words}\r\n"), b"");
        }
        if manners.token.is_some_and(|token| request.token.as_deref() != Some(&format!("Bearer {token}"))) {
            return reply("401 Unauthorized", String::new(), b"");
        }
        if self.counts(0) {
            return reply(manners.busy.1, String::new(), b"");
        }
        if ["main", COMMIT].iter().any(|revision| *path == format!("/api/models/{id}/revision/{revision}")) {
            return reply("200 OK", String::new(), &self.listing());
        }
        let below = |prefix: String| path.strip_prefix(&prefix).and_then(|name| self.files.get_key_value(name));
        if let Some((name, content)) = below(format!("/api/resolve-cache/models/{id}/{COMMIT}/")) {
            if request.gzip || manners.compresses {
                return reply("200 OK", "Content-Encoding: gzip\r\n".into(), &gzip(content));
            }
            return self.part(name, content, request.from);
        }
        match below(format!("/{id}/resolve/{COMMIT}/")) {
            // Headers that would lead a client out of its cache.
            Some((name, content)) if is_large(name) => {
                let linked = format!("X-Linked-Size: {}\r\nX-Linked-Etag: \"{}\"\r\n", content.len(), sha256(content));
                let location = format!("Location: {}/{name}?Signature=secret\r\n", self.store);
                reply("302 Found", format!("{HOSTILE}{linked}{location}"), b"")
            }
            Some((name, _)) => {
                let location = format!("Location: /api/resolve-cache/models/{id}/{COMMIT}/{name}?%2Fx=1\r\n");
                reply("307 Temporary Redirect", format!("{HOSTILE}{location}"), b"")
            }
            None => reply("404 Not Found", String::new(), b""),
        }
    }

    /// As a store answers whom the hub has sent.
    fn stored(&self, request: &Request) -> Reply {
        match self.files.get_key_value(&request.path[1..]) {
            _ if request.token.is_some() => reply("400 Bad Request", String::new(), b"only one way to be known"),
            Some((name, content)) => self.part(name, content, request.from),
            None => reply("403 Forbidden", String::new(), b""),
        }
    }

    fn part(&self, name: &str, content: &[u8], from: Option<usize>) -> Reply {
        let mut content = content.to_vec();
        if self.manners.spoils == Some(name) {
            *content.last_mut().unwrap() ^= 1;
        }
        match (from, &self.manners.ranges) {
            (None, _) | (_, Ranges::Ignored) => reply("200 OK", HOSTILE.into(), &content),
            (Some(from), Ranges::Answered) if from < content.len() => {
                let (last, all) = (content.len() - 1, content.len());
                let range = format!("{HOSTILE}Content-Range: bytes {from}-{last}/{all}\r\n");
                reply("206 Partial Content", range, &content[from..])
            }
            (Some(from), Ranges::Unsaid) => reply("206 Partial Content", String::new(), &content[from..]),
            _ => reply("416 Range Not Satisfiable", format!("Content-Range: bytes */{}\r\n", content.len()), b""),
        }
    }

    fn listing(&self) -> Vec<u8> {
        let sibling = |(name, content): (&&str, &Vec<u8>)| {
            let (size, id) = (content.len(), git_blob(content));
            match self.manners.lists {
                Lists::Names => serde_json::json!({"rfilename": name}),
                Lists::Sizes => serde_json::json!({"rfilename": name, "size": size}),
                Lists::Digest(digest) => serde_json::json!({"rfilename": name, "size": size, "blobId": digest}),
                Lists::SizesAndDigests if is_large(name) => serde_json::json!({
                    // Of the pointer that git keeps in the file's place.
                    "rfilename": name, "size": size, "blobId": git_blob(b"pointer"),
                    "lfs": {"sha256": sha256(content), "size": size, "pointerSize": 134},
                }),
                Lists::SizesAndDigests => serde_json::json!({"rfilename": name, "size": size, "blobId": id}),
            }
        };
        let besides = self.manners.names.map(|name| serde_json::json!({"rfilename": name}));
        let siblings: Vec<_> = self.files.iter().map(sibling).chain(besides).collect();
        let commit = self.manners.commit.unwrap_or(COMMIT);
        serde_json::json!({"id": self.id, "sha": commit, "siblings": siblings}).to_string().into_bytes()
    }
}

const HOSTILE: &str = "ETag: \"/tmp/../../etag\"\r\nX-Repo-Commit: ../../commit\r\n";

/// Whether the hub keeps a file beside git.
pub(crate) fn is_large(name: &str) -> bool {
    [".safetensors", ".bin"].iter().any(|end| name.ends_with(end))
}

pub(crate) fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// What git calls a file's content.
pub(crate) fn git_blob(content: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize())
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Well-formed, and stored as it is (RFC 1952, RFC 1951).
fn gzip(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = content.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        let len = block.len() as u16;
        out.push(u8::from(blocks.peek().is_none()));
        out.extend([len.to_le_bytes(), (!len).to_le_bytes()].concat());
        out.extend(block);
    }
    let crc = content
        .iter()
        .fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1))));
    out.extend([(!crc).to_le_bytes(), (content.len() as u32).to_le_bytes()].concat());
    out
}
