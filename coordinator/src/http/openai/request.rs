//! What `/v1/completions` and `/v1/chat/completions` take of a request alike.

use std::sync::Arc;

use crate::{
    http::{
        App, Failure, Fields, constraint,
        sampling::{self, RouteDefaults},
        unbuilt,
    },
    request::SamplingParams,
    text::{GenerateRequest, KeepLast, Prompt},
};

/// A salt as long as a random one in any spelling is short of this.
const MAX_SALT_BYTES: usize = 1024;

/// Most alternatives beside a token; OpenAI allows 5 for completions.
pub(crate) const MAX_LOGPROBS: i64 = 20;

/// Most choices for one prompt.
const MAX_N: i64 = 128;

/// What a reply is to contain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyOptions {
    pub(crate) stream: bool,
    /// A last chunk with `usage`.
    pub(crate) include_usage: bool,
    /// `usage` in every chunk, of all that came so far.
    pub(crate) continuous_usage: bool,
    /// Alternatives beside each log-probability of the prompt; none for no `prompt_logprobs`.
    pub(crate) prompt_logprobs: Option<u32>,
    /// Whether special tokens have no place in the text.
    pub(crate) skip_special_tokens: bool,
    /// `prompt_token_ids` and `token_ids` in every choice.
    pub(crate) token_ids: bool,
    /// `explain` in every choice.
    pub(crate) explain: bool,
    /// Choices for each prompt.
    pub(crate) n: usize,
}

/// Takes the fields that both routes know, after those that only one knows.
pub(crate) fn take(
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
    let continuous_usage = stream_options.boolean("continuous_usage_stats")?.unwrap_or(false);
    stream_options.ignore("include_obfuscation");
    let _ = stream_options.finish(&app.unknown_fields);
    let n = fields.integer("n", 1..=MAX_N)?.unwrap_or(1) as usize;
    if fields.count("best_of", 1)?.is_some_and(|best_of| best_of != n) {
        return Err(Failure::field("best_of", "is not supported unless it equals `n`").unsupported());
    }
    let token_ids = fields.boolean("return_token_ids")?.unwrap_or(false);
    let explain = fields.boolean("explain")?.unwrap_or(false);
    let prompt_logprobs = fields.integer("prompt_logprobs", 0..=MAX_LOGPROBS)?.map(|top| top as u32);
    if prompt_logprobs.is_some() && stream {
        return Err(Failure::field("prompt_logprobs", "are not there where `stream` is true"));
    }
    let skip_special_tokens = fields.boolean("skip_special_tokens")?.unwrap_or(true);
    let options = ReplyOptions {
        stream,
        include_usage,
        continuous_usage,
        prompt_logprobs,
        skip_special_tokens,
        token_ids,
        explain,
        n,
    };
    let sampling = sampling::openai(fields, route, model)?;
    let bad_words = sampling::bad_words(fields)?;
    let keep_last = keep_last(fields)?;
    let min_tokens = fields.count("min_tokens", 0)?.unwrap_or(0);
    let ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
    let stop = fields.stops()?;
    let include_stop = fields.boolean("include_stop_str_in_output")?.unwrap_or(false);
    let stop_token_ids = fields.stop_token_ids()?;
    let request = GenerateRequest {
        prompts,
        n,
        sampling: SamplingParams { min_tokens, ignore_eos, stop_token_ids, explain, ..sampling },
        bad_words,
        max_tokens: sampling::max_tokens(max_tokens, route, model),
        keep_last,
        stop,
        include_stop,
        skip_special_tokens,
        calculator: sampling::calculator(fields, app.engine.text())?,
        constraint: constraint::openai(fields)?,
        tools: None,
        timeout: sampling::timeout(fields)?,
        client: fields.client,
        cache_salt: cache_salt(fields)?,
        max_memory: app.max_request_memory,
    };
    unbuilt::take(fields)?;
    Ok((request, options))
}

/// What keeps this request's KV blocks apart from others'.
fn cache_salt(fields: &mut Fields) -> Result<Option<Arc<str>>, Failure> {
    const NAME: &str = "cache_salt";
    let salt = fields.string(NAME)?;
    match salt.as_deref().map(str::len) {
        Some(0) => Err(Failure::field(NAME, "should not be empty; leave it out to share what is cached")),
        Some(MAX_SALT_BYTES..) => Err(Failure::field(NAME, format!("should have less than {MAX_SALT_BYTES} bytes"))),
        _ => Ok(salt.map(Arc::from)),
    }
}

/// `truncate_prompt_tokens`: so many of the last ones, or −1 for as many as fit.
fn keep_last(fields: &mut Fields) -> Result<Option<KeepLast>, Failure> {
    const NAME: &str = "truncate_prompt_tokens";
    match fields.integer(NAME, -1..=i64::MAX)? {
        None => Ok(None),
        Some(-1) => Ok(Some(KeepLast::Fitting)),
        Some(0) => Err(Failure::field(NAME, "should be -1 or at least 1, got 0")),
        Some(count) => Ok(Some(KeepLast::Tokens(usize::try_from(count).unwrap_or(usize::MAX)))),
    }
}
