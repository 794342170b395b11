//! `POST /v1/chat/completions`: a conversation, answered.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use nanoinfer_shared::protocol::TokenId;
use serde::Serialize;

use crate::http::{
    app::App,
    error::Failure,
    explain::Explained,
    fields::Fields,
    logprobs::ChatLogprobs,
    messages, model_name,
    openai::reply::{self, Envelope, ReplyOptions, Usage},
    sampling,
    stream::{self, Framing, Objects, Writer},
    unbuilt,
};
use crate::{
    request::PromptLogprobs,
    text::{Chunk, Generation, ModelText, Prompt},
};

pub(crate) async fn create(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    unbuilt::tools(&mut fields)?;
    let mut messages = messages::take(&mut fields, &app.unknown_fields)?;
    if messages.is_empty() {
        return Err(Failure::field("messages", "`messages` is missing or empty"));
    }
    let layout = messages::layout(&mut fields, &mut messages)?;
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    let wants_logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=reply::MAX_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !wants_logprobs {
        return Err(Failure::field("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    let old_name = fields.count("max_tokens", 1)?;
    let max_tokens = fields.count("max_completion_tokens", 1)?.or(old_name);
    let prompts = vec![Prompt::Chat { messages, truncate, layout }];
    let (mut request, reply) = reply::take(&app, &mut fields, prompts, max_tokens, &sampling::CHAT_COMPLETIONS)?;
    let left_out = fields.finish(&app.unknown_fields);
    request.logprobs = wants_logprobs.then(|| top.unwrap_or(0) as u32);
    request.prompt_logprobs = reply.prompt_logprobs.map(|top| PromptLogprobs { top, from: 0 });

    let generation = app.engine.generate(request).await.map_err(|error| Failure::from(error).of_chat())?;
    let warnings = stream::warnings(left_out, &generation);
    if reply.stream {
        let mut writer = ChatWriter::new(&app, &generation, reply, wants_logprobs, "chat.completion.chunk");
        writer.warnings.clone_from(&warnings);
        return Ok(stream::respond(Framing::Sse, generation, writer, &warnings));
    }
    let mut writer = ChatWriter::new(&app, &generation, reply, wants_logprobs, "chat.completion");
    let choices = generation.whole().await?;
    choices.iter().for_each(|chunk| writer.usage.count(chunk));
    let scores = choices.first().and_then(|chunk| chunk.prompt_logprobs.as_deref());
    let ends = reply::Reply {
        prompt_logprobs: reply.scored(&writer.text.tokenizer, scores),
        usage: Some(Some(writer.usage)),
        warnings: &warnings,
        ..writer.envelope.around(&[])
    }
    .ends();
    let choices = choices.into_iter().map(move |chunk| {
        let message = Message { content: &chunk.text, refusal: (), role: "assistant" };
        let prompt_token_ids = writer.prompt_ids();
        stream::json(&Choice { message: Some(message), prompt_token_ids, ..writer.choice(&chunk) })
    });
    Ok(stream::in_pieces(reply::pieces(ends, choices), &warnings))
}

struct ChatWriter {
    envelope: Envelope,
    text: Arc<ModelText>,
    prompt_ids: Vec<TokenId>,
    reply: ReplyOptions,
    logprobs: bool,
    /// To be said in the first chunk.
    warnings: Vec<String>,
    usage: Usage,
}

impl ChatWriter {
    fn new(app: &App, generation: &Generation, reply: ReplyOptions, logprobs: bool, object: &'static str) -> Self {
        let prompt_ids: Vec<TokenId> =
            generation.prompts().iter().flat_map(|prompt| prompt.ids.iter().copied()).collect();
        Self {
            envelope: Envelope::new(app, "chatcmpl", object),
            text: app.engine.text().clone(),
            usage: Usage { prompt_tokens: prompt_ids.len(), completion_tokens: 0 },
            prompt_ids,
            reply,
            logprobs,
            warnings: Vec::new(),
        }
    }

    /// One entry of `choices`, without its text.
    fn choice<'a>(&'a self, chunk: &'a Chunk) -> Choice<'a> {
        let (tokenizer, tokens) = (&self.text.tokenizer, &chunk.tokens);
        Choice {
            explain: self.reply.explain.then_some(Explained { tokenizer, tokens }),
            finish_reason: reply::finish_reason(chunk.finish),
            index: chunk.index,
            logprobs: self.logprobs.then_some(Logprobs { content: ChatLogprobs { tokenizer, tokens }, refusal: () }),
            token_ids: self.reply.token_ids.then(|| chunk.tokens.iter().map(|token| token.id).collect()),
            ..Choice::default()
        }
    }

    fn prompt_ids(&self) -> Option<&[TokenId]> {
        self.reply.token_ids.then_some(self.prompt_ids.as_slice())
    }

    fn push(&self, choice: Choice, warnings: &[String], out: &mut Objects) {
        let usage = self.reply.usage_so_far(self.usage);
        out.push(&reply::Reply { usage, warnings, ..self.envelope.around(&[choice]) });
    }
}

impl Writer for ChatWriter {
    /// The first delta of every choice says who speaks.
    fn begin(&mut self, out: &mut Objects) {
        for index in 0..self.reply.n {
            let delta = Delta { content: Some(""), role: Some("assistant") };
            let choice = Choice { index, delta: Some(delta), prompt_token_ids: self.prompt_ids(), ..Choice::default() };
            self.push(choice, if index == 0 { &self.warnings } else { &[] }, out);
        }
    }

    fn chunk(&mut self, chunk: Chunk, out: &mut Objects) {
        self.usage.count(&chunk);
        let content = Some(chunk.text.as_str()).filter(|text| !text.is_empty());
        let delta = Delta { content, role: None };
        self.push(Choice { delta: Some(delta), ..self.choice(&chunk) }, &[], out);
    }

    fn end(&mut self, out: &mut Objects) {
        self.envelope.end(&self.reply, self.usage, out);
    }

    fn failure(&mut self, failure: &Failure, out: &mut Objects) {
        reply::failure(failure, out);
    }
}

/// One entry of `choices`: a whole one, or the next piece.
#[derive(Default, Serialize)]
struct Choice<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explained<'a>>,
    finish_reason: Option<&'static str>,
    index: usize,
    logprobs: Option<Logprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize)]
struct Logprobs<'a> {
    content: ChatLogprobs<'a>,
    refusal: (),
}

/// The answer as a whole.
#[derive(Serialize)]
struct Message<'a> {
    content: &'a str,
    refusal: (),
    role: &'static str,
}

/// What follows of it.
#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
}
