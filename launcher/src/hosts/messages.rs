//! The messages between node 0 and another node: one enum per direction.
//!
//! ```text
//! node 0                                        node
//!         ◄─────────────── Hello ── who it is, what its host has
//!   Start ── ranks, and how they come in ─────►  spawns them; again after a loss
//!         ◄─────────────── Lacking ── a checkpoint, before the first start
//!   Files, Pieces … ── what its ranks read ────►  writes it, spawns them
//!   Segments ─ for each start of all ──────────►  hands its ranks memory to reach one another
//!         ◄─────────────── Ended ── how a rank did, with its last lines
//!         ◄─────────────── Leaving ── it was told to stop
//!   Release ── if it was alone ────────────────►  ends with its ranks
//!   End   ────────────────────────────────────►  waits for its ranks, ends
//! ```
//! [`PROTOCOL_VERSION`](nanoinfer_shared::protocol::PROTOCOL_VERSION) counts changes of these, too.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{plan::Host, rank_end::RankEnd};

/// Node to node 0.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromNode {
    /// Its first word.
    Hello(Box<Hello>),
    /// A rank has ended.
    Ended(RankEnd),
    /// It was told to stop: alone, or with all the others.
    Leaving,
    /// Its host has no checkpoint for the ranks that it is to start.
    Lacking,
    /// Ranks could not be started.
    Failed { reason: String },
}

/// Node 0 to node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToNode {
    /// It is not let in.
    Refused { reason: String },
    /// Start these ranks, in the place of what is left of them.
    Start(StartRanks),
    /// What is lacking comes in these files.
    Files(Vec<FileToCome>),
    /// And these are the next bytes.
    Pieces(Pieces),
    /// Hand all ranks the memory of their data link for the start of this number.
    Segments { group: u32 },
    /// The cluster goes on without this node.
    Release,
    /// The cluster ends.
    End,
}

/// Who a node is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Its number; any that is free where it does not know.
    pub(crate) number: Option<usize>,
    /// How many there are, as far as it knows.
    pub(crate) nodes: Option<usize>,
    pub(crate) host: Host,
}

/// Ranks to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StartRanks {
    /// Ranks in the cluster.
    pub(crate) world: usize,
    /// Which to start, and whether what one wrote before is not to be trusted.
    pub(crate) ranks: Vec<(usize, bool)>,
    /// Where node 0 has the checkpoint.
    pub(crate) weights: Vec<PathBuf>,
    /// Where node 0 awaits them, on the address at which it is reached,
    pub(crate) port: u16,
    /// and what they show there.
    pub(crate) key: [u8; 32],
}

/// A file of which some bytes will come.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileToCome {
    /// Its name, without a folder.
    pub(crate) name: String,
    /// Of all of it.
    pub(crate) len: u64,
    /// Of what will come.
    pub(crate) due: u64,
}

/// Bytes of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pieces {
    /// Which of those that were told.
    pub(crate) file: usize,
    /// Where each piece lies, and how long it is.
    pub(crate) places: Vec<(u64, usize)>,
    /// One after the other.
    #[serde(with = "as_they_are")]
    pub(crate) bytes: Vec<u8>,
}

/// Bytes at once: serde takes those of a `Vec` one by one.
mod as_they_are {
    use std::fmt;

    use serde::{
        Deserializer, Serializer,
        de::{Error, Visitor},
    };

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        from.deserialize_bytes(Bytes)
    }
}
