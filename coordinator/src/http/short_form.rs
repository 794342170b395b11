//! `POST /api/chat` with `prompt`, and its batch: a question in, an answer out.

use std::{sync::Arc, time::Instant};

use axum::{extract::State, response::Response};
use serde_json::{Value, json};

use super::{
    App,
    error::{Failure, Form},
    explain,
    fields::{Fields, show},
    models, sampling,
    stream::{self, Framing, Writer},
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
        let writer = ShortFormWriter { text, explain: explained };
        return Ok(stream::respond(Framing::Sse, generation, writer, &warnings));
    }
    let chunk = generation.whole().await?.pop().unwrap_or_default();
    let mut body = timing(chunk.tokens.len(), start);
    body["response"] = chunk.text.into();
    if explained {
        body["explain"] = explain::tokens(&text.tokenizer, &chunk.tokens).into();
    }
    Ok(stream::whole(body, &warnings))
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
    let mut body = timing(chunks.iter().map(|chunk| chunk.tokens.len()).sum(), start);
    let reply = |chunk: Chunk| json!({"response": chunk.text, "tokens_generated": chunk.tokens.len()});
    body["responses"] = chunks.into_iter().map(reply).collect();
    Ok(stream::whole(body, &warnings))
}

fn prompt(text: String, raw: bool) -> Prompt {
    if raw { Prompt::Text { text, add_special_tokens: true } } else { Prompt::single_turn(text) }
}

/// Takes the settings, and all that is left: the request, and what the reply is to say of it.
fn take(app: &App, mut fields: Fields, prompts: Vec<Prompt>) -> Result<(GenerateRequest, Vec<String>), Failure> {
    models::take(&mut fields, app.engine.card())?;
    let model = &app.engine.text().defaults;
    let max_tokens = fields.count("max_tokens", 1)?;
    let max_tokens = sampling::max_tokens(max_tokens, &sampling::SHORT_FORM, model);
    let request = GenerateRequest {
        prompts,
        stop: fields.stops()?,
        timeout: sampling::timeout(&mut fields)?,
        client: fields.client(),
        ..GenerateRequest::new(
            Prompt::Tokens(Vec::new()),
            sampling::openai(&mut fields, &sampling::SHORT_FORM, model)?,
            max_tokens,
        )
    };
    unbuilt::take(&mut fields)?;
    Ok((request, fields.finish(&app.unknown_fields)))
}

/// Times in seconds.
fn timing(tokens: usize, start: Instant) -> Value {
    let seconds = start.elapsed().as_secs_f64();
    json!({
        "tokens_generated": tokens,
        "generation_time": seconds,
        "tokens_per_second": if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
    })
}

struct ShortFormWriter {
    text: Arc<ModelText>,
    explain: bool,
}

impl Writer for ShortFormWriter {
    fn chunk(&mut self, chunk: Chunk) -> Vec<Value> {
        let mut event = json!({"token": chunk.text});
        if self.explain && !chunk.tokens.is_empty() {
            event["explain"] = explain::tokens(&self.text.tokenizer, &chunk.tokens).into();
        } else if chunk.text.is_empty() {
            return Vec::new();
        }
        vec![event]
    }

    fn failure(&mut self, failure: &Failure) -> Value {
        failure.body(Form::Ollama)
    }
}
