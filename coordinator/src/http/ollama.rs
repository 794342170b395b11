//! `POST /api/chat` with `messages`: Ollama's form.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    App,
    error::{Failure, Form},
    fields::Fields,
    logprobs, messages, models, sampling, short_form,
    stream::{self, Framing, Writer},
};
use crate::{
    clock::UtcTime,
    request::FinishReason,
    text::{Chunk, GenerateRequest, Generation, MaxTokens, ModelText, Prompt, generation::GeneratedToken},
};

/// `POST /api/chat`: the key that is present decides the form.
pub(super) async fn chat(State(app): State<App>, fields: Fields) -> Result<Response, Failure> {
    match (fields.has("messages"), fields.has("prompt")) {
        (true, false) => create(&app, fields).await,
        (false, true) => short_form::create(&app, fields).await,
        (true, true) => Err(Failure::field("prompt", "`messages` and `prompt` are two forms of a request: give one")),
        (false, false) => Err(Failure::field("messages", "`messages` or `prompt` is missing")),
    }
}

async fn create(app: &App, mut fields: Fields) -> Result<Response, Failure> {
    let start = Instant::now();
    models::take(&mut fields, app.engine.card())?;
    for name in ["tools", "format", "shift", "images", "think"] {
        fields.refuse(name, &[])?;
    }
    let messages = messages::take(&mut fields)?;
    let stream = fields.boolean("stream")?.unwrap_or(true);
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    let wants_logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?.unwrap_or(0) as u32;
    let timeout = sampling::timeout(&mut fields)?;
    fields.ignore(&["keep_alive"]);
    let mut options = fields.object("options")?;
    // Positions are absolute and the context is the model's: these can change nothing.
    options.ignore(&["num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread"]);
    let model = &app.engine.text().defaults;
    let num_predict = options.integer("num_predict", -2..=i64::MAX)?;
    let request = GenerateRequest {
        stop: options.stops()?,
        logprobs: wants_logprobs.then_some(top),
        timeout,
        ..GenerateRequest::new(
            Prompt::Chat { messages, truncate },
            sampling::ollama(&mut options, model)?,
            match num_predict {
                // −1 and −2 are Ollama's ways to say "all there is room for".
                Some(..0) => MaxTokens::Wall,
                given => sampling::max_tokens(given.map(|n| n as usize), &sampling::OLLAMA, model),
            },
        )
    };
    options.finish(&app.unknown_fields);
    fields.finish(&app.unknown_fields);
    if let [Prompt::Chat { messages, .. }] = request.prompts.as_slice()
        && messages.is_empty()
    {
        return Ok(Json(loaded(app)).into_response());
    }

    let generation = app.engine.generate(request).await?;
    let mut writer = OllamaWriter::new(app, &generation, start);
    if stream {
        return Ok(stream::respond(Framing::Ndjson, generation, writer));
    }
    let warnings = stream::warnings(&generation.warnings());
    let (text, tokens) = writer.drain(generation).await?;
    let mut body = writer.last(&text);
    if wants_logprobs {
        body["logprobs"] = logprobs::chat(&writer.text.tokenizer, &tokens).into();
    }
    Ok((warnings, Json(body)).into_response())
}

/// The reply to no messages: the model is there.
fn loaded(app: &App) -> Value {
    let mut object = object(&app.engine.card().name, "");
    object["done"] = true.into();
    object["done_reason"] = "load".into();
    object
}

fn object(model: &str, content: &str) -> Value {
    json!({
        "model": model,
        "created_at": UtcTime::now().rfc3339(),
        "message": {"role": "assistant", "content": content},
        "done": false,
    })
}

struct OllamaWriter {
    model: String,
    text: Arc<ModelText>,
    warnings: Vec<String>,
    start: Instant,
    /// Prompt encoded and submitted.
    submitted: Instant,
    /// First token there.
    first_token: Option<Instant>,
    prompt_tokens: usize,
    tokens: usize,
    finish: Option<FinishReason>,
}

impl OllamaWriter {
    fn new(app: &App, generation: &Generation, start: Instant) -> Self {
        Self {
            model: app.engine.card().name.clone(),
            text: app.engine.text().clone(),
            warnings: generation.warnings(),
            start,
            submitted: Instant::now(),
            first_token: None,
            prompt_tokens: generation.prompts().iter().map(|prompt| prompt.ids.len()).sum(),
            tokens: 0,
            finish: None,
        }
    }

    fn observe(&mut self, chunk: &Chunk) {
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens += chunk.tokens.len();
        self.finish = self.finish.or(chunk.finish);
    }

    async fn drain(&mut self, mut generation: Generation) -> Result<(String, Vec<GeneratedToken>), Failure> {
        use futures_util::StreamExt;
        let (mut text, mut tokens) = (String::new(), Vec::new());
        while let Some(chunk) = generation.next().await {
            let chunk = chunk?;
            self.observe(&chunk);
            text += &chunk.text;
            tokens.extend(chunk.tokens);
        }
        Ok((text, tokens))
    }

    /// The object that ends an answer. Durations are nanoseconds.
    fn last(&self, content: &str) -> Value {
        let now = Instant::now();
        let first_token = self.first_token.unwrap_or(now);
        let nanos = |from: Instant, to: Instant| to.saturating_duration_since(from).as_nanos() as u64;
        let mut object = object(&self.model, content);
        object["done"] = true.into();
        object["done_reason"] = match self.finish {
            Some(FinishReason::Length) => "length".into(),
            _ => "stop".into(),
        };
        object["total_duration"] = nanos(self.start, now).into();
        object["load_duration"] = nanos(self.start, self.submitted).into();
        object["prompt_eval_count"] = self.prompt_tokens.into();
        object["prompt_eval_duration"] = nanos(self.submitted, first_token).into();
        object["eval_count"] = self.tokens.into();
        object["eval_duration"] = nanos(first_token, now).into();
        if !self.warnings.is_empty() {
            object["warnings"] = json!(self.warnings);
        }
        object
    }
}

impl Writer for OllamaWriter {
    fn chunk(&mut self, chunk: Chunk) -> Vec<Value> {
        self.observe(&chunk);
        let logprobs = logprobs::chat(&self.text.tokenizer, &chunk.tokens);
        if chunk.text.is_empty() && logprobs.is_empty() {
            return Vec::new();
        }
        let mut object = object(&self.model, &chunk.text);
        if !logprobs.is_empty() {
            object["logprobs"] = logprobs.into();
        }
        vec![object]
    }

    fn end(&mut self) -> Vec<Value> {
        vec![self.last("")]
    }

    fn failure(&mut self, failure: &Failure) -> Value {
        failure.body(Form::Ollama)
    }
}
