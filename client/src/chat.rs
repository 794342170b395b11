//! `nanoinfer chat`: a conversation in a terminal.
//!
//! ```text
//! a line ─► /command ─► conversation.rs changes what is sent
//!        └► a turn ───► POST /v1/chat/completions, streamed ─► text as it comes; Ctrl-C stops the answer, not the chat
//! ```
//! Lines are read by a library, with history; answers by a thread of their own, so that a stop does not wait for the
//! server. Only conversation and answers go to standard output.

mod conversation;

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::Value;

use self::conversation::{Conversation, Said};
use crate::{
    Failure,
    events::Events,
    target::{Target, TargetOptions},
    told,
};

/// How often a running answer looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(20);
/// Pieces of an answer that may wait to be written.
const MAX_PIECES: usize = 64;
/// Lines that the history keeps.
const MAX_HISTORY: usize = 1000;

const HELP: &str = "\
  /system TEXT         instructions before the conversation; without a text none
  /params              how answers are sampled
  /params NAME VALUE   sets temperature, top_p, top_k, min_p, repetition_penalty, max_tokens or seed; no value: the default
  /reset               forgets the conversation
  /retry               answers the last message again
  /save FILE           writes the conversation as JSON, as a request to /v1/chat/completions has it
  /stats               tells speed and tokens after each answer, or stops telling
  /quit                ends, as Ctrl-D does
  Ctrl-C               stops the answer; what came of it stays
  a \\ at a line's end goes on in the next line";

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nanoinfer chat\n  \
    nanoinfer chat --model gpt2-large --nproc 2\n  \
    nanoinfer chat --url http://127.0.0.1:8000 --system \"Answer in one sentence.\"\n\nIn the chat, /help lists the commands.")]
pub(crate) struct ChatOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// Instructions before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

/// How an answer went.
struct Statistics {
    start: Instant,
    first: Option<Instant>,
    last: Instant,
    usage: Value,
}

pub(crate) fn run(options: ChatOptions) -> Result<(), Failure> {
    let mut target = Target::open(&options.target)?;
    let info = target.get("/api/model_info")?;
    let stop = interrupts()?;
    let mut editor = DefaultEditor::new().context("cannot read lines from this terminal")?;
    let history = history_file();
    if let Some(path) = &history {
        // The first chat has none.
        let _ = editor.load_history(path);
    }
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if is_terminal {
        println!(
            "{} · nproc {} · {}",
            info["model"].as_str().unwrap_or("?"),
            info["nproc"],
            info["dtype"].as_str().unwrap_or("?")
        );
        if info["chat_template"] == false {
            println!(
                "It has no chat template: turns are written as User: and Assistant:, which it may not have learned."
            );
        }
        println!("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.");
    }
    let mut conversation = Conversation::new(options.system);
    let mut tells_statistics = false;
    let talked = loop {
        let line = match read_turn(&mut editor, is_terminal) {
            Ok(line) => line,
            // At an empty prompt there is nothing to stop.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break Ok(()),
            Err(error) => break Err(error).context("cannot read from standard input"),
        };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        // A history that cannot grow is no reason to end a chat.
        let _ = editor.add_history_entry(line);
        match conversation.take(line) {
            Ok(Said::Words(words)) => println!("{words}"),
            Ok(Said::Help) => println!("{HELP}"),
            Ok(Said::Statistics) => {
                tells_statistics = !tells_statistics;
                println!("statistics are {}", if tells_statistics { "on" } else { "off" });
            }
            Ok(Said::Quit) => break Ok(()),
            Ok(Said::Turn) => {
                stop.store(false, Relaxed);
                let mut text = String::new();
                let answered = answer(&target, &conversation.request(), &stop, &mut text);
                if !text.is_empty() && !text.ends_with('\n') {
                    println!();
                }
                match answered {
                    Ok(statistics) if tells_statistics => println!("{}", statistics.told(stop.load(Relaxed))),
                    Ok(_) => {}
                    Err(error) => {
                        eprintln!("error: {}", told(&error));
                        target.tell_its_end();
                    }
                }
                conversation.answered(text);
            }
            Err(complaint) => eprintln!("{complaint}"),
        }
    };
    if let Some(path) = &history {
        save_history(&mut editor, path);
    }
    Ok(talked?)
}

