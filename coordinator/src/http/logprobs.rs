//! Log-probabilities as the three dialects write them.
//!
//! Invariant, which evaluators rely on: the number of a token is the same in every place of a reply, and tokens that are
//! no UTF-8 are spelled `bytes:\xNN`, so that no two tokens share a key.

use std::collections::BTreeMap;

use nanoinfer_shared::protocol::TokenId;
use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{
    request::TokenLogprobs,
    text::{Detokenizer, GeneratedToken, Tokenizer},
};

/// Stands for −∞, which JSON cannot write.
const LEAST: f32 = -9999.0;

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

    /// Where a token begins, whose text is `shown` or not; and on to the next.
    pub(super) fn pass(&mut self, tokenizer: &Tokenizer, id: TokenId, shown: bool) -> usize {
        let here = self.chars;
        if shown {
            let mut text = String::new();
            self.detokenizer.push(tokenizer, id, &mut text);
            self.chars += text.chars().count();
        }
        here
    }
}

/// `logprobs` of `/v1/completions`: four lists, an entry a token each.
pub(super) struct CompletionLogprobs<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// Most alternatives beside each.
    pub(super) top: usize,
    /// Each with its scores; the first token of a prompt has none.
    pub(super) tokens: Vec<(TokenId, Option<&'a TokenLogprobs>)>,
    pub(super) text_offset: Vec<usize>,
}

impl Serialize for CompletionLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { tokenizer, top: most, tokens, text_offset } = self;
        let mut lists = serializer.serialize_struct("logprobs", 4)?;
        lists.serialize_field("text_offset", text_offset)?;
        let scores = || tokens.iter().map(|(_, scores)| scores.map(|scores| number(scores.logprob)));
        lists.serialize_field("token_logprobs", &List(scores))?;
        lists.serialize_field("tokens", &List(|| tokens.iter().map(|&(id, _)| tokenizer.spell(id))))?;
        let top = |scores: &TokenLogprobs| -> BTreeMap<String, f64> {
            // The token itself is always among them.
            let itself = (scores.id, scores.logprob);
            let top = scores.top.iter().take(*most).chain([&itself]);
            top.map(|&(id, logprob)| (tokenizer.spell(id), number(logprob))).collect()
        };
        lists.serialize_field("top_logprobs", &List(|| tokens.iter().map(|(_, scores)| scores.map(top))))?;
        lists.end()
    }
}

/// `prompt_logprobs` as vLLM writes them: of each token of the prompt, by id, itself and what else could have stood there;
/// null for the first.
pub(super) struct PromptScores<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// Most alternatives beside each.
    pub(super) top: usize,
    pub(super) scores: &'a [Option<TokenLogprobs>],
}

/// One place of a prompt.
struct Place<'a> {
    tokenizer: &'a Tokenizer,
    top: usize,
    scores: &'a TokenLogprobs,
}

#[derive(Serialize)]
struct Candidate {
    decoded_token: String,
    logprob: f64,
    /// From 1; unknown for a token that is not among the most likely.
    rank: Option<usize>,
}

impl Serialize for PromptScores<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let &Self { tokenizer, top, scores } = self;
        let place = |scores| Place { tokenizer, top, scores };
        serializer.collect_seq(scores.iter().map(|scores| scores.as_ref().map(place)))
    }
}

impl Serialize for Place<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TokenLogprobs { id: itself, logprob, top } = self.scores;
        let candidate = |(rank, id, logprob): (Option<usize>, TokenId, f32)| {
            (id, Candidate { decoded_token: self.tokenizer.spell(id), logprob: number(logprob), rank })
        };
        let rank = top.iter().position(|(id, _)| id == itself).map(|at| at + 1);
        let others = top.iter().take(self.top).enumerate().filter(|(_, (id, _))| id != itself);
        let others = others.map(|(at, &(id, logprob))| (Some(at + 1), id, logprob));
        serializer.collect_map([(rank, *itself, *logprob)].into_iter().chain(others).map(candidate))
    }
}

/// `[{token, logprob, bytes, top_logprobs}]` of `/v1/chat/completions` and Ollama: an entry for each token with scores.
pub(super) struct ChatLogprobs<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) tokens: &'a [GeneratedToken],
}

/// One token, or an alternative to it.
#[derive(Serialize)]
struct Entry<'a> {
    bytes: &'a [u8],
    logprob: f64,
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<Self>>,
}

impl ChatLogprobs<'_> {
    /// Nobody asked for any, or no token has come.
    pub(super) fn is_empty(&self) -> bool {
        self.tokens.iter().all(|token| token.logprobs.is_none())
    }
}

impl Serialize for ChatLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokenizer = self.tokenizer;
        let entry = |id: TokenId, logprob: f32| Entry {
            bytes: tokenizer.bytes(id),
            logprob: number(logprob),
            token: tokenizer.spell(id),
            top_logprobs: None,
        };
        let with_top = |scores: &TokenLogprobs| {
            let top = scores.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
            Entry { top_logprobs: Some(top), ..entry(scores.id, scores.logprob) }
        };
        serializer.collect_seq(self.tokens.iter().filter_map(|token| token.logprobs.as_ref().map(with_top)))
    }
}

/// A list that is made while it is written, so that it is nowhere as a whole.
pub(super) struct List<F>(pub(super) F);

impl<I, F> Serialize for List<F>
where
    F: Fn() -> I,
    I: IntoIterator<Item: Serialize>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// −∞ as a number that JSON has.
pub(super) fn number(logprob: f32) -> f64 {
    f64::from(if logprob.is_finite() { logprob } else { LEAST })
}
