//! A rank on the processor.
//!
//! Reading order: [`load`] copies a rank's slices of a checkpoint into packed form ([`pack`]); [`pass`] is the forward pass, over a
//! [`pool`] of keys and values; [`step`] turns a plan into rows of answers. Does not know GPUs.

pub(crate) mod level;
pub mod load;
pub mod pack;
pub(crate) mod pool;
pub(crate) mod pass;
pub(crate) mod step;

use std::fs::File;

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_kernels::{Isa, Kernels, keep_on};
use nanoinfer_shared::{Share, protocol::LoadOrder};

use self::{level::Level, load::Shard, pass::Pass, pool::KvPool, step::StepRunner};
use crate::{
    WorkerError,
    fit::fits,
    memory,
    runner::{Link, Loaded, RankMemory, Runner},
    trace::Trace,
};

/// What a rank will take of its host's memory, without a data link.
pub(crate) fn memory(order: &LoadOrder, share: &Share, kv_blocks: usize) -> RankMemory {
    let shape = &order.shape;
    let weights = Shard::bytes(shape, share, order.dtype);
    RankMemory {
        weights: weights.all,
        looked_up: weights.looked_up,
        kv: kv_blocks as u64 * KvPool::block_bytes(shape, share, order.kv_dtype),
        activations: Pass::activation_bytes(shape, share, order.max_batched_tokens)
            + StepRunner::buffer_bytes(share, order.max_seqs),
        link: 0,
    }
}

/// A rank's slices, in packed form.
pub(crate) struct Held {
    order: LoadOrder,
    rank: usize,
    share: Share,
    shard: Shard,
    isa: Isa,
    threads: usize,
}

impl Held {
    /// Copies `share` of a checkpoint.
    pub(crate) fn load(
        order: &LoadOrder,
        rank: usize,
        share: &Share,
        checkpoint: impl FnOnce() -> Result<Checkpoint, WorkerError>,
    ) -> Result<Self, WorkerError> {
        let level = Level::choose(order.isa.as_deref())?;
        fits(order.on_host.device, &order.shape, order.dtype, order.kv_dtype)?;
        // Before anything is taken: what the system refuses later ends the process without a word. Blocks and the link come
        // later, when the coordinator has counted what is free.
        let (needed, max_batched_tokens) = (memory(order, share, 0).total(), order.max_batched_tokens);
        if let Some(free) = memory::free_bytes().filter(|free| *free < needed) {
            return Err(WorkerError::Memory { rank, needed, max_batched_tokens, free });
        }
        // Before the first page of weights is touched, which is then on the node of these CPUs.
        if let Some(cpus) = order.on_host.cores.pinned() {
            keep_on(cpus);
        }
        let threads = order.on_host.threads;
        let shard = Shard::load(&checkpoint()?, &order.shape, share, order.dtype, &level, threads)?;
        Ok(Self { order: order.clone(), rank, share: share.clone(), shard, isa: level.isa(), threads })
    }
}

impl Loaded for Held {
    fn weight_bytes(&self) -> u64 {
        memory(&self.order, &self.share, 0).weights
    }

    fn kv_block_bytes(&self) -> u64 {
        memory(&self.order, &self.share, 1).kv
    }

    fn free_bytes(&self) -> Option<u64> {
        memory::free_bytes()
    }

    fn start(
        self: Box<Self>,
        kv_blocks: usize,
        pool: Option<&File>,
        link: Link,
        trace: Trace,
    ) -> Result<Box<dyn Runner>, WorkerError> {
        let Self { order, rank, share, shard, isa, threads } = *self;
        let comm = link.through_host()?;
        let kv = KvPool::new(&order.shape, &share, order.kv_dtype, kv_blocks, pool)
            .map_err(|source| WorkerError::Pool { rank, source })?;
        let mut kernels = Kernels::new(isa, threads, order.on_host.cores.may_spin())
            .map_err(|source| WorkerError::Threads { rank, wanted: threads + 1, source })?;
        if let Some(cpus) = order.on_host.cores.pinned() {
            kernels.pin(cpus);
        }
        tracing::info!(rank, isa = kernels.isa().name(), kv_blocks, "ready");
        let mut pass = Pass::new(&order, share, shard, kv, comm, kernels);
        pass.trace = trace;
        Ok(Box::new(StepRunner::new(pass, order.max_batched_tokens, order.max_seqs)))
    }
}
