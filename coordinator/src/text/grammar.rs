//! What an answer must be, compiled into what follows it token by token.
//!
//! ```text
//! Constraint ── compile (bounded, cached by what it says) ──► Compiled ── once a choice ──► Follower: which tokens may come
//! vocabulary ── once, as a tree of bytes ──────┘
//! ```
//! Knows grammars and the bytes of tokens; the parser is a library's. Does not know HTTP, nor the engine beyond [`Next`]. Invariant: a
//! special token has no text here, so none satisfies a grammar; bounds count work and not time, so that what fails always does.

mod follower;
mod refusal;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie},
};
use nanoinfer_shared::protocol::TokenId;
use serde_json::{Value, json};

pub(super) use self::follower::{Follower, Opening};
pub use self::refusal::GrammarError;
use super::ModelText;

/// Longest text of a grammar.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Most levels of a schema.
pub const MAX_SCHEMA_DEPTH: usize = 64;
/// Compiled grammars that are kept for who asks for the same: tools and schemas come again with every request of a program.
const KEPT: usize = 32;
/// Most calls behind the first in one answer.
pub(super) const MAX_CALLS: usize = 15;
/// White space between the tokens of JSON: enough to indent, and not for ever.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,24}";

/// What an answer must be, and which field of a request says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// As errors name it.
    pub field: String,
    /// What.
    pub grammar: Grammar,
}

/// What an answer must be, from its first character to its last.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that a schema describes.
    Json(Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a grammar in the library's dialect of Lark.
    Lark(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::Json(json!({"type": "object"}))
    }

    /// The schema, where it is JSON.
    pub fn schema(&self) -> Option<&Value> {
        match self {
            Self::Json(schema) => Some(schema),
            _ => None,
        }
    }

    fn top_level(&self) -> TopLevelGrammar {
        match self {
            Self::Json(schema) => TopLevelGrammar::from_json_schema(with_options(schema)),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        }
    }
}

/// A schema with our options in place of whatever it says of them.
pub(super) fn with_options(schema: &Value) -> Value {
    let mut schema = match schema {
        // The schema of everything.
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".into(), json!({"whitespace_pattern": WHITE_SPACE}));
    }
    schema
}

/// A grammar that answers can follow.
#[derive(Clone)]
pub(super) struct Compiled(Arc<Matcher>);

/// Compiles grammars for one model.
#[derive(Default)]
pub(super) struct Grammars {
    factory: OnceLock<Result<ParserFactory, String>>,
    /// The last used is last. Locked to look and to add, not to compile.
    kept: Mutex<Vec<(Grammar, Compiled)>>,
}

impl Grammars {
    /// Takes milliseconds, the first time a tenth of a second: not for an async thread. `ends` end a text.
    ///
    /// # Errors
    /// When the grammar is wrong, too large, or asks for what is not supported; says where.
    pub(super) fn compile(
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
        refusal::check_size(field, grammar)?;
        let factory = self.factory.get_or_init(|| factory(text, ends)).as_ref();
        let factory = factory.map_err(|reason| GrammarError::new(field, reason))?;
        let matcher = compile(factory, grammar).map_err(|reason| {
            let works = |schema: &Value| compile(factory, &Grammar::Json(schema.clone())).err();
            refusal::explain(field, grammar, &reason, &works)
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

fn compile(factory: &ParserFactory, grammar: &Grammar) -> Result<Matcher, String> {
    let matcher = Matcher::new(factory.create_parser(grammar.top_level()));
    match matcher.get_error() {
        Some(error) => Err(error),
        None => Ok(matcher),
    }
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

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
