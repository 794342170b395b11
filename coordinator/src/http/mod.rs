//! The outside: HTTP routes of three dialects over one [`TextEngine`].
//!
//! Reading order: this router; [`operate`] lets requests in; [`body`], [`fields`] (with [`json`]), [`messages`] and [`tools`] read them,
//! [`constraint`] what an answer must be, [`unbuilt`] refuses what would change an answer; [`sampling`] turns them into a `GenerateRequest`; the dialects, [`openai`],
//! [`ollama`] and the [`short`] form, answer, whole or through [`writer`]; [`page`] is for browsers; [`error`] alone
//! decides statuses. Nothing here knows token ids' meaning, scheduling or ranks.

mod app;
mod body;
mod document;
mod constraint;
mod error;
mod explain;
mod fields;
mod json;
mod logprobs;
mod messages;
mod model_name;
mod ollama;
mod openai;
mod operate;
mod options;
mod page;
mod quote;
mod sampling;
mod short;
mod tools;
mod unbuilt;
mod unknown_fields;
mod writer;

use std::{future::Future, io, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    middleware,
    routing::{any, get, post},
};
use tokio::net::TcpListener;
use tower_http::{
    catch_panic::CatchPanicLayer,
    classify::ServerErrorsFailureClass as Class,
    trace::{DefaultOnFailure, OnFailure, TraceLayer},
};
use tracing::Span;

pub use axum::http::HeaderValue;

use self::{
    app::App,
    body::Bodies,
    error::Failure,
    fields::Fields,
    ollama::{chat, generate, library},
    openai::{chat_completions, completions, models, responses, tokenize},
    operate::{
        access, connections, live,
        neighbours::{self, Neighbours},
        probes, request_id,
    },
    quote::short,
};
pub use self::{operate::access::ApiKey, options::HttpOptions};
use crate::{metrics::Metrics, text::TextEngine};

/// Serves until `shutdown` resolves; then takes no new connections, finishes the requests under way, and returns.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    engine: TextEngine,
    options: HttpOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let address = listener.local_addr()?.ip();
    connections::serve(listener, router(engine, options.clone(), address), options, shutdown).await;
    Ok(())
}

fn router(engine: TextEngine, options: HttpOptions, address: IpAddr) -> Router {
    let metrics = engine.status().metrics().clone();
    let bodies = Bodies::new(&options);
    let max_request_memory = options.max_request_memory;
    let app = App { engine, unknown_fields: Arc::default(), bodies, max_request_memory };
    let router = Router::new()
        .route("/", get(page::chat))
        .route("/learn", get(page::learn))
        .route("/docs", get(page::docs))
        .route("/assets/{name}", get(page::asset))
        .route("/openapi.json", get(page::openapi))
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/health", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .route("/api/health", get(probes::health))
        .route("/api/cluster", get(live::cluster))
        .route("/api/steps", get(live::steps))
        .route("/api/model_info", get(live::model_info))
        .route("/api/chat", post(chat::chat))
        .route("/api/chat/batch", post(short::batch))
        .route("/api/generate", post(generate::generate))
        .route("/api/version", get(library::version))
        .route("/api/tags", get(library::tags))
        .route("/api/ps", get(library::ps))
        .route("/api/show", post(library::show))
        .route("/api/pull", post(library::pull))
        .route("/api/embed", post(library::embed))
        .route("/api/embeddings", post(library::embed))
        .route("/api/create", any(library::unchangeable))
        .route("/api/copy", any(library::unchangeable))
        .route("/api/delete", any(library::unchangeable))
        .route("/api/push", any(library::unchangeable))
        .route("/api/blobs/{digest}", any(library::unchangeable))
        .route("/v1/embeddings", post(library::embed))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat_completions::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::info))
        .fallback(error::unknown_route)
        .method_not_allowed_fallback(error::wrong_method)
        .with_state(app);
    dress(router, options, address, metrics)
}

/// From the inside out: what panics becomes a failure, what shows no key is kept out (where there is none, other sites' pages
/// are), and what names no host, or has no place; what failed gets its body and is counted, other sites' pages are told what they
/// may read (also of failures), what was answered is logged.
fn dress(router: Router, options: HttpOptions, address: IpAddr, metrics: Arc<Metrics>) -> Router {
    let neighbours = Neighbours::new(&options, address);
    let mut router = router.layer(CatchPanicLayer::custom(error::after_panic));
    router = match options.api_key {
        Some(key) => router.layer(middleware::from_fn_with_state(key, access::check)),
        None => router.layer(middleware::from_fn_with_state(Arc::new(neighbours), neighbours::check)),
    };
    router = router.layer(middleware::from_fn(access::one_host)).layer(middleware::from_fn(connections::place));
    router = router.layer(middleware::from_fn_with_state(metrics, error::render));
    if !options.cors_origins.is_empty() {
        router = router.layer(access::cors(&options.cors_origins));
    }
    let router = router.layer(middleware::from_fn(request_id::give_back));
    let span = |request: &Request| tracing::error_span!("request", method = %request.method(), path = short(request.uri().path()));
    let router = router.layer(TraceLayer::new_for_http().make_span_with(span).on_failure(log_failure));
    // A router's own layers run after it has looked for a route: too late to change the path.
    Router::new().fallback_service(router).layer(middleware::map_request(access::plain_path))
}

/// A time-out that the request asked for is its client's doing, and that there is no answer now is said on purpose: neither is
/// an error of the server.
fn log_failure(class: Class, latency: Duration, span: &Span) {
    let what = match class {
        Class::StatusCode(StatusCode::GATEWAY_TIMEOUT) => "a request's own time ran out",
        Class::StatusCode(StatusCode::SERVICE_UNAVAILABLE) => "a request was told that the server does not answer now",
        class => return DefaultOnFailure::new().on_failure(class, latency, span),
    };
    tracing::warn!(?latency, "{what}");
}

#[cfg(test)]
mod tests;
