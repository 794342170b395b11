//! Why a cluster did not start, or ended.

use std::{io, net::SocketAddr, path::PathBuf};

use nanoinfer_coordinator::{engine::StartError, kv_budget::KvTooSmall, text::TextError};
use nanoinfer_shared::{PartitionError, handshake::HandshakeError, link::LinkError};
use nanoinfer_worker::{Unfit, WorkerError, cuda::GpuError};

use crate::{model::ModelError, output::OutputError, rank_end::RankEnd};

/// Why a cluster did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The options contradict one another or ask for what is not there.
    #[error("{problem}\n  hint: {hint}")]
    Usage {
        /// What.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// Options that contradict one another, or a configuration file that says what no option does.
    #[error("{0}")]
    Config(String),
    /// There is no such model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its tokenizer or chat template is broken.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model cannot be split so.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// A GPU that was asked for cannot be used.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A host has no GPU to compute on, although that was asked for.
    #[error("{why}")]
    NoGpu {
        /// Which, and why.
        why: String,
    },
    /// The CPU does not compute in what was asked for.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Not one sequence of full length fits.
    #[error(transparent)]
    KvMemory(#[from] KvTooSmall),
    /// The port is taken, or not ours to take.
    #[error("cannot listen on {address}: {source}\n  hint: {hint}")]
    Bind {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The operating system refused a process, a thread, a socket or memory.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The kernel, or a filter of system calls around this process, gives no shared memory.
    #[error(
        "cannot make the shared memory of the data link: {0}\n  hint: --comm tcp needs none; a container's seccomp profile may forbid memfd_create"
    )]
    SharedMemory(io::Error),
    /// A started rank did not introduce itself.
    #[error("rank {rank} did not join: {source}")]
    Handshake {
        /// Which.
        rank: usize,
        /// Why.
        source: HandshakeError,
    },
    /// The link of a rank failed at once.
    #[error("rank {rank}: {source}")]
    Link {
        /// Which.
        rank: usize,
        /// Why.
        source: LinkError,
    },
    /// The engine did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Ranks ended although nobody asked them to.
    #[error("{}", RankEnd::told(.ends))]
    RanksEnded {
        /// Which, and how; the likeliest cause first.
        ends: Vec<RankEnd>,
    },
    /// Other hosts, or their ranks, did not join again.
    #[error(
        "{who} did not join again within {seconds} s\n  hint: a node that ends is to be started again by its host, as systemd and Kubernetes do"
    )]
    NotBack {
        /// Which.
        who: String,
        /// How long they had.
        seconds: u64,
    },
    /// A node could not start its ranks.
    #[error("node {node}: {reason}")]
    Node {
        /// Which.
        node: usize,
        /// In its own words.
        reason: String,
    },
    /// What node 0 sends of a checkpoint that is not here has no place.
    #[error(
        "there is no checkpoint here, nor a folder for what node 0 sends of it:{}\n  hint: set XDG_CACHE_HOME to a folder of yours that can be written, or name a copy with --model",
        .0.iter().map(|(folder, error)| format!("\n  {}: {error}", folder.display())).collect::<String>()
    )]
    NoFolderForSlices(Vec<(PathBuf, io::Error)>),
    /// The disk is full, or broken.
    #[error("cannot write what node 0 sends to {}, at byte {at}: {source}\n  hint: it is a file with holes: the disk needs room for what this host's ranks load", .path.display())]
    SliceNotWritten {
        /// Where.
        path: PathBuf,
        /// And where in it.
        at: u64,
        /// Why not.
        source: io::Error,
    },
    /// Node 0 does not keep to the protocol.
    #[error("node 0 sent something else than bytes of files that it had told")]
    StrangeSlices,
    /// Node 0 has ended, or the network between, and this node with it.
    #[error("node 0 at {address} is gone: {source}")]
    NodeZeroGone {
        /// Where it was.
        address: String,
        /// What the link says.
        source: LinkError,
    },
    /// The operating system gave no random numbers.
    #[error(transparent)]
    NoRandom(HandshakeError),
    /// The engine ended although nobody asked it to.
    #[error("the engine ended: {reason}")]
    EngineEnded {
        /// Why.
        reason: String,
    },
    /// The HTTP server ended although nobody asked it to.
    #[error("the HTTP server on {address} ended: {source}")]
    Http {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The secret of a cluster across hosts cannot be used.
    #[error("{place}: {problem}\n  hint: {hint}")]
    Secret {
        /// Which file or variable.
        place: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// A node or a rank could not reach its coordinator.
    #[error("{who} cannot join the coordinator at {address}: {reason}")]
    Join {
        /// Which.
        who: String,
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// A rank, which this process is, failed at its work.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// What was asked for could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Told twice to stop.
    #[error("stopped before all requests were finished")]
    StoppedTwice,
}

impl LaunchError {
    /// What the process answers: 2 for usage and models, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        use io::ErrorKind::{AddrInUse, PermissionDenied};
        match self {
            Self::Usage { .. }
            | Self::Config(_)
            | Self::Model(_)
            | Self::Text(_)
            | Self::Partition(_)
            | Self::KvMemory(_)
            | Self::Gpu(_)
            | Self::NoGpu { .. }
            | Self::Unfit(_)
            | Self::Worker(WorkerError::Isa { .. })
            | Self::Secret { .. } => 2,
            // Of an address that is not this machine's. One that is, and taken or forbidden, may be free tomorrow.
            Self::Bind { source, .. } if !matches!(source.kind(), AddrInUse | PermissionDenied) => 2,
            _ => 1,
        }
    }

    /// What is wrong with the options, and what to do.
    pub(crate) fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: hint.into() }
    }

    /// Wraps an error of the operating system: `cannot {what}: …`.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::System { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_that_is_refused_has_a_way_around_it() {
        let error = LaunchError::SharedMemory(io::ErrorKind::PermissionDenied.into());
        assert!(error.to_string().contains("hint: --comm tcp"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}
