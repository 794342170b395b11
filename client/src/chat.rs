//! `nanoinfer chat`: a conversation in a terminal.
//!
//! ```text
//! a line ─► /command ─► conversation.rs changes what is sent
//!        └► a turn ───► POST /v1/chat/completions, streamed ─► text as it comes; Ctrl-C stops the answer, not the chat
//! ```
//! Lines of a terminal are read by a library, with history, those of a pipe as text from outside; answers are asked for and read by a
//! thread of their own, so that a stop does not wait for the server. Only conversation and answers go to standard output; a chat whose
//! answers nobody reads any more ends, and so does one that reads from a pipe at Ctrl-C.

mod conversation;

use std::{
    fs,
    io::{self, BufRead, IsTerminal},
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
use nanoinfer_eval::connection::{self, Connection};
use nanoinfer_launch::{
    environment,
    output::{self, OutputError, Reader},
    say, utf8,
};
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::{Value, json};
use tokio::signal::unix;

use self::conversation::{Conversation, Said};
use crate::{
    events::Events,
    failure::{Failure, told},
    target::{Target, TargetOptions},
    terminal::{Look, Screen, Wrap},
};

/// How often a running answer looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(20);
/// Pieces of an answer that may wait to be written.
const MAX_PIECES: usize = 64;
/// Lines that the history keeps.
const MAX_HISTORY: usize = 1000;

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
    /// Whether somebody read all of it.
    reader: Reader,
}

pub(crate) fn run(options: ChatOptions) -> Result<(), Failure> {
    let mut target = Target::open(&options.target)?;
    let info = target.connection.get("/api/model_info")?;
    let model = &json!({"model": info["model"]});
    let defaults = connection::whole(target.connection.post("/api/show", model)?.1)?;
    let stop = if io::stdin().is_terminal() { interrupts()? } else { Arc::default() };
    let mut lines = Lines::open()?;
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        output::write(Screen::of_stdout().wrapped(&banner(&info)))?;
    }
    let defaults = defaults["parameters"].as_str().unwrap_or_default();
    let talked = talk(&mut target, Conversation::new(options.system, defaults), &mut lines, &stop);
    lines.close();
    Ok(talked?)
}

fn banner(info: &Value) -> String {
    let (model, dtype) = (info["model"].as_str().unwrap_or("?"), info["dtype"].as_str().unwrap_or("?"));
    let note = match info["chat_template"] == false {
        true => "It has no chat template: turns are written as User: and Assistant:, which it may not have learned.\n",
        false => "",
    };
    let nproc = &info["nproc"];
    format!("{model} · nproc {nproc} · {dtype}\n{note}/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.\n")
}

/// Takes turns until one side has left.
fn talk(
    target: &mut Target,
    mut conversation: Conversation,
    lines: &mut Lines,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut tells_statistics = false;
    while let Some(line) = lines.next()? {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let screen = Screen::of_stdout();
        let aside = |words: &str| screen.paint(Look::Aside, &screen.wrapped(words)) + "\n";
        let shown = match conversation.take(line) {
            Ok(Said::Words(words)) => aside(&words),
            Ok(Said::Statistics) => {
                tells_statistics = !tells_statistics;
                aside(&format!("statistics are {}", if tells_statistics { "on" } else { "off" }))
            }
            Ok(Said::Quit) => break,
            Ok(Said::Turn) => {
                stop.store(false, Relaxed);
                let mut text = String::new();
                let answered = answer(&target.connection, conversation.request(), stop, &mut text);
                output::write(if text.is_empty() || text.ends_with('\n') { "" } else { "\n" })?;
                let shown = match answered {
                    Ok(statistics) if tells_statistics => aside(&statistics.told(stop.load(Relaxed))),
                    Ok(Statistics { reader: Reader::Left, .. }) => break,
                    Ok(_) => String::new(),
                    // It is not the server's, and the next answer would not fare better.
                    Err(error) if error.is::<OutputError>() => return Err(error),
                    Err(error) => {
                        say(format_args!("error: {}", told(&error)));
                        target.tell_its_end();
                        String::new()
                    }
                };
                conversation.answered(text);
                // Apart from the next turn, where that is seen.
                if screen == Screen::default() { shown } else { shown + "\n" }
            }
            Err(complaint) => {
                say(complaint);
                continue;
            }
        };
        if output::write(shown)? == Reader::Left {
            break;
        }
    }
    Ok(())
}

