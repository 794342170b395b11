//! How good a model is, by the numbers that others publish: perplexity, BLEU, ROUGE, CORE.
//!
//! ```text
//! --eval_set ─► eval_set ─┬─ documents ─► windows ─► perplexity ─┐
//!                         ├─ pairs ─► generation ─► bleu, rouge ─┼─► report ─► table, JSON, html
//!                         └─ core_set ─► core_prompt ─► core ────┘
//!                            requests go through work (many at a time, resumable) to server (HTTP)
//! ```
//! Reading order: as the picture, left to right; [`measure`] draws it. The formulas are in `bleu`, `rouge`, `perplexity` and
//! `core`, and know no server; [`server`] knows no formula.
//!
//! This crate meets a server by its address, over a [`connection`] that is handed to it; it does not know how servers start.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod connection;
pub mod measure;
pub mod server;
pub mod work;
pub mod documents;
pub mod windows;
pub mod core_set;
pub mod page;
pub mod plot;
mod eval_set;
mod yaml;
mod perplexity;
mod generation;
mod bleu;
mod rouge;
mod porter;
mod core;
mod core_prompt;
mod python_random;
mod python_text;
mod report;
mod html;
mod published;
