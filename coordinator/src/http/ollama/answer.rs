//! An answer as Ollama's two routes give it: what both take of a request, and the objects that they answer with.

use std::{iter, sync::Arc, time::Instant};

use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use crate::{
    clock::UtcTime,
    http::{
        App, Fields, constraint,
        error::{Failure, Form},
        logprobs::ChatLogprobs,
        model_name,
        quote::show,
        sampling, tools, unbuilt,
        writer::{self, Framing, Objects, Writer, json},
    },
    request::{FinishReason, SamplingParams},
    text::{
        Calculation, CallPiece, ChatLayout, Chunk, GenerateRequest, Generation, MaxTokens, ModelText, Prompt, Tools,
        tool_calls::merged,
    },
};

/// Which of the two routes answers: their objects carry text in different places.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// `message: {role, content}`.
    Chat,
    /// `response`.
    Generate,
}

/// What a route has taken by itself.
pub(crate) struct Asked {
    /// None where there is nothing to answer.
    pub(crate) prompt: Option<Prompt>,
    /// Whether the model is to think, if that is said.
    pub(crate) think: Option<bool>,
    pub(crate) tools: Option<Tools>,
    pub(crate) start: Instant,
}

/// Takes everything else, and answers in the shape of the route. Where there is nothing to answer the reply says that
/// the model is there, and it stays, whatever clients are to be told.
pub(crate) async fn answer(app: &App, mut fields: Fields, shape: Shape, asked: Asked) -> Result<Response, Failure> {
    let Asked { prompt, think, tools, start } = asked;
    let streams = fields.boolean("stream")?.unwrap_or(true);
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?.unwrap_or(0) as u32;
    let timeout = sampling::timeout(&mut fields)?;
    let unload = fields.value("keep_alive")?.is_some_and(|time| is_no_time(&time));
    let mut options = fields.object("options")?;
    // Positions are absolute and the context is the model's: these can change nothing.
    options.ignore("num_ctx num_keep num_batch num_gpu main_gpu use_mmap num_thread");
    let defaults = &app.engine.text().defaults;
    let max_tokens = match options.integer("num_predict", -2..=i64::MAX)? {
        // −1 and −2 are Ollama's ways to say "all there is room for".
        Some(..0) => MaxTokens::Wall,
        given => sampling::max_tokens(given.map(|n| n as usize), &sampling::OLLAMA, defaults),
    };
    let stop = options.stops()?;
    let sampling = sampling::ollama(&mut options, defaults)?;
    let calculator = sampling::calculator(&mut fields, app.engine.text())?;
    let constraint = constraint::ollama(&mut fields)?;
    tools::check_beside(tools.as_ref(), constraint.as_ref())?;
    let client = fields.client;
    for left in [&mut options, &mut fields] {
        unbuilt::take(left)?;
    }
    let left_out = [fields.finish(&app.unknown_fields), options.finish(&app.unknown_fields)].concat();
    let model = model_name::shown(app.engine.card());
    let Some(prompt) = prompt else {
        let done_reason = Some(if unload { "unload" } else { "load" });
        return Ok(writer::at_once(&Object { done: true, done_reason, ..shape.object(model, Parts::default()) }, &[]));
    };
    let request = GenerateRequest {
        stop,
        calculator,
        constraint,
        tools,
        timeout,
        client,
        max_memory: app.max_request_memory,
        ..GenerateRequest::new(prompt, SamplingParams { logprobs: logprobs.then_some(top), ..sampling }, max_tokens)
    };
    let writer = |generation: &Generation, warnings| OllamaWriter {
        shape,
        model: model.to_owned(),
        text: app.engine.text().clone(),
        logprobs,
        tells_thinking: think != Some(false),
        warnings,
        start,
        submitted: Instant::now(),
        first_token: None,
        prompt_tokens: generation.prompts().iter().map(|prompt| prompt.ids.len()).sum(),
        tokens: 0,
        calls: Vec::new(),
        finish: None,
    };
    writer::answer(app, request, left_out, streams, writer).await
}

/// Takes `think`, also as one of the levels that some models have, and tells the template of it.
pub(crate) fn think(app: &App, fields: &mut Fields, layout: &mut ChatLayout) -> Result<Option<bool>, Failure> {
    const NAME: &str = "think";
    let think = match fields.value(NAME)? {
        None => return Ok(None),
        Some(Value::Bool(think)) => think,
        Some(Value::String(level)) if ["low", "medium", "high"].contains(&&*level) => true,
        Some(other) => return Err(fields.wrong(NAME, "true or false", &show(&other))),
    };
    if app.engine.text().chat.thinks {
        layout.variables.insert("enable_thinking".into(), think.into());
    } else if think {
        let message = format!("\"{}\" does not support thinking", model_name::shown(app.engine.card()));
        return Err(Failure::at(NAME, message).unsupported());
    }
    Ok(Some(think))
}

/// Whether a time to keep the model is none at all: `0`, `"0"`, `"0s"`.
fn is_no_time(time: &Value) -> bool {
    let number = |text: &str| text.trim().trim_end_matches(char::is_alphabetic).parse::<f64>().ok();
    time.as_f64().or_else(|| number(time.as_str()?)) == Some(0.0)
}