/// Where turns come from.
enum Lines {
    Terminal {
        editor: Box<DefaultEditor>,
        history: Option<PathBuf>,
        /// Shown before each line, where answers are seen too.
        prompts: [String; 2],
    },
    /// With how many lines were read.
    Pipe(usize),
}

impl Lines {
    fn open() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe(0));
        }
        let mut editor = DefaultEditor::new().context("cannot read lines from this terminal")?;
        // Nowhere without a home.
        let history = environment::state_folder().map(|folder| folder.join("chat_history"));
        if let Some(path) = &history {
            // The first chat has none.
            let _ = editor.load_history(path);
        }
        let seen = if io::stdout().is_terminal() { [">", "…"] } else { ["", ""] };
        let screen = Screen::of_stdout();
        let prompts =
            seen.map(|mark| if mark.is_empty() { String::new() } else { screen.paint(Look::Prompt, mark) + " " });
        Ok(Self::Terminal { editor: Box::new(editor), history, prompts })
    }

    /// A line, with those that it goes on in; none at the end.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        let mut turn = String::new();
        loop {
            let line = match self {
                Self::Terminal { editor, prompts, .. } => {
                    match editor.readline(&prompts[usize::from(!turn.is_empty())]) {
                        Ok(line) => line,
                        // At an empty prompt there is nothing to stop.
                        Err(ReadlineError::Interrupted) => {
                            turn.clear();
                            continue;
                        }
                        Err(ReadlineError::Eof) => return Ok(None),
                        Err(error) => return Err(error).context("cannot read from this terminal"),
                    }
                }
                Self::Pipe(number) => {
                    *number += 1;
                    match piped_line(io::stdin().lock(), *number)? {
                        Some(line) => line,
                        None => return Ok(Some(turn).filter(|turn| !turn.is_empty())),
                    }
                }
            };
            if let Some(begun) = line.strip_suffix('\\') {
                turn += &format!("{begun}\n");
                continue;
            }
            turn += &line;
            if let Self::Terminal { editor, .. } = self {
                // A history that cannot grow is no reason to end a chat.
                let _ = editor.add_history_entry(turn.trim());
            }
            return Ok(Some(turn));
        }
    }

    /// Keeps the history. Best effort: a chat ends well without it.
    fn close(self) {
        let Self::Terminal { mut editor, history: Some(path), .. } = self else { return };
        let _ = rustyline::history::History::set_max_len(editor.history_mut(), MAX_HISTORY);
        if let Some(folder) = path.parent() {
            let _ = fs::create_dir_all(folder);
        }
        let _ = editor.save_history(&path);
    }
}

