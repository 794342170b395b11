//! The coordinator: everything between an HTTP request and a step plan, and back.
//!
//! Reading order: [`config`] is what a coordinator is told; [`request`] is what travels to the engine, through
//! [`handle`]; [`engine`] runs `schedule → step → postprocess` in a loop; [`text`] stands above it, between token ids and
//! strings; [`http`] is the outside.
//!
//! This crate links no tensor library: logits reach it as slices of numbers.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod engine;
pub mod text;
pub mod http;

pub mod spelling;
mod clock;
mod off_runtime;

#[cfg(test)]
mod testing;

pub use engine::{config, explanation, handle, history, kv_budget, metrics, request, status};
pub use nanoinfer_shared::utf8;
pub use text::TextEngine;
