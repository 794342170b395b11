//! The messages between the coordinator and a rank: one enum per direction, nothing else crosses the control link.
//!
//! ```text
//! coordinator                                   rank
//!   Load  ── what to hold, how ───────────────►  reads its slices of the checkpoint
//!         ◄─────────────── Loaded ── budget, where its peers reach it
//!   Start ── KV blocks, peers' addresses ─────►  allocates, joins the data link
//!         ◄─────────────── Ready
//!   Step  ── one StepPlan, the same to all ───►  one forward pass
//!   Masks ── where rows of it are masked ─────►  (taken before rows are answered)
//!         ◄─────────────── Done ── its slice of every row asked for
//!   FetchRows ── rows of the last step ───────►
//!         ◄─────────────── Rows
//!   Leave ── a peer is lost ──────────────────►  breaks off its step, leaves the data link; weights and pool stay
//!         ◄─────────────── Left; then Start again
//!   Ping  ────────────────────────────────────►  (answered by a thread of its own, also during a step)
//!         ◄─────────────── Pong
//! ```
//! Invariant: a step is a pure function of plan, weights and KV pool. Ranks keep no request state.

mod plan;
mod masks;
mod answers;

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use self::{
    answers::{Category, LogSumExp, LogitSlice, RowSlice, Stage, StepOutput, StepTimes},
    masks::{Masks, TokenMask},
    plan::{BLOCK_TOKENS, BlockId, RowRequest, SequenceStep, StepPlan, TokenId, Wants},
};
use crate::{
    comm::CommDType,
    model::{partition::Partition, shape::ModelShape},
};

/// Changes whenever a message changes; compared in the handshake beside the build id.
pub const PROTOCOL_VERSION: u32 = 8;

/// Element type of weights and of matrix products, or of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DType {
    /// 32-bit floats throughout.
    F32,
    /// Weights are bf16, and so are the inputs of products with them, rounded to nearest even; sums and all else are f32. Keys and
    /// values are rounded as they are written.
    Bf16,
    /// The same with IEEE half precision in place of bf16; on GPUs only.
    F16,
    /// Weights are bytes with a scale for each output channel and canonical unit of K (a head, a block of 64); the inputs of
    /// products likewise, with a scale for each token and unit; sums are exact within a unit, f32 across units and in all else. Keys
    /// and values have a scale for each of a head. On CPUs only.
    Int8,
}

/// As on the command line.
impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

/// What a rank computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A GPU of its host, by its ordinal.
    Gpu(u32),
}

/// What the threads of a rank run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cores {
    /// They may be more than the CPUs, or nobody knows: waiting sleeps.
    Shared,
    /// There is a CPU for each: waiting may spin.
    Own,
    /// Waiting may spin, and each stays on a CPU of its own.
    Pinned(Vec<u32>),
}

impl Cores {
    /// Whether waiting may spin.
    pub fn may_spin(&self) -> bool {
        *self != Self::Shared
    }

    /// The CPUs that the threads stay on, one each.
    pub fn pinned(&self) -> Option<&[u32]> {
        match self {
            Self::Pinned(cpus) => Some(cpus),
            Self::Shared | Self::Own => None,
        }
    }
}

/// How ranks exchange partial sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommKind {
    /// One rank: nothing to exchange.
    Local,
    /// Ranks of one host, through a memory segment handed over as a file descriptor.
    Shm,
    /// Ranks of several hosts: through memory within one, through a socket between two.
    Tcp,
    /// Ranks with a GPU each, from one to the other.
    Nccl,
}

/// Coordinator to rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToRank {
    /// First order after the handshake.
    Load(Box<LoadOrder>),
    /// Second order, once every rank has loaded; again once every rank has left.
    Start(StartOrder),
    /// One forward pass.
    Step(StepPlan),
    /// Which tokens of the rank's slice may come, of the rows of the step that are masked. Not answered by itself.
    Masks(Masks),
    /// The logits of rows of the step just done (indices into [`StepOutput::rows`] that were [`Wants::Candidates`]).
    FetchRows(Vec<u32>),
    /// A peer is lost: leave the data link, also from the middle of a step. Answered [`FromRank::Left`].
    Leave {
        /// Of the start that is to come.
        group: u32,
    },
    /// Heartbeat, echoed as [`FromRank::Pong`].
    Ping(u64),
    /// End cleanly.
    Shutdown,
}

/// Rank to coordinator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromRank {
    /// Weights are in memory.
    Loaded(LoadReport),
    /// The data link stands; steps may come.
    Ready {
        /// Whether keys and values are in the pool as steps before this start wrote them.
        pool_kept: bool,
    },
    /// A step is done.
    Done(StepOutput),
    /// This rank's slices of the rows asked for, in that order.
    Rows(Vec<LogitSlice>),
    /// Echo of [`ToRank::Ping`].
    Pong {
        /// The ping's.
        count: u64,
        /// Where the rank is with its order.
        place: Place,
    },
    /// The rank is out of its data link and holds weights and pool; nothing that it said before is worth anything now.
    Left {
        /// Of [`ToRank::Leave`].
        group: u32,
        /// Address that other hosts can reach it at from now on, as in [`LoadReport`].
        data_address: Option<String>,
    },
    /// The rank cannot go on.
    Failed {
        /// What that says of the others, and of another try.
        kind: FailureKind,
        /// In its own words.
        reason: String,
    },
}

