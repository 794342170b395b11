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

/// Whether a request would be answered at once, and why not: where ranks are missing, it waits until they are there again.
fn told(app: &App, well: Value, mut ill: Value) -> Response {
    let status = app.engine.status();
    let (reason, comes_back) = match status.failure() {
        Some(failure) => (failure, false),
        None if app.engine.is_stopping() => ("the server is shutting down", false),
        None if !status.is_ready() => ("not every rank answers", true),
        None => return Json(well).into_response(),
    };
    ill["reason"] = reason.into();
    let again = comes_back.then_some([(header::RETRY_AFTER, "1")]);
    (StatusCode::SERVICE_UNAVAILABLE, again, Json(ill)).into_response()
}
