//! Starts and watches a NanoInfer cluster.
//!
//! Reading order: [`cli`] turns what was typed into a [`ClusterConfig`]; [`model`] turns a name into files;
//! [`plan`] decides who holds what, before anything starts; [`cluster`] carries the plan out, with ranks that it spawns
//! itself (`host_ranks`, `spawn`) or that nodes of other hosts do (`hosts`); [`supervise`] serves until a signal or a failure. The
//! other side of a link is the `worker` subcommand, `join`.
//!
//! This crate does not know how a token is made.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod build;
pub mod cli;
pub mod cluster;
pub mod config;
mod descriptors;
pub mod environment;
pub mod error;
mod host_ranks;
mod hosts;
mod join;
pub mod last_lines;
pub mod log;
pub mod model;
pub mod output;
pub mod plan;
mod private_folder;
mod progress;
pub mod proxy;
pub mod rank_end;
pub mod size;
mod spawn;
pub mod supervise;

pub use cluster::Cluster;
pub use config::ClusterConfig;
pub use error::LaunchError;
pub use nanoinfer_coordinator::{explanation, handle, history, request, spelling::closest, status, text, utf8};
pub use nanoinfer_shared::{
    ModelShape, Partition, Share, json,
    protocol::{BLOCK_TOKENS, Category, DType, StepTimes},
};
pub use nanoinfer_worker::roofline;
pub use output::say;
pub use spawn::WorkerBinary;
