//! An answer as Ollama's two routes give it: what both take of a request, and the objects that they answer with.

use std::{sync::Arc, time::Instant};

use axum::response::Response;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::Value;

use crate::http::{
    app::App,
    error::{Failure, Form},
    fields::Fields,
    logprobs::ChatLogprobs,
    model_name, sampling,
    stream::{self, Framing, Objects, Writer},
    unbuilt,
};
use crate::{
    clock::UtcTime,
    request::FinishReason,
    text::{Chunk, GenerateRequest, Generation, MaxTokens, ModelText, Prompt, generation::GeneratedToken},
};

/// Which of the two routes answers: their objects carry text in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `message: {role, content}`.
    Chat,
    /// `response`.
    Generate,
}

/// Of a request to either route, what is not its prompt.
pub(super) struct Settings {
    stream: bool,
    /// Alternatives beside each log-probability; none for no log-probabilities.
    logprobs: Option<u32>,
    /// The client needs the model no longer.
    pub(super) unload: bool,
    request: GenerateRequest,
    /// What the reply is to say of it.
    warnings: Vec<String>,
}

/// A line of an answer, or a whole one.
#[derive(Serialize)]
struct Object<'a> {
    created_at: String,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(flatten)]
    counts: Option<Counts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<ChatLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Message<'a> {
    content: &'a str,
    role: &'static str,
}

/// At the end of an answer. Durations are nanoseconds.
#[derive(Serialize)]
struct Counts {
    eval_count: usize,
    eval_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
    prompt_eval_duration: u64,
    total_duration: u64,
}

impl Shape {
    fn object<'a>(self, model: &'a str, text: &'a str) -> Object<'a> {
        let (message, response) = match self {
            Self::Chat => (Some(Message { content: text, role: "assistant" }), None),
            Self::Generate => (None, Some(text)),
        };
        Object {
            created_at: UtcTime::now().rfc3339(),
            done: false,
            done_reason: None,
            counts: None,
            logprobs: None,
            message,
            model,
            response,
            warnings: &[],
        }
    }

    /// The reply to a request that has nothing to answer: the model is there, and stays, whatever clients are to be told.
    pub(super) fn loaded(self, app: &App, unload: bool) -> Response {
        let object = self.object(model_name::shown(app.engine.card()), "");
        let done_reason = Some(if unload { "unload" } else { "load" });
        stream::whole(&Object { done: true, done_reason, ..object }, &[])
    }
}

/// Takes everything but the prompt; what is left then is unknown.
pub(super) fn settings(app: &App, mut fields: Fields, prompt: Prompt) -> Result<Settings, Failure> {
    let stream = fields.boolean("stream")?.unwrap_or(true);
    let wants_logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?.unwrap_or(0) as u32;
    let logprobs = wants_logprobs.then_some(top);
    let timeout = sampling::timeout(&mut fields)?;
    let unload = fields.value("keep_alive")?.is_some_and(|time| is_no_time(&time));
    let mut options = fields.object("options")?;
    // Positions are absolute and the context is the model's: these can change nothing.
    options.ignore(&["num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread"]);
    let model = &app.engine.text().defaults;
    let num_predict = options.integer("num_predict", -2..=i64::MAX)?;
    let max_tokens = match num_predict {
        // −1 and −2 are Ollama's ways to say "all there is room for".
        Some(..0) => MaxTokens::Wall,
        given => sampling::max_tokens(given.map(|n| n as usize), &sampling::OLLAMA, model),
    };
    let request = GenerateRequest {
        stop: options.stops()?,
        logprobs,
        timeout,
        client: fields.client(),
        max_memory: app.max_request_memory,
        ..GenerateRequest::new(prompt, sampling::ollama(&mut options, model)?, max_tokens)
    };
    for left in [&mut options, &mut fields] {
        unbuilt::take(left)?;
    }
    let warnings = [fields.finish(&app.unknown_fields), options.finish(&app.unknown_fields)].concat();
    Ok(Settings { stream, logprobs, unload, request, warnings })
}

/// Whether a time to keep the model is none at all: `0`, `"0"`, `"0s"`.
fn is_no_time(time: &Value) -> bool {
    let number = |text: &str| text.trim().trim_end_matches(char::is_alphabetic).parse::<f64>().ok();
    time.as_f64().or_else(|| number(time.as_str()?)) == Some(0.0)
}

/// Generates, and answers in the shape of the route.
pub(super) async fn answer(app: &App, shape: Shape, settings: Settings, start: Instant) -> Result<Response, Failure> {
    let generation = app.engine.generate(settings.request).await?;
    let warnings = stream::warnings(settings.warnings, &generation);
    let mut writer = OllamaWriter::new(app, shape, &generation, start);
    if settings.stream {
        writer.warnings.clone_from(&warnings);
        return Ok(stream::respond(Framing::Ndjson, generation, writer, &warnings));
    }
    let (text, tokens) = writer.drain(generation).await?;
    let logprobs = ChatLogprobs { tokenizer: &writer.text.tokenizer, tokens: &tokens };
    let logprobs = settings.logprobs.is_some().then_some(logprobs);
    Ok(stream::whole(&Object { logprobs, warnings: &warnings, ..writer.last(&text) }, &warnings))
}

struct OllamaWriter {
    shape: Shape,
    model: String,
    text: Arc<ModelText>,
    /// To be said in the last line.
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
    fn new(app: &App, shape: Shape, generation: &Generation, start: Instant) -> Self {
        Self {
            shape,
            model: model_name::shown(app.engine.card()).to_owned(),
            text: app.engine.text().clone(),
            warnings: Vec::new(),
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
        let (mut text, mut tokens) = (String::new(), Vec::new());
        while let Some(chunk) = generation.next().await {
            let chunk = chunk?;
            self.observe(&chunk);
            text += &chunk.text;
            tokens.extend(chunk.tokens);
        }
        Ok((text, tokens))
    }

    /// The object that ends an answer.
    fn last<'a>(&'a self, text: &'a str) -> Object<'a> {
        let now = Instant::now();
        let first_token = self.first_token.unwrap_or(now);
        let nanos = |from: Instant, to: Instant| to.saturating_duration_since(from).as_nanos() as u64;
        let counts = Counts {
            eval_count: self.tokens,
            eval_duration: nanos(first_token, now),
            load_duration: nanos(self.start, self.submitted),
            prompt_eval_count: self.prompt_tokens,
            prompt_eval_duration: nanos(self.submitted, first_token),
            total_duration: nanos(self.start, now),
        };
        let done_reason = match self.finish {
            Some(FinishReason::Length) => "length",
            _ => "stop",
        };
        Object {
            done: true,
            done_reason: Some(done_reason),
            counts: Some(counts),
            warnings: &self.warnings,
            ..self.shape.object(&self.model, text)
        }
    }
}

impl Writer for OllamaWriter {
    fn chunk(&mut self, chunk: Chunk, out: &mut Objects) {
        self.observe(&chunk);
        let logprobs = ChatLogprobs { tokenizer: &self.text.tokenizer, tokens: &chunk.tokens };
        if !chunk.text.is_empty() || !logprobs.is_empty() {
            let logprobs = (!logprobs.is_empty()).then_some(logprobs);
            out.push(&Object { logprobs, ..self.shape.object(&self.model, &chunk.text) });
        }
    }

    fn end(&mut self, out: &mut Objects) {
        out.push(&self.last(""));
    }

    fn failure(&mut self, failure: &Failure, out: &mut Objects) {
        out.push(&failure.body(Form::Ollama));
    }
}
