//! `POST /api/chat` with `prompt`, and its batch: a question in, an answer out.

use std::{iter, sync::Arc, time::Instant};

use axum::{extract::State, response::Response};
use serde::Serialize;
use serde_json::Value;

use super::{
    App, Fields, constraint,
    error::{Failure, Form},
    explain::Explained,
    model_name,
    quote::show,
    sampling, unbuilt,
    writer::{self, Framing, Objects, Writer, json},
};
use crate::{
    request::SamplingParams,
    text::{Calculation, Chunk, GenerateRequest, ModelText, Prompt},
};

/// Answers one prompt.
pub(super) async fn create(app: &App, mut fields: Fields) -> Result<Response, Failure> {
    let start = Instant::now();
    let text = fields.string("prompt")?.unwrap_or_default();
    let prompt = prompt(text, fields.boolean("raw")?.unwrap_or(false));
    let streams = fields.boolean("stream")?.unwrap_or(false);
    let explain = fields.boolean("explain")?.unwrap_or(false);
    answer(app, fields, vec![prompt], Asked { start, streams, explain, is_batch: false }).await
}

/// `POST /api/chat/batch`: `{"prompts": ["…", …]}` with the settings of the short form.
pub(super) async fn batch(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    let start = Instant::now();
    fields.refuse("stream")?;
    let raw = fields.boolean("raw")?.unwrap_or(false);
    let list = fields.list("prompts")?.ok_or_else(|| Failure::field("prompts", "is missing"))?;
    if list.is_empty() {
        return Err(Failure::field("prompts", "is an empty list"));
    }
    let text = |(i, value): (usize, &Value)| match value.as_str() {
        Some(text) => Ok(prompt(text.to_owned(), raw)),
        None => Err(Failure::at("prompts", format!("`prompts[{i}]` should be a string, got {}", show(value)))),
    };
    let prompts = list.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    answer(&app, fields, prompts, Asked { start, streams: false, explain: false, is_batch: true }).await
}

fn prompt(text: String, raw: bool) -> Prompt {
    if raw { Prompt::Text { text, add_special_tokens: true } } else { Prompt::single_turn(text) }
}

/// What a reply is to be like.
#[derive(Clone, Copy)]
struct Asked {
    start: Instant,
    streams: bool,
    explain: bool,
    is_batch: bool,
}

/// Takes the settings, and all that is left, and answers.
async fn answer(app: &App, mut fields: Fields, prompts: Vec<Prompt>, asked: Asked) -> Result<Response, Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    let text = app.engine.text();
    let max_tokens = fields.count("max_tokens", 1)?;
    let max_tokens = sampling::max_tokens(max_tokens, &sampling::SHORT_FORM, &text.defaults);
    let stop = fields.stops()?;
    let timeout = sampling::timeout(&mut fields)?;
    let sampling = sampling::openai(&mut fields, &sampling::SHORT_FORM, &text.defaults)?;
    let calculator = sampling::calculator(&mut fields, text)?;
    let constraint = constraint::short_form(&mut fields)?;
    let request = GenerateRequest {
        prompts,
        stop,
        calculator,
        constraint,
        timeout,
        client: fields.client,
        max_memory: app.max_request_memory,
        ..GenerateRequest::new(
            Prompt::Tokens(Vec::new()),
            SamplingParams { explain: asked.explain, ..sampling },
            max_tokens,
        )
    };
    unbuilt::take(&mut fields)?;
    let left_out = fields.finish(&app.unknown_fields);
    let writer = |_: &_, warnings| ShortForm { text: text.clone(), asked, warnings };
    writer::answer(app, request, left_out, asked.streams, writer).await
}

/// A whole reply, to one prompt or to a batch. Times are in seconds.
#[derive(Serialize)]
struct Reply<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    calculations: &'a [Calculation],
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explained<'a>>,
    generation_time: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    responses: Option<Vec<OneOfBatch<'a>>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    tokens_generated: usize,
    tokens_per_second: f64,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct OneOfBatch<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    calculations: &'a [Calculation],
    response: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    tokens_generated: usize,
}

/// A piece of a streamed one.
#[derive(Serialize)]
struct Event<'a> {
    /// Before the token.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    calculations: &'a [Calculation],
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explained<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    token: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

struct ShortForm {
    text: Arc<ModelText>,
    asked: Asked,
    /// To be said at the end.
    warnings: Vec<String>,
}

impl ShortForm {
    fn explained<'a>(&'a self, chunk: &'a Chunk) -> Option<Explained<'a>> {
        self.asked.explain.then_some(Explained { tokenizer: &self.text.tokenizer, tokens: &chunk.tokens })
    }
}

impl Writer for ShortForm {
    const FRAMING: &'static Framing = &writer::SSE;
    const FORM: Form = Form::Ollama;

    fn piece(&mut self, chunk: &Chunk, out: &mut Objects) {
        let explain = self.explained(chunk).filter(|_| !chunk.tokens.is_empty());
        let Chunk { calculations, text, thinking, .. } = chunk;
        if explain.is_some() || !calculations.is_empty() || !text.is_empty() || !thinking.is_empty() {
            out.push(&Event { calculations, explain, thinking, token: text, warnings: &[] });
        }
    }

    fn end(&mut self, out: &mut Objects) {
        if !self.warnings.is_empty() {
            let warnings = &self.warnings;
            out.push(&Event { calculations: &[], explain: None, thinking: "", token: "", warnings });
        }
    }

    fn whole(self, choices: Vec<Chunk>) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
        let one = |chunk| {
            let Chunk { calculations, text, thinking, tokens, .. }: &Chunk = chunk;
            OneOfBatch { calculations, response: text, thinking, tokens_generated: tokens.len() }
        };
        let only = choices.first().filter(|_| !self.asked.is_batch);
        let seconds = self.asked.start.elapsed().as_secs_f64();
        let tokens = choices.iter().map(|chunk| chunk.tokens.len()).sum();
        iter::once(json(&Reply {
            calculations: only.map_or(&[], |chunk| &chunk.calculations),
            explain: only.and_then(|chunk| self.explained(chunk)),
            generation_time: seconds,
            response: only.map(|chunk| chunk.text.as_str()),
            responses: self.asked.is_batch.then(|| choices.iter().map(one).collect()),
            thinking: only.map_or("", |chunk| chunk.thinking.as_str()),
            tokens_generated: tokens,
            tokens_per_second: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
            warnings: &self.warnings,
        }))
    }
}
