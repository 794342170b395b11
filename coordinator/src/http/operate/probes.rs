//! Is it alive, is it ready, how busy is it.

use std::sync::atomic::Ordering::Relaxed;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{http::app::App, metrics::CONTENT_TYPE};

/// `GET /livez`: the process answers.
pub(crate) async fn livez() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

/// `GET /readyz` and `GET /health`: a request would be answered.
pub(crate) async fn readyz(State(app): State<App>) -> Response {
    match obstacle(&app) {
        None => Json(json!({"status": "ready"})).into_response(),
        Some(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "not ready", "reason": reason}))).into_response()
        }
    }
}

/// `GET /api/health`.
pub(crate) async fn health(State(app): State<App>) -> Response {
    match obstacle(&app) {
        None => Json(json!({"status": "healthy", "model_loaded": true})).into_response(),
        Some(reason) => {
            let body = json!({"status": "unhealthy", "model_loaded": false, "reason": reason});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// `GET /metrics`, for Prometheus.
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let status = app.engine.status();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], status.metrics.render(status)).into_response()
}

fn obstacle(app: &App) -> Option<String> {
    let status = app.engine.status();
    if let Some(failure) = status.failure.get() {
        return Some(failure.clone());
    }
    if status.stopping.load(Relaxed) {
        return Some("the server is shutting down".into());
    }
    (!status.ready.load(Relaxed)).then(|| "not every rank answers".into())
}