/// What a rank's failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Its link to a peer failed, which is the effect of another's failure. The rank stays, and waits to be told to leave.
    Peer,
    /// Its own: memory, a device, a bug. The rank ends; another in its place may go on.
    Rank,
    /// What it was told cannot be done, by another in its place neither. The rank ends.
    Order,
}

/// How far a rank has come, so that one that answers but does not go on is told from one that works. The greater is further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The last step that it began.
    pub step: u64,
    /// Beginnings and ends of reductions in it: that of the embeddings, then of each layer's attention and MLP.
    pub passed: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, passed } = self;
        write!(f, "step {step}, ")?;
        match passed {
            0 => write!(f, "its embeddings"),
            1 => write!(f, "waiting for its peers at the embeddings"),
            passed => {
                // Of each layer: attention, waiting, MLP, waiting.
                let (layer, part) = ((passed - 2) / 4, (passed - 2) % 4);
                let at =
                    ["attention", "waiting for its peers after attention", "MLP", "waiting for its peers after MLP"];
                write!(f, "layer {layer}, {}", at[part as usize])
            }
        }
    }
}

/// What a rank is to hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadOrder {
    /// Sizes of the model.
    pub shape: ModelShape,
    /// Who holds what of it.
    pub partition: Partition,
    /// Files of the checkpoint on the coordinator's host, or its index; a rank elsewhere may have been told its own path.
    pub weights: Vec<PathBuf>,
    /// Digest of the checkpoint: names, types, shapes, and samples of every tensor. Every rank must find the same.
    pub fingerprint: u64,
    /// Element type to compute in.
    pub dtype: DType,
    /// Element type of the KV cache.
    pub kv_dtype: DType,
    /// Instruction set to use, by name; `None` on GPUs, or for the best that the rank's CPU has.
    pub isa: Option<String>,
    /// Data link to use.
    pub comm: CommKind,
    /// Ranks of each host, whose ranks lie side by side: those that reach one another through memory.
    pub hosts: Vec<usize>,
    /// What partial sums are rounded to before they are added up.
    pub comm_dtype: CommDType,
    /// Whether what crosses between hosts is sealed.
    pub link_encryption: bool,
    /// Most new tokens in one step.
    pub max_batched_tokens: usize,
    /// Most sequences in one step.
    pub max_seqs: usize,
    /// Where a timeline of every step goes.
    pub trace: Option<TraceOrder>,
    /// What this rank has of its host; of all else every rank is told the same.
    pub on_host: OnHost,
}

/// A timeline of steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceOrder {
    /// File to append to; on a rank elsewhere a file of its own host.
    pub path: PathBuf,
    /// Most bytes of it together with the one before.
    pub max_bytes: u64,
}

/// What one rank has of its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnHost {
    /// What to compute on.
    pub device: Device,
    /// Compute threads.
    pub threads: usize,
    /// What there is for them to run on.
    pub cores: Cores,
    /// Which files the checkpoint's are, on the coordinator's host: those of the same names later may be others.
    pub files: Option<u64>,
}

impl OnHost {
    /// The processor, with so many threads that stay nowhere in particular.
    pub fn cpu(threads: usize) -> Self {
        Self { device: Device::Cpu, threads, cores: Cores::Shared, files: None }
    }
}

/// What a rank found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadReport {
    /// Bytes of weights held.
    pub weight_bytes: u64,
    /// Bytes of one KV block on this rank: its heads, in every layer.
    pub kv_block_bytes: u64,
    /// Bytes of memory free after loading, before the KV pool: of the rank's host (or cgroup), or of its GPU.
    pub free_bytes: u64,
    /// Address that other hosts can reach it at; of the first rank of each, with [`CommKind::Tcp`] only.
    pub data_address: Option<String>,
    /// What the peers of rank 0 need to join it; of rank 0 with [`CommKind::Nccl`] only.
    pub nccl_id: Option<Vec<u8>>,
}

/// The last word before the first step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartOrder {
    /// Number of this start: of the ranks that are up together.
    pub group: u32,
    /// Blocks of the KV pool, the same on every rank.
    pub kv_blocks: usize,
    /// Data addresses by host; with [`CommKind::Tcp`] only.
    pub peers: Vec<String>,
    /// What rank 0 reported; with [`CommKind::Nccl`] only.
    pub nccl_id: Option<Vec<u8>>,
    /// Secret of this cluster's data links, made for this start.
    pub link_key: [u8; 32],
}
