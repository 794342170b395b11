//! `POST /api/chat`: with `messages` Ollama's form, with `prompt` the short form.

use std::time::Instant;

use axum::{extract::State, response::Response};

use super::answer::{Asked, Shape, answer, think};
use crate::{
    http::{App, Failure, Fields, messages, model_name, short, tools},
    text::{ChatLayout, Prompt},
};

/// The key that is present decides the form.
pub(crate) async fn chat(State(app): State<App>, fields: Fields) -> Result<Response, Failure> {
    match (fields.has("messages"), fields.has("prompt")) {
        (true, false) => create(&app, fields).await,
        (false, true) => short::create(&app, fields).await,
        (true, true) => Err(Failure::at("prompt", "`messages` and `prompt` are two forms of a request: give one")),
        (false, false) => {
            fields.refuse_slip("messages")?;
            fields.refuse_slip("prompt")?;
            Err(Failure::at("messages", "`messages` or `prompt` is missing"))
        }
    }
}

async fn create(app: &App, mut fields: Fields) -> Result<Response, Failure> {
    let start = Instant::now();
    model_name::take(&mut fields, app.engine.card())?;
    let tools = tools::take(app, &mut fields)?;
    let mut messages = messages::take(&mut fields, &app.unknown_fields)?;
    let mut layout = ChatLayout { ending: messages::natural_ending(&mut messages), ..ChatLayout::default() };
    layout.tools = tools.iter().flat_map(|tools| &tools.list).map(|tool| tool.told.clone()).collect();
    let think = think(app, &mut fields, &mut layout)?;
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    let prompt = (!messages.is_empty()).then_some(Prompt::Chat { messages, truncate, layout });
    answer(app, fields, Shape::Chat, Asked { prompt, think, tools, start }).await
}
