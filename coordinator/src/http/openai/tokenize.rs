//! Text to token ids and back, for clients that count.

use axum::{Json, extract::State, response::Response};
use nanoinfer_shared::protocol::TokenId;
use serde::Serialize;
use serde_json::{Value, json};

use crate::http::{App, Failure, Fields, messages, model_name, tools, unbuilt, writer};
use crate::text::{ChatLayout, GenerateError, Message, Specials, generate_error::MAX_UNBOUNDED_BYTES};

/// Most tokens to decode: one may stand for more than a hundred bytes.
const MAX_TOKENS: usize = 1 << 20;

/// `POST /tokenize`: `prompt` or `messages`.
pub(crate) async fn tokenize(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let with_strings = fields.boolean("return_token_strs")?.unwrap_or(false);
    let is_chat = fields.has("messages");
    let mut messages = messages::take(&mut fields, &app.unknown_fields)?;
    let prompt = fields.string("prompt")?;
    let mut layout = ChatLayout::default();
    if is_chat {
        let tools = tools::take(&app, &mut fields)?;
        layout = messages::layout(&mut fields, &mut messages)?;
        layout.tools = tools.iter().flat_map(|tools| &tools.list).map(|tool| tool.told.clone()).collect();
    }
    unbuilt::take(&mut fields)?;
    let warnings = fields.finish(&app.unknown_fields);
    let of_messages = messages.iter().map(Message::bytes).sum();
    for (name, bytes) in [("prompt", prompt.as_ref().map_or(0, String::len)), ("messages", of_messages)] {
        if bytes > MAX_UNBOUNDED_BYTES {
            let what = format!("has {bytes} bytes of text, over the limit of {MAX_UNBOUNDED_BYTES}");
            return Err(Failure::field(name, what));
        }
    }
    let encoded = app.engine.encode(move |text| {
        let tokenizer = &text.tokenizer;
        let ids = match (prompt, is_chat) {
            (Some(prompt), false) if add_special_tokens => {
                tokenizer.encode_document(&prompt).map_err(GenerateError::from)?
            }
            (Some(prompt), false) => tokenizer.encode(&prompt, Specials::Match).map_err(GenerateError::from)?,
            (None, true) => {
                text.chat.encode(&messages, &layout, tokenizer).map_err(|reason| Failure::at("messages", reason))?
            }
            _ => return Err(Failure::at("prompt", "either `prompt` or `messages` is needed, and not both")),
        };
        let strings = with_strings.then(|| ids.iter().map(|&id| tokenizer.spell(id)).collect::<Vec<_>>());
        Ok((ids, strings))
    });
    let (ids, strings) = encoded.await??;
    let reply = Tokenized {
        count: ids.len(),
        max_model_len: app.engine.card().shape.context,
        token_strs: strings,
        tokens: ids,
        warnings: &warnings,
    };
    Ok(writer::at_once(&reply, &warnings))
}

#[derive(Serialize)]
struct Tokenized<'a> {
    count: usize,
    max_model_len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
    tokens: Vec<TokenId>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

/// `POST /detokenize`.
pub(crate) async fn detokenize(State(app): State<App>, mut fields: Fields) -> Result<Json<Value>, Failure> {
    model_name::take(&mut fields, app.engine.card())?;
    if !fields.has("tokens") {
        return Err(Failure::field("tokens", "is missing"));
    }
    let ids = fields.tokens("tokens")?;
    unbuilt::take(&mut fields)?;
    let _ = fields.finish(&app.unknown_fields);
    if ids.len() > MAX_TOKENS {
        return Err(Failure::field("tokens", format!("are {}, over the limit of {MAX_TOKENS}", ids.len())));
    }
    let tokenizer = &app.engine.text().tokenizer;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= tokenizer.vocab_size()) {
        let vocab_size = tokenizer.vocab_size();
        return Err(Failure::at("tokens", format!("token {id} does not exist: the vocabulary has {vocab_size}")));
    }
    Ok(Json(json!({"prompt": tokenizer.decode(&ids)})))
}

/// `GET /tokenizer_info`.
pub(crate) async fn info(State(app): State<App>) -> Json<Value> {
    let text = app.engine.text();
    let (bos, eos) = (text.tokenizer.bos(), text.tokenizer.eos());
    Json(json!({
        "tokenizer_class": text.tokenizer.class(),
        "vocab_size": text.tokenizer.vocab_size(),
        // Texts, as tokenizer_config.json has them: lm-eval encodes them again.
        "bos_token": bos.map(|(text, _)| text),
        "eos_token": eos.map(|(text, _)| text),
        "bos_token_id": bos.map(|(_, id)| id),
        "eos_token_id": eos.map(|(_, id)| id),
        "model_max_length": app.engine.card().shape.context,
        "chat_template": text.chat.template(),
    }))
}
