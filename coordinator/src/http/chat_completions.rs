//! `POST /v1/chat/completions`: a conversation, answered.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Value, json};

use super::{
    App,
    error::Failure,
    explain,
    fields::Fields,
    logprobs, messages, models,
    openai::{self, Envelope, ReplyOptions, Usage},
    sampling,
    stream::{self, Framing, Writer},
    unbuilt,
};
use crate::text::{Chunk, Generation, ModelText, Prompt};

pub(super) async fn create(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    models::take(&mut fields, app.engine.card())?;
    unbuilt::tools(&mut fields)?;
    let messages = messages::take(&mut fields)?;
    if messages.is_empty() {
        return Err(Failure::field("messages", "`messages` is missing or empty"));
    }
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    let wants_logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?;
    if top.is_some_and(|top| top > 0) && !wants_logprobs {
        return Err(Failure::field("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    let old_name = fields.count("max_tokens", 1)?;
    let max_tokens = fields.count("max_completion_tokens", 1)?.or(old_name);
    let prompts = vec![Prompt::Chat { messages, truncate }];
    let (mut request, reply) = openai::take(&app, &mut fields, prompts, max_tokens, &sampling::CHAT_COMPLETIONS)?;
    let left_out = fields.finish(&app.unknown_fields);
    request.logprobs = wants_logprobs.then(|| top.unwrap_or(0) as u32);

    let generation = app.engine.generate(request).await.map_err(|error| Failure::from(error).of_chat())?;
    let warnings = stream::warnings(left_out, &generation);
    if reply.stream {
        let mut writer = ChatWriter::new(&app, &generation, reply, wants_logprobs, "chat.completion.chunk");
        writer.warnings.clone_from(&warnings);
        return Ok(stream::respond(Framing::Sse, generation, writer, &warnings));
    }
    let mut writer = ChatWriter::new(&app, &generation, reply, wants_logprobs, "chat.completion");
    let choices = generation.whole().await?;
    let choices = choices
        .into_iter()
        .map(|chunk| {
            let message = json!({"role": "assistant", "content": chunk.text, "refusal": null});
            writer.choice("message", message, chunk)
        })
        .collect();
    let mut body = writer.envelope.around(choices);
    body["usage"] = writer.usage.to_json();
    Ok(stream::whole(body, &warnings))
}

struct ChatWriter {
    envelope: Envelope,
    text: Arc<ModelText>,
    prompt_ids: Vec<u32>,
    reply: ReplyOptions,
    logprobs: bool,
    /// To be said in the first chunk.
    warnings: Vec<String>,
    usage: Usage,
}

impl ChatWriter {
    fn new(app: &App, generation: &Generation, reply: ReplyOptions, logprobs: bool, object: &'static str) -> Self {
        let prompt_ids: Vec<u32> = generation.prompts().iter().flat_map(|prompt| prompt.ids.iter().copied()).collect();
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

    /// One entry of `choices`, with its text in `message` or `delta`.
    fn choice(&mut self, key: &str, message: Value, chunk: Chunk) -> Value {
        self.usage.count(&chunk);
        let logprobs = self
            .logprobs
            .then(|| json!({"content": logprobs::chat(&self.text.tokenizer, &chunk.tokens), "refusal": null}));
        let mut choice = json!({
            "index": chunk.index,
            "logprobs": logprobs,
            "finish_reason": openai::finish_reason(chunk.finish),
        });
        choice[key] = message;
        if self.reply.explain {
            choice["explain"] = explain::tokens(&self.text.tokenizer, &chunk.tokens).into();
        }
        if self.reply.token_ids {
            choice["token_ids"] = chunk.tokens.iter().map(|token| token.id).collect();
            if key == "message" {
                choice["prompt_token_ids"] = self.prompt_ids.iter().copied().collect();
            }
        }
        choice
    }

    fn object(&self, choice: Value) -> Value {
        let mut object = self.envelope.around(vec![choice]);
        if self.reply.include_usage {
            object["usage"] = Value::Null;
        }
        object
    }
}

impl Writer for ChatWriter {
    /// The first delta of every choice says who speaks.
    fn begin(&mut self) -> Vec<Value> {
        (0..self.reply.n)
            .map(|index| {
                let delta = json!({"role": "assistant", "content": ""});
                let mut choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
                if self.reply.token_ids {
                    choice["prompt_token_ids"] = self.prompt_ids.iter().copied().collect();
                }
                let mut object = self.object(choice);
                if index == 0 && !self.warnings.is_empty() {
                    object["warnings"] = json!(self.warnings);
                }
                object
            })
            .collect()
    }

    fn chunk(&mut self, chunk: Chunk) -> Vec<Value> {
        let delta = if chunk.text.is_empty() { json!({}) } else { json!({"content": chunk.text}) };
        let choice = self.choice("delta", delta, chunk);
        vec![self.object(choice)]
    }

    fn end(&mut self) -> Vec<Value> {
        self.envelope.end(&self.reply, self.usage)
    }

    fn failure(&mut self, failure: &Failure) -> Value {
        openai::failure(failure)
    }
}
