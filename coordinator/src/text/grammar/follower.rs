//! Follows one answer: which tokens may come next, and which one must.
//!
//! ```text
//! may think ── <think> ──► thinks: anything ── </think> ──► answers: what the grammar lets come ──► over: nothing can follow
//!     └────────────────── anything else ──────────────────────▲
//! ```
//! Knows tokens and a parser's state; does not know where the grammar is from. Invariant: a token is forced only where no other may come.

use std::{fmt, sync::Arc};

use llguidance::Matcher;
use nanoinfer_shared::protocol::{TokenId, TokenMask};

use super::Compiled;
use crate::{
    engine::next::Next,
    text::{
        ModelText, Specials,
        thinking::{CLOSE, OPEN, Stage},
    },
};

/// Where an answer stands.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// It may begin with this token, which begins a thought.
    MayThink(TokenId),
    /// The grammar begins behind the mark; the last bytes of the thought, of which it may be made.
    Thinks(Vec<u8>),
    Answers,
}

/// Follows one answer.
#[derive(Clone)]
pub(in crate::text) struct Follower {
    text: Arc<ModelText>,
    matcher: Matcher,
    phase: Phase,
    /// Of the next token, once it was asked for.
    mask: Option<Result<TokenMask, String>>,
}

impl Follower {
    /// From the beginning; `stage` is where in its thinking the model goes on, if that is told apart. All answers of a request
    /// share what the parser finds out.
    pub(in crate::text) fn new(text: Arc<ModelText>, compiled: &Compiled) -> Self {
        Self { text, matcher: compiled.0.deep_clone(), phase: Phase::Answers, mask: None }
    }

    /// One for an answer that goes on at this stage of thinking.
    pub(in crate::text) fn at(&self, stage: Option<Stage>) -> Self {
        let begins = || self.text.tokenizer.encode(OPEN, Specials::Match).ok().filter(|ids| ids.len() == 1);
        let phase = match stage {
            Some(Stage::Before) => begins().map_or(Phase::Answers, |ids| Phase::MayThink(ids[0])),
            Some(Stage::Begun | Stage::Inside) => Phase::Thinks(Vec::new()),
            Some(Stage::Behind | Stage::Answer) | None => Phase::Answers,
        };
        Self { phase, ..self.clone() }
    }

    fn consume(&mut self, ids: &[TokenId]) {
        if let Err(error) = self.matcher.consume_tokens(ids) {
            self.mask = Some(Err(reason(&error)));
        }
    }

    /// Looks for the mark that ends a thought; what stands behind it in the same token is of the answer.
    fn think(&mut self, mut tail: Vec<u8>, id: TokenId) {
        tail.extend_from_slice(self.text.tokenizer.bytes(id));
        let close = CLOSE.as_bytes();
        let Some(at) = tail.windows(close.len()).position(|window| window == close) else {
            tail.drain(..tail.len().saturating_sub(close.len()));
            self.phase = Phase::Thinks(tail);
            return;
        };
        self.phase = Phase::Answers;
        let rest = tail[at + close.len()..].trim_ascii_start();
        if !rest.is_empty() {
            let ids = self.matcher.tok_env().map(|environment| environment.tok_trie().greedy_tokenize(rest));
            self.consume(&ids.unwrap_or_default());
        }
    }

    /// The next token, where the grammar leaves no other. To ask for a mask would hold up the next step: it is asked for only where the
    /// grammar knows what the next byte is.
    fn forced(&mut self) -> Option<TokenId> {
        let may_be = self.phase == Phase::Answers && self.mask.is_none() && !self.is_over();
        if !may_be || self.matcher.compute_ff_bytes().is_empty() {
            return None;
        }
        self.mask().ok()?.only()
    }
}

impl Next for Follower {
    fn after(&mut self, id: TokenId) -> Vec<TokenId> {
        self.mask = None;
        match std::mem::replace(&mut self.phase, Phase::Answers) {
            Phase::MayThink(open) if id == open => self.phase = Phase::Thinks(Vec::new()),
            Phase::Thinks(tail) => self.think(tail, id),
            Phase::MayThink(_) | Phase::Answers => self.consume(&[id]),
        }
        self.forced().into_iter().collect()
    }

    fn is_masking(&self) -> bool {
        !matches!(self.phase, Phase::Thinks(_))
    }

    fn mask(&mut self) -> Result<TokenMask, String> {
        if let Some(mask) = &self.mask {
            return mask.clone();
        }
        let mask = self.matcher.compute_mask().map_err(|error| reason(&error)).map(|mut allowed| {
            if let Phase::MayThink(open) = self.phase {
                allowed.allow_token(open);
            }
            TokenMask::new(allowed.as_slice())
        });
        self.mask.insert(mask).clone()
    }

    fn is_over(&self) -> bool {
        self.phase == Phase::Answers && self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    fn boxed(&self) -> Box<dyn Next> {
        Box::new(self.clone())
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// The library's words, of which the first line says what happened.
fn reason(error: &impl fmt::Display) -> String {
    let error = error.to_string();
    format!("the grammar cannot be followed any further: {}", error.lines().next().unwrap_or_default())
}
