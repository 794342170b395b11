//! The ranks of one host: started, introduced, given their memory, and had again; the same on every node.
//!
//! Does not know hosts, nor who serves them: that a rank is told by its [`Way`].
//! Invariant: a rank's KV memory outlives it, unless it may have written anywhere.

use std::{collections::BTreeMap, io, os::unix::net::UnixStream, sync::Arc, time::Instant};

use nanoinfer_coordinator::engine::Lost;
use nanoinfer_shared::{
    comm::ShmSegment,
    handshake::{self, Admission, HandshakeError, Identity},
    link::{ControlLink, Socket},
};

use crate::{
    build::BUILD_ID,
    error::LaunchError,
    log::Log,
    rank_end::Reports,
    spawn::{MemoryOfRank, RankProcesses, Way, WorkerBinary},
};

/// Epoch on the sockets of ranks that this process starts itself: they are new, so no earlier life can speak on them.
pub(crate) const EPOCH: u32 = 1;

/// Those of this host.
#[derive(Debug)]
pub(crate) struct HostRanks {
    processes: Arc<RankProcesses>,
    /// Of those that were started.
    memories: BTreeMap<usize, MemoryOfRank>,
    /// Of all hosts.
    world: usize,
}

impl HostRanks {
    /// None yet, of `world` ranks in all. Ends are reported to `ends`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn new(world: usize, binary: &WorkerBinary, log: &Log, ends: &Reports) -> Result<Self, LaunchError> {
        let processes = Arc::new(RankProcesses::new(world, binary, log, ends)?);
        Ok(Self { processes, memories: BTreeMap::new(), world })
    }

    /// To wait for their ends.
    pub(crate) fn processes(&self) -> Arc<RankProcesses> {
        self.processes.clone()
    }

    /// Ends what is left of these ranks, and starts them, or for the first time; returns the sockets that they inherited.
    ///
    /// # Errors
    /// When a process cannot be started, or does not introduce itself.
    pub(crate) fn start(&mut self, ranks: &[Lost], way: &Way) -> Result<Vec<Socket>, LaunchError> {
        for Lost { rank, is_corrupt } in ranks {
            let end = self.processes.end_rank(*rank);
            if let Some(end) = &end {
                tracing::warn!("{end}");
            }
            if *is_corrupt || end.is_some_and(|end| end.is_corrupt()) {
                self.memories.remove(rank);
            }
        }
        // All begin before the first is waited for.
        let sockets = ranks.iter().map(|lost| self.processes.start_rank(lost.rank)).collect::<Result<Vec<_>, _>>()?;
        ranks.iter().zip(sockets).map(|(lost, socket)| self.meet(lost.rank, socket, way)).collect()
    }

    /// Shakes hands with a rank that was just started, hands it its memory, and tells it where its coordinator is.
    fn meet(&mut self, rank: usize, socket: UnixStream, way: &Way) -> Result<Socket, LaunchError> {
        let system = |what: &str| LaunchError::system(format!("{what} rank {rank}"));
        let expected = Identity { build_id: BUILD_ID.into(), world: self.world, rank };
        let copy = || socket.try_clone().map(Socket::Unix);
        let mut handle = copy().map_err(system("keep the socket of"))?;
        let only = |joiner| if joiner == rank { Ok(()) } else { Err(format!("rank {joiner} is not rank {rank}")) };
        // The key is empty: the inherited socket is the proof.
        let until = Instant::now() + handshake::HANDSHAKE_TIMEOUT;
        let admission = Admission { expected: &expected, key: &[], epoch: EPOCH, is_sealed: false, until };
        let failed = |source: HandshakeError| LaunchError::Handshake { rank, source };
        handshake::admit(&mut handle, admission, only).map_err(failed)?;
        let memory = match self.memories.remove(&rank) {
            Some(memory) => memory,
            None => MemoryOfRank::new().map_err(LaunchError::SharedMemory)?,
        };
        let memory = self.memories.entry(rank).or_insert(memory);
        memory.hand_over(&socket).map_err(system("hand memory to"))?;
        let copy = copy().map_err(system("keep the socket of"))?;
        let link = |source| LaunchError::Link { rank, source };
        let mut told = ControlLink::<Way, ()>::over(copy, EPOCH).map_err(link)?;
        told.sender.send(way.clone()).map_err(link)?;
        Ok(handle)
    }

    /// Hands every rank the memory of the data link for start number `group`.
    ///
    /// # Errors
    /// When the system gives none.
    pub(crate) fn send_segments(&self, group: u32) -> io::Result<()> {
        let segment = ShmSegment::create(self.world)?;
        for memory in self.memories.values() {
            // A rank that is gone is missed by who waits for it.
            let _ = memory.send_segment(group, &segment);
        }
        Ok(())
    }
}
