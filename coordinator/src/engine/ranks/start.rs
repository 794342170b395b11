//! From links to ranks that are ready: load, choose the size of the KV pool, start.
//!
//! Does not know what is served later.

use std::sync::Arc;

use nanoinfer_shared::{
    handshake,
    link::ControlLink,
    protocol::{BLOCK_TOKENS, CommKind, FromRank, LoadOrder, LoadReport, StartOrder, ToRank},
};

use super::{LinkedRanks, RanksError};
use crate::engine::{config::EngineConfig, kv_budget::RankRoom, status::Status};

impl LinkedRanks {
    /// Brings the ranks behind `links`, in rank order, to where they take steps. Returns the blocks of the KV pool.
    ///
    /// Has no deadline of its own, as reading a large checkpoint from a slow disk takes what it takes: a rank that
    /// ends or is silent, or a user who loses patience, ends it. Who is waited for is said now and then.
    pub(crate) fn start(
        links: Vec<ControlLink<ToRank, FromRank>>,
        config: &EngineConfig,
        status: Arc<Status>,
        wake: impl Fn() + Send + Clone + 'static,
    ) -> Result<(Self, usize), RanksError> {
        let expected = config.partition.world();
        if links.len() != expected {
            return Err(RanksError::World { expected, got: links.len() });
        }
        let ranks = Self::connect(links, config.shape.vocab_size, status, wake)?;
        let reports = ranks.load(config)?;
        let room = |report: &LoadReport| RankRoom { block_bytes: report.kv_block_bytes, free_bytes: report.free_bytes };
        let rooms: Vec<RankRoom> = reports.iter().map(room).collect();
        let kv_blocks = config.kv.blocks(&config.shape, config.load.max_seqs, &rooms)?;
        ranks.begin(config, &reports, kv_blocks)?;
        ranks.heartbeat.serve();
        tracing::info!(ranks = expected, kv_blocks, kv_tokens = kv_blocks * BLOCK_TOKENS, "the ranks are ready");
        Ok((ranks, kv_blocks))
    }

    pub(super) fn load(&self, config: &EngineConfig) -> Result<Vec<LoadReport>, RanksError> {
        let order = |rank: usize| {
            let ranks_on_host = config.ranks_on_host.get(rank).copied().unwrap_or(1);
            LoadOrder { ranks_on_host, ..config.load.clone() }
        };
        self.send_all(|rank| ToRank::Load(order(rank)))?;
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

    fn begin(&self, config: &EngineConfig, reports: &[LoadReport], kv_blocks: usize) -> Result<(), RanksError> {
        let mut peers = Vec::new();
        if config.load.comm == CommKind::Tcp {
            for (rank, report) in reports.iter().enumerate() {
                peers.push(report.data_address.clone().ok_or(RanksError::NoAddress { rank })?);
            }
        }
        let nccl_id = reports.first().and_then(|report| report.nccl_id.clone());
        let link_key = handshake::random_key().map_err(RanksError::LinkKey)?;
        self.send_all(|_| {
            ToRank::Start(StartOrder { kv_blocks, peers: peers.clone(), nccl_id: nccl_id.clone(), link_key })
        })?;
        self.collect("that it is ready", |message| match message {
            FromRank::Ready => Ok(()),
            other => Err(other),
        })?;
        Ok(())
    }
}
