//! How tokens are drawn, from the fields of a request.
//!
//! What a request says wins over the model's `generation_config.json`, which wins over the route's defaults. Knows field
//! names of both dialects; does not know what the processors do.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Failure, Fields,
    quote::{short, show},
};
use crate::{
    request::{LogitBias, SamplingParams, TokenSet},
    text::{GenerationDefaults, MaxTokens, ModelText},
};

/// What a route does where neither request nor model say anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct RouteDefaults {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    /// Tokens; `None` for as many as fit.
    max_tokens: Option<usize>,
}

/// `/api/chat` with `prompt`.
pub(super) const SHORT_FORM: RouteDefaults =
    RouteDefaults { temperature: 0.8, top_k: 0, top_p: 0.9, max_tokens: Some(200) };
/// `/api/chat` with `messages`.
pub(super) const OLLAMA: RouteDefaults = RouteDefaults { temperature: 0.8, top_k: 40, top_p: 0.9, max_tokens: None };
/// Its penalty of repetitions, and within how many of the last tokens.
const OLLAMA_REPETITIONS: (f32, usize) = (1.1, 64);
/// `/v1/completions`.
pub(super) const COMPLETIONS: RouteDefaults = RouteDefaults { max_tokens: Some(16), ..CHAT_COMPLETIONS };
/// `/v1/chat/completions`.
pub(super) const CHAT_COMPLETIONS: RouteDefaults =
    RouteDefaults { temperature: 1.0, top_k: 0, top_p: 1.0, max_tokens: None };

/// What `/v1/chat/completions` does where a request says nothing.
pub(super) fn chat_defaults(model: &GenerationDefaults) -> Value {
    let route = CHAT_COMPLETIONS;
    // As they were written: an f32 of 0.3 is not 0.3 in JSON.
    let number = |value: f32| value.to_string().parse::<f64>().unwrap_or(value.into());
    json!({
        "temperature": number(model.temperature.unwrap_or(route.temperature)),
        "top_k": model.top_k.unwrap_or(route.top_k),
        "top_p": number(model.top_p.unwrap_or(route.top_p)),
        "min_p": number(model.min_p.unwrap_or(0.0)),
        "repetition_penalty": number(model.repetition_penalty.unwrap_or(1.0)),
        "max_tokens": model.max_new_tokens.or(route.max_tokens),
    })
}

/// OpenAI's names, with the extras of the field.
pub(super) fn openai(
    fields: &mut Fields,
    route: &RouteDefaults,
    model: &GenerationDefaults,
) -> Result<SamplingParams, Failure> {
    let seed = fields.seed()?;
    let penalty = fields.factor("repetition_penalty", 0.01..=100.0)?;
    let common = common(fields, route, model, seed)?;
    Ok(SamplingParams {
        repetition_penalty: penalty.or(model.repetition_penalty).unwrap_or(1.0),
        logit_bias: logit_bias(fields)?,
        allowed_token_ids: allowed_token_ids(fields)?,
        ..common
    })
}

/// Ollama's names.
pub(super) fn ollama(options: &mut Fields, model: &GenerationDefaults) -> Result<SamplingParams, Failure> {
    // −1 is Ollama's way to say "any".
    let seed = options.seed()?.filter(|&seed| seed != -1);
    let penalty = options.factor("repeat_penalty", 0.01..=100.0)?;
    let window = options.integer("repeat_last_n", -1..=i64::MAX)?;
    let (default_penalty, default_window) = OLLAMA_REPETITIONS;
    Ok(SamplingParams {
        repetition_penalty: penalty.or(model.repetition_penalty).unwrap_or(default_penalty),
        // −1 is its way to say "all".
        repetition_window: window.map_or(Some(default_window), |window| usize::try_from(window).ok()),
        ..common(options, &OLLAMA, model, seed)?
    })
}

