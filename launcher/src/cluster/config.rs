//! What a cluster is asked to be.
//!
//! Knows defaults; does not know what is possible: [`Plan`](crate::plan::Plan) decides that.

use std::path::PathBuf;

use nanoinfer_shared::protocol::DType;

use crate::{cli::environment, device::DeviceChoice, model::Caches, size::ByteSize, spawn::WorkerBinary};

/// What to serve, and on what. Start from [`ClusterConfig::default`].
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Folder, checkpoint file, hub id or short name; `None` for the built-in demo model.
    pub model: Option<String>,
    /// Branch, tag or commit of a hub model.
    pub revision: Option<String>,
    /// A further name that requests may call the model by.
    pub served_name: Option<String>,
    /// Ranks. One runs on a thread of this process, more are processes.
    pub nproc: usize,
    /// What to compute on.
    pub device: DeviceChoice,
    /// Element type to compute in; `None` for what goes with the device.
    pub dtype: Option<DType>,
    /// Element type of the KV cache; `None` for what goes with `dtype`.
    pub kv_dtype: Option<DType>,
    /// Data link between ranks.
    pub comm: CommChoice,
    /// Compute threads of each rank; `None` for all cores, divided by the ranks.
    pub threads: Option<usize>,
    /// Instruction set of each rank, by name; `None` for the best that its CPU has.
    pub isa: Option<String>,
    /// KV pool of each rank; `None` for the smaller of a quarter of the free memory and what `max_seqs` need.
    pub kv_memory: Option<ByteSize>,
    /// Most sequences in one step.
    pub max_seqs: usize,
    /// Most new tokens in one step.
    pub max_batched_tokens: usize,
    /// Most requests waiting for their first step.
    pub max_queue: usize,
    /// Most tokens of prompts waiting for their first step; one request may have more if it waits alone.
    pub max_queue_tokens: usize,
    /// Whether a prompt may begin with KV blocks that were computed for another.
    pub prefix_cache: bool,
    /// File for a timeline of every rank's steps, in Chrome's trace format. An absolute path, as ranks open it too.
    pub trace: Option<PathBuf>,
    /// Where models are kept.
    pub caches: Caches,
    /// What runs the ranks, where there are several. A program of its own that embeds this library names a
    /// `nanoinfer-launch` of the same build.
    pub worker_binary: Option<WorkerBinary>,
    /// Filter of the ranks' logs, in the syntax of `RUST_LOG`.
    pub log: String,
}

/// Data link, as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommChoice {
    /// NCCL between GPUs of a host, shared memory within a host otherwise, TCP between hosts.
    Auto,
    /// Shared memory.
    Shm,
    /// TCP.
    Tcp,
    /// From GPU to GPU.
    Nccl,
}

impl ClusterConfig {
    /// The demo model on one rank, with models kept in `caches`.
    pub fn new(caches: Caches) -> Self {
        Self {
            model: None,
            revision: None,
            served_name: None,
            nproc: 1,
            device: DeviceChoice::Auto,
            dtype: None,
            kv_dtype: None,
            comm: CommChoice::Auto,
            threads: None,
            isa: None,
            kv_memory: None,
            max_seqs: 32,
            max_batched_tokens: 512,
            max_queue: 256,
            // A minute of prefill at a thousand tokens a second: who waits longer is better told so.
            max_queue_tokens: 65_536,
            prefix_cache: true,
            trace: None,
            caches,
            worker_binary: None,
            log: "info".into(),
        }
    }
}

impl Default for ClusterConfig {
    /// As [`ClusterConfig::new`], with the caches where the command line has them.
    fn default() -> Self {
        Self::new(environment::caches())
    }
}
