//! The outside: HTTP routes of three dialects over one [`Engine`].
//!
//! Reading order: this router; [`fields`] and [`messages`] read requests; [`sampling`] and [`openai`] turn them into a
//! `GenerateRequest`; the routes [`short_form`], [`ollama`], [`completions`] and [`chat_completions`] answer, whole or
//! through [`stream`]; [`error`] alone decides statuses. Nothing here knows token ids' meaning, scheduling or ranks.

mod chat_completions;
mod completions;
mod error;
mod fields;
mod logprobs;
mod messages;
mod models;
mod ollama;
mod openai;
mod probes;
mod sampling;
mod short_form;
mod stream;
mod tokenize;

use std::{future::Future, io, sync::Arc};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
    serve::ListenerExt,
};
use tokio::net::TcpListener;
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};

use self::fields::UnknownFields;
use crate::text::Engine;

/// How the server behaves towards its clients.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Largest body of a request, in bytes; more is answered with 413.
    pub max_body_bytes: usize,
}

/// What every route can reach.
#[derive(Clone, Debug)]
struct App {
    engine: Engine,
    unknown_fields: Arc<UnknownFields>,
    max_body_bytes: usize,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { max_body_bytes: 8 << 20 }
    }
}

/// Serves until `shutdown` resolves; then takes no new connections, finishes the requests under way, and returns.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    options: HttpOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Tokens are small packets, and each should leave at once.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
    });
    axum::serve(listener, router(engine, options)).with_graceful_shutdown(shutdown).await
}

fn router(engine: Engine, options: HttpOptions) -> Router {
    let max_body_bytes = options.max_body_bytes;
    let app = App { engine, unknown_fields: Arc::default(), max_body_bytes };
    let router = Router::new()
        .route("/", get(probes::root))
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/health", get(probes::readyz))
        .route("/api/chat", post(ollama::chat))
        .route("/api/chat/batch", post(short_form::batch))
        .route("/api/health", get(probes::health))
        .route("/api/model_info", get(models::info))
        .route("/api/tags", get(models::tags))
        .route("/api/version", get(models::version))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat_completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::info))
        .fallback(error::unknown_route)
        .method_not_allowed_fallback(error::wrong_method)
        .with_state(app);
    dress(router, max_body_bytes)
}

/// From the inside out: what panics becomes a failure, what failed gets its body, what was answered is logged.
fn dress(router: Router, max_body_bytes: usize) -> Router {
    router
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(middleware::from_fn(error::render))
        .layer(TraceLayer::new_for_http())
}

#[cfg(test)]
mod tests;
