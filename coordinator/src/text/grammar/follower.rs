//! Follows one answer: which tokens may come next, and which one must.
//!
//! ```text
//! may think ── <think> ──► thinks: anything ── </think> ──► opening ──► answers: what the grammar lets come ──► over
//!     └────────────────── anything else ──────────────────────▲ │ watches: anything ── its mark ──►▲    nothing can follow
//!                                                               └ may begin: what is of the grammar ►▲, or else free
//! ```
//! Knows tokens and a parser's state; does not know where the grammar is from. Invariant: a token is forced only where no other may come.

use std::{fmt, sync::Arc};

use llguidance::Matcher;
use nanoinfer_shared::protocol::{TokenId, TokenMask};

use super::compiler::Compiled;
use crate::{
    engine::next::Next,
    text::{
        ModelText, Specials,
        thinking::{CLOSE, OPEN, Stage},
    },
};

/// How an answer comes to its grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) enum Opening {
    /// It begins with it.
    AtOnce,
    /// Behind this mark, if that comes.
    Behind(&'static str),
    /// It begins with it, if it begins with what it has.
    Perhaps,
}

/// Where an answer stands.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// It may begin with this token, which begins a thought.
    MayThink(TokenId),
    /// What opens it comes behind the mark; the last bytes of the thought, of which it may be made.
    Thinks(Vec<u8>),
    /// The grammar begins behind a mark; the last bytes, likewise.
    Watches(Vec<u8>),
    /// The next token decides.
    MayBegin,
    /// There is no grammar in it.
    Free,
    Answers,
}

/// The parser of an answer. The library keeps what a parser finds out behind a lock that copies share: an answer gets one of its own, so that
/// none waits for another's, when it needs one, as many may be waiting for their turn.
enum Parser {
    OfGrammar(Compiled),
    Own(Box<Matcher>),
}

impl Parser {
    fn get(&self) -> &Matcher {
        match self {
            Self::OfGrammar(Compiled(matcher)) => matcher,
            Self::Own(matcher) => matcher,
        }
    }

    fn own(&mut self) -> &mut Matcher {
        if let Self::OfGrammar(Compiled(matcher)) = self {
            *self = Self::Own(Box::new(matcher.deep_clone()));
        }
        match self {
            Self::Own(matcher) => matcher,
            Self::OfGrammar(_) => unreachable!("it was just replaced"),
        }
    }
}

impl Clone for Parser {
    fn clone(&self) -> Self {
        match self {
            Self::OfGrammar(compiled) => Self::OfGrammar(compiled.clone()),
            Self::Own(matcher) => Self::Own(Box::new(matcher.deep_clone())),
        }
    }
}

/// Follows one answer.
#[derive(Clone)]
pub(in crate::text) struct Follower {
    text: Arc<ModelText>,
    parser: Parser,
    opening: Opening,
    phase: Phase,
    /// Of the next token, once it was asked for.
    mask: Option<Result<TokenMask, String>>,
}

impl Follower {
    /// One for answers that begin anywhere.
    pub(in crate::text) fn new(text: Arc<ModelText>, compiled: Compiled, opening: Opening) -> Self {
        Self { text, parser: Parser::OfGrammar(compiled), opening, phase: Phase::Free, mask: None }
    }

    /// One for an answer that goes on at this stage of thinking, if that is told apart.
    pub(in crate::text) fn at(&self, stage: Option<Stage>) -> Self {
        let begins = || self.text.tokenizer.encode(OPEN, Specials::Match).ok().filter(|ids| ids.len() == 1);
        let phase = match stage {
            Some(Stage::Before) => begins().map_or_else(|| self.opens(), |ids| Phase::MayThink(ids[0])),
            Some(Stage::Begun | Stage::Inside) => Phase::Thinks(Vec::new()),
            Some(Stage::Behind | Stage::Answer) | None => self.opens(),
        };
        Self { phase, ..self.clone() }
    }

    fn opens(&self) -> Phase {
        match self.opening {
            Opening::AtOnce => Phase::Answers,
            Opening::Behind(_) => Phase::Watches(Vec::new()),
            Opening::Perhaps => Phase::MayBegin,
        }
    }

