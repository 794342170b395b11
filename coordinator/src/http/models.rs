//! Which model is served, and by which names.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::{App, error::Failure, fields::Fields};
use crate::{clock::unix_seconds, config::ModelCard};

/// Takes the field `model`; an absent one means the model that is served.
pub(super) fn take(fields: &mut Fields, card: &ModelCard) -> Result<(), Failure> {
    match fields.string("model")? {
        Some(name) => check(&name, card),
        None => Ok(()),
    }
}

fn check(name: &str, card: &ModelCard) -> Result<(), Failure> {
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
        "created": unix_seconds(),
        "owned_by": "nanoinfer",
        "root": card.name,
        "max_model_len": card.geometry.n_positions,
    })
}

/// `GET /api/tags`.
pub(super) async fn tags(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let entry = json!({
        "name": card.name,
        "model": card.name,
        "modified_at": crate::clock::UtcTime::now().rfc3339(),
        "size": 0,
        "digest": "",
        "details": {
            "format": "safetensors",
            "family": "gpt2",
            "families": ["gpt2"],
            "parameter_size": parameter_size(parameters(card)),
            "quantization_level": dtype(card),
        },
    });
    Json(json!({"models": [entry]}))
}

/// `GET /api/model_info`.
pub(super) async fn info(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let geometry = &card.geometry;
    Json(json!({
        "model": card.name,
        "model_type": "gpt2",
        "parameters": parameters(card),
        "dtype": dtype(card).to_lowercase(),
        "nproc": card.nproc,
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

/// `GET /api/version`.
pub(super) async fn version(State(app): State<App>) -> Json<Value> {
    Json(json!({"version": app.engine.card().build_id}))
}

/// Weights and biases of a GPT-2 whose head is tied to its embedding.
fn parameters(card: &ModelCard) -> usize {
    let g = &card.geometry;
    let attention = g.n_embd * 3 * g.n_embd + 3 * g.n_embd + g.n_embd * g.n_embd + g.n_embd;
    let mlp = 2 * g.n_embd * g.n_inner + g.n_inner + g.n_embd;
    let norms = 4 * g.n_embd;
    (g.vocab_size + g.n_positions) * g.n_embd + g.n_layer * (attention + mlp + norms) + 2 * g.n_embd
}

/// `124.4M`, as Ollama writes it.
fn parameter_size(parameters: usize) -> String {
    match parameters as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n => format!("{:.1}M", n / 1e6),
    }
}

fn dtype(card: &ModelCard) -> String {
    format!("{:?}", card.dtype)
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

    #[test]
    fn parameters_are_those_of_the_checkpoints() {
        let mut card = demo_card();
        assert_eq!(parameter_size(parameters(&card)), "5.9M");
        card.geometry = nanoinfer_shared::Geometry::from_config_json(r#"{"model_type": "gpt2"}"#).unwrap();
        assert_eq!(parameters(&card), 124_439_808);
    }
}