/// A line, with those that it goes on in.
fn read_turn(editor: &mut DefaultEditor, is_terminal: bool) -> Result<String, ReadlineError> {
    let mut turn = String::new();
    loop {
        let prompt = match (is_terminal, turn.is_empty()) {
            (false, _) => "",
            (true, true) => "> ",
            (true, false) => "… ",
        };
        let line = editor.readline(prompt)?;
        match line.strip_suffix('\\') {
            Some(begun) => turn += &format!("{begun}\n"),
            None => return Ok(turn + &line),
        }
    }
}

/// Asks, and writes the answer as it comes; what came is in `text`, also where it was stopped or broke off.
fn answer(target: &Target, request: &Value, stop: &AtomicBool, text: &mut String) -> anyhow::Result<Statistics> {
    let start = Instant::now();
    let mut statistics = Statistics { start, first: None, last: start, usage: Value::Null };
    let (_, body) = target.post("/v1/chat/completions", request)?;
    let (pieces, received) = mpsc::sync_channel(MAX_PIECES);
    // Ends with the stream, or when nobody receives: then it drops the connection, which cancels the answer.
    thread::spawn(move || {
        for event in Events::new(body) {
            if pieces.send(event).is_err() {
                return;
            }
        }
    });
    let mut out = io::stdout().lock();
    while !stop.load(Relaxed) {
        let event = match received.recv_timeout(STOP_POLL) {
            Ok(event) => event?,
            Err(mpsc::RecvTimeoutError::Timeout) => continue,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        };
        if let Some(piece) = event["choices"][0]["delta"]["content"].as_str().filter(|piece| !piece.is_empty()) {
            statistics.last = Instant::now();
            statistics.first.get_or_insert(statistics.last);
            text.push_str(piece);
            out.write_all(piece.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")?;
        }
        if event["usage"].is_object() {
            statistics.usage = event["usage"].clone();
        }
    }
    Ok(statistics)
}

impl Statistics {
    fn told(&self, stopped: bool) -> String {
        let Some(first) = self.first else { return "(no text)".into() };
        let first_ms = (first - self.start).as_millis();
        let tokens = self.usage["completion_tokens"].as_u64();
        let rate = tokens.map(|n| n.saturating_sub(1) as f64 / (self.last - first).as_secs_f64().max(1e-9));
        let counted = match (tokens, rate) {
            (Some(tokens), Some(rate)) if tokens > 1 => {
                format!("{} + {tokens} tokens, {rate:.1} a second", self.usage["prompt_tokens"])
            }
            (Some(tokens), _) => format!("{} + {tokens} tokens", self.usage["prompt_tokens"]),
            (None, _) => "stopped before its end".into(),
        };
        format!("({counted}, first after {first_ms} ms{})", if stopped { ", stopped" } else { "" })
    }
}

/// Set by Ctrl-C. While a line is read, Ctrl-C is the library's.
fn interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot watch for Ctrl-C")?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let signals = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).context("cannot watch for Ctrl-C")?
    };
    thread::spawn(move || {
        runtime.block_on(async {
            let mut signals = signals;
            while signals.recv().await.is_some() {
                flag.store(true, Relaxed);
            }
        });
    });
    Ok(stop)
}

/// Where lines are kept between chats; nowhere without a home.
fn history_file() -> Option<PathBuf> {
    nanoinfer_launch::cli::environment::state_folder().map(|folder| folder.join("chat_history"))
}

/// Best effort: a chat ends well without it.
fn save_history(editor: &mut DefaultEditor, path: &PathBuf) {
    let history = editor.history_mut();
    let _ = rustyline::history::History::set_max_len(history, MAX_HISTORY);
    if let Some(folder) = path.parent() {
        let _ = fs::create_dir_all(folder);
    }
    let _ = editor.save_history(path);
}
