//! `nanoinfer generate`: one prompt in, its continuation on standard output and nothing else.
//!
//! Speaks the short form of `POST /api/chat`, whole or as server-sent events.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Failure, model_options::ModelOptions, private_server::PrivateServer};

/// Longest line of a stream that is still an event.
const MAX_EVENT_BYTES: u64 = 1 << 20;
/// Longest prompt that is read from standard input.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(crate) struct GenerateOptions {
    /// Server to ask, like http://127.0.0.1:8000.
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "revision", "nproc", "device", "dtype", "threads"])]
    url: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
    /// Text to answer; standard input if it is absent and a pipe.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Most tokens to generate.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Divides logits; 0 is greedy.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the smallest set of tokens with this mass.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keep the k most likely tokens; 0 for all.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// The same seed gives the same text.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Write the text as it comes.
    #[arg(long)]
    stream: bool,
}

/// One event of a streamed answer, or a whole one, or what went wrong.
#[derive(Deserialize)]
struct Piece {
    token: Option<String>,
    response: Option<String>,
    error: Option<Value>,
}

pub(crate) fn run(options: GenerateOptions) -> Result<(), Failure> {
    let prompt = prompt(&options, io::stdin().lock(), io::stdin().is_terminal())?;
    let body = body(&options, prompt);
    let mut server = match &options.url {
        Some(_) => None,
        None => Some(PrivateServer::start(&options.model)?),
    };
    let url = options.url.as_deref().or(server.as_ref().map(PrivateServer::url)).expect("one of the two is there");
    let asked = ask(url, &body, io::stdout().lock());
    if let (Err(_), Some(server)) = (&asked, &mut server) {
        server.tell_its_end();
    }
    drop(server);
    Ok(asked?)
}

/// What was typed, or what comes through a pipe, without its last line end.
fn prompt(options: &GenerateOptions, stdin: impl Read, stdin_is_terminal: bool) -> Result<String, Failure> {
    if let Some(prompt) = &options.prompt {
        return Ok(prompt.clone());
    }
    if stdin_is_terminal {
        return Err(Failure::usage(anyhow!("there is no prompt\n  hint: --prompt TEXT, or pipe it in")));
    }
    let mut text = String::new();
    let read =
        stdin.take(MAX_PROMPT_BYTES).read_to_string(&mut text).context("cannot read the prompt from standard input");
    read.map_err(Failure::usage)?;
    Ok(text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text)).unwrap_or(&text).to_string())
}

/// The request; what was not typed is left to the server.
fn body(options: &GenerateOptions, prompt: String) -> Value {
    let mut body = Map::new();
    body.insert("prompt".into(), prompt.into());
    body.insert("stream".into(), options.stream.into());
    let given = [
        ("max_tokens", options.max_tokens.map(|n| json!(n))),
        // As typed: 0.3, not 0.30000001192092896.
        ("temperature", options.temperature.map(number)),
        ("top_p", options.top_p.map(number)),
        ("top_k", options.top_k.map(|n| json!(n))),
        ("seed", options.seed.map(|n| json!(n))),
    ];
    body.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))));
    Value::Object(body)
}

fn number(typed: f32) -> Value {
    typed.to_string().parse::<f64>().map_or(Value::Null, |number| json!(number))
}

