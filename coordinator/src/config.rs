//! What a coordinator is told when it starts.

use std::{path::PathBuf, time::SystemTime};

use nanoinfer_shared::{
    ModelShape, Partition,
    protocol::{CommKind, Cores, DType, Device},
};

use crate::kv_budget::KvBudget;

/// Everything the engine needs besides links to its ranks.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sizes of the model.
    pub shape: ModelShape,
    /// Who holds what; its world is the number of links.
    pub partition: Partition,
    /// Safetensors files, as this host sees them.
    pub weights: Vec<PathBuf>,
    /// Digest of the checkpoint's layout.
    pub fingerprint: u64,
    /// What to compute on.
    pub device: Device,
    /// Element type to compute in.
    pub dtype: DType,
    /// Element type of the KV cache.
    pub kv_dtype: DType,
    /// Compute threads of each rank; `None` for an even part of the cores of its host.
    pub threads: Option<usize>,
    /// For each rank how many share its host, itself among them.
    pub ranks_on_host: Vec<usize>,
    /// Instruction set of each rank, by name; `None` for the best that its CPU has.
    pub isa: Option<String>,
    /// Data link between the ranks.
    pub comm: CommKind,
    /// What there is for the ranks' threads to run on.
    pub cores: Cores,
    /// What decides the size of the KV pool.
    pub kv: KvBudget,
    /// Most sequences in one step.
    pub max_seqs: usize,
    /// Most new tokens in one step.
    pub max_batched_tokens: usize,
    /// Most requests of which a sequence waits for its first step.
    pub max_queue: usize,
    /// Most tokens of prompts that wait for their first step; one request may have more if it waits alone.
    pub max_queue_tokens: usize,
    /// Whether a sequence may begin with KV blocks that another computed.
    pub prefix_cache: bool,
    /// File that ranks append a timeline of every step to.
    pub trace: Option<PathBuf>,
}

/// What clients are told of the model.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// What was typed after `--model`.
    pub name: String,
    /// The name that clients see, from `--served-model-name`.
    pub served_name: Option<String>,
    /// Sizes of the model.
    pub shape: ModelShape,
    /// Who holds what of it.
    pub partition: Partition,
    /// Bytes of weights that each rank holds.
    pub weight_bytes: Vec<u64>,
    /// Element type computed in.
    pub dtype: DType,
    /// What tells this checkpoint from others.
    pub digest: String,
    /// When the server became ready.
    pub started: SystemTime,
    /// Version and commit of the server.
    pub build_id: String,
}
