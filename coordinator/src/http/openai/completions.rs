//! `POST /v1/completions`: text or token ids, continued.
//!
//! With `echo` and `logprobs` it scores prompts, as lm-eval asks for.

use std::{borrow::Cow, sync::Arc};

use axum::{extract::State, response::Response};
use nanoinfer_shared::protocol::TokenId;
use serde::Serialize;
use serde_json::Value;

use crate::http::{
    app::App,
    error::Failure,
    explain::Explained,
    fields::Fields,
    json::Given,
    logprobs::{CompletionLogprobs, PromptScores, TextOffset},
    model_name,
    openai::reply::{self, Envelope, ReplyOptions, Usage},
    sampling,
    stream::{self, Framing, Objects, Writer},
};
use crate::{
    request::PromptLogprobs,
    text::{Chunk, Generation, ModelText, Prompt, prompt::PreparedPrompt},
};

pub(crate) async fn create(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let has_prompt = fields.has("prompt");
    let prompts = prompts(fields.given("prompt")?, add_special_tokens)?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = fields.integer("logprobs", 0..=reply::MAX_LOGPROBS)?.map(|k| k as u32);
    let from = fields.count("logprob_start_len", 0)?.unwrap_or(0);
    let max_tokens = fields.count("max_tokens", 0)?;
    let (mut request, reply) = reply::take(&app, &mut fields, prompts, max_tokens, &sampling::COMPLETIONS)?;
    if !has_prompt {
        fields.refuse_slip("prompt")?;
    }
    let left_out = fields.finish(&app.unknown_fields);
    request.logprobs = logprobs;
    request.prompt_logprobs = match (logprobs.filter(|_| echo), reply.prompt_logprobs) {
        (Some(top), None) => Some(PromptLogprobs { top, from }),
        (echoed, of_prompt) => echoed.max(of_prompt).map(|top| PromptLogprobs { top, from: 0 }),
    };

    let generation = app.engine.generate(request).await?;
    let warnings = stream::warnings(left_out, &generation);
    let mut writer = CompletionsWriter::new(&app, &generation, reply, echo, logprobs);
    if reply.stream {
        writer.warnings.clone_from(&warnings);
        return Ok(stream::respond(Framing::Sse, generation, writer, &warnings));
    }
    let choices = generation.whole().await?;
    choices.iter().for_each(|chunk| writer.usage.count(chunk));
    let reply = reply::Reply { usage: Some(Some(writer.usage)), warnings: &warnings, ..writer.envelope.around(&[]) };
    let ends = reply.ends();
    let choices = choices.into_iter().map(move |chunk| {
        let place = writer.place(&chunk);
        stream::json(&writer.choice(&chunk, place))
    });
    Ok(stream::in_pieces(reply::pieces(ends, choices), &warnings))
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
    /// Alternatives beside each log-probability; none for no log-probabilities.
    logprobs: Option<u32>,
    /// To be said in the next chunk.
    warnings: Vec<String>,
    /// Of each choice: where its next token begins; `None` before its first chunk.
    offsets: Vec<Option<TextOffset>>,
    usage: Usage,
}

impl CompletionsWriter {
    fn new(app: &App, generation: &Generation, reply: ReplyOptions, echo: bool, logprobs: Option<u32>) -> Self {
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

    /// Where a piece stands in its choice, and its tokens in the text; the next piece stands behind it.
    fn place(&mut self, chunk: &Chunk) -> Place {
        let tokenizer = &self.text.tokenizer;
        let prompt = &self.prompts[chunk.index / self.reply.n];
        let offset = &mut self.offsets[chunk.index];
        let first = offset.is_none();
        let offset = offset.get_or_insert_with(|| match self.echo {
            true => TextOffset::default(),
            false => TextOffset::after(tokenizer, &prompt.ids),
        });
        let mut text_offset = Vec::new();
        if first && self.echo {
            // An empty prompt became one token that has no text.
            let shown = !prompt.text.is_empty();
            let scored = chunk.prompt_logprobs.as_ref().map_or(0, Vec::len);
            text_offset.extend(prompt.ids.iter().take(scored).map(|&id| offset.pass(tokenizer, id, shown)));
        }
        let shown = |id| !self.reply.skip_special_tokens || !tokenizer.is_special(id);
        text_offset.extend(chunk.tokens.iter().map(|token| offset.pass(tokenizer, token.id, shown(token.id))));
        Place { first, text_offset }
    }

    fn choice<'a>(&'a self, chunk: &'a Chunk, Place { first, text_offset }: Place) -> Choice<'a> {
        let tokenizer = &self.text.tokenizer;
        let prompt = &self.prompts[chunk.index / self.reply.n];
        let text = match first && self.echo {
            true => Cow::Owned(prompt.text.clone() + &chunk.text),
            false => Cow::Borrowed(chunk.text.as_str()),
        };
        let logprobs = self.logprobs.map(|top| {
            let scores = chunk.prompt_logprobs.as_ref().filter(|_| first && self.echo).into_iter().flatten();
            let of_prompt = prompt.ids.iter().zip(scores).map(|(&id, scores)| (id, scores.as_ref()));
            let generated = chunk.tokens.iter().map(|token| (token.id, token.logprobs.as_ref()));
            let tokens = of_prompt.chain(generated).collect();
            CompletionLogprobs { tokenizer, top: top as usize, tokens, text_offset }
        });
        Choice {
            explain: self.reply.explain.then_some(Explained { tokenizer, tokens: &chunk.tokens }),
            finish_reason: reply::finish_reason(chunk.finish),
            index: chunk.index,
            logprobs,
            prompt_logprobs: self.reply.scored(tokenizer, chunk.prompt_logprobs.as_deref()),
            prompt_token_ids: (self.reply.token_ids && first).then_some(prompt.ids.as_slice()),
            text,
            token_ids: self.reply.token_ids.then(|| chunk.tokens.iter().map(|token| token.id).collect()),
        }
    }
}

impl Writer for CompletionsWriter {
    fn chunk(&mut self, chunk: Chunk, out: &mut Objects) {
        self.usage.count(&chunk);
        let place = self.place(&chunk);
        let warnings = std::mem::take(&mut self.warnings);
        let usage = self.reply.usage_so_far(self.usage);
        let choice = self.choice(&chunk, place);
        out.push(&reply::Reply { usage, warnings: &warnings, ..self.envelope.around(&[choice]) });
    }

    fn end(&mut self, out: &mut Objects) {
        self.envelope.end(&self.reply, self.usage, out);
    }

    fn failure(&mut self, failure: &Failure, out: &mut Objects) {
        reply::failure(failure, out);
    }
}

/// Where a piece of a choice stands.
struct Place {
    /// Nothing of the choice came before.
    first: bool,
    /// Of each of its tokens, in characters of the choice's text.
    text_offset: Vec<usize>,
}

/// One entry of `choices`: a whole one, or the next piece.
#[derive(Serialize)]
struct Choice<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explained<'a>>,
    finish_reason: Option<&'static str>,
    index: usize,
    logprobs: Option<CompletionLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptScores<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    text: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}
