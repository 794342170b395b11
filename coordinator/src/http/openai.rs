//! OpenAI's routes, and what vLLM has beside them.
//!
//! [`completions`] and [`chat_completions`] read a request; [`request`] takes what both know, both answer through [`reply`]; [`responses`] is the same in OpenAI's newer form. [`models`] tells of the one model there
//! is, [`tokenize`] of its tokens.

pub(super) mod chat_completions;
pub(super) mod completions;
pub(super) mod models;
mod reply;
mod request;
pub(super) mod responses;
pub(super) mod tokenize;
