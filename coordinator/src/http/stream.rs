//! Answers that are sent while they are made: server-sent events, or one JSON object a line.
//!
//! Knows framing; what the objects say is up to a [`Writer`]. A client that hangs up drops the body, and with it the
//! [`Generation`], which cancels it.

use std::{collections::HashSet, convert::Infallible};

use axum::{
    Json,
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::error::Failure;
use crate::text::{Chunk, Generation};

/// Tells of what was left out of a request, or changed to make its prompt fit, before the answer starts.
const WARNING: HeaderName = HeaderName::from_static("x-nanoinfer-warning");

/// Most bytes of warnings in a header: clients take 8 KiB of all headers together. The body has them all.
const MAX_WARNING_BYTES: usize = 2048;

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
    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }
    /// For a piece of a choice; nothing if the protocol has nothing to say.
    fn chunk(&mut self, chunk: Chunk) -> Vec<Value>;
    /// After the last choice has ended.
    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }
    /// Instead of all that would have followed.
    fn failure(&mut self, failure: &Failure) -> Value;
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
            let (objects, done, next) = state.step().await?;
            state = next;
            let bytes = frame(framing, &objects, done);
            if !bytes.is_empty() {
                return Some((Ok::<_, Infallible>(Bytes::from(bytes)), state));
            }
        }
    });
    (headers, Body::from_stream(lines)).into_response()
}

/// A response that comes at once, an object.
pub(super) fn whole(mut body: Value, warnings: &[String]) -> Response {
    if !warnings.is_empty() {
        body["warnings"] = warnings.into();
    }
    (warning_headers(warnings), Json(body)).into_response()
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
    /// What to write next, whether that ends the stream well, and how to go on.
    async fn step(self) -> Option<(Vec<Value>, bool, Self)> {
        match self {
            Self::Begin(generation, mut writer) => Some((writer.begin(), false, Self::Running(generation, writer))),
            Self::Running(mut generation, mut writer) => match generation.next().await {
                Some(Ok(chunk)) => Some((writer.chunk(chunk), false, Self::Running(generation, writer))),
                Some(Err(error)) => {
                    tracing::warn!(%error, "a stream broke off");
                    Some((vec![writer.failure(&error.into())], false, Self::Over))
                }
                None => Some((writer.end(), true, Self::Over)),
            },
            Self::Over => None,
        }
    }
}

fn frame(framing: Framing, objects: &[Value], done: bool) -> String {
    let mut out = String::new();
    for object in objects {
        let object = one_line(object.to_string());
        match framing {
            Framing::Sse => out += &format!("data: {object}\n\n"),
            Framing::Ndjson => out += &format!("{object}\n"),
        }
    }
    if done && framing == Framing::Sse {
        out += "data: [DONE]\n\n";
    }
    out
}

/// JSON that is one line to everybody: Python's `splitlines`, which httpx reads streams with, also breaks at these.
fn one_line(json: String) -> String {
    const BREAKS: [(char, &str); 3] = [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];
    // They stand in strings only, where they may be escaped.
    if json.contains(BREAKS.map(|(character, _)| character)) {
        BREAKS.iter().fold(json, |json, (character, escaped)| json.replace(*character, escaped))
    } else {
        json
    }
}
