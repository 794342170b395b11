//! How answers leave: while they are made, as server-sent events or one JSON object a line; or once they are, whole.
//!
//! Knows framing; what the objects say is up to a [`Writer`]. A client that hangs up drops the body, and with it the
//! [`Generation`], which cancels it. Invariant: of a whole answer no more is there as JSON than the piece that is being
//! sent and the next; the rest is numbers.

use std::{collections::HashSet, convert::Infallible, io, iter};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::{
    App,
    error::{Failure, Form},
};
use crate::text::{Chunk, GenerateRequest, Generation};

/// Tells of what was left out of a request, or changed to make its prompt fit, before the answer starts.
const WARNING: HeaderName = HeaderName::from_static("x-nanoinfer-warning");

/// Most bytes of warnings in a header: clients take 8 KiB of all headers together. The body has them all.
const MAX_WARNING_BYTES: usize = 2048;

/// Whole answers up to this size are sent with their length, in one piece.
const AT_ONCE_BYTES: usize = 64 << 10;

/// How objects follow each other.
#[derive(Debug)]
pub(super) struct Framing {
    pub(super) content_type: &'static str,
    /// Stands before each object.
    pub(super) before: &'static str,
    /// Stands behind it.
    pub(super) behind: &'static str,
    /// Says that the end is a good one.
    pub(super) done: &'static str,
}

/// Server-sent events.
pub(super) const SSE: Framing = Framing {
    content_type: "text/event-stream; charset=utf-8",
    before: "data: ",
    behind: "\n\n",
    done: "data: [DONE]\n\n",
};

/// One object a line.
pub(super) const NDJSON: Framing = Framing { content_type: "application/x-ndjson", before: "", behind: "\n", done: "" };

/// One protocol's way to tell of a generation: piece by piece, or folded into one object.
pub(super) trait Writer: Send + Sized + 'static {
    /// How the objects of a stream follow each other.
    const FRAMING: &'static Framing;
    /// How a failure looks to its clients.
    const FORM: Form;

    /// Counts a piece of a choice, streamed or not.
    fn count(&mut self, _: &Chunk) {}
    /// What a stream says before anything is generated.
    fn begin(&mut self, _: &mut Objects) {}
    /// What it says of a piece; nothing if the protocol has nothing to say.
    fn piece(&mut self, chunk: &Chunk, out: &mut Objects);
    /// What it says after the last choice has ended.
    fn end(&mut self, _: &mut Objects) {}
    /// What it says instead of all that would have followed.
    fn fail(&mut self, failure: &Failure, out: &mut Objects) {
        out.push(&failure.body(Self::FORM));
    }
    /// The one object of an answer that does not stream, in pieces: of each choice all that came.
    fn whole(self, choices: Vec<Chunk>) -> impl Iterator<Item = Vec<u8>> + Send + 'static;
}

/// Objects of a stream, as they go out.
#[derive(Debug)]
pub(super) struct Objects {
    framing: &'static Framing,
    bytes: Vec<u8>,
}

impl Objects {
    /// Adds one.
    pub(super) fn push(&mut self, object: &impl Serialize) {
        self.bytes.extend_from_slice(self.framing.before.as_bytes());
        let mut serializer = Serializer::with_formatter(&mut self.bytes, OneLine);
        object.serialize(&mut serializer).expect(ALWAYS_JSON);
        self.bytes.extend_from_slice(self.framing.behind.as_bytes());
    }

    /// Adds a server-sent event with a name.
    pub(super) fn push_named(&mut self, name: &str, object: &impl Serialize) {
        self.bytes.extend_from_slice(format!("event: {name}\n").as_bytes());
        self.push(object);
    }
}

/// Replies have string keys and are written to memory.
const ALWAYS_JSON: &str = "texts, numbers and lists of them are always JSON";

/// The JSON of an object, or of a part of one.
pub(super) fn json(object: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(object).expect(ALWAYS_JSON)
}

/// Generates, and answers as the request wants it. `left_out` is what the reply is to say of the request; all that it has to say
/// comes to the writer.
pub(super) async fn answer<W: Writer>(
    app: &App,
    request: GenerateRequest,
    left_out: Vec<String>,
    streams: bool,
    writer: impl FnOnce(&Generation, Vec<String>) -> W,
) -> Result<Response, Failure> {
    let generation = app.engine.generate(request).await?;
    // What was left out of the request, and what was changed to make its prompts fit; each once.
    let mut said = HashSet::new();
    let warnings = left_out.into_iter().chain(generation.warnings());
    let warnings: Vec<String> = warnings.filter(|warning| said.insert(warning.clone())).collect();
    let told = warning_header(&warnings);
    let mut writer = writer(&generation, warnings);
    if streams {
        return Ok(streamed(told, generation, writer));
    }
    let choices = generation.whole(|chunk| writer.count(chunk)).await?;
    Ok(in_pieces(told, writer.whole(choices)))
}

fn streamed<W: Writer>(told: Told, generation: Generation, mut writer: W) -> Response {
    let objects = || Objects { framing: W::FRAMING, bytes: Vec::new() };
    let mut opening = objects();
    writer.begin(&mut opening);
    let pieces = stream::unfold(Some((generation, writer, opening)), move |under_way| async move {
        let (mut generation, mut writer, mut out) = under_way?;
        let mut over = false;
        while out.bytes.is_empty() && !over {
            match generation.next().await {
                Some(Ok(chunk)) => {
                    writer.count(&chunk);
                    writer.piece(&chunk, &mut out);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a stream broke off");
                    writer.fail(&Failure::from(error), &mut out);
                    over = true;
                }
                None => {
                    writer.end(&mut out);
                    out.bytes.extend_from_slice(W::FRAMING.done.as_bytes());
                    over = true;
                }
            }
        }
        Some((out.bytes, (!over).then(|| (generation, writer, objects()))))
    });
    let headers = [
        (header::CONTENT_TYPE, W::FRAMING.content_type),
        (header::CACHE_CONTROL, "no-cache"),
        // Otherwise nginx collects the pieces.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (told, headers, Body::from_stream(pieces.map(Ok::<_, Infallible>))).into_response()
}

/// A response that comes at once, an object.
pub(super) fn at_once(body: &impl Serialize, warnings: &[String]) -> Response {
    in_pieces(warning_header(warnings), iter::once(json(body)))
}

/// An object in pieces, each made when the one before is on its way.
fn in_pieces(told: Told, mut pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    let mut first = pieces.next().unwrap_or_default();
    while first.len() <= AT_ONCE_BYTES {
        let Some(piece) = pieces.next() else { return (told, headers, Body::from(first)).into_response() };
        first.extend_from_slice(&piece);
    }
    let all = iter::once(first).chain(pieces);
    (told, headers, Body::from_stream(stream::iter(all.map(Ok::<_, Infallible>)))).into_response()
}

/// The header of warnings, if there are any.
type Told = Option<[(HeaderName, HeaderValue); 1]>;

fn warning_header(warnings: &[String]) -> Told {
    let (first, others) = warnings.split_first()?;
    let mut text = first.clone();
    for (i, warning) in others.iter().enumerate() {
        if text.len() + warning.len() > MAX_WARNING_BYTES {
            text += &format!("; and {} more", others.len() - i);
            break;
        }
        text += "; ";
        text += warning;
    }
    // Headers are ASCII.
    let text: String = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
    Some([(WARNING, HeaderValue::from_str(&text).ok()?)])
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
