//! What a device must do for a rank: hold its slices of a checkpoint ([`Loaded`]), and run steps over them ([`Runner`]).
//!
//! Does not know which devices there are.

use std::fs::File;

use nanoinfer_shared::{
    comm::Communicator,
    protocol::{LogitSlice, StepOutput, StepPlan, TokenMask, Wants},
};

use crate::{WorkerError, trace::Trace};

/// A rank's slices of a checkpoint, in the memory of its device.
pub(crate) trait Loaded {
    /// Bytes of weights.
    fn weight_bytes(&self) -> u64;

    /// Bytes of one block of the KV pool.
    fn kv_block_bytes(&self) -> u64;

    /// Bytes free for that pool; `None` where the system does not say.
    fn free_bytes(&self) -> Option<u64>;

    /// Allocates the pool, in `pool` where that is given and a pool lies in this host's memory, and all buffers.
    ///
    /// # Errors
    /// When the device does not take them, or the peers cannot be joined.
    fn start(
        self: Box<Self>,
        kv_blocks: usize,
        pool: Option<&File>,
        link: Link,
        trace: Trace,
    ) -> Result<Box<dyn Runner>, WorkerError>;
}

/// Runs steps.
pub(crate) trait Runner {
    /// Runs one step. Asks for `masks` when all else is done, where rows are masked.
    ///
    /// # Errors
    /// When the plan does not fit this rank, a reduction or the device fails, or no masks come.
    fn run(&mut self, plan: &StepPlan, masks: MaskSource<'_>) -> Result<StepOutput, WorkerError>;

    /// Logits `[V_local]` of rows of the last step that asked for candidates.
    ///
    /// # Errors
    /// When a row asked for something else, there is no such row, or the device fails.
    fn fetch(&mut self, rows: &[u32]) -> Result<Vec<LogitSlice>, WorkerError>;

    /// Writes the timeline of a step that was answered.
    fn write_trace(&mut self, step: u64);

    /// Whether the pool holds what steps before wrote: of this runner, or of one before it in another process.
    fn pool_is_kept(&self) -> bool;

    /// Goes on with other peers: with weights and pool as they are.
    ///
    /// # Errors
    /// When the device cannot.
    fn join_again(&mut self, link: Link) -> Result<(), WorkerError>;
}

/// Waits for the masks of a step's rows, of this rank's slice.
pub(crate) type MaskSource<'a> = &'a mut dyn FnMut() -> Result<Vec<TokenMask>, WorkerError>;

/// How partial sums reach the other ranks.
pub(crate) enum Link {
    /// Through the host's memory.
    Host(Box<dyn Communicator>),
    /// From GPU to GPU: rank, world size, and what rank 0 reported.
    Nccl { rank: usize, world: usize, id: Vec<u8> },
}

impl Link {
    /// The host's, which is the only one that a CPU can use.
    pub(crate) fn through_host(self) -> Result<Box<dyn Communicator>, WorkerError> {
        match self {
            Self::Host(comm) => Ok(comm),
            Self::Nccl { rank, .. } => Err(WorkerError::NcclOnCpu { rank }),
        }
    }
}

/// Something wanted of the distribution after one token of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Its place among the answers.
    pub(crate) answer: usize,
    /// The token's row: those of all sequences are counted, one sequence after the other.
    pub(crate) row: usize,
    /// What.
    pub(crate) wants: &'a Wants,
}

/// Everything that a plan wants, in the order of the answers.
pub(crate) fn wanted(plan: &StepPlan) -> Vec<Wanted<'_>> {
    let mut wanted = Vec::new();
    let mut first = 0;
    for sequence in &plan.sequences {
        for output in &sequence.outputs {
            wanted.push(Wanted { answer: wanted.len(), row: first + output.row as usize, wants: &output.wants });
        }
        first += sequence.tokens.len();
    }
    wanted
}

/// Bytes of one rank, by what they are for: of its host's memory, or of its GPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// Packed weights, biases, position embedding.
    pub weights: u64,
    /// Of these, those of which a step looks up some rows.
    pub looked_up: u64,
    /// KV pool when every block is in use.
    pub kv: u64,
    /// Activations and logits of the largest step; on a GPU also what the driver takes for itself.
    pub activations: u64,
    /// Data link: the segment that the ranks of a host share, socket buffers, or what NCCL takes of a GPU.
    pub link: u64,
}

impl RankMemory {
    /// Everything together.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.activations + self.link
    }
}
