//! `POST /v1/responses`: OpenAI's newer form of a chat, without what it would have to remember.
//!
//! ```text
//! instructions, input ─► messages ─► a chat as any other ─► pieces ─► items: reasoning, message, function_call
//!                                                                     whole in `output`, or told as events
//! ```
//! What keeps state on a server is refused by name. Knows this form; what chats have in common is their routes'. Invariant: the events
//! of a stream, taken together, say what the whole response says.

use axum::{extract::State, response::Response};
use serde_json::{Map, Value, json};

use super::request;
use crate::{
    clock::UtcTime,
    http::{
        App, Failure, Fields, constraint,
        error::Form,
        messages, model_name,
        quote::{short, show},
        sampling, tools,
        writer::{self, Framing, Objects, Writer, json as to_json},
    },
    request::FinishReason,
    text::{ChatLayout, Chunk, Generation, Prompt},
};

/// Would need what was said before.
const STATE: [&str; 4] = ["previous_response_id", "conversation", "background", "prompt"];

/// What a response repeats of its request.
const REPEATED: [&str; 5] = ["instructions", "max_output_tokens", "temperature", "top_p", "metadata"];

pub(crate) async fn create(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    for name in STATE {
        if let Some(value) = fields.asked(name, "false")? {
            let failure = Failure::field(name, format!("is not supported, got {}", show(&value))).unsupported();
            return Err(failure.with_hint("this server remembers nothing: send the whole conversation as `input`"));
        }
    }
    fields.refuse_unless("n", "1")?;
    fields.refuse_unless("top_logprobs", "0")?;
    if fields.boolean("store")? == Some(true) {
        fields.warn("`store` was left out: this server remembers nothing".into());
    }
    if fields.list("include")?.is_some_and(|list| !list.is_empty()) {
        fields.warn("`include` was left out: there is nothing more to say".into());
    }
    let mut repeated = Map::new();
    for name in REPEATED {
        repeated.insert(name.into(), fields.peek(name)?);
    }
    let tool_fields = ["tool_choice", "tools"];
    for name in tool_fields {
        repeated.insert(name.into(), fields.peek(name)?);
    }
    let tools = tools::take(&app, &mut fields)?;
    let instructions = fields.string("instructions")?;
    let input = input(fields.value("input")?)?;
    let instructed = instructions.map(|content| json!({"role": "system", "content": content}));
    let list = instructed.into_iter().chain(input).collect();
    let mut messages = messages::of_list(list, "input", &app.unknown_fields)?;
    let ending = messages::natural_ending(&mut messages);
    let told = tools.iter().flat_map(|tools| &tools.list).map(|tool| tool.told.clone()).collect();
    let layout = ChatLayout { ending, tools: told, ..ChatLayout::default() };
    let truncate = match fields.string("truncation")?.as_deref() {
        None | Some("disabled") => false,
        Some("auto") => true,
        Some(other) => return Err(fields.wrong("truncation", "'auto' or 'disabled'", &show(&other.into()))),
    };
    let max_tokens = fields.count("max_output_tokens", 1)?;
    let mut text = fields.object("text")?;
    let asked = text.peek("format")?;
    let constraint = constraint::of_responses(&mut text)?;
    if let Some(verbosity) = text.asked("verbosity", "\"medium\"")? {
        fields.warn(format!("`text.verbosity` {} was left out: this server knows no such setting", show(&verbosity)));
    }
    let _ = text.finish(&app.unknown_fields);
    let prompts = vec![Prompt::Chat { messages, truncate, layout }];
    let (mut request, options) = request::take(&app, &mut fields, prompts, max_tokens, &sampling::CHAT_COMPLETIONS)?;
    request.constraint = constraint::one(vec![request.constraint.take(), constraint])?;
    tools::check_beside(tools.as_ref(), request.constraint.as_ref())?;
    repeated.insert("parallel_tool_calls".into(), tools.as_ref().is_none_or(|tools| tools.parallel).into());
    request.tools = tools;
    let left_out = fields.finish(&app.unknown_fields);
    let format = if asked.is_null() { json!({"type": "text"}) } else { asked };
    for (name, default) in [("tool_choice", json!("auto")), ("tools", json!([]))] {
        let value = repeated.entry(name).or_insert(Value::Null);
        if value.is_null() {
            *value = default;
        }
    }
    // As the request left them.
    for (name, value) in [("temperature", request.sampling.temperature), ("top_p", request.sampling.top_p)] {
        repeated.insert(name.into(), number(value));
    }
    repeated.insert("text".into(), json!({"format": format}));
    let model = model_name::shown(app.engine.card()).to_owned();
    let writer = |generation: &Generation, warnings| {
        let prompt_tokens = generation.prompts().iter().map(|prompt| prompt.ids.len()).sum();
        Responses::new(model, repeated, warnings, prompt_tokens)
    };
    writer::answer(&app, request, left_out, options.stream, writer).await.map_err(|failure| failure.of_prompt("input"))
}

