//! Which HTTP status a failure has, and how its body looks: decided here and nowhere else.
//!
//! Handlers return a [`Failure`]; [`render`] gives it the body that the path's clients expect: OpenAI's object, or
//! `{"error": "…"}` under `/api/`.

use std::{fmt::Display, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Request, State, rejection::PathRejection},
    http::{Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{document, quote::short};
use crate::{
    handle::SubmitError,
    metrics::Metrics,
    text::{GenerateError, GrammarError, generate_error::MAX_SEQUENCES},
};

/// Seconds after which a client may try again when the queue is full.
const RETRY_AFTER_S: &str = "1";

/// A request that gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    /// What is wrong, in lower case.
    pub(super) message: String,
    /// What to do about it.
    hint: Option<String>,
    /// The field that is wrong.
    param: Option<String>,
    /// A word that programs can compare.
    code: Option<&'static str>,
}

/// Whose clients are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"error": {"message", "type", "param", "code"}}`.
    OpenAi,
    /// `{"error": "…"}`.
    Ollama,
}

impl Form {
    fn of(path: &str) -> Self {
        if path == "/api" || path.starts_with("/api/") { Self::Ollama } else { Self::OpenAi }
    }
}

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), hint: None, param: None, code: None }
    }

    /// 400 of a field, whose name the message begins with.
    pub(super) fn field(param: impl Into<String>, what: impl Display) -> Self {
        let param = param.into();
        let message = format!("`{param}` {what}");
        Self::at(param, message)
    }

    /// 400 of a field that is not what it should be.
    pub(super) fn wrong(param: impl Into<String>, expected: &str, got: &str) -> Self {
        Self::field(param, format!("should be {expected}, got {got}"))
    }

    /// 400 of a field, in other words.
    pub(super) fn at(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::no_request(message) }
    }

    /// For a feature that is known, would change the answer, and is not built.
    pub(super) fn unsupported(self) -> Self {
        self.with_code("unsupported")
    }

    /// 400 for what is no request at all.
    pub(super) fn no_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn body_too_large(limit_bytes: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the request's body is larger than {limit_bytes} bytes"))
    }

    pub(super) fn encoded_body(encoding: &str) -> Self {
        let message = format!("the request's body has the encoding '{}'", short(encoding));
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).with_hint("send it as it is, without `Content-Encoding`")
    }

    pub(super) fn body_too_slow(deadline: Duration) -> Self {
        let message = format!("the request's body did not arrive within {} s", deadline.as_secs_f64());
        Self::new(StatusCode::REQUEST_TIMEOUT, message)
    }

    pub(super) fn model_not_found(name: &str, served: &str) -> Self {
        let failure = Self::at("model", format!("model '{}' not found", short(name)));
        let failure = failure.with_code("model_not_found").with_hint(format!("this server serves '{served}'"));
        Self { status: StatusCode::NOT_FOUND, ..failure }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "the API key is missing or wrong")
            .with_code("invalid_api_key")
            .with_hint("send the header `Authorization: Bearer KEY`")
    }

    /// The engine is not there, or not yet.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// A page of another site, or one whose browser does not say which.
    pub(super) fn foreign_origin(origin: Option<&str>) -> Self {
        let whose = origin.map_or_else(|| "another site".into(), |origin| format!("'{}'", short(origin)));
        let named = origin.filter(|origin| *origin != "null").map_or("ORIGIN".into(), short);
        Self::new(StatusCode::FORBIDDEN, format!("pages of {whose} may not ask this server"))
            .with_code("foreign_origin")
            .with_hint(format!(
                "--cors-origin {named} lets its pages ask; so does --api-key-file, of who shows the key"
            ))
    }

    /// A name that this server does not know of.
    pub(super) fn foreign_host(name: &str) -> Self {
        let name = short(name);
        let message = format!("'{name}' is no name of this server, which is there for its own host");
        Self::new(StatusCode::FORBIDDEN, message)
            .with_code("foreign_host")
            .with_hint(format!("--allowed-host {name} makes it one, --api-key-file takes any with the key"))
    }

    /// All connections that there may be are at work.
    pub(super) fn no_place() -> Self {
        Self::unavailable("as many connections as there may be are at work").with_code("connections_full")
    }

    /// Too much of other requests is in work.
    pub(super) fn bodies_full(limit_bytes: usize) -> Self {
        let message = format!("other requests' bodies take all of the {limit_bytes} bytes that they may take together");
        Self::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("bodies_full")
    }

    pub(super) fn panicked() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed on this request; its log has the details")
    }

    pub(super) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The same of a request whose prompt is in a field of this name.
    pub(super) fn of_prompt(self, name: &str) -> Self {
        let param = self.param.map(|param| if param == "prompt" { name.into() } else { param });
        Self { param, ..self }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body, also as it stands in the middle of a stream.
    pub(super) fn body(&self, form: Form) -> Value {
        let hint = self.hint.as_ref().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
        match form {
            Form::OpenAi => json!({"error": {
                "message": format!("{}{hint}", self.message),
                "type": self.kind(),
                "param": self.param,
                "code": self.code,
            }}),
            // Ollama's clients know this message to the letter.
            Form::Ollama if self.code == Some("model_not_found") => json!({"error": self.message}),
            Form::Ollama => json!({"error": format!("{}{hint}", self.message)}),
        }
    }
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        use GenerateError as Error;
        let message = error.to_string();
        match error {
            Error::PromptTooLong { .. } => Self::at("prompt", message).with_code("context_length_exceeded"),
            Error::MaxTokensTooLarge { .. } => Self::at("max_tokens", message).with_code("context_length_exceeded"),
            Error::EmptyPrompt
            | Error::TextTooLong { .. }
            | Error::Encode(_)
            | Error::Submit(SubmitError::EmptyPrompt | SubmitError::UnknownToken { .. }) => Self::at("prompt", message),
            Error::UnknownToken { field: param, .. } | Error::TooMuchMemory { param, .. } => Self::at(param, message),
            Error::TooManySequences { .. } => {
                Self::at("n", message).with_hint(format!("split the request into parts of {MAX_SEQUENCES}"))
            }
            Error::Grammar(GrammarError { field, .. }) => Self::at(field, message).with_code("unsupported"),
            Error::Stuck { .. } => Self::new(StatusCode::BAD_REQUEST, message).with_code("stuck"),
            Error::Template { .. } => Self::at("messages", message),
            Error::Submit(SubmitError::QueueFull { .. } | SubmitError::QueueTokensFull { .. }) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("queue_full")
            }
            Error::Submit(SubmitError::TooLong { .. }) => Self::at("max_tokens", message),
            Error::Submit(SubmitError::Stopping | SubmitError::Ended(_)) | Error::Failed { .. } => {
                Self::unavailable(message)
            }
            Error::EncoderBroke { .. } => Self::panicked(),
            Error::Deadline { .. } => Self::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("timeout"),
        }
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::no_request(format!("the path is no text: {}", rejection.body_text()))
    }
}

