//! The server under evaluation, as any client of OpenAI's dialect meets it: tokenize, score, generate.
//!
//! Needs `/v1/models`, `/tokenize` and `/v1/completions` with `echo` and `logprobs`, which vLLM's server has too.
//! Invariant: a score is the model's own log-probability of a token after those before it; the first token has none.

use std::{thread, time::Duration};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::connection::{self, Connection};

/// Most bytes of text in one request to `/tokenize`; our server takes 1 MiB.
const MAX_TOKENIZE_BYTES: usize = 512 << 10;
/// Tokens that prompts have in common from which on they are not asked for all at once: two KV blocks.
const WORTH_SHARING: usize = 32;
/// How often a full queue is met with patience, and how long each time.
const MAX_RETRIES: u32 = 600;
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// What is served over a connection.
#[derive(Debug)]
pub struct Server<'c> {
    connection: &'c Connection,
    /// As the server names it.
    pub model: String,
    /// Longest prompt that can be scored.
    pub n_positions: usize,
    /// Begins a document; `None` if the tokenizer has no such token.
    pub document_token: Option<u32>,
    /// What `/api/model_info` says, if there is such a page.
    pub about: Value,
}

/// Of one token after those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm.
    pub logprob: f64,
    /// No other token is as likely. Known only where an alternative was asked for.
    pub is_first: bool,
}

/// How to generate.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sampling {
    /// As a turn of a chat, or as text to continue.
    pub(crate) as_chat: bool,
    pub(crate) max_tokens: u32,
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
}

impl<'c> Server<'c> {
    /// Finds out what is served.
    ///
    /// # Errors
    /// When nobody answers, or not like an OpenAI server.
    pub fn connect(connection: &'c Connection) -> anyhow::Result<Self> {
        let mut server =
            Self { connection, model: String::new(), n_positions: 0, document_token: None, about: Value::Null };
        let models = connection.get("/v1/models")?;
        let model = &models["data"][0];
        server.model = model["id"].as_str().ok_or_else(|| anyhow!("{} serves no model", connection.url()))?.to_owned();
        server.about = connection.get("/api/model_info").unwrap_or(Value::Null);
        let length = match model["max_model_len"].as_u64() {
            Some(length) => length,
            None => server.post("/tokenize", json!({"model": server.model, "prompt": "a"}))?["max_model_len"]
                .as_u64()
                .ok_or_else(|| anyhow!("{} does not say how long a prompt may be", connection.url()))?,
        };
        server.n_positions = length as usize;
        // Where a text cannot contain special tokens only this tells.
        let known = connection.get("/tokenizer_info").ok().and_then(|info| info["bos_token_id"].as_u64());
        server.document_token = known.map(|id| id as u32);
        for text in ["<|bos|>", "<|endoftext|>"] {
            if server.document_token.is_some() {
                break;
            }
            if let [id] = server.tokenize(text)?[..] {
                server.document_token = Some(id);
            }
        }
        Ok(server)
    }

    /// The token that begins a document.
    ///
    /// # Errors
    /// If there is none.
    pub fn document_token(&self) -> anyhow::Result<u32> {
        self.document_token.ok_or_else(|| {
            anyhow!(
                "the tokenizer of {} has neither <|bos|> nor <|endoftext|>\n  hint: --ppl-mode exact needs none",
                self.model
            )
        })
    }

    /// Tokens of a text of any length, special tokens in it taken as such, nothing added.
    pub fn tokenize(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in pieces(text, MAX_TOKENIZE_BYTES) {
            let body = json!({"model": self.model, "prompt": piece, "add_special_tokens": false});
            let reply = self.post("/tokenize", body)?;
            let tokens = reply["tokens"].as_array().ok_or_else(|| anyhow!("/tokenize answered no tokens: {reply}"))?;
            for token in tokens {
                ids.push(token.as_u64().ok_or_else(|| anyhow!("/tokenize answered a token {token}"))? as u32);
            }
        }
        Ok(ids)
    }

    /// Scores the tokens of each prompt from the one at `from` on, and before it where the server can't leave that out; with
    /// `alternatives`, also whether each is the model's first choice.
    pub fn score(
        &self,
        prompts: &[&[u32]],
        from: usize,
        alternatives: bool,
    ) -> anyhow::Result<Vec<Vec<Option<TokenScore>>>> {
        // What prompts have in common is computed with the first, and then found in the server's cache.
        let (first, others) = prompts.split_at(if from >= WORTH_SHARING { 1 } else { prompts.len() });
        let mut scores = Vec::new();
        for prompts in [first, others].into_iter().filter(|prompts| !prompts.is_empty()) {
            let body = json!({
                "model": self.model, "prompt": prompts, "max_tokens": 0, "echo": true, "temperature": 0,
                "logprobs": u8::from(alternatives), "logprob_start_len": from,
            });
            let reply = self.post("/v1/completions", body)?;
            let url = self.connection.url();
            let choices = reply["choices"].as_array().filter(|choices| choices.len() == prompts.len());
            let mut together = vec![Vec::new(); prompts.len()];
            for choice in choices.ok_or_else(|| anyhow!("{url} answered another number of choices"))? {
                let index = choice["index"].as_u64().map(|index| index as usize).filter(|&index| index < prompts.len());
                let index = index.ok_or_else(|| anyhow!("{url} answered a choice that was not asked for"))?;
                together[index] = token_scores(&choice["logprobs"], prompts[index].len()).with_context(|| {
                    format!("{url} does not score prompts\n  hint: it must support echo with logprobs")
                })?;
            }
            scores.extend(together);
        }
        Ok(scores)
    }

