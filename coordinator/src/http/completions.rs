//! `POST /v1/completions`: text or token ids, continued.
//!
//! With `echo` and `logprobs` it scores prompts, as lm-eval asks for.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Value, json};

use super::{
    App,
    error::Failure,
    explain,
    fields::Fields,
    json::Given,
    logprobs::{CompletionLogprobs, TextOffset},
    models,
    openai::{self, Envelope, ReplyOptions, Usage},
    sampling,
    stream::{self, Framing, Writer},
};
use crate::{
    request::PromptLogprobs,
    text::{Chunk, Generation, ModelText, Prompt, prompt::PreparedPrompt},
};

/// Most alternatives beside a token. OpenAI allows 5.
const MAX_LOGPROBS: i64 = 20;

pub(super) async fn create(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    models::take(&mut fields, app.engine.card())?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let has_prompt = fields.has("prompt");
    let prompts = prompts(fields.given("prompt")?, add_special_tokens)?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?.map(|k| k as u32);
    let from = fields.count("logprob_start_len", 0)?.unwrap_or(0);
    let max_tokens = fields.count("max_tokens", 0)?;
    let (mut request, reply) = openai::take(&app, &mut fields, prompts, max_tokens, &sampling::COMPLETIONS)?;
    if !has_prompt {
        fields.refuse_slip("prompt")?;
    }
    let left_out = fields.finish(&app.unknown_fields);
    request.logprobs = logprobs;
    request.prompt_logprobs = logprobs.filter(|_| echo).map(|top| PromptLogprobs { top, from });

    let generation = app.engine.generate(request).await?;
    let warnings = stream::warnings(left_out, &generation);
    let mut writer = CompletionsWriter::new(&app, &generation, reply, echo, logprobs.is_some());
    if reply.stream {
        writer.warnings.clone_from(&warnings);
        return Ok(stream::respond(Framing::Sse, generation, writer, &warnings));
    }
    let choices = generation.whole().await?.into_iter().map(|chunk| writer.choice(chunk)).collect();
    let mut body = writer.envelope.around(choices);
    body["usage"] = writer.usage.to_json();
    Ok(stream::whole(body, &warnings))
}

/// A string, strings, token ids, or lists of those.
fn prompts(given: Option<Given>, add_special_tokens: bool) -> Result<Vec<Prompt>, Failure> {
    let expected = "`prompt` should be a string, a list of strings, a list of token ids, or a list of such lists";
    let failure = |got: &str| Failure::field("prompt", format!("{expected}, got {got}"));
    let text = |text: String| Prompt::Text { text, add_special_tokens };
    match given {
        // OpenAI's default is a new document.
        None => Ok(vec![text(String::new())]),
        Some(Given::Tokens(ids)) => Ok(vec![Prompt::Tokens(ids)]),
        Some(Given::TokenLists(lists)) => Ok(lists.into_iter().map(Prompt::Tokens).collect()),
        Some(Given::Other(Value::String(prompt))) => Ok(vec![text(prompt)]),
        Some(Given::Other(Value::Array(list))) if list.is_empty() => {
            Err(Failure::field("prompt", "`prompt` is an empty list"))
        }
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

struct CompletionsWriter {
    envelope: Envelope,
    text: Arc<ModelText>,
    prompts: Vec<PreparedPrompt>,
    reply: ReplyOptions,
    echo: bool,
    logprobs: bool,
    /// To be said in the next chunk.
    warnings: Vec<String>,
    /// Of each choice: where its next token begins; `None` before its first chunk.
    offsets: Vec<Option<TextOffset>>,
    usage: Usage,
}

impl CompletionsWriter {
    fn new(app: &App, generation: &Generation, reply: ReplyOptions, echo: bool, logprobs: bool) -> Self {
        let prompts = generation.prompts().to_vec();
        let usage = Usage { prompt_tokens: prompts.iter().map(|p| p.ids.len()).sum(), completion_tokens: 0 };
        let offsets = (0..prompts.len() * reply.n).map(|_| None).collect();
        let envelope = Envelope::new(app, "cmpl", "text_completion");
        Self {
            envelope,
            text: app.engine.text().clone(),
            prompts,
            reply,
            echo,
            logprobs,
            warnings: Vec::new(),
            offsets,
            usage,
        }
    }

    /// One entry of `choices`: a whole one, or the next piece.
    fn choice(&mut self, chunk: Chunk) -> Value {
        self.usage.count(&chunk);
        let tokenizer = &self.text.tokenizer;
        let prompt = &self.prompts[chunk.index / self.reply.n];
        let offset = &mut self.offsets[chunk.index];
        let first = offset.is_none();
        let offset = offset.get_or_insert_with(|| match self.echo {
            true => TextOffset::default(),
            false => TextOffset::after(tokenizer, &prompt.ids),
        });
        let mut lists = CompletionLogprobs::default();
        let mut text = String::new();
        if first && self.echo {
            text.push_str(&prompt.text);
            let scores = chunk.prompt_logprobs.unwrap_or_default();
            for (&id, scores) in prompt.ids.iter().zip(&scores) {
                // An empty prompt became one token that has no text.
                lists.push(tokenizer, id, scores.as_ref(), offset, !prompt.text.is_empty());
            }
        }
        text.push_str(&chunk.text);
        for token in &chunk.tokens {
            lists.push(tokenizer, token.id, token.logprobs.as_ref(), offset, !tokenizer.is_special(token.id));
        }
        let mut choice = json!({
            "index": chunk.index,
            "text": text,
            "logprobs": self.logprobs.then(|| lists.into_json()),
            "finish_reason": openai::finish_reason(chunk.finish),
        });
        if self.reply.explain {
            choice["explain"] = explain::tokens(tokenizer, &chunk.tokens).into();
        }
        if self.reply.token_ids {
            choice["token_ids"] = chunk.tokens.iter().map(|token| token.id).collect();
            if first {
                choice["prompt_token_ids"] = prompt.ids.iter().copied().collect();
            }
        }
        choice
    }
}

impl Writer for CompletionsWriter {
    fn chunk(&mut self, chunk: Chunk) -> Vec<Value> {
        let choice = self.choice(chunk);
        let mut object = self.envelope.around(vec![choice]);
        if self.reply.include_usage {
            object["usage"] = Value::Null;
        }
        if !self.warnings.is_empty() {
            object["warnings"] = std::mem::take(&mut self.warnings).into();
        }
        vec![object]
    }

    fn end(&mut self) -> Vec<Value> {
        self.envelope.end(&self.reply, self.usage)
    }

    fn failure(&mut self, failure: &Failure) -> Value {
        openai::failure(failure)
    }
}
