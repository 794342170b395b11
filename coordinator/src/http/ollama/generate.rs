//! `POST /api/generate`: one prompt as a single turn, or continued as it stands (`raw`).

use std::time::Instant;

use axum::{extract::State, response::Response};

use super::answer::{Asked, Shape, answer, think};
use crate::{
    http::{App, Failure, Fields, model_name},
    text::{ChatLayout, Message, Prompt, Role},
};

pub(crate) async fn generate(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    let start = Instant::now();
    model_name::take(&mut fields, app.engine.card())?;
    let text = fields.string("prompt")?.unwrap_or_default();
    let system = fields.string("system")?.filter(|system| !system.is_empty());
    let raw = fields.boolean("raw")?.unwrap_or(false);
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    let is_empty = text.is_empty();
    let mut layout = ChatLayout::default();
    // A prompt that is taken as it stands says itself whether the model is to think.
    let think = if raw { None } else { think(&app, &mut fields, &mut layout)? };
    let prompt = if raw {
        if system.is_some() {
            let failure = Failure::field("system", "has no place in a `raw` prompt, which is taken as it stands");
            return Err(failure.with_hint("write it into `prompt`, or leave `raw` out"));
        }
        Prompt::Text { text, add_special_tokens: true }
    } else {
        let system = system.map(|content| Message::new(Role::System, content));
        let messages = system.into_iter().chain([Message::user(text)]).collect();
        Prompt::Chat { messages, truncate, layout }
    };
    let asked = Asked { prompt: (!is_empty).then_some(prompt), think, tools: None, start };
    answer(&app, fields, Shape::Generate, asked).await
}
