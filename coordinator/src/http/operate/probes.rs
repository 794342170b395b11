//! Is it alive, is it ready, how busy is it.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{http::App, metrics::CONTENT_TYPE};

/// `GET /livez`: the process answers.
pub(crate) async fn livez() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

/// `GET /readyz` and `GET /health`: a request would be answered.
pub(crate) async fn readyz(State(app): State<App>) -> Response {
    told(&app, json!({"status": "ready"}), json!({"status": "not ready"}))
}

/// `GET /api/health`.
pub(crate) async fn health(State(app): State<App>) -> Response {
    let well = json!({"status": "healthy", "model_loaded": true});
    told(&app, well, json!({"status": "unhealthy", "model_loaded": false}))
}

/// `GET /metrics`, for Prometheus.
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let status = app.engine.status();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], status.metrics().render()).into_response()
}

/// Whether a request would be answered, and why not.
fn told(app: &App, well: Value, mut ill: Value) -> Response {
    let status = app.engine.status();
    let reason = match status.failure() {
        Some(failure) => failure,
        None if app.engine.is_stopping() => "the server is shutting down",
        None if !status.is_ready() => "not every rank answers",
        None => return Json(well).into_response(),
    };
    ill["reason"] = reason.into();
    (StatusCode::SERVICE_UNAVAILABLE, Json(ill)).into_response()
}
