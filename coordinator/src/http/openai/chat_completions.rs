//! `POST /v1/chat/completions`: a conversation, answered.

use std::collections::BTreeSet;

use axum::{extract::State, response::Response};

use super::{
    reply::{self, About, Choice, Logprobs, Message, Route, ToolCall},
    request::{self, MAX_LOGPROBS},
};
use crate::{
    http::{
        App, Failure, Fields,
        logprobs::{ChatLogprobs, PromptScores},
        messages, model_name, sampling, tools,
    },
    request::{FinishReason, PromptLogprobs},
    text::{Chunk, Prompt, tool_calls::merged},
};

pub(crate) async fn create(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    let tools = tools::take(&app, &mut fields)?;
    let mut messages = messages::take(&mut fields, &app.unknown_fields)?;
    if messages.is_empty() {
        return Err(Failure::field("messages", "is missing or empty"));
    }
    let mut layout = messages::layout(&mut fields, &mut messages)?;
    layout.tools = tools.iter().flat_map(|tools| &tools.list).map(|tool| tool.told.clone()).collect();
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(Failure::field("top_logprobs", "needs `logprobs` to be true"));
    }
    let old_name = fields.count("max_tokens", 1)?;
    let max_tokens = fields.count("max_completion_tokens", 1)?.or(old_name);
    let prompts = vec![Prompt::Chat { messages, truncate, layout }];
    let (mut request, reply) = request::take(&app, &mut fields, prompts, max_tokens, &sampling::CHAT_COMPLETIONS)?;
    tools::check_beside(tools.as_ref(), request.constraint.as_ref())?;
    request.tools = tools;
    let left_out = fields.finish(&app.unknown_fields);
    request.sampling.logprobs = logprobs.then(|| top.unwrap_or(0) as u32);
    request.sampling.prompt_logprobs = reply.prompt_logprobs.map(|top| PromptLogprobs { top, from: 0 });
    reply::answer(&app, request, left_out, reply, Chat { logprobs, called: BTreeSet::new() })
        .await
        .map_err(|failure| failure.of_prompt("messages"))
}

/// The choices of a chat.
struct Chat {
    logprobs: bool,
    /// Choices in which something was called.
    called: BTreeSet<usize>,
}

impl Chat {
    fn choice<'a>(&self, about: &'a About, chunk: &'a Chunk) -> Choice<'a> {
        let content = ChatLogprobs { tokenizer: &about.text.tokenizer, tokens: &chunk.tokens };
        let logprobs = self.logprobs.then_some(Logprobs::Chat { content, refusal: () });
        let mut choice = Choice { logprobs, ..about.choice(chunk) };
        if chunk.finish == Some(FinishReason::Stop) && self.called.contains(&chunk.index) {
            choice.finish_reason = Some("tool_calls");
        }
        choice
    }
}

impl Route for Chat {
    const ID: &str = "chatcmpl";
    const OBJECTS: [&str; 2] = ["chat.completion", "chat.completion.chunk"];

    /// The first delta of every choice says who speaks.
    fn opening<'a>(&self, about: &'a About, index: usize) -> Option<Choice<'a>> {
        let delta = Some(Message { content: Some(Some("")), role: Some("assistant"), ..Message::default() });
        Some(Choice { index, delta, prompt_token_ids: about.prompt_token_ids(index), ..Choice::default() })
    }

    fn piece<'a>(&mut self, about: &'a About, chunk: &'a Chunk) -> Choice<'a> {
        if !chunk.calls.is_empty() {
            self.called.insert(chunk.index);
        }
        let delta = Some(Message {
            tool_calls: chunk.calls.iter().map(|piece| ToolCall::new(piece, true)).collect(),
            calculations: &chunk.calculations,
            content: some(&chunk.text).map(Some),
            reasoning_content: some(&chunk.thinking),
            ..Message::default()
        });
        Choice { delta, ..self.choice(about, chunk) }
    }

    fn whole<'a>(&mut self, about: &'a About, chunk: &'a Chunk) -> Choice<'a> {
        if !chunk.calls.is_empty() {
            self.called.insert(chunk.index);
        }
        let tool_calls: Vec<_> = merged(&chunk.calls).iter().map(|call| ToolCall::new(call, false)).collect();
        let reasoning_content = some(&chunk.thinking);
        let is_empty = reasoning_content.is_none() && tool_calls.is_empty();
        let content = Some(some(&chunk.text).or(is_empty.then_some("")));
        let calculations = &chunk.calculations;
        let (refusal, role) = (Some(()), Some("assistant"));
        let message = Some(Message { calculations, content, reasoning_content, refusal, role, tool_calls });
        let prompt_token_ids = about.prompt_token_ids(chunk.index);
        Choice { message, prompt_token_ids, ..self.choice(about, chunk) }
    }

    /// All have the same prompt.
    fn beside<'a>(&self, about: &'a About, first: Option<&'a Chunk>) -> Option<PromptScores<'a>> {
        about.prompt_logprobs(first?)
    }
}

/// Text, if there is any.
fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}
