//! What a coordinator is told when it starts.

use std::time::SystemTime;

use nanoinfer_shared::{
    ModelShape, Partition,
    protocol::{DType, LoadOrder, OnHost},
};

use crate::engine::{kv_budget::KvBudget, ranks::RestartLimit};

/// Everything the engine needs besides links to its ranks.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// What every rank is told; what it has of its host differs. There is a link for each of its partition.
    pub load: LoadOrder,
    /// Sizes of the model as it is served: a sequence may use fewer positions than ranks hold.
    pub shape: ModelShape,
    /// What each has of its host, in rank order.
    pub on_hosts: Vec<OnHost>,
    /// What decides the size of the KV pool.
    pub kv: KvBudget,
    /// For each rank how many share the memory of its pool, a host's or a GPU's, itself among them.
    pub ranks_per_memory: Vec<usize>,
    /// Most requests of which a sequence waits for its first step.
    pub max_queue: usize,
    /// Most tokens of prompts that wait for their first step; one request may have more if it waits alone.
    pub max_queue_tokens: usize,
    /// Whether a sequence may begin with KV blocks that another computed.
    pub prefix_cache: bool,
    /// How many losses of ranks are borne, where others can be had.
    pub restarts: RestartLimit,
}

/// What clients are told of the model.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// What was typed after `--model`.
    pub name: String,
    /// The name that clients see, from `--served-model-name`.
    pub served_name: Option<String>,
    /// Sizes of the model as it is served.
    pub shape: ModelShape,
    /// Numbers that it is made of, those of positions that no sequence may use too.
    pub parameters: usize,
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