impl IntoResponse for Failure {
    /// Without a body: [`render`] knows the path, and with it the form.
    fn into_response(self) -> Response {
        (self.status, Extension(self)).into_response()
    }
}

/// Middleware that gives failures their body, and counts them.
pub(super) async fn render(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let form = Form::of(request.uri().path());
    let mut response = next.run(request).await;
    let Some(failure) = response.extensions_mut().remove::<Failure>() else {
        return response;
    };
    metrics.refused(failure.status.as_u16());
    let wants_key = failure.status == StatusCode::UNAUTHORIZED;
    let is_full = failure.status == StatusCode::TOO_MANY_REQUESTS || failure.code == Some("connections_full");
    let allow = response.headers_mut().remove(header::ALLOW).map(|methods| [(header::ALLOW, methods)]);
    let scheme = wants_key.then_some([(header::WWW_AUTHENTICATE, "Bearer")]);
    let again = is_full.then_some([(header::RETRY_AFTER, RETRY_AFTER_S)]);
    (failure.status, allow, scheme, again, Json(failure.body(form))).into_response()
}

/// What becomes of a panic in a handler.
pub(super) fn after_panic(_: Box<dyn std::any::Any + Send>) -> Response {
    Failure::panicked().into_response()
}

/// What becomes of a path that nothing answers.
pub(super) async fn unknown_route(method: Method, uri: Uri) -> Failure {
    let message = format!("there is no {method} {}", short(uri.path()));
    let routes = match Form::of(uri.path()) {
        Form::OpenAi => "POST /v1/chat/completions, POST /v1/completions, GET /v1/models and GET /docs",
        Form::Ollama => "POST /api/chat, POST /api/generate, GET /api/tags and GET /docs",
    };
    Failure::new(StatusCode::NOT_FOUND, message).with_hint(format!("there are {routes}"))
}

/// What becomes of a method that a path does not know.
pub(super) async fn wrong_method(method: Method, uri: Uri) -> Failure {
    let message = format!("{} does not answer {method}", short(uri.path()));
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, message)
        .with_hint(format!("it answers {}", document::methods(uri.path())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::saying;

    #[tokio::test]
    async fn a_bug_in_encoding_is_the_servers_failure() {
        let error = saying("x").encode(|_| panic!("a bug")).await.unwrap_err();
        assert_eq!(Failure::from(error).status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
