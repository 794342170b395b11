//! What a browser gets: the chat page, the reference of the routes, and the document that it is made from.
//!
//! The files are in `page/`, embedded as they are: nothing is built, and no other host is named.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{Method, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    App,
    error::{self, Failure},
};

const CHAT: &str = include_str!("page/chat.html");
const DOCS: &str = include_str!("page/docs.html");
const OPENAPI: &str = include_str!("page/openapi.json");

/// What the pages load, with its type.
const ASSETS: [(&str, &str, &str); 4] = [
    ("chat.css", "text/css; charset=utf-8", include_str!("page/chat.css")),
    ("chat.js", "text/javascript; charset=utf-8", include_str!("page/chat.js")),
    ("docs.css", "text/css; charset=utf-8", include_str!("page/docs.css")),
    ("docs.js", "text/javascript; charset=utf-8", include_str!("page/docs.js")),
];

/// What the pages may do: use this server, and nothing that stands in the page itself.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`: the chat page.
pub(super) async fn chat() -> Response {
    file("text/html; charset=utf-8", CHAT)
}

/// `GET /docs`: the routes, for people.
pub(super) async fn docs() -> Response {
    file("text/html; charset=utf-8", DOCS)
}

/// `GET /assets/{name}`: what the pages load.
pub(super) async fn asset(
    name: Result<Path<String>, PathRejection>,
    method: Method,
    uri: Uri,
) -> Result<Response, Failure> {
    let Path(name) = name?;
    match ASSETS.iter().find(|(asset, ..)| *asset == name) {
        Some((_, kind, text)) => Ok(file(kind, text)),
        None => Err(error::unknown_route(method, uri).await),
    }
}

/// `GET /openapi.json`: the routes, for programs.
pub(super) async fn openapi(State(app): State<App>) -> Json<Value> {
    let mut document = document();
    document["info"]["version"] = app.engine.card().build_id.as_str().into();
    Json(document)
}

/// Written by hand: requests are read field by field, so there are no types that it could be derived from. Tests, and
/// `.ci/clients`, hold the server against it.
pub(super) fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("a test reads it")
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}
