//! Log-probabilities as the three dialects write them.
//!
//! Invariant, which evaluators rely on: the number of a token is the same in every place of a reply, and tokens that are
//! no UTF-8 are spelled `bytes:\xNN`, so that no two tokens share a key.

use nanoinfer_shared::protocol::TokenId;
use serde_json::{Map, Value, json};

use crate::{
    request::TokenLogprobs,
    text::{Detokenizer, Tokenizer, generation::GeneratedToken},
};

/// Stands for −∞, which JSON cannot write.
const LEAST: f32 = -9999.0;

/// `logprobs` of `/v1/completions`, while tokens come in.
#[derive(Debug, Default)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

/// Where in a choice's text the next token begins.
#[derive(Debug, Default)]
pub(super) struct TextOffset {
    detokenizer: Detokenizer,
    /// Whole characters so far.
    chars: usize,
}

impl TextOffset {
    /// In a text that does not repeat its prompt.
    pub(super) fn after(tokenizer: &Tokenizer, prompt: &[TokenId]) -> Self {
        Self { detokenizer: Detokenizer::after(tokenizer, prompt), chars: 0 }
    }

    fn advance(&mut self, tokenizer: &Tokenizer, id: TokenId) {
        let mut text = String::new();
        self.detokenizer.push(tokenizer, id, &mut text);
        self.chars += text.chars().count();
    }
}

impl CompletionLogprobs {
    /// Adds a token, whose text is `shown` or not; the first token of a prompt has no scores.
    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: TokenId,
        scores: Option<&TokenLogprobs>,
        offset: &mut TextOffset,
        shown: bool,
    ) {
        self.tokens.push(tokenizer.spell(id).into());
        self.text_offset.push(offset.chars);
        if shown {
            offset.advance(tokenizer, id);
        }
        self.token_logprobs.push(scores.map_or(Value::Null, |scores| number(scores.logprob)));
        self.top_logprobs.push(scores.map_or(Value::Null, |scores| {
            // The token itself is always among them.
            let itself = (scores.id, scores.logprob);
            let mut top = Map::new();
            for &(id, logprob) in scores.top.iter().chain([&itself]) {
                top.insert(tokenizer.spell(id), number(logprob));
            }
            top.into()
        }));
    }

    pub(super) fn into_json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// `[{token, logprob, bytes, top_logprobs}]` of `/v1/chat/completions` and Ollama.
pub(super) fn chat(tokenizer: &Tokenizer, tokens: &[GeneratedToken]) -> Vec<Value> {
    let entry = |id: TokenId, logprob: f32| json!({"token": tokenizer.spell(id), "logprob": number(logprob), "bytes": tokenizer.bytes(id)});
    let with_top = |scores: &TokenLogprobs| {
        let top: Vec<Value> = scores.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
        let mut value = entry(scores.id, scores.logprob);
        value["top_logprobs"] = top.into();
        value
    };
    tokens.iter().filter_map(|token| token.logprobs.as_ref().map(with_top)).collect()
}

/// −∞ as a number that JSON has.
pub(super) fn number(logprob: f32) -> Value {
    let finite = if logprob.is_finite() { logprob } else { LEAST };
    Value::from(f64::from(finite))
}
