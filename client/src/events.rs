//! Server-sent events, as all streams of the server are: `data: {…}` and an empty line each, `data: [DONE]` at a good end.

use std::io::{BufRead, Read};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::target::said;

/// Longest line of a stream that is still an event.
const MAX_EVENT_BYTES: u64 = 1 << 20;

/// The objects of a stream. Ends after `[DONE]`, or with an error: the server's, or that there was no good end.
pub(crate) struct Events<R> {
    lines: R,
    is_over: bool,
}

impl<R: BufRead> Events<R> {
    pub(crate) fn new(lines: R) -> Self {
        Self { lines, is_over: false }
    }

    fn read(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            let mut line = String::new();
            let mut bounded = self.lines.by_ref().take(MAX_EVENT_BYTES);
            if bounded.read_line(&mut line).context("the answer broke off")? == 0 {
                bail!("the answer broke off before its end");
            }
            let Some(data) = line.trim_end().strip_prefix("data:") else { continue };
            let data = data.trim_start();
            if data == "[DONE]" {
                return Ok(None);
            }
            let object: Value =
                serde_json::from_str(data).with_context(|| format!("the server sent no event: {data}"))?;
            match object.get("error") {
                Some(error) => bail!("the server gave up: {}", said(error)),
                None => return Ok(Some(object)),
            }
        }
    }
}

impl<R: BufRead> Iterator for Events<R> {
    type Item = anyhow::Result<Value>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let event = self.read().transpose();
        self.is_over = !matches!(event, Some(Ok(_)));
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ends_well_or_says_why_not() {
        let read = |text: &str| -> (Vec<String>, Option<String>) {
            let (good, bad): (Vec<_>, Vec<_>) = Events::new(text.as_bytes()).partition(Result::is_ok);
            let good = good.into_iter().map(|event| event.unwrap()["token"].as_str().unwrap().to_owned()).collect();
            (good, bad.into_iter().next().map(|error| error.unwrap_err().to_string()))
        };
        let events = "data: {\"token\":\"He\"}\n\n: comment\ndata: {\"token\":\"llo\"}\n\ndata: [DONE]\n\ndata: {}\n";
        assert_eq!(read(events), (vec!["He".into(), "llo".into()], None));
        let (good, error) = read("data: {\"token\":\"He\"}\n\ndata: {\"error\":\"rank 1 is gone\"}\n\n");
        assert_eq!((good, error), (vec!["He".into()], Some("the server gave up: rank 1 is gone".into())));
        assert!(read("data: {\"token\":\"He\"}\n\n").1.unwrap().contains("broke off"));
        assert!(read("data: {\"error\":{\"message\":\"no\"}}\n").1.unwrap().ends_with("no"));
    }
}
