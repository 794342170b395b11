//! What this process and its ranks log to standard error: lines for people, or an object of JSON a line.
//!
//! Does not know what is logged. An object has `timestamp`, `level`, `target` and `message` beside the event's own fields, and
//! `rank` where a rank wrote it.

use clap::ValueEnum;
use nanoinfer_shared::say;
use tracing_subscriber::EnvFilter;

use crate::{closest, error::LaunchError};

/// Any other word is the name of something that logs.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What to log, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// In the syntax of `RUST_LOG`.
    pub filter: String,
    /// How events look.
    pub format: LogFormat,
}

/// How events of the log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// An object a line, whatever is said.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

impl Log {
    /// Logs from now on, unless an embedding program has installed a log of its own.
    pub(crate) fn begin(&self) -> Result<(), LaunchError> {
        let filter = &self.filter;
        let wrong = |error: String| LaunchError::Config(format!("--log {filter}: {error}"));
        // A level that is nearly right would be a name that nobody has, and all silent.
        for word in filter.split(',').map(str::trim) {
            if let Some(near) = closest(word, LEVELS).filter(|near| !near.eq_ignore_ascii_case(word)) {
                return Err(wrong(format!("there is no level `{word}`; did you mean `{near}`?")));
            }
        }
        let filter = EnvFilter::try_new(filter).map_err(|error| wrong(error.to_string()))?;
        let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
        // Where nobody reads standard error any more, a complaint about that would be a panic.
        let log =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
        let _ = match self.format {
            LogFormat::Text => tracing::subscriber::set_global_default(log.with_ansi(ansi).finish()),
            LogFormat::Json => {
                say::say_in_the_log();
                tracing::subscriber::set_global_default(log.json().flatten_event(true).with_span_list(false).finish())
            }
        };
        Ok(())
    }

    /// As a rank is told.
    pub(crate) fn arguments(&self) -> [&str; 4] {
        let format = match self.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        ["--log", &self.filter, "--log-format", format]
    }

    /// Passes on a line that a rank wrote to its standard error.
    pub(crate) fn forward(&self, rank: usize, line: &str) {
        match (self.format, line.strip_prefix('{')) {
            (LogFormat::Text, _) => crate::say(format_args!("[rank {rank}] {line}")),
            (LogFormat::Json, Some(fields)) if !fields.contains("\"rank\":") => {
                say::say_as_it_is(format_args!("{{\"rank\":{rank},{fields}"));
            }
            (LogFormat::Json, Some(_)) => say::say_as_it_is(line),
            // What it said beside its log: of a panic, say.
            (LogFormat::Json, None) => tracing::error!(rank, "{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_nearly_right_is_told() {
        for (filter, words) in
            [("inof", "did you mean `info`?"), ("hyper=warn,debgu", "no level `debgu`"), ("a=[", "--log a=[: ")]
        {
            let log = Log { filter: filter.into(), format: LogFormat::Text };
            let error = log.begin().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
