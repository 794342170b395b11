//! `x-request-id`: a name for a request that its client's log and a proxy's can be searched for.
//!
//! What the client gives comes back as it is; nothing here depends on it.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};

use crate::http::sampling;

const NAME: HeaderName = HeaderName::from_static("x-request-id");

/// Longest that is given back.
const MAX_BYTES: usize = 128;

/// Middleware that names the request in its response.
pub(crate) async fn give_back(request: Request, next: Next) -> Response {
    let is_fit =
        |id: &&HeaderValue| (1..=MAX_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    let given = request.headers().get(NAME).filter(is_fit).cloned();
    let mut response = next.run(request).await;
    let made = || HeaderValue::from_str(&format!("{:016x}{:016x}", sampling::random(), sampling::random()));
    if let Some(id) = given.or_else(|| made().ok()) {
        response.headers_mut().insert(NAME, id);
    }
    response
}