    /// Continues a text, or answers it as a turn of a chat.
    pub(crate) fn generate(&self, prompt: &str, sampling: &Sampling) -> anyhow::Result<String> {
        let &Sampling { as_chat, max_tokens, temperature, seed } = sampling;
        let mut body = json!({
            "model": self.model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed,
        });
        let (path, pointer) = if as_chat {
            body["messages"] = json!([{"role": "user", "content": prompt}]);
            ("/v1/chat/completions", "/choices/0/message/content")
        } else {
            body["prompt"] = prompt.into();
            ("/v1/completions", "/choices/0/text")
        };
        let reply = self.post(path, body)?;
        let text = reply.pointer(pointer).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| anyhow!("{path} answered no text: {reply}"))
    }

    /// Tokens drawn greedily after a prompt of tokens. Needs a server that tells ids, as ours does.
    pub fn greedy(&self, prompt: &[u32], max_tokens: usize) -> anyhow::Result<Vec<u32>> {
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
            "return_token_ids": true,
        });
        let reply = self.post("/v1/completions", body)?;
        let ids = reply.pointer("/choices/0/token_ids").and_then(Value::as_array);
        let ids = ids.and_then(|ids| ids.iter().map(|id| Some(id.as_u64()? as u32)).collect());
        ids.ok_or_else(|| anyhow!("{} answered no token ids: {reply}", self.connection.url()))
    }

    fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        for _ in 0..MAX_RETRIES {
            let response = self.connection.send(path, &body)?;
            if response.status().as_u16() != 429 {
                return connection::whole(self.connection.accepted(path, response)?.1);
            }
            thread::sleep(RETRY_AFTER);
        }
        let url = self.connection.url();
        bail!("{url} was busy for a minute\n  hint: --batch-size N, with fewer requests at a time")
    }
}

/// The `logprobs` of a choice, one score a token of the prompt.
fn token_scores(logprobs: &Value, tokens: usize) -> anyhow::Result<Vec<Option<TokenScore>>> {
    let numbers = logprobs["token_logprobs"].as_array().filter(|numbers| numbers.len() == tokens);
    let numbers = numbers.ok_or_else(|| anyhow!("there is no log-probability for each token of the prompt"))?;
    let score = |(i, number): (usize, &Value)| {
        let logprob = number.as_f64()?;
        let (own, top) = (logprobs["tokens"][i].as_str(), logprobs["top_logprobs"][i].as_object());
        // With one alternative asked for, a rival is there only if the server would rather draw it.
        let rival = |top: &serde_json::Map<String, Value>| {
            top.iter().any(|(text, other)| Some(text.as_str()) != own && other.as_f64() >= Some(logprob))
        };
        Some(TokenScore { logprob, is_first: !top.is_some_and(rival) })
    };
    Ok(numbers.iter().enumerate().map(score).collect())
}

/// Pieces of a long text that have the same tokens as the whole: cut before the space between two words, where every
/// GPT-2 tokenizer splits anyway.
fn pieces(text: &str, max_bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > max_bytes {
        let window = &rest.as_bytes()[..max_bytes];
        let letters = |at: usize| window[at - 1].is_ascii_alphabetic() && window[at + 1].is_ascii_alphabetic();
        let Some(cut) = (1..max_bytes - 1).rev().find(|&at| window[at] == b' ' && letters(at)) else { break };
        let (piece, after) = rest.split_at(cut);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_words() {
        assert_eq!(pieces("one two three", 9), ["one two", " three"]);
        assert_eq!(pieces("one  two, 3 x", 9), ["one  two, 3 x"]);
        assert_eq!(pieces("", 9), [""]);
        let text = "a word and another ".repeat(50);
        let cut = pieces(&text, 100);
        assert!(cut.len() > 5 && cut.concat() == text);
    }

    #[test]
    fn a_token_is_the_first_choice_if_no_other_is_as_likely() {
        let logprobs = json!({
            "tokens": ["a", "b", "c", "d"],
            "token_logprobs": [null, -1.0, -1.0, -1.0],
            "top_logprobs": [null, {"b": -1.0}, {"x": -0.5, "c": -1.0}, {"x": -1.0, "d": -1.0}],
        });
        let scores = token_scores(&logprobs, 4).unwrap();
        assert_eq!(scores[0], None);
        let first: Vec<bool> = scores.iter().flatten().map(|score| score.is_first).collect();
        assert_eq!(first, [true, false, false]);
        assert!(token_scores(&logprobs, 5).is_err() && token_scores(&Value::Null, 1).is_err());
    }
}
