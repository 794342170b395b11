//! What a rank computes on, chosen when it is told to load. Two things differ between devices, and stand here as traits: holding
//! the rank's slices ([`Loaded`]), and running steps over them ([`Runner`]).
//!
//! ```text
//!             ┌─ Cpu:  Shard ──────► StepRunner over Gpt2 and Kernels
//! LoadOrder ──┤
//!             └─ Gpus: cuda::Held ─► cuda::Runner over streams, graphs and cublasLt
//! ```

pub mod cuda;

use nanoinfer_kernels::{Isa, Kernels, MAX_HEAD_DIM, keep_on};
use nanoinfer_shared::{
    Geometry, Share,
    comm::Communicator,
    protocol::{CommKind, DType, Device, KvDType, LoadOrder, LogitSlice, StepOutput, StepPlan},
};

use crate::{
    WorkerError,
    gpt2::Gpt2,
    kv_pool::KvPool,
    memory,
    plan::{RankMemory, StepSizes},
    shard::Shard,
    step::StepRunner,
    trace::Trace,
};
use nanoinfer_checkpoint::Checkpoint;

/// A rank's slices of a checkpoint, in the memory of its device.
pub(crate) trait Loaded {
    /// Bytes of weights.
    fn weight_bytes(&self) -> u64;

    /// Bytes of one block of the KV pool.
    fn kv_block_bytes(&self) -> u64;

    /// Bytes free for that pool; `None` where the system does not say.
    fn free_bytes(&self) -> Option<u64>;

    /// Allocates the pool and all buffers.
    ///
    /// # Errors
    /// When the device does not take them, or the peers cannot be joined.
    fn start(self: Box<Self>, kv_blocks: usize, link: Link, trace: Trace) -> Result<Box<dyn Runner>, WorkerError>;
}

/// Runs steps.
pub(crate) trait Runner {
    /// Runs one step.
    ///
    /// # Errors
    /// When the plan does not fit this rank, or a reduction or the device fails.
    fn run(&mut self, plan: &StepPlan) -> Result<StepOutput, WorkerError>;

    /// Logits `[V_local]` of rows of the last step that asked for candidates.
    ///
    /// # Errors
    /// When a row asked for something else, there is no such row, or the device fails.
    fn fetch(&mut self, rows: &[u32]) -> Result<Vec<LogitSlice>, WorkerError>;

    /// Writes the timeline of a step that was answered.
    fn write_trace(&mut self, step: u64);

    /// Frees peers that wait for this rank.
    fn abort(&self);
}

/// How partial sums reach the other ranks.
pub(crate) enum Link {
    /// Through the host's memory.
    Host(Box<dyn Communicator>),
    /// From GPU to GPU: rank, world size, and what rank 0 reported.
    Nccl { rank: usize, world: usize, id: Vec<u8> },
}

/// Copies this rank's slices to the device that was ordered.
///
/// # Errors
/// When a tensor is missing, the device is, or it does not do what is asked.
pub(crate) fn load(
    order: &LoadOrder,
    rank: usize,
    share: &Share,
    checkpoint: impl FnOnce() -> Result<Checkpoint, WorkerError>,
) -> Result<Box<dyn Loaded>, WorkerError> {
    match &order.device {
        Device::Cpu => Ok(Box::new(CpuShard::load(order, rank, share, checkpoint)?)),
        Device::Gpus(gpus) => {
            let gpu = gpus[rank % gpus.len()];
            Ok(Box::new(cuda::Held::load(order, gpu, rank, share, &checkpoint()?)?))
        }
    }
}

/// Whether the CPU computes such a model in such types.
///
/// # Errors
/// Says what it does not do.
pub(crate) fn fits_cpu(geometry: &Geometry, dtype: DType, kv_dtype: KvDType) -> Result<(), WorkerError> {
    if geometry.head_dim() > MAX_HEAD_DIM {
        return Err(WorkerError::HeadTooWide { head_dim: geometry.head_dim(), limit: MAX_HEAD_DIM });
    }
    if dtype == DType::F16 || kv_dtype == KvDType::F16 {
        return Err(WorkerError::HalfOnCpu);
    }
    Ok(())
}

