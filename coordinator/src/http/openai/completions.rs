//! `POST /v1/completions`: text or token ids, continued.
//!
//! With `echo` and `logprobs` it scores prompts, as lm-eval asks for.

use std::collections::BTreeMap;

use axum::{extract::State, response::Response};
use serde_json::Value;

use super::{
    reply::{self, About, Choice, Logprobs, Route},
    request::{self, MAX_LOGPROBS},
};
use crate::{
    http::{
        App, Failure, Fields,
        json::Given,
        logprobs::{CompletionLogprobs, TextOffset},
        model_name, sampling,
    },
    request::PromptLogprobs,
    text::{Chunk, Prompt},
};

pub(crate) async fn create(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let has_prompt = fields.has("prompt");
    let prompts = prompts(fields.given("prompt")?, add_special_tokens)?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?.map(|k| k as u32);
    let from = fields.count("logprob_start_len", 0)?.unwrap_or(0);
    let max_tokens = fields.count("max_tokens", 0)?;
    let (mut request, reply) = request::take(&app, &mut fields, prompts, max_tokens, &sampling::COMPLETIONS)?;
    if !has_prompt {
        fields.refuse_slip("prompt")?;
    }
    let left_out = fields.finish(&app.unknown_fields);
    request.sampling.logprobs = logprobs;
    request.sampling.prompt_logprobs = match (logprobs.filter(|_| echo), reply.prompt_logprobs) {
        (Some(top), None) => Some(PromptLogprobs { top, from }),
        (echoed, of_prompt) => echoed.max(of_prompt).map(|top| PromptLogprobs { top, from: 0 }),
    };

    let route = Completions { echo, logprobs, offsets: BTreeMap::new() };
    reply::answer(&app, request, left_out, reply, route).await
}

/// A string, strings, token ids, or lists of those.
fn prompts(given: Option<Given>, add_special_tokens: bool) -> Result<Vec<Prompt>, Failure> {
    let expected = "a string, a list of strings, a list of token ids, or a list of such lists";
    let failure = |got: &str| Failure::wrong("prompt", expected, got);
    let text = |text: String| Prompt::Text { text, add_special_tokens };
    match given {
        // OpenAI's default is a new document.
        None => Ok(vec![text(String::new())]),
        Some(Given::Tokens(ids)) => Ok(vec![Prompt::Tokens(ids)]),
        Some(Given::TokenLists(lists)) => Ok(lists.into_iter().map(Prompt::Tokens).collect()),
        Some(Given::Other(Value::String(prompt))) => Ok(vec![text(prompt)]),
        Some(Given::Other(Value::Array(list))) if list.is_empty() => Err(Failure::field("prompt", "is an empty list")),
        Some(Given::Other(Value::Array(list))) => {
            let string = |entry| match entry {
                Value::String(prompt) => Some(text(prompt)),
                _ => None,
            };
            list.into_iter().map(string).collect::<Option<_>>().ok_or_else(|| failure("a mixture"))
        }
        Some(other) => Err(failure(&other.show())),
    }
}

/// The choices of a continuation.
struct Completions {
    echo: bool,
    /// Alternatives beside each log-probability; none for no log-probabilities.
    logprobs: Option<u32>,
    /// Of each choice that began: where its next token does.
    offsets: BTreeMap<usize, TextOffset>,
}

impl Route for Completions {
    const ID: &str = "cmpl";
    const OBJECTS: [&str; 2] = ["text_completion"; 2];

    fn piece<'a>(&mut self, about: &'a About, chunk: &'a Chunk) -> Choice<'a> {
        let (tokenizer, prompt) = (&about.text.tokenizer, about.prompt(chunk.index));
        let first = !self.offsets.contains_key(&chunk.index);
        let echoes = first && self.echo;
        let offset = self.offsets.entry(chunk.index).or_insert_with(|| match self.echo {
            true => TextOffset::default(),
            false => TextOffset::after(tokenizer, &prompt.ids),
        });
        let logprobs = self.logprobs.map(|top| {
            let scores = chunk.prompt_logprobs.as_deref().filter(|_| echoes).unwrap_or_default();
            let of_prompt = prompt.ids.iter().zip(scores).map(|(&id, scores)| (id, scores.as_ref()));
            let generated = chunk.tokens.iter().map(|token| (token.id, token.logprobs.as_ref()));
            // An empty prompt became one token that has no text.
            let is_prompt_shown = !prompt.text.is_empty();
            let is_shown = |id| !about.reply.skip_special_tokens || !tokenizer.is_special(id);
            let mut text_offset = Vec::new();
            text_offset.extend(of_prompt.clone().map(|(id, _)| offset.pass(tokenizer, id, is_prompt_shown)));
            text_offset.extend(generated.clone().map(|(id, _)| offset.pass(tokenizer, id, is_shown(id))));
            let tokens = of_prompt.chain(generated).collect();
            Logprobs::Completion(CompletionLogprobs { tokenizer, top: top as usize, tokens, text_offset })
        });
        let echoed = if echoes { prompt.text.as_str() } else { "" };
        Choice {
            logprobs,
            prompt_logprobs: about.prompt_logprobs(chunk),
            prompt_token_ids: about.prompt_token_ids(chunk.index).filter(|_| first),
            text: Some(echoed.to_owned() + &chunk.text),
            ..about.choice(chunk)
        }
    }
}
