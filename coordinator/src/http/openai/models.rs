//! Which model is served.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde_json::{Value, json};

use crate::http::{
    App, Failure,
    model_name::{check, shown},
};
use crate::{clock::UtcTime, config::ModelCard};

/// `GET /v1/models`.
pub(crate) async fn list(State(app): State<App>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(app.engine.card())]}))
}

/// `GET /v1/models/{id}`; ids of the hub have a slash.
pub(crate) async fn get(
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
