//! OpenAI's routes, and what vLLM has beside them.
//!
//! [`completions`] and [`chat_completions`] read a request; both answer through [`reply`]. [`models`] tells of the one model there
//! is, [`tokenize`] of its tokens.

pub(super) mod chat_completions;
pub(super) mod completions;
pub(super) mod models;
mod reply;
pub(super) mod tokenize;
