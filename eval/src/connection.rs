//! Requests to one server and its answers, as far as HTTP goes: a key, refusals in the server's words, bounds.
//!
//! Does not know what is asked, nor who started the server.

use std::{
    collections::HashSet,
    io::{BufReader, Read},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, anyhow};
use nanoinfer_shared::{say, utf8};
use serde_json::Value;
use ureq::{Proxy, http::StatusCode};

/// Longest answer that is no stream: the scores of many prompts.
const MAX_REPLY_BYTES: u64 = 256 << 20;
/// Connections that are kept open for the next request: one for each that is asked at a time.
const KEPT_CONNECTIONS: usize = 1024;

/// A server to ask.
#[derive(Debug)]
pub struct Connection {
    url: String,
    api_key: Option<String>,
    agent: ureq::Agent,
    /// What follows the words that nobody answers.
    unreachable: &'static str,
    /// Notes of the server that were said: a conversation hears each once. Many may ask at a time.
    notes: Mutex<HashSet<String>>,
}

/// An answer before it is known whether it says yes.
pub type Response = ureq::http::Response<ureq::Body>;
/// The body of an answer that said yes.
pub type Body = BufReader<ureq::BodyReader<'static>>;

impl Connection {
    /// To the server at `url`, which has no slash at its end. Where nobody answers, `unreachable` says what else there is.
    pub fn new(url: String, api_key: Option<String>, proxy: Option<Proxy>, unreachable: &'static str) -> Self {
        let config = ureq::Agent::config_builder()
            .proxy(proxy)
            .http_status_as_error(false)
            .max_idle_connections(KEPT_CONNECTIONS)
            .max_idle_connections_per_host(KEPT_CONNECTIONS);
        Self { url, api_key, agent: config.build().into(), unreachable, notes: Mutex::default() }
    }

    /// Where it is, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks, and hands out the answer's body, with whether it is a stream of events.
    ///
    /// # Errors
    /// When the server cannot be reached or says no: in its words.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<(bool, Body)> {
        self.accepted(path, self.send(path, body)?)
    }

    /// Asks, and hands out the answer whatever its status.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn send(&self, path: &str, body: &Value) -> anyhow::Result<Response> {
        let url = format!("{}{path}", self.url);
        let request = self.authorized(self.agent.post(&url));
        request.send_json(body).with_context(|| self.unreachable(&url))
    }

    /// The same for what needs no body.
    ///
    /// # Errors
    /// As [`Connection::post`].
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.url);
        let response = self.authorized(self.agent.get(&url)).call().with_context(|| self.unreachable(&url))?;
        whole(self.accepted(path, response)?.1)
    }

    /// The body of an answer to what was asked at `path`, if that says yes; as [`Connection::post`] hands it out.
    ///
    /// # Errors
    /// When it says no: in the server's words.
    pub fn accepted(&self, path: &str, response: Response) -> anyhow::Result<(bool, Body)> {
        if let Some(warnings) = response.headers().get("x-nanoinfer-warning").and_then(|value| value.to_str().ok())
            && self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(warnings.to_owned())
        {
            say(format_args!("note: {warnings}"));
        }
        let status = response.status();
        let kind = response.headers().get("content-type");
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let mut body = BufReader::new(response.into_body().into_reader());
        if status.is_success() {
            return Ok((is_stream, body));
        }
        let mut text = String::new();
        // What it said so far is all there is to tell.
        let _ = body.by_ref().take(MAX_REPLY_BYTES).read_to_string(&mut text);
        let said_why = serde_json::from_str(&text).ok().and_then(|answer: Value| answer.get("error").map(said));
        let url = format!("{}{path}", self.url);
        Err(refusal(&url, status, &said_why.unwrap_or_else(|| text.trim().into())))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.api_key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn unreachable(&self, url: &str) -> String {
        format!("cannot reach {url}{}", self.unreachable)
    }
}

/// A server's no in its words. What it says to do about a key is for who writes requests: here it is an option.
fn refusal(url: &str, status: StatusCode, said: &str) -> anyhow::Error {
    if status == StatusCode::UNAUTHORIZED {
        let what = said.split("; hint:").next().unwrap_or(said);
        return anyhow!(
            "{url} answered {status}: {what}\n  hint: --api-key KEY, or NANOINFER_API_KEY in the environment"
        );
    }
    anyhow!("{url} answered {status}: {said}")
}

/// An answer that is one JSON value.
///
/// # Errors
/// When it is none, or cannot be read.
pub fn whole(body: Body) -> anyhow::Result<Value> {
    let text = utf8::read(body.take(MAX_REPLY_BYTES)).context("the answer cannot be read")?;
    serde_json::from_str(&text).with_context(|| format!("the server sent no JSON: {}", text.trim()))
}

/// An error in words: a string, or an object with a `message`.
pub fn said(error: &Value) -> String {
    let message = error.as_str().or_else(|| error.get("message").and_then(Value::as_str));
    message.map_or_else(|| error.to_string(), String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_is_asked_for_as_it_is_given_here() {
        let said = "the API key is missing or wrong; hint: send the header `Authorization: Bearer KEY`";
        let error = refusal("http://a/v1/models", StatusCode::UNAUTHORIZED, said).to_string();
        assert!(error.contains("401") && error.contains("missing or wrong\n  hint: --api-key KEY"), "{error}");
        assert!(!error.contains("header"), "{error}");
        let error = refusal("http://a/v1/x", StatusCode::NOT_FOUND, "no; hint: look at /docs").to_string();
        assert!(error.ends_with("404 Not Found: no; hint: look at /docs"), "{error}");
    }
}