fn common(
    fields: &mut Fields,
    route: &RouteDefaults,
    model: &GenerationDefaults,
    seed: Option<i128>,
) -> Result<SamplingParams, Failure> {
    let top_k = fields.integer("top_k", -1..=i64::MAX)?;
    let top_k = top_k.map(|k| if k < 0 { 0 } else { u32::try_from(k).unwrap_or(u32::MAX) });
    Ok(SamplingParams {
        presence_penalty: fields.factor("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.factor("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        temperature: fields.factor("temperature", 0.0..=100.0)?.or(model.temperature).unwrap_or(route.temperature),
        top_k: top_k.or(model.top_k).unwrap_or(route.top_k),
        top_p: fields.factor("top_p", 0.0..=1.0)?.or(model.top_p).unwrap_or(route.top_p),
        min_p: fields.factor("min_p", 0.0..=1.0)?.or(model.min_p).unwrap_or(0.0),
        typical_p: fields.factor("typical_p", 0.0..=1.0)?.or(model.typical_p).unwrap_or(1.0),
        ..SamplingParams::neutral(seed.map_or_else(random, |seed| seed as u64))
    })
}

/// Most tokens with a bias: each is looked at again for every token of every choice. OpenAI takes 300.
const MAX_LOGIT_BIASES: usize = 1024;

/// `{"50256": -100}`: token ids, as JSON has them in keys, with what is added to their logits.
fn logit_bias(fields: &mut Fields) -> Result<LogitBias, Failure> {
    let Some(value) = fields.value("logit_bias")? else {
        return Ok(LogitBias::default());
    };
    let failure = |what: String| {
        Failure::field("logit_bias", format!("should map token ids to numbers from -100 to 100, got {what}"))
    };
    let map = value.as_object().ok_or_else(|| failure(show(&value)))?;
    if map.len() > MAX_LOGIT_BIASES {
        return Err(failure(format!("{} of them, over the limit of {MAX_LOGIT_BIASES}", map.len())));
    }
    map.iter()
        .map(|(key, bias)| {
            let id = key.parse().ok();
            let number = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            let pair = id.zip(number).map(|(id, number)| (id, number as f32));
            pair.ok_or_else(|| failure(format!("{} for {:?}", show(bias), short(key))))
        })
        .collect()
}

/// The only tokens that may be drawn, if the request says so; as many as the vocabulary has.
fn allowed_token_ids(fields: &mut Fields) -> Result<Option<TokenSet>, Failure> {
    const NAME: &str = "allowed_token_ids";
    let Some(mut given) = fields.given(NAME)? else {
        return Ok(None);
    };
    match given.tokens() {
        Some(ids) if !ids.is_empty() => Ok(Some(ids.into_iter().collect())),
        ids => {
            let got = ids.map_or_else(|| given.show(), |_| "an empty list".into());
            let failure = fields.wrong(NAME, "a list of at least one token id", &got);
            Err(failure.with_hint("leave it out to allow every token"))
        }
    }
}

/// Most words that must not be written: each is looked for at every token of every choice.
const MAX_BAD_WORDS: usize = 64;
/// Most bytes of all of them together.
const MAX_BAD_WORD_BYTES: usize = 16 << 10;

/// Words that must not be written; none if absent.
pub(super) fn bad_words(fields: &mut Fields) -> Result<Vec<String>, Failure> {
    const NAME: &str = "bad_words";
    let Some(value) = fields.value(NAME)? else {
        return Ok(Vec::new());
    };
    let expected = format!("a list of at most {MAX_BAD_WORDS} words of {MAX_BAD_WORD_BYTES} bytes together");
    let failure = |got: String| fields.wrong(NAME, &expected, &got);
    let list = value.as_array().ok_or_else(|| failure(show(&value)))?;
    if list.len() > MAX_BAD_WORDS {
        return Err(failure(format!("{} of them", list.len())));
    }
    let word = |value: &Value| match value.as_str() {
        Some(word) if word.trim().is_empty() => Err(failure("an empty one".into())),
        Some(word) => Ok(word.to_owned()),
        None => Err(failure(format!("{} among them", show(value)))),
    };
    let words = list.iter().map(word).collect::<Result<Vec<_>, _>>()?;
    match words.iter().map(String::len).sum::<usize>() {
        bytes if bytes > MAX_BAD_WORD_BYTES => Err(failure(format!("{bytes} bytes"))),
        _ => Ok(words),
    }
}

/// How many tokens: what the request gives, or what the model or the route recommends.
pub(super) fn max_tokens(given: Option<usize>, route: &RouteDefaults, model: &GenerationDefaults) -> MaxTokens {
    let default = model.max_new_tokens.or(route.max_tokens).map(MaxTokens::Default);
    given.map(MaxTokens::Given).or(default).unwrap_or(MaxTokens::Wall)
}

/// Whether the model's calculator calculates: where it has one, unless the request says otherwise.
pub(super) fn calculator(fields: &mut Fields, text: &ModelText) -> Result<bool, Failure> {
    const NAME: &str = "calculator";
    let wanted = fields.boolean(NAME)?;
    if wanted == Some(true) && text.calculator.is_none() {
        return Err(Failure::field(NAME, "is not supported: this model has none").unsupported());
    }
    Ok(wanted.unwrap_or(true))
}

/// The request's own deadline.
pub(super) fn timeout(fields: &mut Fields) -> Result<Option<Duration>, Failure> {
    Ok(fields.number("timeout_s", 0.001..=86_400.0)?.map(Duration::from_secs_f64))
}

/// 64 bits that nobody can guess twice: the standard library seeds its hash tables with them.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