/// As it was typed: 0.3, not 0.30000001192092896.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// The items of an input as messages of a chat: a text is what the person says, and calls belong to the message before them.
fn input(input: Option<Value>) -> Result<Vec<Value>, Failure> {
    let items = match input {
        Some(Value::String(text)) => vec![json!({"role": "user", "content": text})],
        Some(Value::Array(items)) if !items.is_empty() => items,
        None => return Err(Failure::field("input", "is missing")),
        Some(other) => return Err(Failure::wrong("input", "a text, or a list of at least one item", &show(&other))),
    };
    let mut messages: Vec<Value> = Vec::new();
    let mut thought = Value::Null;
    for (i, mut item) in items.into_iter().enumerate() {
        let kind = item["type"].as_str().unwrap_or("message").to_owned();
        match kind.as_str() {
            "message" => {
                if let Some(item) = item.as_object_mut() {
                    for name in ["type", "id", "status", "phase"] {
                        item.shift_remove(name);
                    }
                    if item.get("role").is_some_and(|role| role == "assistant") && !thought.is_null() {
                        item.insert("reasoning_content".into(), thought.take());
                    }
                }
                messages.push(item);
            }
            "function_call" => {
                let call = json!({"id": item["call_id"], "type": "function",
                    "function": {"name": item["name"], "arguments": item["arguments"]}});
                match messages.last_mut() {
                    Some(last) if last["role"] == "assistant" => match last["tool_calls"].as_array_mut() {
                        Some(calls) => calls.push(call),
                        None => last["tool_calls"] = json!([call]),
                    },
                    _ => messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call],
                        "reasoning_content": thought.take()})),
                }
            }
            "function_call_output" => {
                let output = match &item["output"] {
                    parts @ (Value::String(_) | Value::Array(_)) => parts.clone(),
                    other => return Err(Failure::wrong(format!("input[{i}].output"), "a text", &show(other))),
                };
                messages.push(json!({"role": "tool", "tool_call_id": item["call_id"], "content": output}));
            }
            "reasoning" => {
                let parts = [&item["content"], &item["summary"]].into_iter().filter_map(Value::as_array);
                let texts: Vec<&str> = parts.flatten().filter_map(|part| part["text"].as_str()).collect();
                if !texts.is_empty() {
                    thought = texts.join("\n").into();
                }
            }
            other => {
                let what = format!("of type '{}' is not supported", short(other));
                return Err(Failure::field(format!("input[{i}]"), what).unsupported());
            }
        }
    }
    Ok(messages)
}

/// Server-sent events that have a name each.
const EVENTS: Framing = Framing { done: "", ..writer::SSE };

/// What an item of the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call,
}

/// An item of the output.
struct Item {
    kind: Kind,
    id: String,
    /// Which call of the answer.
    call: usize,
    call_id: String,
    name: String,
    /// Its text, or arguments.
    text: String,
}

impl Item {
    fn new(kind: Kind) -> Self {
        let id = |prefix: &str| format!("{prefix}_{:016x}", sampling::random());
        let prefix = match kind {
            Kind::Reasoning => "rs",
            Kind::Message => "msg",
            Kind::Call => "fc",
        };
        let (call_id, name) = (id("call"), String::new());
        Self { kind, id: id(prefix), call: 0, call_id, name, text: String::new() }
    }

