//! The coordinator: everything between an HTTP request and a step plan, and back.
//!
//! Reading order: [`config`] is what a coordinator is told; [`request`] is what travels to the engine, through
//! [`handle`]; [`engine`] runs `schedule → step → postprocess` in a loop over [`scheduler`], [`block_manager`],
//! [`worker_pool`] and [`sampler`]; [`text`] stands between token ids and strings; [`http`] is the outside.
//!
//! This crate links no tensor library: logits reach it as slices of numbers.

pub mod config;
pub mod request;

pub mod handle;

mod block_manager;
pub mod engine;
#[cfg(test)]
mod fake_rank;
mod random;
mod sampler;
mod scheduler;
mod sequence;
mod worker_pool;
