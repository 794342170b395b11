//! From links to ranks that are ready: load, choose the size of the KV pool, start.
//!
//! Does not know what is served later.

use std::sync::Arc;

use nanoinfer_shared::{
    handshake,
    link::ControlLink,
    protocol::{BLOCK_TOKENS, CommKind, Device, FromRank, LoadOrder, LoadReport, StartOrder, StepPlan, ToRank},
};

use super::{
    GivenUp, LinkedRanks, Patience, Pools, budget::Budget, error::RanksError, heartbeat::Heartbeat, members::Inbox,
    source::RankSource,
};
use crate::engine::{config::EngineConfig, kv_budget::RankRoom, status::Status, submission::Wake};

impl LinkedRanks {
    /// Brings the ranks behind `links`, in rank order, to where they take steps; `source` has others where some are lost. Returns
    /// the blocks of the KV pool too.
    ///
    /// Has no deadline of its own, as reading a large checkpoint from a slow disk takes what it takes: a rank that
    /// ends or is silent, or a user who loses patience, ends it. Who is waited for is said now and then.
    pub(crate) fn start(
        links: Vec<ControlLink<ToRank, FromRank>>,
        source: Option<Box<dyn RankSource>>,
        config: &EngineConfig,
        status: Arc<Status>,
        wake: Wake,
        given_up: GivenUp,
    ) -> Result<(Self, usize), RanksError> {
        let expected = config.load.partition.world();
        if links.len() != expected {
            return Err(RanksError::World { expected, got: links.len() });
        }
        let mut ranks = Self::connect(links, source, config, status, wake, given_up)?;
        if let Err(error) = ranks.bring_up(&ranks.all()) {
            ranks.recover_from(error)?;
        }
        let kv_blocks = ranks.kv_blocks.expect("known once they have started");
        tracing::info!(ranks = expected, kv_blocks, kv_tokens = kv_blocks * BLOCK_TOKENS, "the ranks are ready");
        Ok((ranks, kv_blocks))
    }

    pub(super) fn connect(
        links: Vec<ControlLink<ToRank, FromRank>>,
        source: Option<Box<dyn RankSource>>,
        config: &EngineConfig,
        status: Arc<Status>,
        wake: Wake,
        given_up: GivenUp,
    ) -> Result<Self, RanksError> {
        let inbox = Inbox::connect(links, wake)?;
        Ok(Self {
            heartbeat: Heartbeat::start(inbox.members().clone(), status.clone())?,
            reports: vec![None; inbox.members().world()],
            inbox,
            status,
            config: config.clone(),
            kv_blocks: None,
            group: 0,
            source,
            budget: Budget::new(config.restarts),
            step: StepPlan::default(),
            patience: Patience::default(),
            given_up,
        })
    }

    /// Has those that are `new` load, and all start together.
    pub(super) fn bring_up(&mut self, new: &[usize]) -> Result<Pools, RanksError> {
        self.load(new)?;
        let kv_blocks = match self.kv_blocks {
            Some(blocks) => blocks,
            None => {
                let room = |(rank, report): (usize, &LoadReport)| RankRoom {
                    block_bytes: report.kv_block_bytes,
                    free_bytes: report.free_bytes,
                    is_gpu: matches!(self.config.on_hosts[rank].device, Device::Gpu(_)),
                    ranks_per_memory: self.config.ranks_per_memory[rank],
                };
                let reports = self.reports.iter().flatten().enumerate();
                let rooms: Vec<RankRoom> = reports.map(room).collect();
                self.config.kv.blocks(&self.config.shape, self.config.load.max_seqs, &rooms)?
            }
        };
        let pools = self.begin(kv_blocks)?;
        self.kv_blocks = Some(kv_blocks);
        self.heartbeat.serve();
        Ok(pools)
    }

    pub(super) fn load(&mut self, new: &[usize]) -> Result<(), RanksError> {
        let order = |rank: usize| LoadOrder { on_host: self.config.on_hosts[rank].clone(), ..self.config.load.clone() };
        self.send(new, |rank| ToRank::Load(Box::new(order(rank))))?;
        let mut reports = std::mem::take(&mut self.reports);
        // Noted as they come: where one is lost, the others have loaded all the same.
        let loaded = self.collect(new, "the end of loading", |rank, message| match message {
            FromRank::Loaded(report) => {
                tracing::info!(rank, report.weight_bytes, report.free_bytes, "loaded");
                reports[rank] = Some(report);
                Ok(())
            }
            other => Err(other),
        });
        self.reports = reports;
        loaded.map(drop)
    }

    fn begin(&self, kv_blocks: usize) -> Result<Pools, RanksError> {
        let all = self.all();
        let report = |rank: usize| self.reports[rank].as_ref();
        let mut peers = Vec::new();
        if self.config.load.comm == CommKind::Tcp {
            for rank in (0..self.config.load.hosts.len()).map(|host| self.config.load.hosts[..host].iter().sum()) {
                let address = report(rank).and_then(|report| report.data_address.clone());
                peers.push(address.ok_or(RanksError::NoAddress { rank })?);
            }
        }
        let nccl_id = report(0).and_then(|report| report.nccl_id.clone());
        let link_key = handshake::random_key().map_err(RanksError::LinkKey)?;
        let order = StartOrder { group: self.group, kv_blocks, peers, nccl_id, link_key };
        self.send(&all, |_| ToRank::Start(order.clone()))?;
        let kept = self.collect(&all, "that it is ready", |_, message| match message {
            FromRank::Ready { pool_kept } => Ok(pool_kept),
            other => Err(other),
        })?;
        Ok(if kept.iter().all(|&kept| kept) { Pools::Kept } else { Pools::Blank })
    }
}
