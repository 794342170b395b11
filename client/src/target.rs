//! Where a verb sends its requests: a server by its address, or a private one for a model.

use std::sync::Arc;

use clap::Args;
use nanoinfer_eval::connection::Connection;
use nanoinfer_launch::environment;

use crate::{failure::Failure, model_options::ModelOptions, private_server::PrivateServer};

#[derive(Debug, Args)]
pub(crate) struct TargetOptions {
    /// Server to ask, like http://127.0.0.1:8000.
    #[arg(long, value_name = "URL", value_parser = address, help_heading = "Server", conflicts_with_all = ["model", "revision", "step", "nproc", "device", "dtype", "threads"])]
    url: Option<String>,
    /// Key that the server wants.
    #[arg(long, env = "NANOINFER_API_KEY", value_name = "KEY", help_heading = "Server", hide_env_values = true)]
    api_key: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
}

/// An address as it was typed; one without a scheme, as Ollama's are, is of HTTP, and the `/v1` that OpenAI's clients are told
/// is left off: paths bring their own.
pub(crate) fn address(typed: &str) -> Result<String, &'static str> {
    let (scheme, rest) = typed.split_once("://").unwrap_or(("http", typed));
    let rest = rest.trim_end_matches('/');
    let rest = rest.strip_suffix("/v1").unwrap_or(rest).trim_end_matches('/');
    let is_http = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    if !is_http || rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it should be an address, like http://127.0.0.1:8000");
    }
    Ok(format!("{scheme}://{rest}"))
}

/// A server to ask.
#[derive(Debug)]
pub(crate) struct Target {
    /// Shared with whoever waits for its answers.
    pub(crate) connection: Arc<Connection>,
    private: Option<PrivateServer>,
}

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
        let url = server.url.clone();
        Self::at(&url, None, Some(server))
    }

    fn at(url: &str, api_key: Option<String>, private: Option<PrivateServer>) -> Result<Self, Failure> {
        // The library's own choice would ask a proxy for this machine, with key and prompt.
        let proxy = environment::proxies().of(url).map_err(Failure::usage)?;
        // Of an address that was typed, what else there is.
        let unreachable = match (&private, &proxy) {
            (Some(_), _) => "",
            (None, Some(_)) => {
                " through the proxy that the environment names\n  hint: NO_PROXY lists hosts to ask without one"
            }
            (None, None) => {
                "\n  hint: nanoinfer-launch starts a server, on http://127.0.0.1:8000; without --url there is a private one"
            }
        };
        Ok(Self { connection: Connection::new(url.to_owned(), api_key, proxy, unreachable).into(), private })
    }

    /// Does something with the server; if that fails because a private one has ended, tells the end of its log.
    pub(crate) fn ask<T>(mut self, body: impl FnOnce(&Connection) -> anyhow::Result<T>) -> Result<T, Failure> {
        let done = body(&self.connection);
        if done.is_err() {
            self.tell_its_end();
        }
        Ok(done?)
    }

    /// Writes the end of a private server's log to standard error, if it has ended.
    pub(crate) fn tell_its_end(&mut self) {
        if let Some(private) = &mut self.private {
            private.tell_its_end();
        }
    }
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
        for slip in ["", "/", "http://", "ftp://a.example", "http://a b", "/v1"] {
            assert!(address(slip).is_err(), "{slip}");
        }
    }
}
