//! Which model is served, and by which names.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::{App, error::Failure, fields::Fields};
use crate::{clock::UtcTime, config::ModelCard};

/// Takes the field `model`; an absent one means the model that is served.
pub(super) fn take(fields: &mut Fields, card: &ModelCard) -> Result<(), Failure> {
    match fields.string("model")? {
        Some(name) => check(&name, card),
        None => Ok(()),
    }
}

pub(super) fn check(name: &str, card: &ModelCard) -> Result<(), Failure> {
    if names(card).any(|known| known == name || name.strip_suffix(":latest") == Some(known)) {
        Ok(())
    } else {
        Err(Failure::model_not_found(name, &card.name))
    }
}

/// What was typed, its last path component, and the name it is served under.
fn names(card: &ModelCard) -> impl Iterator<Item = &str> {
    let typed = card.name.trim_end_matches('/');
    let last = typed.rsplit('/').next().unwrap_or(typed);
    [card.name.as_str(), typed, last].into_iter().chain(card.served_name.as_deref())
}

/// `GET /v1/models`.
pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let ids = [Some(&card.name), card.served_name.as_ref()].into_iter().flatten();
    let data: Vec<Value> = ids.map(|id| model(id, card)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{id}`; ids of the hub have a slash.
pub(super) async fn get(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    let card = app.engine.card();
    check(&id, card)?;
    Ok(Json(model(&id, card)))
}

fn model(id: &str, card: &ModelCard) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": UtcTime::of(card.started).unix_seconds(),
        "owned_by": "nanoinfer",
        "root": card.name,
        "max_model_len": card.geometry.n_positions,
    })
}

/// `GET /api/model_info`.
pub(super) async fn info(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let geometry = &card.geometry;
    Json(json!({
        "model": card.name,
        "model_type": "gpt2",
        "parameters": geometry.parameters(),
        "dtype": card.dtype.to_string(),
        "nproc": card.partition.world(),
        "build_id": card.build_id,
        "config": {
            "vocab_size": geometry.vocab_size,
            "n_positions": geometry.n_positions,
            "n_embd": geometry.n_embd,
            "n_layer": geometry.n_layer,
            "n_head": geometry.n_head,
            "n_inner": geometry.n_inner,
            "eos_token_ids": geometry.eos_token_ids,
        },
        "chat_template": app.engine.text().chat.template().is_some(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::demo_card;

    #[test]
    fn a_model_answers_to_its_names_only() {
        let card = demo_card();
        for name in [
            "someone/nano-chat",
            "nano-chat",
            "served",
            "someone/nano-chat:latest",
            "nano-chat:latest",
            "served:latest",
        ] {
            assert!(check(name, &card).is_ok(), "{name}");
        }
        for name in ["", "someone", "nano", "nano-chat:7b", "gpt-4", ":latest"] {
            assert!(check(name, &card).is_err(), "{name}");
        }
    }
}
