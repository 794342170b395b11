//! What travels between the front (HTTP, text) and the engine: one [`Request`] per sequence in, [`Event`]s out.
//!
//! Token ids only; text is the business of [`crate::text`].

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::Deref,
    sync::Arc,
};

use nanoinfer_shared::protocol::TokenId;

use crate::engine::{explanation::Explanation, next::Next};

/// One sequence to generate. A request with `n` choices or several prompts is that many of these.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt; at least one token, and shorter than `n_positions` if anything is to be generated.
    pub prompt: Vec<TokenId>,
    /// Most tokens to generate; 0 scores the prompt only. `prompt + max_tokens` must not exceed `n_positions`.
    pub max_tokens: usize,
    /// How each token is drawn, and what is told of it.
    pub sampling: SamplingParams,
    /// Keeps its KV blocks from being found by requests with another, or none.
    pub cache_salt: Option<Arc<str>>,
    /// Which prompt of the HTTP request this is; part of the key of its random draws.
    pub prompt_index: u32,
    /// Which choice of that prompt; part of the key of its random draws.
    pub choice: u32,
    /// Forces tokens on it, and says which may come.
    pub next: Option<Box<dyn Next>>,
}

/// Who is served in turn with others: each gets as much as the next, however much it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Client {
    /// Each of its requests stands for itself: on loopback an address tells nobody from another.
    #[default]
    Local,
    /// All requests of one address are one client's.
    Address(IpAddr),
}

impl Client {
    /// Who asks from an address. Of IPv6 the network counts: hosts make up addresses in it as they like.
    pub fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            address if address.is_loopback() => Self::Local,
            IpAddr::V6(address) => Self::Address(Ipv6Addr::from_bits(address.to_bits() & !0 << 64).into()),
            address => Self::Address(address),
        }
    }
}

impl Request {
    /// Exactly `max_tokens` tokens, the most likely each time: no end of text ends it.
    pub fn greedy(prompt: Vec<TokenId>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            sampling: SamplingParams { ignore_eos: true, ..SamplingParams::greedy() },
            cache_salt: None,
            prompt_index: 0,
            choice: 0,
            next: None,
        }
    }
}

/// Which log-probabilities of a prompt are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLogprobs {
    /// Alternatives beside each.
    pub top: u32,
    /// The first token that has one, the second of the prompt at the earliest. What leads up to it may come from the prefix
    /// cache.
    pub from: usize,
}

/// How tokens are drawn, which of them end the text, and what is told of them.
///
/// The chain of logits processors, in the order in which it is applied: what may come at all (by a grammar and by list), bias, repetition, presence and
/// frequency penalties, temperature, top-k, top-p, min-p, typical-p. Neutral values switch a processor off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Only these may come, all of them below the vocabulary's size and at least one; `None` for any. The end of text comes
    /// only if it is among them.
    pub allowed_token_ids: Option<TokenSet>,
    /// What must not be written.
    pub bad_words: BadWords,
    /// Added to the logits of these tokens.
    pub logit_bias: LogitBias,
    /// Divides positive and multiplies negative logits of tokens seen; neutral 1.
    pub repetition_penalty: f32,
    /// How many of the last tokens (prompt and generated) count as seen; `None` for all.
    pub repetition_window: Option<usize>,
    /// Subtracted once from the logits of tokens generated before; neutral 0.
    pub presence_penalty: f32,
    /// Subtracted for each earlier generation of a token; neutral 0.
    pub frequency_penalty: f32,
    /// Divides logits; 0 means greedy, the lowest id on ties.
    pub temperature: f32,
    /// Keep the k most likely; 0 for all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose mass reaches this; neutral 1.
    pub top_p: f32,
    /// Drop tokens less likely than this times the most likely; neutral 0.
    pub min_p: f32,
    /// Keep the most typical tokens up to this mass; neutral 1.
    pub typical_p: f32,
    /// The same seed and request give the same tokens, whatever else is running.
    pub seed: u64,
    /// Fewest tokens: the end of text and stop tokens cannot be drawn before.
    pub min_tokens: usize,
    /// Go on after the end of text.
    pub ignore_eos: bool,
    /// Further tokens that end the text.
    pub stop_token_ids: TokenSet,
    /// Log-probabilities of generated tokens: how many alternatives beside each; `None` for no log-probabilities.
    pub logprobs: Option<u32>,
    /// The same for tokens of the prompt.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Whether each generated token is explained.
    pub explain: bool,
}

impl SamplingParams {
    /// Every processor neutral, temperature 1; the end of text ends it, and nothing is told of tokens but their ids.
    pub fn neutral(seed: u64) -> Self {
        Self {
            allowed_token_ids: None,
            bad_words: BadWords::default(),
            logit_bias: LogitBias::default(),
            repetition_penalty: 1.0,
            repetition_window: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            seed,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: TokenSet::default(),
            logprobs: None,
            prompt_logprobs: None,
            explain: false,
        }
    }

