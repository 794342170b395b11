//! `POST /api/chat` with `prompt`, and its batch: a question in, an answer out.

use std::{sync::Arc, time::Instant};

use axum::{extract::State, response::Response};
use serde::Serialize;
use serde_json::Value;

use super::{
    app::App,
    error::{Failure, Form},
    explain::Explained,
    fields::Fields,
    model_name,
    quote::show,
    sampling,
    stream::{self, Framing, Objects, Writer},
    unbuilt,
};
use crate::text::{Chunk, GenerateRequest, ModelText, Prompt};

/// Answers one prompt.
pub(super) async fn create(app: &App, mut fields: Fields) -> Result<Response, Failure> {
    let start = Instant::now();
    let text = fields.string("prompt")?.unwrap_or_default();
    let prompt = prompt(text, fields.boolean("raw")?.unwrap_or(false));
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let explained = fields.boolean("explain")?.unwrap_or(false);
    let (request, left_out) = take(app, fields, vec![prompt])?;
    let generation = app.engine.generate(GenerateRequest { explain: explained, ..request }).await?;
    let warnings = stream::warnings(left_out, &generation);
    let text = app.engine.text().clone();
    if stream {
        let writer = ShortFormWriter { text, explain: explained, warnings: warnings.clone() };
        return Ok(stream::respond(Framing::Sse, generation, writer, &warnings));
    }
    let chunk = generation.whole().await?.pop().unwrap_or_default();
    let explain = explained.then_some(Explained { tokenizer: &text.tokenizer, tokens: &chunk.tokens });
    let response = Some(chunk.text.as_str());
    let reply = Reply { explain, response, ..Reply::new(chunk.tokens.len(), start, &warnings) };
    Ok(stream::whole(&reply, &warnings))
}

/// `POST /api/chat/batch`: `{"prompts": ["…", …]}` with the settings of the short form.
pub(super) async fn batch(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    let start = Instant::now();
    fields.refuse("stream")?;
    let raw = fields.boolean("raw")?.unwrap_or(false);
    let list = fields.list("prompts")?.ok_or_else(|| Failure::field("prompts", "`prompts` is missing"))?;
    if list.is_empty() {
        return Err(Failure::field("prompts", "`prompts` is an empty list"));
    }
    let text = |(i, value): (usize, &Value)| match value.as_str() {
        Some(text) => Ok(prompt(text.to_owned(), raw)),
        None => Err(Failure::field("prompts", format!("`prompts[{i}]` should be a string, got {}", show(value)))),
    };
    let prompts = list.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    let (request, left_out) = take(&app, fields, prompts)?;
    let generation = app.engine.generate(request).await?;
    let warnings = stream::warnings(left_out, &generation);
    let chunks = generation.whole().await?;
    let one = |chunk| {
        let Chunk { text, tokens, .. } = chunk;
        OneOfBatch { response: text, tokens_generated: tokens.len() }
    };
    let responses: Vec<OneOfBatch> = chunks.into_iter().map(one).collect();
    let tokens = responses.iter().map(|one| one.tokens_generated).sum();
    let reply = Reply { responses: Some(responses), ..Reply::new(tokens, start, &warnings) };
    Ok(stream::whole(&reply, &warnings))
}

fn prompt(text: String, raw: bool) -> Prompt {
    if raw { Prompt::Text { text, add_special_tokens: true } } else { Prompt::single_turn(text) }
}

/// Takes the settings, and all that is left: the request, and what the reply is to say of it.
fn take(app: &App, mut fields: Fields, prompts: Vec<Prompt>) -> Result<(GenerateRequest, Vec<String>), Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    let model = &app.engine.text().defaults;
    let max_tokens = fields.count("max_tokens", 1)?;
    let max_tokens = sampling::max_tokens(max_tokens, &sampling::SHORT_FORM, model);
    let request = GenerateRequest {
        prompts,
        stop: fields.stops()?,
        timeout: sampling::timeout(&mut fields)?,
        client: fields.client(),
        max_memory: app.max_request_memory,
        ..GenerateRequest::new(
            Prompt::Tokens(Vec::new()),
            sampling::openai(&mut fields, &sampling::SHORT_FORM, model)?,
            max_tokens,
        )
    };
    unbuilt::take(&mut fields)?;
    Ok((request, fields.finish(&app.unknown_fields)))
}

/// A whole reply, to one prompt or to a batch. Times are in seconds.
#[derive(Serialize)]
struct Reply<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explained<'a>>,
    generation_time: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    responses: Option<Vec<OneOfBatch>>,
    tokens_generated: usize,
    tokens_per_second: f64,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct OneOfBatch {
    response: String,
    tokens_generated: usize,
}

/// A piece of a streamed one.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explained<'a>>,
    token: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

impl<'a> Reply<'a> {
    fn new(tokens: usize, start: Instant, warnings: &'a [String]) -> Self {
        let seconds = start.elapsed().as_secs_f64();
        Self {
            explain: None,
            generation_time: seconds,
            response: None,
            responses: None,
            tokens_generated: tokens,
            tokens_per_second: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
            warnings,
        }
    }
}

struct ShortFormWriter {
    text: Arc<ModelText>,
    explain: bool,
    /// To be said in the last event.
    warnings: Vec<String>,
}

impl Writer for ShortFormWriter {
    fn chunk(&mut self, chunk: Chunk, out: &mut Objects) {
        let tokens = Explained { tokenizer: &self.text.tokenizer, tokens: &chunk.tokens };
        let explain = (self.explain && !chunk.tokens.is_empty()).then_some(tokens);
        if explain.is_some() || !chunk.text.is_empty() {
            out.push(&Event { explain, token: &chunk.text, warnings: &[] });
        }
    }

    fn end(&mut self, out: &mut Objects) {
        if !self.warnings.is_empty() {
            out.push(&Event { explain: None, token: "", warnings: &self.warnings });
        }
    }

    fn failure(&mut self, failure: &Failure, out: &mut Objects) {
        out.push(&failure.body(Form::Ollama));
    }
}
