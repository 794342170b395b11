//! Why the ranks cannot go on, or did not come up: each names its rank.

use nanoinfer_shared::{
    handshake::HandshakeError,
    link::LinkError,
    protocol::{FailureKind, Place, TokenId},
};

use super::source::{Lost, SourceError};
use crate::engine::kv_budget::KvTooSmall;

/// Why the ranks cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RanksError {
    /// The rank said so.
    #[error("rank {rank} failed: {reason}")]
    Failed {
        /// Which rank.
        rank: usize,
        /// What that says of the others, and of another try.
        kind: FailureKind,
        /// In its own words.
        reason: String,
    },
    /// The rank's process ended, or the network between.
    #[error("rank {rank} is gone: {source}")]
    Gone {
        /// Which rank.
        rank: usize,
        /// What the link says.
        source: LinkError,
    },
    /// The rank's process exists but does not answer.
    #[error("rank {rank} has not answered for {seconds} s")]
    Silent {
        /// Which rank.
        rank: usize,
        /// Since its last word.
        seconds: u64,
    },
    /// The rank answers, but does not go on.
    #[error("rank {rank} has not gone on for {seconds} s; it is at {place}")]
    Stuck {
        /// Which rank.
        rank: usize,
        /// Since it came there.
        seconds: u64,
        /// Where.
        place: Place,
    },
    /// The rank does not break off its step when it is told to.
    #[error("rank {rank} has not left its step for {seconds} s")]
    Stays {
        /// Which rank.
        rank: usize,
        /// Since it was told.
        seconds: u64,
    },
    /// There is none to be had in the place of those that were lost.
    #[error("no ranks in the place of those that were lost: {0}")]
    Source(SourceError),
    /// The server is shutting down while ranks are missing.
    #[error("the server is shutting down")]
    GivenUp,
    /// The rank answers what was not asked.
    #[error("rank {rank} should have answered {expected}, got {got}")]
    Unexpected {
        /// Which rank.
        rank: usize,
        /// What the protocol says.
        expected: String,
        /// What came.
        got: String,
    },
    /// No rank holds the logit of a token that was to be scored.
    #[error("no rank answered for token {id}")]
    MissingTarget {
        /// The token.
        id: TokenId,
    },
    /// The links do not fit the partition.
    #[error("the model is split over {expected} ranks, but there are links to {got}")]
    World {
        /// Ranks of the partition.
        expected: usize,
        /// Links.
        got: usize,
    },
    /// Not one sequence of full length fits.
    #[error(transparent)]
    KvMemory(#[from] KvTooSmall),
    /// A rank on another host cannot be reached by its peers.
    #[error("rank {rank} gave no address for its peers")]
    NoAddress {
        /// Which rank.
        rank: usize,
    },
    /// The operating system gave no random numbers for the secret of the data links.
    #[error(transparent)]
    LinkKey(HandshakeError),
    /// The operating system gave no thread.
    #[error("no thread for the links: {0}")]
    Thread(std::io::Error),
}

impl RanksError {
    /// Whether it is a rank's own word for why it does not come up: where none has been up, another in its place says the same.
    pub(super) fn comes_again(&self) -> bool {
        matches!(self, Self::Failed { kind: FailureKind::Rank, .. })
    }

    /// Whether another try can mend it. Where that takes another in the place of a rank, it is among the `lost` then: the first
    /// word of a rank says most.
    pub(super) fn can_be_mended(&self, lost: &mut Vec<Lost>) -> bool {
        let (rank, is_corrupt) = match *self {
            // Only a link was lost, or there was nobody to take the place, or no thread to listen to it.
            Self::Failed { kind: FailureKind::Peer, .. } | Self::Source(_) | Self::Thread(_) => return true,
            Self::Gone { rank, ref source } => (rank, source.is_no_message()),
            Self::Failed { rank, kind: FailureKind::Rank, .. }
            | Self::Silent { rank, .. }
            | Self::Stuck { rank, .. }
            | Self::Stays { rank, .. } => (rank, false),
            // Who answers what was not asked may have written anywhere.
            Self::Unexpected { rank, .. } => (rank, true),
            Self::Failed { kind: FailureKind::Order, .. }
            | Self::GivenUp
            | Self::MissingTarget { .. }
            | Self::World { .. }
            | Self::KvMemory(_)
            | Self::NoAddress { .. }
            | Self::LinkKey(_) => return false,
        };
        if lost.iter().all(|known| known.rank != rank) {
            lost.push(Lost { rank, is_corrupt });
        }
        true
    }
}