    /// Its one part.
    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            _ => json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}),
        }
    }

    fn json(&self, status: &str, is_begun: bool) -> Value {
        let content = if is_begun { json!([self.part()]) } else { json!([]) };
        let Self { id, call_id, name, text, .. } = self;
        match self.kind {
            Kind::Reasoning => {
                json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            Kind::Message => {
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            Kind::Call => json!({"id": id, "type": "function_call", "status": status, "call_id": call_id,
                "name": name, "arguments": text}),
        }
    }
}

struct Responses {
    id: String,
    created_at: u64,
    model: String,
    repeated: Map<String, Value>,
    warnings: Vec<String>,
    /// The last may still grow.
    items: Vec<Item>,
    finish: Option<FinishReason>,
    prompt_tokens: usize,
    tokens: usize,
    /// Those of them that are thoughts.
    thinking_tokens: usize,
    /// Of the next event.
    sequence_number: usize,
}

impl Responses {
    fn new(model: String, repeated: Map<String, Value>, warnings: Vec<String>, prompt_tokens: usize) -> Self {
        Self {
            id: format!("resp_{:016x}", sampling::random()),
            created_at: UtcTime::now().unix_seconds(),
            model,
            repeated,
            warnings,
            items: Vec::new(),
            finish: None,
            prompt_tokens,
            tokens: 0,
            thinking_tokens: 0,
            sequence_number: 0,
        }
    }

    /// How an answer ended, of the whole and of its last item.
    fn status(&self) -> &'static str {
        match self.finish {
            Some(FinishReason::Stop) => "completed",
            Some(FinishReason::Length) => "incomplete",
            None => "in_progress",
        }
    }

    fn response(&self) -> Value {
        let status = self.status();
        let last = self.items.len().wrapping_sub(1);
        let of_item = |i: usize| if i == last { status } else { "completed" };
        let output: Vec<Value> = self.items.iter().enumerate().map(|(i, item)| item.json(of_item(i), true)).collect();
        let total = self.prompt_tokens + self.tokens;
        let usage = json!({"input_tokens": self.prompt_tokens, "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": self.thinking_tokens}, "total_tokens": total});
        let details = if status == "incomplete" { json!({"reason": "max_output_tokens"}) } else { Value::Null };
        let mut response = json!({"id": self.id, "object": "response", "created_at": self.created_at, "status": status,
            "background": false, "error": null, "incomplete_details": details, "model": self.model, "output": output,
            "previous_response_id": null, "store": false});
        let fields = response.as_object_mut().expect("it is one");
        fields.extend(self.repeated.clone());
        fields.insert("usage".into(), if self.finish.is_some() { usage } else { Value::Null });
        if !self.warnings.is_empty() {
            fields.insert("warnings".into(), self.warnings.clone().into());
        }
        response
    }

    fn event(&mut self, name: &str, mut fields: Value, out: &mut Option<&mut Objects>) {
        let Some(out) = out else { return };
        let event = fields.as_object_mut().expect("fields of an event");
        event.insert("type".into(), name.into());
        event.insert("sequence_number".into(), self.sequence_number.into());
        self.sequence_number += 1;
        out.push_named(name, &fields);
    }

    /// The item that grows: of this kind, and of this call. Another is closed before.
    fn open(&mut self, kind: Kind, call: usize, name: Option<&str>, out: &mut Option<&mut Objects>) {
        if self.items.last().is_some_and(|item| item.kind == kind && item.call == call) {
            return;
        }
        self.close("completed", out);
        let item = Item { call, name: name.unwrap_or_default().to_owned(), ..Item::new(kind) };
        let at = self.items.len();
        self.event(
            "response.output_item.added",
            json!({"output_index": at, "item": item.json("in_progress", false)}),
            out,
        );
        if kind == Kind::Message {
            let part = item.part();
            self.event(
                "response.content_part.added",
                json!({"item_id": item.id, "output_index": at, "content_index": 0, "part": part}),
                out,
            );
        }
        self.items.push(item);
    }

    fn grow(&mut self, text: &str, out: &mut Option<&mut Objects>) {
        let at = self.items.len() - 1;
        let Item { kind, id, text: whole, .. } = &mut self.items[at];
        whole.push_str(text);
        let mut fields = json!({"item_id": id, "output_index": at, "delta": text});
        let name = match kind {
            Kind::Call => "response.function_call_arguments.delta",
            kind => {
                fields["content_index"] = 0.into();
                match kind {
                    Kind::Reasoning => "response.reasoning_text.delta",
                    _ => {
                        fields["logprobs"] = json!([]);
                        "response.output_text.delta"
                    }
                }
            }
        };
        self.event(name, fields, out);
    }

    /// Nothing more comes of the last item.
    fn close(&mut self, status: &str, out: &mut Option<&mut Objects>) {
        let Some(item) = self.items.last() else { return };
        let (at, part, whole) = (self.items.len() - 1, item.part(), item.json(status, true));
        let (kind, id, text, name) = (item.kind, item.id.clone(), item.text.clone(), item.name.clone());
        match kind {
            Kind::Call => {
                let fields = json!({"item_id": id, "output_index": at, "name": name, "arguments": text});
                self.event("response.function_call_arguments.done", fields, out);
            }
            Kind::Reasoning => {
                let fields = json!({"item_id": id, "output_index": at, "content_index": 0, "text": text});
                self.event("response.reasoning_text.done", fields, out);
            }
            Kind::Message => {
                let fields =
                    json!({"item_id": id, "output_index": at, "content_index": 0, "text": text, "logprobs": []});
                self.event("response.output_text.done", fields, out);
                let fields = json!({"item_id": id, "output_index": at, "content_index": 0, "part": part});
                self.event("response.content_part.done", fields, out);
            }
        }
        self.event("response.output_item.done", json!({"output_index": at, "item": whole}), out);
    }

    fn take(&mut self, chunk: &Chunk, mut out: Option<&mut Objects>) {
        let out = &mut out;
        if !chunk.thinking.is_empty() {
            self.open(Kind::Reasoning, 0, None, out);
            self.grow(&chunk.thinking, out);
        }
        if !chunk.text.is_empty() {
            self.open(Kind::Message, 0, None, out);
            self.grow(&chunk.text, out);
        }
        for piece in &chunk.calls {
            self.open(Kind::Call, piece.index, piece.name.as_deref(), out);
            if !piece.arguments.is_empty() {
                self.grow(&piece.arguments, out);
            }
        }
        self.finish = self.finish.or(chunk.finish);
        if self.finish.is_some() && self.items.is_empty() {
            // An answer of nothing is a message of nothing.
            self.open(Kind::Message, 0, None, out);
        }
    }
}

