//! What `/v1/completions` and `/v1/chat/completions` have in common.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    App,
    error::{Failure, Form},
    fields::Fields,
    models,
    sampling::{self, RouteDefaults},
    unbuilt,
};
use crate::{
    clock::UtcTime,
    request::FinishReason,
    text::{Chunk, GenerateRequest, Prompt},
};

/// A salt as long as a random one in any spelling is short of this.
const MAX_SALT_BYTES: usize = 1024;

/// Most choices for one prompt.
const MAX_N: i64 = 128;

/// What a reply is to contain.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyOptions {
    pub(super) stream: bool,
    /// A last chunk with `usage`.
    pub(super) include_usage: bool,
    /// `prompt_token_ids` and `token_ids` in every choice.
    pub(super) token_ids: bool,
    /// `explain` in every choice.
    pub(super) explain: bool,
    /// Choices for each prompt.
    pub(super) n: usize,
}

/// Takes the fields that both routes know, after those that only one knows.
pub(super) fn take(
    app: &App,
    fields: &mut Fields,
    prompts: Vec<Prompt>,
    max_tokens: Option<usize>,
    route: &RouteDefaults,
) -> Result<(GenerateRequest, ReplyOptions), Failure> {
    let model = &app.engine.text().defaults;
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let mut stream_options = fields.object("stream_options")?;
    let include_usage = stream_options.boolean("include_usage")?.unwrap_or(false);
    stream_options.ignore(&["include_obfuscation", "continuous_usage_stats"]);
    let _ = stream_options.finish(&app.unknown_fields);
    let n = fields.integer("n", 1..=MAX_N)?.unwrap_or(1);
    if fields.integer("best_of", 1..=i64::MAX)?.is_some_and(|best_of| best_of != n) {
        return Err(Failure::unsupported("best_of", "`best_of` is not supported unless it equals `n`"));
    }
    let token_ids = fields.boolean("return_token_ids")?.unwrap_or(false);
    let explain = fields.boolean("explain")?.unwrap_or(false);
    let options = ReplyOptions { stream, include_usage, token_ids, explain, n: n as usize };
    let request = GenerateRequest {
        prompts,
        n: n as usize,
        sampling: sampling::openai(fields, route, model)?,
        max_tokens: sampling::max_tokens(max_tokens, route, model),
        min_tokens: fields.count("min_tokens", 0)?.unwrap_or(0),
        ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
        stop: fields.stops()?,
        stop_token_ids: fields.stop_token_ids()?,
        logprobs: None,
        prompt_logprobs: None,
        explain,
        timeout: sampling::timeout(fields)?,
        client: fields.client(),
        cache_salt: cache_salt(fields)?,
    };
    unbuilt::take(fields)?;
    Ok((request, options))
}

/// What keeps this request's KV blocks apart from others'.
fn cache_salt(fields: &mut Fields) -> Result<Option<Arc<str>>, Failure> {
    let salt = fields.string("cache_salt")?;
    match salt.as_deref().map(str::len) {
        Some(0) => {
            Err(Failure::field("cache_salt", "`cache_salt` should not be empty; leave it out to share what is cached"))
        }
        Some(MAX_SALT_BYTES..) => {
            Err(Failure::field("cache_salt", format!("`cache_salt` should have less than {MAX_SALT_BYTES} bytes")))
        }
        _ => Ok(salt.map(Arc::from)),
    }
}

/// The object around choices: the same id, time and names in every chunk.
#[derive(Debug)]
pub(super) struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Envelope {
    pub(super) fn new(app: &App, prefix: &str, object: &'static str) -> Self {
        let card = app.engine.card();
        Self {
            id: format!("{prefix}-{:016x}", sampling::random()),
            object,
            created: UtcTime::now().unix_seconds(),
            model: models::shown(card).to_owned(),
            fingerprint: card.build_id.clone(),
        }
    }

    /// What a stream ends with: the tokens used, if the request asked for them.
    pub(super) fn end(&self, reply: &ReplyOptions, usage: Usage) -> Vec<Value> {
        if !reply.include_usage {
            return Vec::new();
        }
        let mut object = self.around(Vec::new());
        object["usage"] = usage.to_json();
        vec![object]
    }

    pub(super) fn around(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// Tokens read and written; a prompt counts once, whatever its choices.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
}

impl Usage {
    pub(super) fn count(&mut self, chunk: &Chunk) {
        self.completion_tokens += chunk.tokens.len();
    }

    pub(super) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }
}

pub(super) fn finish_reason(finish: Option<FinishReason>) -> Value {
    match finish {
        None => Value::Null,
        Some(FinishReason::Stop) => "stop".into(),
        Some(FinishReason::Length) => "length".into(),
    }
}

/// A failure in the middle of a stream.
pub(super) fn failure(failure: &Failure) -> Value {
    failure.body(Form::OpenAi)
}
