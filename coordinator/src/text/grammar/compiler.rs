//! Compiles grammars for one model, and keeps them for who asks for the same.
//!
//! Does not know who follows them. Invariant: a special token has no text here, so none satisfies a grammar; bounds count work and not
//! time, so that what fails always does.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
};

use llguidance::{
    Matcher, ParserFactory,
    api::ParserLimits,
    toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie},
};
use nanoinfer_shared::protocol::TokenId;
use serde_json::Value;

use super::{
    constraint::{Constraint, Grammar},
    refusal::{GrammarError, check_size, explain},
};
use crate::text::ModelText;

/// Compiled grammars that are kept for who asks for the same: tools and schemas come again with every request of a program.
pub(super) const KEPT: usize = 32;

/// Stack of what compiles, and of each level that it goes down. It is memory once it is used.
const STACK_BYTES: usize = 2 << 20;
const LEVEL_BYTES: usize = 16 << 10;

/// A grammar that answers can follow.
#[derive(Clone)]
pub(in crate::text) struct Compiled(pub(super) Arc<Matcher>);

/// Compiles grammars for one model.
#[derive(Default)]
pub(in crate::text) struct Grammars {
    factory: OnceLock<Result<ParserFactory, String>>,
    /// The last used is last. Locked to look and to add, not to compile.
    pub(super) kept: Mutex<Vec<(Grammar, Compiled)>>,
}

impl Grammars {
    /// Takes milliseconds, the first time a tenth of a second: not for an async thread. `ends` end a text.
    ///
    /// # Errors
    /// When the grammar is wrong, too large, or asks for what is not supported; says where.
    pub(in crate::text) fn compile(
        &self,
        text: &ModelText,
        ends: &[TokenId],
        constraint: &Constraint,
    ) -> Result<Compiled, GrammarError> {
        let Constraint { field, grammar } = constraint;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(known, _)| known == grammar) {
            let known = kept.remove(at);
            let compiled = known.1.clone();
            kept.push(known);
            return Ok(compiled);
        }
        drop(kept);
        check_size(field, grammar)?;
        let factory = self.factory.get_or_init(|| factory(text, ends)).as_ref();
        let factory = factory.map_err(|reason| GrammarError::new(field, reason))?;
        let matcher = compile(factory, grammar).map_err(|reason| {
            let works = |schema: &Value| compile(factory, &Grammar::Json(schema.clone())).err();
            explain(field, grammar, &reason, &works)
        })?;
        let compiled = Compiled(Arc::new(matcher));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((grammar.clone(), compiled.clone()));
        Ok(compiled)
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammars")
    }
}

/// Compiles on a thread whose stack is as deep as the grammar: a stack that is full would end the process.
fn compile(factory: &ParserFactory, grammar: &Grammar) -> Result<Matcher, String> {
    let compile = || {
        let matcher = Matcher::new(factory.create_parser(grammar.top_level()));
        match matcher.get_error() {
            Some(error) => Err(error),
            None => Ok(matcher),
        }
    };
    let stack_bytes = STACK_BYTES + grammar.levels() * LEVEL_BYTES;
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("grammar".into()).stack_size(stack_bytes).spawn_scoped(scope, compile);
        let compiled = thread.map_err(|error| format!("no thread for it: {error}"))?.join();
        compiled.unwrap_or_else(|_| Err("the library failed on it".into()))
    })
}

/// The vocabulary as a tree of bytes, and the bounds of a parser over it.
fn factory(text: &ModelText, ends: &[TokenId]) -> Result<ParserFactory, String> {
    let tokenizer = &text.tokenizer;
    let word = |id: TokenId| {
        let bytes = tokenizer.bytes(id);
        if tokenizer.is_special(id) || ends.contains(&id) {
            return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
        }
        // No text has such a byte, and to the library it would mark a special token.
        if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) { Vec::new() } else { bytes.to_vec() }
    };
    let vocab_size = tokenizer.vocab_size() as TokenId;
    let words: Vec<Vec<u8>> = (0..vocab_size).map(word).collect();
    let ends: Vec<TokenId> = ends.iter().copied().filter(|&id| id < vocab_size).collect();
    let info = TokRxInfo::new(vocab_size, ends.first().copied().unwrap_or(INVALID_TOKEN));
    let mut tree = TokTrie::from(&info, &words);
    if !ends.is_empty() {
        tree = tree.with_eos_tokens(&ends);
    }
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(tree));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        // 1 to 2 KB each.
        max_lexer_states: 32_768,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}
