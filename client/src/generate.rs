//! `nanoinfer generate`: one prompt in, its answer on standard output and nothing else; with `--explain`, how it came about.
//!
//! Speaks the short form of `POST /api/chat`, whole or as server-sent events.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::PathBuf,
};

use anyhow::{Context, anyhow};
use clap::Args;
use nanoinfer_eval::{
    connection::{self, Connection},
    measure::number_within,
};
use nanoinfer_launch::{
    output::{self, OutputError, Reader},
    utf8,
};
use serde_json::{Value, json};

use crate::{
    bars::Bars,
    events::Events,
    explain,
    failure::Failure,
    target::{Target, TargetOptions},
    terminal::{Screen, Wrap},
};

/// Longest prompt that is read from standard input.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nanoinfer generate --model gpt2 --prompt \"Once upon a time\" --stream\n  \
    echo \"What is a cat?\" | nanoinfer generate > answer.txt\n  \
    nanoinfer generate --prompt \"What is a cat?\" --nproc 2 --explain\n  \
    nanoinfer generate --prompt \"What is 2+2?\" --regex \"[0-9]+\"\n  \
    nanoinfer generate --url http://127.0.0.1:8000 --prompt Hello --temperature 0")]
pub(crate) struct GenerateOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// Text to answer; standard input if it is absent and a pipe.
    #[arg(long, short, value_name = "TEXT")]
    prompt: Option<String>,
    /// Most tokens to generate.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Divides logits; 0 is greedy.
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = |typed: &str| number_within(0.0..=100.0, typed))]
    temperature: Option<f64>,
    /// Keep the smallest set of tokens with this mass.
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = |typed: &str| number_within(0.0..=1.0, typed))]
    top_p: Option<f64>,
    /// Keep the k most likely tokens; 0 for all.
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,
    /// The same seed gives the same text.
    #[arg(long, value_name = "SEED", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// The answer is JSON that the schema in this file describes.
    #[arg(long, value_name = "FILE", group = "shape")]
    json_schema: Option<PathBuf>,
    /// The answer is text that this regular expression matches as a whole.
    #[arg(long, value_name = "REGEX", group = "shape")]
    regex: Option<String>,
    /// The answer is text of the grammar in this file, in Lark.
    #[arg(long, value_name = "FILE", group = "shape")]
    grammar: Option<PathBuf>,
    /// Write the text as it comes.
    #[arg(long)]
    stream: bool,
    /// After the text, or as it comes with --stream, tell of each token: its alternatives, what each processor of the sampling
    /// chain removed, and the time of each stage of its step on each rank.
    #[arg(long)]
    explain: bool,
    /// Write what the server sends: one object with text, tokens and times, or with --stream one for each piece.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: GenerateOptions) -> Result<(), Failure> {
    let prompt = prompt(&options, io::stdin().lock(), io::stdin().is_terminal())?;
    let mut body = body(&options, prompt);
    if let Some(shape) = shape(&options)? {
        body["structured_outputs"] = shape;
    }
    Target::open(&options.target)?.ask(|connection| ask(connection, &body, options.json))
}

/// What was typed, or what comes through a pipe, without its last line end.
fn prompt(options: &GenerateOptions, stdin: impl Read, stdin_is_terminal: bool) -> Result<String, Failure> {
    if let Some(prompt) = &options.prompt {
        return Ok(prompt.clone());
    }
    if stdin_is_terminal {
        return Err(Failure::usage(anyhow!("there is no prompt\n  hint: --prompt TEXT, or pipe it in")));
    }
    let read = utf8::read(stdin.take(MAX_PROMPT_BYTES)).context("cannot read the prompt from standard input");
    let text = read.map_err(Failure::usage)?;
    let prompt = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text)).unwrap_or(&text);
    if prompt.is_empty() {
        let nothing = "there is no prompt: standard input is empty\n  hint: --prompt TEXT, or pipe it in";
        return Err(Failure::usage(anyhow!(nothing)));
    }
    Ok(prompt.to_owned())
}

/// The request; what was not typed is left to the server.
fn body(options: &GenerateOptions, prompt: String) -> Value {
    let mut body = json!({
        "prompt": prompt, "stream": options.stream, "explain": options.explain.then_some(true),
        "max_tokens": options.max_tokens,
        "temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k, "seed": options.seed,
    });
    if let Value::Object(fields) = &mut body {
        fields.retain(|_, value| !value.is_null());
    }
    body
}

/// What the answer must be, so that a slip shows before a model is loaded.
fn shape(options: &GenerateOptions) -> Result<Option<Value>, Failure> {
    let read = |path: &PathBuf| {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()));
        let text = file.and_then(|file| utf8::read(file).with_context(|| format!("cannot read {}", path.display())));
        text.map_err(Failure::usage)
    };
    if let Some(path) = &options.json_schema {
        let schema: Result<Value, _> = serde_json::from_str(&read(path)?);
        let schema = schema.with_context(|| format!("{} is not JSON", path.display())).map_err(Failure::usage)?;
        return Ok(Some(json!({"json": schema})));
    }
    if let Some(path) = &options.grammar {
        return Ok(Some(json!({"grammar": read(path)?})));
    }
    Ok(options.regex.as_ref().map(|regex| json!({"regex": regex})))
}

