//! How the server behaves towards its clients, as it was started.

use std::time::Duration;

use axum::http::HeaderValue;

use super::operate::access::ApiKey;

/// How the server behaves towards its clients.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Largest body of a request, in bytes; more is answered with 413.
    pub max_body_bytes: usize,
    /// Most bytes of large bodies in work together; more wait, and get 429 in the end.
    pub max_bodies_bytes: usize,
    /// Most memory that the answer to one request may take, in bytes; a request for more is answered with 400.
    pub max_request_memory: usize,
    /// Longest that a client may take to send the head of its first request.
    pub head_deadline: Duration,
    /// Longest that it may take to send the next one's, and any body.
    pub read_deadline: Duration,
    /// Longest that it may read nothing of an answer.
    pub write_deadline: Duration,
    /// Most connections, but for a few more that only probes may use; none for as many as come.
    pub max_connections: Option<usize>,
    /// What requests must show; none for nothing.
    pub api_key: Option<ApiKey>,
    /// Origins of other sites whose pages may read answers; `*` for all.
    pub cors_origins: Vec<HeaderValue>,
    /// Names of this server, besides those of loopback, where it is bound to that and there is no key; `*` for all.
    pub allowed_hosts: Vec<String>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            max_body_bytes: 8 << 20,
            max_bodies_bytes: 64 << 20,
            max_request_memory: 256 << 20,
            head_deadline: Duration::from_secs(10),
            read_deadline: Duration::from_secs(60),
            write_deadline: Duration::from_secs(60),
            max_connections: None,
            api_key: None,
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
        }
    }
}