/// A line of an answer, or a whole one.
#[derive(Default, Serialize)]
struct Object<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    calculations: &'a [Calculation],
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
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Message<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    calculations: &'a [Calculation],
    content: &'a str,
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: &'a [ToolCall],
}

/// A call of a function, whole.
#[derive(Serialize)]
struct ToolCall {
    function: Function,
}

#[derive(Serialize)]
struct Function {
    arguments: Value,
    index: usize,
    name: String,
}

impl ToolCall {
    /// Those of the calls that are whole.
    fn of(calls: &[CallPiece]) -> Vec<Self> {
        let function = |call: &CallPiece| {
            let arguments = serde_json::from_str(&call.arguments).ok().filter(|_| call.is_whole)?;
            Some(Function { arguments, index: call.index, name: call.name.clone()? })
        };
        calls.iter().filter_map(function).map(|function| Self { function }).collect()
    }
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

/// What there is to tell of a piece.
#[derive(Clone, Copy, Default)]
struct Parts<'a> {
    text: &'a str,
    thinking: &'a str,
    calculations: &'a [Calculation],
    tool_calls: &'a [ToolCall],
}

impl Shape {
    fn object<'a>(self, model: &'a str, parts: Parts<'a>) -> Object<'a> {
        let Parts { text, thinking, calculations, tool_calls } = parts;
        let thinking = Some(thinking).filter(|thinking| !thinking.is_empty());
        let object = Object { created_at: UtcTime::now().rfc3339(), model, ..Object::default() };
        match self {
            Self::Chat => {
                let message = Message { calculations, content: text, role: "assistant", thinking, tool_calls };
                Object { message: Some(message), ..object }
            }
            Self::Generate => Object { calculations, response: Some(text), thinking, ..object },
        }
    }
}

struct OllamaWriter {
    shape: Shape,
    model: String,
    text: Arc<ModelText>,
    logprobs: bool,
    tells_thinking: bool,
    /// To be said in the last line.
    warnings: Vec<String>,
    start: Instant,
    /// Prompt encoded and submitted.
    submitted: Instant,
    /// First token there.
    first_token: Option<Instant>,
    prompt_tokens: usize,
    tokens: usize,
    /// What came so far of the call that is under way.
    calls: Vec<CallPiece>,
    finish: Option<FinishReason>,
}

impl OllamaWriter {
    /// The object that ends an answer.
    fn last<'a>(&'a self, parts: Parts<'a>) -> Object<'a> {
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
        let is_cut = self.finish == Some(FinishReason::Length);
        Object {
            done: true,
            done_reason: Some(if is_cut { "length" } else { "stop" }),
            counts: Some(counts),
            warnings: &self.warnings,
            ..self.shape.object(&self.model, parts)
        }
    }

    fn parts<'a>(&self, chunk: &'a Chunk, tool_calls: &'a [ToolCall]) -> Parts<'a> {
        let thinking = if self.tells_thinking { &chunk.thinking } else { "" };
        Parts { text: &chunk.text, thinking, calculations: &chunk.calculations, tool_calls }
    }
}

impl Writer for OllamaWriter {
    const FRAMING: &'static Framing = &writer::NDJSON;
    const FORM: Form = Form::Ollama;

    fn count(&mut self, chunk: &Chunk) {
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens += chunk.tokens.len();
        self.finish = self.finish.or(chunk.finish);
    }

    fn piece(&mut self, chunk: &Chunk, out: &mut Objects) {
        let logprobs = ChatLogprobs { tokenizer: &self.text.tokenizer, tokens: &chunk.tokens };
        let logprobs = (!logprobs.is_empty()).then_some(logprobs);
        // A call is told of when it is whole.
        self.calls.extend(chunk.calls.iter().cloned());
        let whole = self.calls.iter().rposition(|piece| piece.is_whole).map_or(0, |last| last + 1);
        let whole: Vec<_> = self.calls.drain(..whole).collect();
        let tool_calls = ToolCall::of(&merged(&whole));
        let parts = self.parts(chunk, &tool_calls);
        let Parts { text, thinking, calculations, .. } = parts;
        let is_nothing = text.is_empty() && thinking.is_empty() && calculations.is_empty() && tool_calls.is_empty();
        if !is_nothing || logprobs.is_some() {
            out.push(&Object { logprobs, ..self.shape.object(&self.model, parts) });
        }
    }

    fn end(&mut self, out: &mut Objects) {
        out.push(&self.last(Parts::default()));
    }

    fn whole(self, choices: Vec<Chunk>) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
        let chunk = choices.into_iter().next().unwrap_or_default();
        let logprobs = ChatLogprobs { tokenizer: &self.text.tokenizer, tokens: &chunk.tokens };
        let logprobs = self.logprobs.then_some(logprobs);
        let tool_calls = ToolCall::of(&merged(&chunk.calls));
        iter::once(json(&Object { logprobs, ..self.last(self.parts(&chunk, &tool_calls)) }))
    }
}