/// Sends the request and writes the text of the answer, ended by a line end.
fn ask(url: &str, body: &Value, mut out: impl Write) -> anyhow::Result<()> {
    let url = format!("{}/api/chat", url.trim_end_matches('/'));
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let response = agent.post(&url).send_json(body).with_context(|| format!("cannot reach {url}"))?;
    let status = response.status();
    let stream =
        response.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let mut reader = BufReader::new(response.into_body().into_reader());
    let written = if stream && status.is_success() {
        write_events(&mut reader, &mut out)
    } else {
        let mut text = String::new();
        reader.read_to_string(&mut text).with_context(|| format!("{url} broke off"))?;
        let answer: Option<Piece> = serde_json::from_str(&text).ok();
        match answer {
            Some(Piece { response: Some(response), .. }) if status.is_success() => {
                Ok(out.write_all(response.as_bytes()))
            }
            Some(Piece { error: Some(error), .. }) => bail!("{url} answered {status}: {}", said(&error)),
            _ => bail!("{url} answered {status}: {}", text.trim()),
        }
    };
    match written?.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        // Whoever read our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Writes the tokens of a stream as they come. The outer result is the server's, the inner one standard output's.
fn write_events(events: &mut impl BufRead, out: &mut impl Write) -> anyhow::Result<io::Result<()>> {
    loop {
        let mut line = String::new();
        let read = events.take(MAX_EVENT_BYTES).read_line(&mut line).context("the answer broke off")?;
        if read == 0 {
            bail!("the answer broke off before its end");
        }
        let Some(data) = line.trim_end().strip_prefix("data:") else { continue };
        let data = data.trim_start();
        if data == "[DONE]" {
            return Ok(Ok(()));
        }
        let piece: Piece = serde_json::from_str(data).with_context(|| format!("the server sent no event: {data}"))?;
        if let Some(error) = piece.error {
            bail!("the server gave up: {}", said(&error));
        }
        if let Some(token) = piece.token
            && let Err(error) = out.write_all(token.as_bytes()).and_then(|()| out.flush())
        {
            return Ok(Err(error));
        }
    }
}

/// An error in words: a string, or an object with a `message`.
fn said(error: &Value) -> String {
    let message = error.as_str().or_else(|| error.get("message").and_then(Value::as_str));
    message.map_or_else(|| error.to_string(), String::from)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        options: GenerateOptions,
    }

    fn typed(args: &[&str]) -> GenerateOptions {
        Typed::try_parse_from(["x"].iter().chain(args)).map(|typed| typed.options).unwrap()
    }

    #[test]
    fn the_request_has_what_was_typed_and_no_more() {
        let options = typed(&["--temperature", "0.3", "--max-tokens", "5", "--stream"]);
        let body = body(&options, "Hi".into());
        assert_eq!(body, json!({"prompt": "Hi", "stream": true, "temperature": 0.3, "max_tokens": 5}));
    }

    #[test]
    fn a_prompt_comes_from_the_flag_or_a_pipe() {
        assert_eq!(prompt(&typed(&["--prompt", "a"]), &b"b"[..], false).unwrap(), "a");
        assert_eq!(prompt(&typed(&[]), &b"line 1\nline 2\r\n"[..], false).unwrap(), "line 1\nline 2");
        assert_eq!(prompt(&typed(&[]), &b""[..], true).unwrap_err().exit_code, 2);
    }

    #[test]
    fn events_become_text_and_errors_are_told() {
        let write = |events: &str| {
            let mut out = Vec::new();
            let result = write_events(&mut events.as_bytes(), &mut out).map(|_| ()).map_err(|e| e.to_string());
            (String::from_utf8(out).unwrap(), result)
        };
        let events = "data: {\"token\":\"He\"}\n\n: comment\ndata: {\"token\":\"llo\"}\n\ndata: [DONE]\n\n";
        assert_eq!(write(events), ("Hello".into(), Ok(())));
        let (text, result) = write("data: {\"token\":\"He\"}\n\ndata: {\"error\":\"rank 1 is gone\"}\n\n");
        assert_eq!(text, "He");
        assert!(result.unwrap_err().contains("rank 1 is gone"));
        assert!(write("data: {\"token\":\"He\"}\n\n").1.unwrap_err().contains("broke off"));
    }

    #[test]
    fn a_url_and_a_model_exclude_one_another() {
        assert!(Typed::try_parse_from(["x", "--url", "http://a", "--model", "m"]).is_err());
        assert!(Typed::try_parse_from(["x", "--url", "http://a", "--nproc", "2"]).is_err());
    }
}
