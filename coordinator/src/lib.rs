//! The coordinator: everything between an HTTP request and a step plan, and back.
//!
//! Reading order: [`config`] is what a coordinator is told; [`request`] is what travels to the engine, through
//! [`handle`]; [`engine`] runs `schedule → step → postprocess` in a loop over [`scheduler`], [`block_manager`],
//! [`worker_pool`] and [`sampler`]; [`text`] stands between token ids and strings; [`http`] is the outside.
//!
//! This crate links no tensor library: logits reach it as slices of numbers.

mod clock;
pub mod config;
pub mod handle;
pub mod http;
pub mod request;
#[cfg(test)]
mod testing;
pub mod text;
