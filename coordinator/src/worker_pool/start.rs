//! From links to ranks that are ready: load, choose the size of the KV pool, start.
//!
//! Does not know what is served later.
//! Invariant: the KV pool has as many blocks on every rank, and holds at least one sequence of full length.

use std::sync::Arc;

use nanoinfer_shared::{
    handshake,
    link::ControlLink,
    protocol::{BLOCK_TOKENS, CommKind, FromRank, LoadOrder, LoadReport, StartOrder, ToRank},
};

use super::{PoolError, WorkerPool};
use crate::{config::EngineConfig, handle::Status};

/// Share of the free memory that a KV pool takes where nothing is said.
const FREE_SHARE: u64 = 4;

impl WorkerPool {
    /// Brings the ranks behind `links`, in rank order, to where they take steps. Returns the blocks of the KV pool.
    ///
    /// Has no deadline of its own, as reading a large checkpoint from a slow disk takes what it takes: a rank that
    /// ends, or a user who loses patience, ends it.
    pub(crate) fn start(
        links: Vec<ControlLink<ToRank, FromRank>>,
        config: &EngineConfig,
        status: Arc<Status>,
        wake: impl Fn() + Send + Clone + 'static,
    ) -> Result<(Self, usize), PoolError> {
        let expected = config.partition.world();
        if links.len() != expected {
            return Err(PoolError::World { expected, got: links.len() });
        }
        let mut pool = Self::connect(links, config.geometry.vocab_size, status, wake)?;
        let reports = pool.load(config)?;
        let kv_blocks = kv_blocks(config, &reports)?;
        pool.begin(config, &reports, kv_blocks)?;
        pool.heartbeat.start(pool.senders.clone())?;
        tracing::info!(ranks = expected, kv_blocks, kv_tokens = kv_blocks * BLOCK_TOKENS, "the ranks are ready");
        Ok((pool, kv_blocks))
    }

    fn load(&self, config: &EngineConfig) -> Result<Vec<LoadReport>, PoolError> {
        let order = LoadOrder {
            geometry: config.geometry.clone(),
            weights: config.weights.clone(),
            fingerprint: config.fingerprint,
            dtype: config.dtype,
            threads: config.threads,
            comm: config.comm,
            spin: config.spin,
            max_batched_tokens: config.max_batched_tokens,
            max_seqs: config.max_seqs,
        };
        self.send_all(|_| ToRank::Load(order.clone()))?;
        let reports = self.collect("the end of loading", |message| match message {
            FromRank::Loaded(report) => Ok(report),
            other => Err(other),
        })?;
        for (rank, report) in reports.iter().enumerate() {
            let LoadReport { weight_bytes, free_bytes, .. } = report;
            tracing::info!(rank, weight_bytes, free_bytes, "loaded");
        }
        Ok(reports)
    }

    fn begin(&self, config: &EngineConfig, reports: &[LoadReport], kv_blocks: usize) -> Result<(), PoolError> {
        let mut peers = Vec::new();
        if config.comm == CommKind::Tcp {
            for (rank, report) in reports.iter().enumerate() {
                peers.push(report.data_address.clone().ok_or(PoolError::NoAddress { rank })?);
            }
        }
        let link_key = handshake::random_key().map_err(PoolError::LinkKey)?;
        self.send_all(|_| ToRank::Start(StartOrder { kv_blocks, peers: peers.clone(), link_key }))?;
        self.collect("that it is ready", |message| match message {
            FromRank::Ready => Ok(()),
            other => Err(other),
        })?;
        Ok(())
    }
}

/// Blocks of the KV pool: what fits the rank with the least room.
fn kv_blocks(config: &EngineConfig, reports: &[LoadReport]) -> Result<usize, PoolError> {
    let geometry = &config.geometry;
    let full_length = geometry.n_positions.div_ceil(BLOCK_TOKENS) as u64;
    // Ranks that share a host share its memory; those on other hosts have theirs to themselves.
    let sharing = if config.comm == CommKind::Shm { config.partition.world() as u64 } else { 1 };
    let mut fewest = u64::from(u32::MAX);
    for (rank, report) in reports.iter().enumerate() {
        let block_bytes = report.kv_block_bytes.max(1);
        let enough = block_bytes * full_length * config.max_seqs as u64;
        let budget = config.kv_memory.unwrap_or(enough.min(report.free_bytes / FREE_SHARE / sharing));
        if budget / block_bytes < full_length {
            let (n_positions, needed) = (geometry.n_positions, full_length * block_bytes);
            return Err(PoolError::KvMemory { rank, n_positions, needed, budget });
        }
        fewest = fewest.min(budget / block_bytes);
    }
    Ok(fewest as usize)
}

#[cfg(test)]
mod tests {
    use nanoinfer_shared::{Geometry, Partition, protocol::DType};

    use super::*;

    /// gpt2-xl over two ranks: 13 and 12 heads, 64 blocks for a full sequence.
    fn config(kv_memory: Option<u64>, max_seqs: usize) -> EngineConfig {
        let json = r#"{"n_embd":1600,"n_layer":48,"n_head":25}"#;
        let geometry = Geometry::from_config_json(json).unwrap();
        let partition = Partition::new(&geometry, 2).unwrap();
        EngineConfig {
            geometry,
            partition,
            weights: Vec::new(),
            fingerprint: 0,
            dtype: DType::F32,
            threads: 1,
            comm: CommKind::Tcp,
            spin: false,
            kv_memory,
            max_seqs,
            max_batched_tokens: 512,
            max_queue: 8,
        }
    }

    /// Of one block of 13 heads; the other rank has 12.
    const BLOCK: u64 = 48 * 2 * 13 * 64 * 16 * 4;

    fn free(bytes: [u64; 2]) -> Vec<LoadReport> {
        let kv_block_bytes = [BLOCK, BLOCK / 13 * 12];
        let report = |rank: usize| LoadReport {
            weight_bytes: 0,
            kv_block_bytes: kv_block_bytes[rank],
            free_bytes: bytes[rank],
            data_address: None,
        };
        vec![report(0), report(1)]
    }

    #[test]
    fn the_rank_with_the_least_room_decides() {
        let plenty = 1 << 40;
        assert_eq!(kv_blocks(&config(None, 4), &free([plenty; 2])).unwrap(), 4 * 64, "no more than can be used");
        assert_eq!(kv_blocks(&config(None, 4), &free([4 * 100 * BLOCK, plenty])).unwrap(), 100);
        assert_eq!(kv_blocks(&config(Some(80 * BLOCK), 4), &free([1, 1])).unwrap(), 80, "what was said counts");
        let shared = EngineConfig { comm: CommKind::Shm, ..config(None, 4) };
        assert_eq!(kv_blocks(&shared, &free([8 * 100 * BLOCK; 2])).unwrap(), 100);
    }

    #[test]
    fn a_pool_below_one_full_sequence_is_refused_with_the_numbers() {
        let error = kv_blocks(&config(Some(1000), 4), &free([1, 1])).unwrap_err().to_string();
        for part in ["rank 0", "1024 tokens", "327155712 bytes", "budget is 1000", "--kv-memory"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
