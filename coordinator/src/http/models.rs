//! Which model is served, and by which names.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
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
        Err(Failure::model_not_found(name, shown(card)))
    }
}

/// The name that replies carry: the one that was given, else what was typed; of a path its last component, as where it
/// lies on this host is nobody's business.
pub(super) fn shown(card: &ModelCard) -> &str {
    let typed = card.name.trim_end_matches('/');
    let is_hub_id = typed.matches('/').count() == 1 && !typed.starts_with(['/', '.', '~']);
    let own = if is_hub_id { typed } else { last_component(typed) };
    card.served_name.as_deref().unwrap_or(own)
}

/// What was typed, its last path component, and the name it is served under.
fn names(card: &ModelCard) -> impl Iterator<Item = &str> {
    let typed = card.name.trim_end_matches('/');
    [card.name.as_str(), typed, last_component(typed)].into_iter().chain(card.served_name.as_deref())
}

fn last_component(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `GET /v1/models`.
pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(app.engine.card())]}))
}

/// `GET /v1/models/{id}`; ids of the hub have a slash.
pub(super) async fn get(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Failure> {
    let Path(id) = id?;
    let card = app.engine.card();
    check(&id, card)?;
    Ok(Json(model(card)))
}

fn model(card: &ModelCard) -> Value {
    json!({
        "id": shown(card),
        "object": "model",
        "created": UtcTime::of(card.started).unix_seconds(),
        "owned_by": "nanoinfer",
        "root": shown(card),
        "max_model_len": card.shape.context,
    })
}

/// `GET /api/model_info`.
pub(super) async fn info(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let shape = &card.shape;
    Json(json!({
        "model": shown(card),
        "model_type": "gpt2",
        "parameters": shape.parameters(),
        "dtype": card.dtype.to_string(),
        "nproc": card.partition.world(),
        "build_id": card.build_id,
        "config": {
            "vocab_size": shape.vocab_size,
            "n_positions": shape.context,
            "n_embd": shape.width,
            "n_layer": shape.layers,
            "n_head": shape.attention.heads,
            "n_inner": shape.mlp.inner,
            "eos_token_ids": shape.eos_token_ids,
        },
        "chat_template": app.engine.text().chat.template().is_some(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::demo_card;

    #[test]
    fn the_shown_name_is_the_given_one_or_what_a_path_ends_in() {
        for (typed, shown_name) in [
            ("gpt2", "gpt2"),
            ("org/name", "org/name"),
            ("/srv/secret/place/gpt2", "gpt2"),
            ("/gpt2/", "gpt2"),
            ("./models/gpt2", "gpt2"),
            ("~/gpt2", "gpt2"),
            ("../gpt2", "gpt2"),
            ("a/b/model.safetensors", "model.safetensors"),
        ] {
            let card = ModelCard { name: typed.into(), ..demo_card() };
            assert_eq!(shown(&card), shown_name, "{typed}");
            let card = ModelCard { served_name: Some("public".into()), ..card };
            assert_eq!(shown(&card), "public");
        }
    }

    #[test]
    fn a_model_answers_to_its_names_only() {
        let card = ModelCard { served_name: Some("served".into()), ..demo_card() };
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
