//! Ollama's routes.
//!
//! [`chat`] and [`generate`] read a request; both answer through [`answer`], which knows the objects of an answer. [`library`]
//! tells of the one model there is, and refuses what would change it.

mod answer;
pub(super) mod chat;
pub(super) mod generate;
pub(super) mod library;
