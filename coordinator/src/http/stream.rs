//! How answers leave: while they are made, as server-sent events or one JSON object a line; or once they are, whole.
//!
//! Knows framing; what the objects say is up to a [`Writer`]. A client that hangs up drops the body, and with it the
//! [`Generation`], which cancels it. Invariant: of a whole answer no more is there as JSON than the piece that is being
//! sent and the next; the rest is numbers.

use std::{collections::HashSet, convert::Infallible, io};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::error::Failure;
use crate::text::{Chunk, Generation};

/// Tells of what was left out of a request, or changed to make its prompt fit, before the answer starts.
const WARNING: HeaderName = HeaderName::from_static("x-nanoinfer-warning");

/// Most bytes of warnings in a header: clients take 8 KiB of all headers together. The body has them all.
const MAX_WARNING_BYTES: usize = 2048;

/// Whole answers up to this size are sent with their length, in one piece.
const AT_ONCE_BYTES: usize = 64 << 10;

/// How objects follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// `data: {…}` and an empty line each; `data: [DONE]` after a good end.
    Sse,
    /// One object a line.
    Ndjson,
}

/// One protocol's way to tell of a generation.
pub(super) trait Writer: Send + 'static {
    /// Before anything is generated.
    fn begin(&mut self, _: &mut Objects) {}
    /// For a piece of a choice; nothing if the protocol has nothing to say.
    fn chunk(&mut self, chunk: Chunk, out: &mut Objects);
    /// After the last choice has ended.
    fn end(&mut self, _: &mut Objects) {}
    /// Instead of all that would have followed.
    fn failure(&mut self, failure: &Failure, out: &mut Objects);
}

/// Objects of a stream, as they go out.
#[derive(Debug)]
pub(super) struct Objects {
    framing: Framing,
    bytes: Vec<u8>,
}

impl Objects {
    /// Adds one.
    pub(super) fn push(&mut self, object: &impl Serialize) {
        if self.framing == Framing::Sse {
            self.bytes.extend_from_slice(b"data: ");
        }
        let mut serializer = Serializer::with_formatter(&mut self.bytes, OneLine);
        object.serialize(&mut serializer).expect(ALWAYS_JSON);
        self.bytes.extend_from_slice(match self.framing {
            Framing::Sse => b"\n\n",
            Framing::Ndjson => b"\n",
        });
    }
}

/// Replies have string keys and are written to memory.
const ALWAYS_JSON: &str = "texts, numbers and lists of them are always JSON";

/// The JSON of an object, or of a part of one.
pub(super) fn json(object: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(object).expect(ALWAYS_JSON)
}

/// A response that streams.
pub(super) fn respond(framing: Framing, generation: Generation, writer: impl Writer, warnings: &[String]) -> Response {
    let mut headers = warning_headers(warnings);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(match framing {
            Framing::Sse => "text/event-stream; charset=utf-8",
            Framing::Ndjson => "application/x-ndjson",
        }),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Otherwise nginx collects the pieces.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    let lines = stream::unfold(State::Begin(generation, writer), move |mut state| async move {
        loop {
            let mut out = Objects { framing, bytes: Vec::new() };
            state = state.step(&mut out).await?;
            if !out.bytes.is_empty() {
                return Some((Ok::<_, Infallible>(Bytes::from(out.bytes)), state));
            }
        }
    });
    (headers, Body::from_stream(lines)).into_response()
}

/// A response that comes at once, an object.
pub(super) fn whole(body: &impl Serialize, warnings: &[String]) -> Response {
    in_pieces(std::iter::once(json(body)), warnings)
}

/// The same in pieces, each made when the one before is on its way.
pub(super) fn in_pieces(pieces: impl Iterator<Item = Vec<u8>> + Send + 'static, warnings: &[String]) -> Response {
    let mut headers = warning_headers(warnings);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut pieces = pieces;
    let mut first = Vec::new();
    let body = loop {
        match pieces.next() {
            Some(piece) if first.is_empty() => first = piece,
            Some(piece) => first.extend_from_slice(&piece),
            None => break Body::from(first),
        }
        if first.len() > AT_ONCE_BYTES {
            let rest = std::iter::once(first).chain(pieces);
            break Body::from_stream(stream::iter(rest.map(Ok::<_, Infallible>)));
        }
    };
    (headers, body).into_response()
}

/// What a reply has to say of its request: what was left out of it, and what was changed to make its prompts fit; each
/// once.
pub(super) fn warnings(left_out: Vec<String>, generation: &Generation) -> Vec<String> {
    let mut said = HashSet::new();
    left_out.into_iter().chain(generation.warnings()).filter(|warning| said.insert(warning.clone())).collect()
}

fn warning_headers(warnings: &[String]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if warnings.is_empty() {
        return headers;
    }
    let mut text = String::new();
    for (i, warning) in warnings.iter().enumerate() {
        if text.len() + warning.len() > MAX_WARNING_BYTES && i > 0 {
            text += &format!("; and {} more", warnings.len() - i);
            break;
        }
        text += if i > 0 { "; " } else { "" };
        text += warning;
    }
    // Headers are ASCII.
    let text: String = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(WARNING, value);
    }
    headers
}

enum State<W> {
    Begin(Generation, W),
    Running(Generation, W),
    Over,
}

impl<W: Writer> State<W> {
    /// Writes what is next; how to go on.
    async fn step(self, out: &mut Objects) -> Option<Self> {
        match self {
            Self::Begin(generation, mut writer) => {
                writer.begin(out);
                Some(Self::Running(generation, writer))
            }
            Self::Running(mut generation, mut writer) => match generation.next().await {
                Some(Ok(chunk)) => {
                    writer.chunk(chunk, out);
                    Some(Self::Running(generation, writer))
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a stream broke off");
                    writer.failure(&error.into(), out);
                    Some(Self::Over)
                }
                None => {
                    writer.end(out);
                    if out.framing == Framing::Sse {
                        out.bytes.extend_from_slice(b"data: [DONE]\n\n");
                    }
                    Some(Self::Over)
                }
            },
            Self::Over => None,
        }
    }
}

/// JSON that is one line to everybody: Python's `splitlines`, which httpx reads streams with, also breaks at these, which
/// stand in strings only.
struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, character)) =
            rest.char_indices().find(|(_, c)| matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}'))
        {
            write!(writer, "{}\\u{:04x}", &rest[..at], u32::from(character))?;
            rest = &rest[at + character.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}