    fn consume(&mut self, ids: &[TokenId]) {
        if let Err(error) = self.parser.own().consume_tokens(ids) {
            self.mask = Some(Err(reason(&error)));
        }
    }

    /// Looks for the mark that ends what is free; what stands behind it in the same token goes on from there.
    fn look_for(&mut self, mark: &str, mut tail: Vec<u8>, id: TokenId) -> Result<Vec<u8>, Vec<u8>> {
        tail.extend_from_slice(self.text.tokenizer.bytes(id));
        match tail.windows(mark.len()).position(|window| window == mark.as_bytes()) {
            Some(at) => Ok(tail.split_off(at + mark.len())),
            None => {
                tail.drain(..tail.len().saturating_sub(mark.len()));
                Err(tail)
            }
        }
    }

    /// Bytes of the grammar that are no tokens of their own.
    fn consume_bytes(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let ids = self.parser.get().tok_env().map(|environment| environment.tok_trie().greedy_tokenize(bytes));
            self.consume(&ids.unwrap_or_default());
        }
    }

    /// Goes on from a phase with a token of it.
    fn go_on(&mut self, phase: Phase, id: TokenId) {
        self.phase = match phase {
            Phase::MayThink(open) if id == open => Phase::Thinks(Vec::new()),
            Phase::MayThink(_) => return self.go_on(self.opens(), id),
            Phase::Thinks(tail) => match self.look_for(CLOSE, tail, id) {
                Err(tail) => Phase::Thinks(tail),
                Ok(behind) => {
                    self.phase = self.opens();
                    if self.phase == Phase::Answers {
                        self.consume_bytes(behind.trim_ascii_start());
                    }
                    return;
                }
            },
            Phase::Watches(tail) => {
                let Opening::Behind(mark) = self.opening else { return };
                match self.look_for(mark, tail, id) {
                    Err(tail) => Phase::Watches(tail),
                    Ok(behind) => {
                        self.consume_bytes(&behind);
                        Phase::Answers
                    }
                }
            }
            Phase::MayBegin if self.text.tokenizer.bytes(id).trim_ascii().is_empty() => Phase::MayBegin,
            Phase::MayBegin => match self.parser.own().try_consume_tokens(&[id]) {
                Ok(1) => Phase::Answers,
                _ => Phase::Free,
            },
            Phase::Free => Phase::Free,
            Phase::Answers => {
                self.consume(&[id]);
                Phase::Answers
            }
        };
    }

    /// The next token, where the grammar knows the next bytes and one token alone goes along with them. To ask for a mask would hold up the
    /// next step.
    fn forced(&mut self) -> Option<TokenId> {
        if self.phase != Phase::Answers || self.mask.is_some() || self.is_over() {
            return None;
        }
        let matcher = self.parser.own();
        let bytes = matcher.compute_ff_bytes();
        let environment = matcher.tok_env().ok()?;
        let tree = environment.tok_trie();
        let begin = tree.all_prefixes(&bytes);
        (begin.len() == 1 && !tree.has_extensions(&bytes)).then(|| begin[0])
    }
}

impl Next for Follower {
    fn after(&mut self, id: TokenId) -> Vec<TokenId> {
        self.mask = None;
        let phase = std::mem::replace(&mut self.phase, Phase::Free);
        self.go_on(phase, id);
        self.forced().into_iter().collect()
    }

    fn is_masking(&self) -> bool {
        match self.phase {
            Phase::Answers => true,
            Phase::MayThink(_) => self.opening == Opening::AtOnce,
            Phase::Thinks(_) | Phase::Watches(_) | Phase::MayBegin | Phase::Free => false,
        }
    }

    fn mask(&mut self) -> Result<TokenMask, String> {
        if let Some(mask) = &self.mask {
            return mask.clone();
        }
        let mask = self.parser.own().compute_mask().map_err(|error| reason(&error)).map(|mut allowed| {
            if let Phase::MayThink(open) = self.phase {
                allowed.allow_token(open);
            }
            TokenMask::new(allowed.as_slice())
        });
        self.mask.insert(mask).clone()
    }

    fn is_over(&self) -> bool {
        let matcher = self.parser.get();
        self.phase == Phase::Answers && matcher.is_stopped() && matcher.stop_reason().is_ok()
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
