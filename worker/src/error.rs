//! What can go wrong in a rank.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use nanoinfer_checkpoint::CheckpointError;
use nanoinfer_shared::{
    comm::CommError,
    link::LinkError,
    protocol::{BlockId, FailureKind, TokenId},
};

use crate::{cuda::GpuError, fit::Unfit};

/// Why a rank cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The control link failed.
    #[error("the link to the coordinator failed: {0}")]
    Link(#[from] LinkError),
    /// The data link failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// This host's checkpoint is not the coordinator's.
    #[error(
        "rank {rank} holds another checkpoint than the coordinator: names, shapes and sampled weights of {} have digest {got:016x}, not {expected:016x}\n  hint: every host needs a copy of the same checkpoint; one that was replaced meanwhile needs a new start", .file.display()
    )]
    Fingerprint {
        /// This rank.
        rank: usize,
        /// The first of its files.
        file: PathBuf,
        /// The coordinator's.
        expected: u64,
        /// Ours.
        got: u64,
    },
    /// The files of the checkpoint are not those that the coordinator opened.
    #[error(
        "rank {rank} finds another checkpoint at {} than the one that was there when the server started\n  hint: a new start takes what is there now", .file.display()
    )]
    Replaced {
        /// Who says so.
        rank: usize,
        /// Its file.
        file: PathBuf,
    },
    /// The memory of the KV pool is not to be had.
    #[error("rank {rank} does not get the memory of its KV pool: {source}")]
    Pool {
        /// Who says so.
        rank: usize,
        /// Why not.
        source: io::Error,
    },
    /// The link kind ordered cannot be made here.
    #[error(
        "rank {rank} was told to use shared memory, but was handed none\n  hint: ranks that were not started by the launcher need --comm tcp"
    )]
    NoSegment {
        /// This rank.
        rank: usize,
    },
    /// The timeline cannot be written.
    #[error("rank {rank} cannot write the trace {}: {source}", .path.display())]
    Trace {
        /// This rank.
        rank: usize,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The CPU does not compute what is asked.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// A GPU cannot be used, or failed.
    #[error("rank {rank}: {source}")]
    Gpu {
        /// This rank.
        rank: usize,
        /// How.
        source: GpuError,
    },
    /// NCCL where no GPU is.
    #[error("rank {rank} was told to use NCCL, and computes on a CPU\n  hint: --comm shm or tcp")]
    NcclOnCpu {
        /// This rank.
        rank: usize,
    },
    /// A start without what rank 0 reported: a bug of the coordinator.
    #[error("rank {rank} was told to use NCCL without an id to join by")]
    NoNcclId {
        /// This rank.
        rank: usize,
    },
    /// This host has not the memory.
    #[error(
        "rank {rank} needs {needed} bytes for its weights and for steps of {max_batched_tokens} tokens, and its host has {free} free\n  hint: --max-batched-tokens and --max-seqs take less, and so does --dtype bf16 or int8"
    )]
    Memory {
        /// This rank.
        rank: usize,
        /// Bytes of weights, activations and logits.
        needed: u64,
        /// Most new tokens in one step.
        max_batched_tokens: usize,
        /// Bytes.
        free: u64,
    },
    /// The system's limit of threads is reached.
    #[error(
        "rank {rank} does not get its {wanted} threads from the system: {source}\n  hint: `ulimit -u` or the pids.max of a control group allow no more; --threads takes fewer"
    )]
    Threads {
        /// This rank.
        rank: usize,
        /// Those that compute, and one that reads the control link.
        wanted: usize,
        /// What the system says.
        source: io::Error,
    },
    /// An instruction set that a CPU has not.
    #[error("{whose} has no instruction set `{name}`\n  hint: it has {available}")]
    Isa {
        /// The CPU, or its host.
        whose: String,
        /// As it was asked for.
        name: String,
        /// Those it has.
        available: String,
    },
    /// A message that is not due: a bug of the coordinator.
    #[error("rank {rank} got `{got}` while it waited for `{expected}`")]
    OutOfTurn {
        /// This rank.
        rank: usize,
        /// What was due.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
    /// A plan that this rank cannot run: a bug of the coordinator.
    #[error("step {step}: {fault}")]
    Plan {
        /// The step.
        step: u64,
        /// What is wrong with it.
        fault: PlanFault,
    },
    /// Something else came where the masks of a step should.
    #[error("rank {rank} got {got} while it waited for the masks of step {step}")]
    Interrupted {
        /// Who says so.
        rank: usize,
        /// The step.
        step: u64,
        /// What came.
        got: &'static str,
    },
}