/// Sends the request and writes the text of the answer, ended by a line end; or, as JSON, the answer itself.
fn ask(connection: &Connection, body: &Value, json: bool) -> anyhow::Result<()> {
    let (is_stream, reply) = connection.post("/api/chat", body)?;
    if is_stream && json {
        for event in Events::new(reply) {
            if output::write(format_args!("{}\n", event?))? == Reader::Left {
                break;
            }
        }
        return Ok(());
    }
    let mut wrap = Wrap::new(Screen::of_stdout());
    if is_stream {
        return write_events(Events::new(reply), wrap, |text| output::write(text));
    }
    let answer = connection::whole(reply)?;
    if json {
        output::write(format_args!("{answer}\n"))?;
        return Ok(());
    }
    let text = answer["response"].as_str().with_context(|| format!("the server sent no answer: {answer}"))?;
    let explained = match answer.get("explain") {
        Some(list) => format!("\n{}", explain::tokens(list, 1, Bars::of_stdout()).trim_end()),
        None => String::new(),
    };
    output::write(format_args!("{}{}{explained}\n", wrap.take(text), wrap.end()))?;
    Ok(())
}

/// Writes the tokens of a stream as they come, until its end or as long as somebody reads.
fn write_events(
    events: impl Iterator<Item = anyhow::Result<Value>>,
    mut wrap: Wrap,
    mut write: impl FnMut(&str) -> Result<Reader, OutputError>,
) -> anyhow::Result<()> {
    let mut explained = 0;
    for event in events {
        let event = event?;
        let mut text = wrap.take(event["token"].as_str().unwrap_or_default());
        if let Some(list) = event.get("explain") {
            // Of the text, the headings say what there is.
            text = explain::tokens(list, explained + 1, Bars::of_stdout());
            explained += list.as_array().map_or(0, Vec::len);
        }
        if write(&text)? == Reader::Left {
            return Ok(());
        }
    }
    write(&(wrap.end() + "\n"))?;
    Ok(())
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
    fn what_no_server_takes_is_refused_by_its_flag() {
        for (flag, value) in [
            ("--temperature", "-1"),
            ("--temperature", "nan"),
            ("--top-p", "-0.1"),
            ("--top-p", "1.5"),
            ("--top-k", "-1"),
            ("--max-tokens", "0"),
            ("--max-tokens", "-5"),
            ("--seed", "-1"),
        ] {
            let error = Typed::try_parse_from(["x", flag, value]).err().unwrap().to_string();
            assert!(error.contains(&format!("'{value}' for '{flag} <")), "{error}");
        }
        typed(&["--temperature", "0", "--top-p", "1", "--top-k", "0", "--max-tokens", "1"]);
    }

    #[test]
    fn what_the_answer_must_be_is_read_before_anything_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shape");
        let path = path.to_str().unwrap();
        std::fs::write(path, "{\"b\": 1, \"a\": 2}").unwrap();
        let asked = |args: &[&str]| shape(&typed(args)).unwrap();
        assert_eq!(asked(&["--json-schema", path]).unwrap().to_string(), r#"{"json":{"b":1,"a":2}}"#, "in its order");
        assert_eq!(asked(&["--grammar", path]).unwrap()["grammar"], "{\"b\": 1, \"a\": 2}");
        assert_eq!(asked(&["--regex", "[0-9]+"]), Some(json!({"regex": "[0-9]+"})));
        assert_eq!(asked(&[]), None);
        std::fs::write(path, "start:").unwrap();
        assert_eq!(shape(&typed(&["--json-schema", path])).unwrap_err().exit_code, 2);
        assert_eq!(shape(&typed(&["--grammar", "/nowhere"])).unwrap_err().exit_code, 2);
        assert!(Typed::try_parse_from(["x", "--regex", "a", "--grammar", path]).is_err());
    }

    #[test]
    fn a_prompt_comes_from_the_flag_or_a_pipe() {
        assert_eq!(prompt(&typed(&["--prompt", "a"]), &b"b"[..], false).unwrap(), "a");
        assert_eq!(prompt(&typed(&[]), &b"line 1\nline 2\r\n"[..], false).unwrap(), "line 1\nline 2");
        assert_eq!(prompt(&typed(&[]), "\u{feff}Hi\r\n".as_bytes(), false).unwrap(), "Hi", "as Windows pipes it");
        assert_eq!(prompt(&typed(&[]), &b""[..], true).unwrap_err().exit_code, 2);
        let failure = prompt(&typed(&[]), &b"\xff\xfeH\0i\0"[..], false).unwrap_err();
        let words = crate::failure::told(&failure.error);
        assert!(failure.exit_code == 2 && words.contains("standard input: UTF-16, where UTF-8"), "{words}");
        for nothing in [&b""[..], b"\n", b"\r\n", b"\xef\xbb\xbf\n"] {
            let failure = prompt(&typed(&[]), nothing, false).unwrap_err();
            assert_eq!(failure.exit_code, 2);
            assert!(failure.error.to_string().contains("standard input is empty"), "{}", failure.error);
        }
    }

    #[test]
    fn tokens_are_written_up_to_an_error() {
        let events = vec![Ok(json!({"token": "He"})), Ok(json!({"token": "llo"})), Err(anyhow!("rank 1 is gone"))];
        let mut out = String::new();
        let error = write_events(events.into_iter(), Wrap::new(Screen::default()), |text| {
            out += text;
            Ok(Reader::Reads)
        });
        assert_eq!((out.as_str(), error.unwrap_err().to_string().as_str()), ("Hello", "rank 1 is gone"));
    }

    #[test]
    fn a_stream_that_nobody_reads_on_is_left() {
        let mut asked = 0;
        let events = std::iter::repeat_with(|| {
            asked += 1;
            Ok(json!({"token": "a"}))
        });
        write_events(events, Wrap::new(Screen::default()), |_| Ok(Reader::Left)).unwrap();
        assert_eq!(asked, 1);
    }

    #[test]
    fn a_url_and_a_model_exclude_one_another() {
        assert!(Typed::try_parse_from(["x", "--url", "http://a", "--model", "m"]).is_err());
        assert!(Typed::try_parse_from(["x", "--url", "http://a", "--nproc", "2"]).is_err());
    }
}