    /// The most likely token each time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::neutral(0) }
    }
}

/// A list that its copies share: the sequences of a request have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared<T>(Arc<[T]>);

/// Some tokens, ascending without repeats.
pub type TokenSet = Shared<TokenId>;

/// Runs of tokens that must not be generated: the last of each may not come where the others have just come.
pub type BadWords = Shared<Vec<TokenId>>;

/// What is added to the logits of some tokens, ascending by id without repeats.
pub type LogitBias = Shared<(TokenId, f32)>;

impl<T> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl TokenSet {
    /// Whether `id` is one of them.
    pub fn contains(&self, id: TokenId) -> bool {
        self.binary_search(&id).is_ok()
    }
}

impl FromIterator<TokenId> for TokenSet {
    fn from_iter<I: IntoIterator<Item = TokenId>>(ids: I) -> Self {
        Self(ascending(ids).into())
    }
}

impl BadWords {
    /// The tokens that must not follow `generated`, ascending without repeats.
    pub fn after(&self, generated: &[TokenId]) -> Vec<TokenId> {
        let completed = |word: &Vec<TokenId>| {
            let (&last, others) = word.split_last()?;
            generated.ends_with(others).then_some(last)
        };
        ascending(self.iter().filter_map(completed))
    }
}

impl FromIterator<Vec<TokenId>> for BadWords {
    fn from_iter<I: IntoIterator<Item = Vec<TokenId>>>(words: I) -> Self {
        Self(words.into_iter().collect())
    }
}

impl LogitBias {
    /// What is added to the logit of `id`.
    pub fn of(&self, id: TokenId) -> f32 {
        self.binary_search_by_key(&id, |&(id, _)| id).map_or(0.0, |at| self[at].1)
    }
}

impl FromIterator<(TokenId, f32)> for LogitBias {
    /// Several biases of one token add up, in the order in which they are given.
    fn from_iter<I: IntoIterator<Item = (TokenId, f32)>>(biases: I) -> Self {
        Self(merged(biases, |sum, bias| *sum += bias).into())
    }
}

/// Ascending by id without repeats: `merge` adds to the first of a token what the later ones say, in their order.
pub(crate) fn merged<T: Copy>(
    of_tokens: impl IntoIterator<Item = (TokenId, T)>,
    merge: impl Fn(&mut T, T),
) -> Vec<(TokenId, T)> {
    let mut of_tokens: Vec<(TokenId, T)> = of_tokens.into_iter().collect();
    of_tokens.sort_by_key(|&(id, _)| id);
    of_tokens.dedup_by(|&mut (id, later), (kept_id, kept)| {
        let same = id == *kept_id;
        if same {
            merge(kept, later);
        }
        same
    });
    of_tokens
}

/// Without repeats.
fn ascending(ids: impl IntoIterator<Item = TokenId>) -> Vec<TokenId> {
    let mut ids: Vec<TokenId> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What the engine reports of one sequence, in order: at most one `Prompt`, then `Token`s, then one of the last three.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Log-probabilities of the prompt: one entry per token, none for the first.
    Prompt(Vec<Option<TokenLogprobs>>),
    /// One generated token. A token that ends the text is reported too.
    Token {
        /// Its id.
        id: TokenId,
        /// It was not drawn, so there is nothing to tell of it.
        forced: bool,
        /// If asked for.
        logprobs: Option<TokenLogprobs>,
        /// If asked for.
        explanation: Option<Box<Explanation>>,
    },
    /// Nothing follows.
    Finished(FinishReason),
    /// Nothing that the request lets come could follow what there is; nothing follows.
    Stuck(String),
    /// The cluster failed; nothing follows.
    Failed(String),
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End of text, a stop token, nothing that could follow, or (found by the text layer) a stop string.
    Stop,
    /// `max_tokens`, or the wall of `n_positions`.
    Length,
}

/// Raw log-probabilities at one position, before any processor.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token that stands there.
    pub id: TokenId,
    /// Its own.
    pub logprob: f32,
    /// The most likely tokens, descending, the lower id first on ties. The token itself may or may not be among them;
    /// where it is, its number is the same.
    pub top: Vec<(TokenId, f32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_addresses_networks_and_on_loopback_requests() {
        let at = |address: &str| Client::at(address.parse().unwrap());
        let address = |address: &str| Client::Address(address.parse().unwrap());
        for local in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(at(local), Client::Local, "{local}");
        }
        assert_eq!(at("192.0.2.7"), address("192.0.2.7"));
        assert_eq!(at("::ffff:192.0.2.7"), address("192.0.2.7"));
        assert_eq!(at("2001:db8:1:2:3:4:5:6"), address("2001:db8:1:2::"));
        assert_ne!(at("2001:db8:1:3:3:4:5:6"), at("2001:db8:1:2:3:4:5:6"));
    }
}
