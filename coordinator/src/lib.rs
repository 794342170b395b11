//! The coordinator: everything between an HTTP request and a step plan, and back.
//!
//! Reading order: [`config`] is what a coordinator is told; [`request`] is what travels to the engine, through
//! [`handle`]; [`engine`] runs `schedule → step → postprocess` in a loop over [`scheduler`], [`block_manager`],
//! [`worker_pool`] and [`sampler`]; [`text`] stands between token ids and strings; [`http`] is the outside.
//!
//! This crate links no tensor library: logits reach it as slices of numbers.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod config;
pub mod request;
pub mod explanation;
pub mod handle;
pub mod status;

pub mod kv_budget;
pub mod engine;
mod scheduler;
mod fair_queue;
mod sequence;
mod block_manager;
mod prefix;
mod worker_pool;
mod sampler;
mod random;
mod off_runtime;

pub mod text;
pub mod http;
pub mod metrics;
pub mod names;
pub mod utf8;
mod clock;

#[cfg(test)]
mod fake_rank;
#[cfg(test)]
mod testing;

pub use text::TextEngine;
