//! Who may ask: the key that requests must show, and the pages of other sites that may use this server.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, Uri, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use crate::http::Failure;

/// Routes that need no key, besides what the pages load: probes, and pages that hold nothing and ask for the key
/// themselves.
const OPEN: [&str; 6] = ["/livez", "/readyz", "/health", "/", "/learn", "/docs"];

/// Routes that tell how the server is: they are answered whoever asks, and however busy it is.
pub(crate) const PROBES: [&str; 4] = ["/livez", "/readyz", "/health", "/metrics"];

/// What every request must carry, as `Authorization: Bearer KEY`. Kept as a digest, so that comparing takes the same
/// time wherever two keys differ, and no log can show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// A key as it was given.
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    fn opens(&self, request: &Request) -> bool {
        let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key =
            shown.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        key.is_some_and(|(_, key)| Self::new(key.trim()) == *self)
    }
}

/// Middleware that lets in what shows the key, and what needs none.
pub(crate) async fn check(State(key): State<ApiKey>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if OPEN.contains(&path) || path.starts_with("/assets/") || key.opens(&request) {
        next.run(request).await
    } else {
        Failure::unauthorized().into_response()
    }
}

/// A path as routes are written: no slash at its end, and no two in a row. Clients make those of a base address and a path.
pub(crate) async fn plain_path(mut request: Request) -> Request {
    let path = request.uri().path();
    if path.contains("//") || (path.len() > 1 && path.ends_with('/')) {
        let plain: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = format!("/{}{query}", plain.join("/")).parse().ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// Middleware that lets in what names its host once, as RFC 9112 (3.2) has it; before HTTP/1.1 none had to be named.
pub(crate) async fn one_host(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Failure::no_request(format!("a request has one header `Host`, this one has {hosts}")).into_response();
    }
    next.run(request).await
}

/// Lets pages of `origins` read answers; `*` stands for all of them.
pub(crate) fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    let methods = [Method::GET, Method::POST, Method::HEAD];
    // Whatever a page asks for, as OpenAI's library sends a dozen of its own (`x-stainless-…`); `*` would not cover the
    // header that carries the key.
    let headers = AllowHeaders::mirror_request();
    CorsLayer::new().allow_origin(allowed).allow_methods(methods).allow_headers(headers).expose_headers(Any)
}