impl WorkerError {
    /// What it says of the others, and of another try.
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::Comm(CommError::Setup { .. }) => FailureKind::Rank,
            Self::Comm(_) | Self::Interrupted { .. } => FailureKind::Peer,
            // Descriptors, memory or a disk that does not answer; a file that is not there is so for another too.
            Self::Checkpoint(CheckpointError::Open { source, .. })
                if !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) =>
            {
                FailureKind::Rank
            }
            Self::Link(_)
            | Self::Gpu { .. }
            | Self::Memory { .. }
            | Self::Pool { .. }
            | Self::Threads { .. }
            | Self::Trace { .. } => FailureKind::Rank,
            Self::Checkpoint(_)
            | Self::Fingerprint { .. }
            | Self::Replaced { .. }
            | Self::NoSegment { .. }
            | Self::Unfit(_)
            | Self::NcclOnCpu { .. }
            | Self::NoNcclId { .. }
            | Self::Isa { .. }
            | Self::OutOfTurn { .. }
            | Self::Plan { .. } => FailureKind::Order,
        }
    }
}

/// What is wrong with a step plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanFault {
    /// Masks that are not those of its rows.
    #[error("{masks} masks came for {rows} rows, or of another length than this rank's slice of the vocabulary")]
    Masks {
        /// How many came.
        masks: usize,
        /// How many rows are masked.
        rows: usize,
    },
    /// More tokens than the buffers hold.
    #[error("{tokens} tokens are more than the {limit} that this rank has buffers for")]
    TooManyTokens {
        /// In the plan.
        tokens: usize,
        /// `max_batched_tokens`.
        limit: usize,
    },
    /// Whether there is a token before the first is not as the position says.
    #[error("a sequence goes on at {start}, and the token before that is missing, or there is none")]
    Before {
        /// Position of its first new token.
        start: usize,
    },
    /// More kept rows than the buffers hold.
    #[error("{rows} rows of candidates are more than the {limit} that this rank has buffers for")]
    TooManyRows {
        /// In the plan.
        rows: usize,
        /// `max_seqs`.
        limit: usize,
    },
    /// A sequence without new tokens.
    #[error("a sequence has no tokens")]
    NoTokens,
    /// An id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The id.
        token: TokenId,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A position outside the model.
    #[error("position {position} is beyond the model's {n_positions}")]
    Position {
        /// The position.
        position: usize,
        /// The wall.
        n_positions: usize,
    },
    /// A block outside the pool.
    #[error("block {0:?} is outside the pool")]
    Block(BlockId),
    /// A block that two sequences would write, or one twice.
    #[error("block {0:?} would be written by two")]
    WrittenTwice(BlockId),
    /// A block table that does not cover its sequence.
    #[error("{blocks} blocks do not cover {positions} positions")]
    Table {
        /// In the table.
        blocks: usize,
        /// To cover.
        positions: usize,
    },
    /// An answer wanted of a row that is not there.
    #[error("row {row} is not one of {tokens} tokens")]
    Row {
        /// The row.
        row: u32,
        /// Tokens of the sequence.
        tokens: usize,
    },
    /// A row fetched that was not kept.
    #[error("row {row} of the last step was not kept")]
    NotKept {
        /// Index into the step's rows.
        row: u32,
    },
}