/// The next line of a pipe without its end; none where there are no more.
fn piped_line(mut pipe: impl BufRead, number: usize) -> anyhow::Result<Option<String>> {
    let mut line = Vec::new();
    let what = || format!("cannot read line {number} of standard input");
    if pipe.read_until(b'\n', &mut line).with_context(what)? == 0 {
        return Ok(None);
    }
    let text = utf8::text(&line).with_context(what)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(Some(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

/// Asks, and writes the answer as it comes; what came is in `text`, also where it was stopped or broke off.
fn answer(
    connection: &Arc<Connection>,
    request: Value,
    stop: &AtomicBool,
    text: &mut String,
) -> anyhow::Result<Statistics> {
    let start = Instant::now();
    let mut statistics = Statistics { start, first: None, last: start, usage: Value::Null, reader: Reader::Reads };
    let (pieces, received) = mpsc::sync_channel(MAX_PIECES);
    let connection = Arc::clone(connection);
    let mut shown = Shown::on(Screen::of_stdout(), io::stdout().is_terminal());
    // Ends with the stream, or when nobody receives: then it drops the connection, which cancels the answer.
    thread::spawn(move || match connection.post("/v1/chat/completions", &request) {
        Ok((_, body)) => drop(Events::new(body).try_for_each(|event| pieces.send(event))),
        Err(error) => drop(pieces.send(Err(error))),
    });
    let broke_off = loop {
        let event = match received.recv_timeout(STOP_POLL) {
            _ if stop.load(Relaxed) => break None,
            Ok(Ok(event)) => event,
            Ok(Err(error)) => break Some(error),
            Err(mpsc::RecvTimeoutError::Timeout) => continue,
            Err(mpsc::RecvTimeoutError::Disconnected) => break None,
        };
        let delta = &event["choices"][0]["delta"];
        let [thought, piece] = ["reasoning_content", "content"].map(|part| delta[part].as_str().unwrap_or_default());
        let calculated = calculated(delta);
        if !thought.is_empty() || !calculated.is_empty() || !piece.is_empty() {
            statistics.last = Instant::now();
            statistics.first.get_or_insert(statistics.last);
            text.push_str(piece);
            statistics.reader = output::write(shown.take(thought, &calculated, piece))?;
            if statistics.reader == Reader::Left {
                break None;
            }
        }
        if event["usage"].is_object() {
            statistics.usage = event["usage"].clone();
        }
    };
    output::write(shown.end())?;
    broke_off.map_or(Ok(statistics), Err)
}

/// What the model had calculated before a piece, in brackets.
fn calculated(delta: &Value) -> String {
    let calculations = delta["calculations"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told = |it: &Value| {
        let result = it["result"].as_str().map_or_else(String::new, |result| format!(" = {result}"));
        format!("[{}{result}] ", it["expression"].as_str().unwrap_or_default())
    };
    calculations.iter().map(told).collect()
}

/// How an answer is written: what the model thinks before it, or has calculated, is dimmed in a terminal, and is no part of what a
/// pipe is told.
struct Shown {
    screen: Screen,
    to_terminal: bool,
    wrap: Wrap,
    /// Thinking was written last.
    thought: bool,
}

impl Shown {
    fn on(screen: Screen, to_terminal: bool) -> Self {
        Self { screen, to_terminal, wrap: Wrap::new(screen), thought: false }
    }

    fn take(&mut self, thought: &str, calculated: &str, piece: &str) -> String {
        let mut text = String::new();
        if self.to_terminal && !thought.is_empty() {
            text = self.aside(thought);
            self.thought = true;
        }
        if !piece.is_empty() && std::mem::take(&mut self.thought) {
            text += &self.last_aside();
            text += &self.wrap.take("\n\n");
        }
        if self.to_terminal && !calculated.is_empty() {
            text += &self.wrap.end();
            text += &self.aside(calculated);
            text += &self.last_aside();
        }
        text + &self.wrap.take(piece)
    }

    /// What was held back.
    fn end(&mut self) -> String {
        if self.thought { self.last_aside() + "\n" } else { self.wrap.end() }
    }

    fn aside(&mut self, text: &str) -> String {
        let text = self.wrap.take(text);
        self.screen.paint(Look::Aside, &text)
    }

    fn last_aside(&mut self) -> String {
        let text = self.wrap.end();
        self.screen.paint(Look::Aside, &text)
    }
}

impl Statistics {
    /// Tokens and times as they were seen here. The speed is of the whole answer, its first token included: pieces that come together
    /// tell nothing about the time between them.
    fn told(&self, stopped: bool) -> String {
        let Some(first) = self.first else { return "(no text)".into() };
        let ms = |until: Instant| (until - self.start).as_millis();
        let took = format!("the first after {} ms", ms(first));
        if stopped {
            return format!("(stopped after {} ms, {took})", ms(self.last));
        }
        let (prompt, tokens) = (&self.usage["prompt_tokens"], self.usage["completion_tokens"].as_u64().unwrap_or(0));
        let seconds = (self.last - self.start).as_secs_f64();
        let speed = tokens as f64 / seconds.max(1e-3);
        format!("({prompt} + {tokens} tokens, {took}, all after {} ms: {speed:.0} a second)", ms(self.last))
    }
}

/// Set by Ctrl-C. While a line is read, Ctrl-C is the library's.
fn interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot watch for Ctrl-C")?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let mut signals = {
        let _inside = runtime.enter();
        unix::signal(unix::SignalKind::interrupt()).context("cannot watch for Ctrl-C")?
    };
    thread::spawn(move || {
        runtime.block_on(async {
            while signals.recv().await.is_some() {
                flag.store(true, Relaxed);
            }
        });
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_stop_does_not_wait_for_a_server_that_says_nothing() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let connection = Connection::new(url, None, None, "").into();
        let stop = Arc::new(AtomicBool::new(false));
        let pulled = Arc::clone(&stop);
        let asked = thread::spawn(move || {
            let socket = silent.accept().unwrap();
            pulled.store(true, Relaxed);
            socket
        });
        let mut text = String::new();
        let statistics = answer(&connection, json!({"messages": []}), &stop, &mut text).unwrap();
        assert!(text.is_empty() && statistics.first.is_none());
        asked.join().unwrap();
    }

    #[test]
    fn what_is_no_answer_is_dimmed_in_a_terminal_and_left_out_of_a_pipe() {
        let sum = json!({"calculations": [{"expression": "1+1", "result": "2"}, {"expression": "x", "result": null}]});
        let pieces = [("Hm", json!({}), ""), (", 2.", json!({}), "T"), ("", json!({}), "wo"), ("", sum, ".")];
        let shown = |screen: Screen, to_terminal| {
            let mut shown = Shown::on(screen, to_terminal);
            let text = pieces
                .each_ref()
                .map(|(thought, delta, piece)| shown.take(thought, &calculated(delta), piece))
                .concat();
            text + &shown.end()
        };
        let colours = Screen::coloured(None);
        assert_eq!(shown(colours, true), "\x1b[2mHm\x1b[0m\x1b[2m, 2.\x1b[0m\n\nTwo\x1b[2m[1+1 = 2] [x] \x1b[0m.");
        assert_eq!(shown(Screen::default(), true), "Hm, 2.\n\nTwo[1+1 = 2] [x] .");
        assert_eq!(shown(Screen::default(), false), "Two.");
        let narrow = shown(Screen::coloured(Some(8)), true);
        assert_eq!(narrow, "\x1b[2mHm,\x1b[0m\x1b[2m 2.\x1b[0m\n\nTwo\x1b[2m[1+1\n= 2] [x]\x1b[0m\n.");
    }

    #[test]
    fn a_speed_is_of_the_whole_answer() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let usage = json!({"prompt_tokens": 9, "completion_tokens": 31});
        let mut statistics =
            Statistics { start, first: Some(after(20)), last: after(20), usage, reader: Reader::Reads };
        assert_eq!(statistics.told(false), "(9 + 31 tokens, the first after 20 ms, all after 20 ms: 1550 a second)");
        statistics.last = after(31);
        assert_eq!(statistics.told(false), "(9 + 31 tokens, the first after 20 ms, all after 31 ms: 1000 a second)");
        statistics.usage = Value::Null;
        assert_eq!(statistics.told(true), "(stopped after 31 ms, the first after 20 ms)");
    }

    #[test]
    fn lines_of_a_pipe_are_text_from_outside() {
        let mut pipe = "\u{feff}Hi\r\nend".as_bytes();
        assert_eq!(piped_line(&mut pipe, 1).unwrap().as_deref(), Some("Hi"));
        assert_eq!(piped_line(&mut pipe, 2).unwrap().as_deref(), Some("end"));
        assert_eq!(piped_line(&mut pipe, 3).unwrap(), None);
        for (bytes, word) in [(&b"\xff\xfeH\0\n\0"[..], "UTF-16"), (b"caf\xe9\n", "byte 0xe9 at offset 3")] {
            let error = told(&piped_line(bytes, 7).unwrap_err());
            assert!(error.contains("line 7 of standard input") && error.contains(word), "{error}");
        }
    }
}
