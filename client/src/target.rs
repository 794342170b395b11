//! Where a verb sends its requests: a server by its address, or a private one for a model.

use std::io::{BufReader, Read};

use anyhow::{Context, anyhow};
use clap::Args;
use nanoinfer_launch::{environment, say, utf8};
use serde_json::Value;
use ureq::http::StatusCode;

use crate::{Failure, model_options::ModelOptions, private_server::PrivateServer};

/// Longest answer that is no stream: the scores of many prompts.
const MAX_REPLY_BYTES: u64 = 256 << 20;
/// Connections that are kept open for the next request: one for each that is asked at a time.
const KEPT_CONNECTIONS: usize = 1024;

#[derive(Debug, Args)]
pub(crate) struct TargetOptions {
    /// Server to ask, like http://127.0.0.1:8000.
    #[arg(long, value_name = "URL", value_parser = address, help_heading = "Server", conflicts_with_all = ["model", "revision", "nproc", "device", "dtype", "threads"])]
    url: Option<String>,
    /// Key that the server wants.
    #[arg(long, env = "NANOINFER_API_KEY", value_name = "KEY", help_heading = "Server", hide_env_values = true)]
    api_key: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
}

/// An address as it was typed; one without a scheme, as Ollama's are, is of HTTP, and the `/v1` that OpenAI's clients are told
/// is left off: paths bring their own.
pub(crate) fn address(typed: &str) -> Result<String, std::convert::Infallible> {
    let typed = typed.trim_end_matches('/');
    let typed = typed.strip_suffix("/v1").unwrap_or(typed).trim_end_matches('/');
    Ok(if typed.contains("://") { typed.to_owned() } else { format!("http://{typed}") })
}

/// A server to ask.
#[derive(Debug)]
pub(crate) struct Target {
    url: String,
    api_key: Option<String>,
    agent: ureq::Agent,
    /// Requests go through a proxy.
    is_proxied: bool,
    private: Option<PrivateServer>,
}

/// An answer before it is known whether it says yes.
pub(crate) type Response = ureq::http::Response<ureq::Body>;
/// The body of an answer that said yes.
pub(crate) type Body = BufReader<ureq::BodyReader<'static>>;

impl Target {
    /// Starts a private server where no address was given.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn open(options: &TargetOptions) -> Result<Self, Failure> {
        match &options.url {
            Some(url) => Self::at(url, options.api_key.clone(), None),
            None => Self::private(&options.model),
        }
    }

    /// A private server for a model.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn private(model: &ModelOptions) -> Result<Self, Failure> {
        let server = PrivateServer::start(model)?;
        let url = server.url().to_owned();
        Self::at(&url, None, Some(server))
    }

    fn at(url: &str, api_key: Option<String>, private: Option<PrivateServer>) -> Result<Self, Failure> {
        // The library's own choice would ask a proxy for this machine, with key and prompt.
        let proxy = environment::proxies().of(url).map_err(Failure::usage)?;
        let is_proxied = proxy.is_some();
        let config = ureq::Agent::config_builder()
            .proxy(proxy)
            .http_status_as_error(false)
            .max_idle_connections(KEPT_CONNECTIONS)
            .max_idle_connections_per_host(KEPT_CONNECTIONS);
        Ok(Self { url: url.to_owned(), api_key, agent: config.build().into(), is_proxied, private })
    }

    /// Where it is, without a slash at the end.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Asks, and hands out the answer's body, with whether it is a stream of events.
    ///
    /// # Errors
    /// When the server cannot be reached or says no: in its words.
    pub(crate) fn post(&self, path: &str, body: &Value) -> anyhow::Result<(bool, Body)> {
        self.accepted(path, self.send(path, body)?)
    }

    /// Asks, and hands out the answer whatever its status.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub(crate) fn send(&self, path: &str, body: &Value) -> anyhow::Result<Response> {
        let url = format!("{}{path}", self.url);
        let request = match &self.api_key {
            Some(key) => self.agent.post(&url).header("authorization", format!("Bearer {key}")),
            None => self.agent.post(&url),
        };
        request.send_json(body).with_context(|| self.unreachable(&url))
    }

    /// The same for what needs no body.
    ///
    /// # Errors
    /// As [`Target::post`].
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.url);
        let request = match &self.api_key {
            Some(key) => self.agent.get(&url).header("authorization", format!("Bearer {key}")),
            None => self.agent.get(&url),
        };
        let response = request.call().with_context(|| self.unreachable(&url))?;
        whole(self.accepted(path, response)?.1)
    }

    /// The body of an answer to what was asked at `path`, if that says yes; as [`Target::post`] hands it out.
    ///
    /// # Errors
    /// When it says no: in the server's words.
    pub(crate) fn accepted(&self, path: &str, response: Response) -> anyhow::Result<(bool, Body)> {
        if let Some(warnings) = response.headers().get("x-nanoinfer-warning").and_then(|value| value.to_str().ok()) {
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

    /// What to say where nobody answers: of an address that was typed, what else there is.
    fn unreachable(&self, url: &str) -> String {
        match self.private {
            Some(_) => format!("cannot reach {url}"),
            None if self.is_proxied => {
                format!(
                    "cannot reach {url} through the proxy that the environment names\n  hint: NO_PROXY lists hosts to ask without one"
                )
            }
            None => format!(
                "cannot reach {url}\n  hint: nanoinfer-launch starts a server, on http://127.0.0.1:8000; without --url there is a private one"
            ),
        }
    }

    /// Writes the end of a private server's log to standard error, if it has ended.
    pub(crate) fn tell_its_end(&mut self) {
        if let Some(private) = &mut self.private {
            private.tell_its_end();
        }
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
pub(crate) fn whole(body: Body) -> anyhow::Result<Value> {
    let text = utf8::read(body.take(MAX_REPLY_BYTES)).context("the answer cannot be read")?;
    serde_json::from_str(&text).with_context(|| format!("the server sent no JSON: {}", text.trim()))
}

/// An error in words: a string, or an object with a `message`.
pub(crate) fn said(error: &Value) -> String {
    let message = error.as_str().or_else(|| error.get("message").and_then(Value::as_str));
    message.map_or_else(|| error.to_string(), String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_scheme() {
        for (typed, url) in [
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("localhost:8000", "http://localhost:8000"),
            ("https://a.example", "https://a.example"),
            ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
            ("localhost:8000/v1/", "http://localhost:8000"),
            ("https://a.example/llm/v1", "https://a.example/llm"),
            ("https://a.example/v10", "https://a.example/v10"),
        ] {
            assert_eq!(address(typed).as_deref(), Ok(url));
        }
    }

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
