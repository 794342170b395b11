//! What a browser gets: the chat page, the lessons, the reference of the routes, and the document that it is made from.
//!
//! The files are in `page/`, embedded as they are: nothing is built, and no other host is named.

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{Method, Uri, header},
    response::{IntoResponse, Response},
};

use super::{
    App, document,
    error::{self, Failure},
    model_name,
};

const CHAT: &str = include_str!("page/chat.html");
const LEARN: &str = include_str!("page/learn.html");
const DOCS: &str = include_str!("page/docs.html");

macro_rules! chapter {
    ($name:literal) => {
        ($name, "text/markdown; charset=utf-8", include_str!(concat!("../../../docs/learn/", $name)))
    };
}
macro_rules! picture {
    ($name:literal) => {
        ($name, "image/svg+xml", include_str!(concat!("../../../docs/learn/", $name)))
    };
}

/// What the pages load, with its type; those of `vendor/` are others', unchanged, their licences beside them.
pub(super) const ASSETS: [(&str, &str, &str); 38] = [
    ("chat.css", CSS, include_str!("page/chat.css")),
    ("theme.js", JS, include_str!("page/theme.js")),
    ("chat.js", JS, include_str!("page/chat.js")),
    ("dom.js", JS, include_str!("page/dom.js")),
    ("ask.js", JS, include_str!("page/ask.js")),
    ("words.js", JS, include_str!("page/words.js")),
    ("conversations.js", JS, include_str!("page/conversations.js")),
    ("markdown.js", JS, include_str!("page/markdown.js")),
    ("tokens.js", JS, include_str!("page/tokens.js")),
    ("live.js", JS, include_str!("page/live.js")),
    ("marked.js", JS, include_str!("page/vendor/marked.js")),
    ("highlight.js", JS, include_str!("page/vendor/highlight.js")),
    ("learn.css", CSS, include_str!("page/learn.css")),
    ("learn.js", JS, include_str!("page/learn.js")),
    chapter!("README.md"),
    chapter!("README.zh-CN.md"),
    chapter!("1-understand.md"),
    chapter!("1-understand.zh-CN.md"),
    chapter!("2-optimise.md"),
    chapter!("2-optimise.zh-CN.md"),
    chapter!("3-serve.md"),
    chapter!("3-serve.zh-CN.md"),
    chapter!("4-build.md"),
    chapter!("4-build.zh-CN.md"),
    picture!("layer.svg"),
    picture!("kv-pool.svg"),
    picture!("step.svg"),
    picture!("attention.svg"),
    picture!("cosines.svg"),
    picture!("cache.svg"),
    picture!("draws.svg"),
    picture!("batch.svg"),
    picture!("rounding.svg"),
    picture!("roof.svg"),
    picture!("schedule.svg"),
    picture!("clients.svg"),
    ("docs.css", CSS, include_str!("page/docs.css")),
    ("docs.js", JS, include_str!("page/docs.js")),
];
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// What the pages may do: use this server, and nothing that stands in the page itself.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`: the chat page.
pub(super) async fn chat() -> Response {
    file("text/html; charset=utf-8", CHAT)
}

/// `GET /learn`: the chapters of docs/learn, as this build has them.
pub(super) async fn learn() -> Response {
    file("text/html; charset=utf-8", LEARN)
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

/// `GET /openapi.json`: the routes, for programs; as it was written, since its order is that of use. Examples name the model that
/// is served.
pub(super) async fn openapi(State(app): State<App>) -> Response {
    let card = app.engine.card();
    let document = document::written(&card.build_id, model_name::shown(card));
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
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
