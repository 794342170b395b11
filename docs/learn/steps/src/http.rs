//! Step 11. A server: `POST /generate` with `{"prompt": "…"}` is answered by a stream of events, a piece of text each.
//!
//! A thread reads each connection; one owns the model and everything that is computed, as the engine does. Nothing of HTTP is known
//! there, and nothing of tokens' scores here.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::{decode, encode, model::Model, sampling::Sampling, scheduler::Scheduler};

/// Longest body that is read.
const MAX_BODY: usize = 1 << 20;

/// A prompt, and where its tokens go.
struct Question {
    prompt: Vec<u32>,
    most: usize,
    sampling: Sampling,
    tokens: Sender<u32>,
}

/// Serves until the listener fails.
///
/// # Errors
/// When it does.
pub fn serve(listener: &TcpListener, model: Model, tokenizer: Tokenizer, scheduler: Scheduler) -> Result<()> {
    let end = tokenizer.token_to_id("<|endoftext|>").context("the tokenizer has no end of text")?;
    let positions = model.sizes.positions;
    let (questions, asked) = channel();
    thread::scope(|scope| {
        scope.spawn(move || compute(&model, scheduler, &asked, end));
        for connection in listener.incoming() {
            let (questions, tokenizer) = (questions.clone(), &tokenizer);
            let connection = connection?;
            scope.spawn(move || {
                // Who hangs up has no answer, and disturbs nobody.
                let _ = answer(connection, tokenizer, &questions, positions);
            });
        }
        Ok(())
    })
}

/// Takes step after step, as long as anybody asks.
fn compute(model: &Model, mut scheduler: Scheduler, asked: &Receiver<Question>, end: u32) {
    let mut readers: HashMap<usize, Sender<u32>> = HashMap::new();
    let mut next = 0;
    loop {
        let first = if scheduler.is_idle() { asked.recv().ok() } else { asked.try_recv().ok() };
        if first.is_none() && scheduler.is_idle() {
            return;
        }
        for Question { prompt, most, sampling, tokens } in first.into_iter().chain(asked.try_iter()) {
            scheduler.add(next, prompt, most, sampling);
            readers.insert(next, tokens);
            next += 1;
        }
        let plan = scheduler.plan();
        for drawn in scheduler.step(model, &plan, end) {
            let _ = readers[&drawn.id].send(drawn.token);
            if drawn.is_last {
                readers.remove(&drawn.id);
            }
        }
    }
}

/// One request and its answer.
fn answer(
    mut connection: TcpStream,
    tokenizer: &Tokenizer,
    questions: &Sender<Question>,
    positions: usize,
) -> Result<()> {
    let (tokens, drawn) = channel();
    let asked = read(&connection).and_then(|body| {
        let prompt = encode(tokenizer, body["prompt"].as_str().context("`prompt` should be a text")?)?;
        ensure!(prompt.len() < positions, "{} tokens are more than fit", prompt.len());
        let number = |name: &str, default: f64| body[name].as_f64().unwrap_or(default);
        let sampling = Sampling {
            temperature: number("temperature", 0.3) as f32,
            top_k: number("top_k", 0.0) as usize,
            top_p: number("top_p", 1.0) as f32,
            seed: number("seed", 0.0) as u64,
        };
        let most = number("max_tokens", 200.0).max(1.0) as usize;
        questions.send(Question { prompt, most, sampling, tokens }).map_err(|_| anyhow!("the engine has ended"))
    });
    if let Err(error) = asked {
        let body = json!({"error": error.to_string()}).to_string();
        return Ok(write!(
            connection,
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )?);
    }
    write!(connection, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")?;
    let (mut ids, mut told) = (Vec::new(), String::new());
    for id in drawn {
        ids.push(id);
        let text = decode(tokenizer, &ids)?;
        // A character may need several tokens: what is not whole yet is told with the next.
        if let Some(new) = text.strip_prefix(&told).filter(|new| !new.is_empty() && !text.ends_with('\u{fffd}')) {
            write!(connection, "data: {}\n\n", json!({"text": new}))?;
            told = text;
        }
    }
    Ok(write!(connection, "data: [DONE]\n\n")?)
}

/// The body of a request.
fn read(connection: &TcpStream) -> Result<Value> {
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("POST /generate "), "ask with POST /generate");
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) =
            line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            length = value.trim().parse().with_context(|| format!("{name} is no number"))?;
        }
    }
    ensure!(length <= MAX_BODY, "a body has at most {MAX_BODY} bytes");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