impl Writer for Responses {
    const FRAMING: &'static Framing = &EVENTS;
    const FORM: Form = Form::OpenAi;

    fn count(&mut self, chunk: &Chunk) {
        self.tokens += chunk.tokens.len();
        self.thinking_tokens += if chunk.thinking.is_empty() { 0 } else { chunk.tokens.len() };
    }

    fn begin(&mut self, out: &mut Objects) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response();
            self.event(name, json!({"response": response}), &mut Some(out));
        }
    }

    fn piece(&mut self, chunk: &Chunk, out: &mut Objects) {
        self.take(chunk, Some(out));
    }

    fn end(&mut self, out: &mut Objects) {
        let status = self.status();
        self.close(status, &mut Some(out));
        let response = self.response();
        self.event(&format!("response.{status}"), json!({"response": response}), &mut Some(out));
    }

    /// An event as others are; under `error` it is also where clients look that know of no such event.
    fn fail(&mut self, failure: &Failure, out: &mut Objects) {
        let mut body = failure.body(Self::FORM);
        let mut fields = body["error"].clone();
        body.as_object_mut().expect("an object").append(fields.as_object_mut().expect("an object"));
        self.event("error", body, &mut Some(out));
    }

    fn whole(mut self, choices: Vec<Chunk>) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
        choices.iter().for_each(|chunk| self.take(chunk, None));
        std::iter::once(to_json(&self.response()))
    }
}
