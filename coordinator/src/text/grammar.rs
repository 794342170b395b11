//! What an answer must be, compiled into what follows it token by token.
//!
//! ```text
//! Constraint, tools ─ Wanted ─► compiler (bounded, cached by what it says) ─► Follower, once a choice: which tokens may come
//!                     vocabulary, once, as a tree of bytes ──▲
//! ```
//! [`constraint`] is what a request says, [`wanted`] what comes of it, [`refusal`] says where it is wrong. Knows grammars and the bytes of
//! tokens; the parser is a library's. Does not know HTTP, nor the engine beyond [`Next`](crate::engine::next::Next).

mod constraint;
mod refusal;
mod compiler;
mod follower;
mod wanted;

pub(super) use self::{
    compiler::Grammars,
    constraint::{MAX_CALLS, with_options},
    follower::Follower,
    wanted::Wanted,
};
pub use self::{
    constraint::{Constraint, Grammar, MAX_GRAMMAR_BYTES, MAX_SCHEMA_DEPTH},
    refusal::GrammarError,
};

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