/// Threads of a rank.
fn threads(order: &LoadOrder) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    order.threads.unwrap_or_else(|| (cores() / order.ranks_on_host).max(1))
}

struct CpuShard {
    order: LoadOrder,
    rank: usize,
    share: Share,
    shard: Shard,
    isa: Isa,
    threads: usize,
}

impl CpuShard {
    fn load(
        order: &LoadOrder,
        rank: usize,
        share: &Share,
        checkpoint: impl FnOnce() -> Result<Checkpoint, WorkerError>,
    ) -> Result<Self, WorkerError> {
        let isa = isa_of(order)?;
        fits_cpu(&order.geometry, order.dtype, order.kv_dtype)?;
        let threads = threads(order);
        // Before anything is taken: what the system refuses later ends the process without a word.
        let &LoadOrder { ref geometry, max_batched_tokens, max_seqs, dtype, kv_dtype, .. } = order;
        let step = StepSizes { max_batched_tokens, max_seqs };
        // Blocks and the link come later, when the coordinator has counted what is free.
        let (link, kv) = ((CommKind::Local, 1), (kv_dtype, 0));
        let needed = RankMemory::estimate(geometry, (rank, share), &Device::Cpu, dtype, link, kv, step).total();
        if let Some(free) = memory::free_bytes().filter(|free| *free < needed) {
            return Err(WorkerError::Memory { rank, needed, max_batched_tokens, free });
        }
        // Before the first page of weights is touched, which is then on the node of these CPUs.
        if let Some(cpus) = order.cores.of_rank(rank) {
            keep_on(cpus);
        }
        let shard = Shard::load(&checkpoint()?, &order.geometry, share, order.dtype, threads)?;
        Ok(Self { order: order.clone(), rank, share: share.clone(), shard, isa, threads })
    }
}

impl Loaded for CpuShard {
    fn weight_bytes(&self) -> u64 {
        Shard::bytes(&self.order.geometry, &self.share, self.order.dtype)
    }

    fn kv_block_bytes(&self) -> u64 {
        KvPool::block_bytes(&self.order.geometry, &self.share, self.order.kv_dtype)
    }

    fn free_bytes(&self) -> Option<u64> {
        memory::free_bytes()
    }

    fn start(self: Box<Self>, kv_blocks: usize, link: Link, trace: Trace) -> Result<Box<dyn Runner>, WorkerError> {
        let Self { order, rank, share, shard, isa, threads } = *self;
        let Link::Host(comm) = link else { return Err(WorkerError::NcclOnCpu { rank }) };
        let kv = KvPool::new(&order.geometry, &share, order.kv_dtype, kv_blocks);
        let mut kernels = Kernels::new(isa, threads, order.cores.may_spin())
            .map_err(|source| WorkerError::Threads { rank, wanted: threads + 1, source })?;
        if let Some(cpus) = order.cores.of_rank(rank) {
            kernels.pin(cpus);
        }
        tracing::info!(rank, isa = kernels.isa().name(), kv_blocks, "ready");
        let tokens = order.max_batched_tokens;
        let model = Gpt2::new(order.geometry, share, shard, kv, comm, kernels, tokens).with_trace(trace);
        Ok(Box::new(StepRunner::new(model, tokens, order.max_seqs)))
    }
}

/// The instruction set ordered, or the best there is.
fn isa_of(load: &LoadOrder) -> Result<Isa, WorkerError> {
    let Some(name) = &load.isa else { return Ok(Isa::detect()) };
    let available = Isa::available();
    Isa::from_name(name).filter(|isa| available.contains(isa)).ok_or_else(|| WorkerError::Isa {
        name: name.clone(),
        available: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
    })
}
