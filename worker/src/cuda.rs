//! A rank on a GPU. No part of CUDA is linked: the driver and NCCL are found at run time, and what is missing is named.
//!
//! Reading order: [`find`](mod@find) looks for libraries and GPUs; [`gpu`] is one GPU with its stream, memory and kernels; [`model`] is what
//! of a model a rank computes, whose slices [`load`] copies there ([`upload`]); [`pass`] queues a forward pass of kernels, layers ([`linear`]) and
//! reductions ([`nccl`], or over the host); [`inputs`] and [`answers`] are what goes up and comes back; [`step`] turns
//! plans into answers, decode steps as captured graphs. What fails becomes an error of the rank in [`failure`].
//! The kernels are in `worker/kernels/cuda/`. See `docs/gpu.md`.

pub(crate) mod answers;
pub(crate) mod buffers;
pub(crate) mod error;
pub(crate) mod failure;
#[allow(unsafe_code)]
pub(crate) mod find;
#[allow(unsafe_code)]
pub(crate) mod gpu;
pub(crate) mod inputs;
pub(crate) mod linear;
pub(crate) mod load;
pub(crate) mod model;
#[allow(unsafe_code)]
pub(crate) mod nccl;
pub(crate) mod pass;
pub(crate) mod step;
pub(crate) mod upload;

use std::fs::File;

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    Share,
    protocol::{CommKind, LoadOrder},
};

pub use self::{
    error::GpuError,
    find::{Found, GpuInfo, find},
};
use self::{
    failure::{Failure, OfRank},
    gpu::Gpu,
    load::Weights,
    model::RankModel,
    nccl::{Communicator, Nccl},
    pass::{Pass, Reduction},
    step::StepRunner,
    upload::WEIGHTS,
};
use crate::{
    WorkerError,
    bounds::Bounds,
    fit::fits,
    runner::{Link, Loaded, RankMemory, Runner},
    trace::Trace,
};

/// The version of NCCL, where it is found.
///
/// # Errors
/// Names what was looked for and where.
pub fn nccl_version() -> Result<String, GpuError> {
    // Counted as MAJOR·10000 + MINOR·100 + PATCH.
    Nccl::load().map(|nccl| format!("{}.{}.{}", nccl.version / 10_000, nccl.version / 100 % 100, nccl.version % 100))
}

/// What a context, the module of our kernels, and graphs take on a GPU, as a rule; no call tells beforehand.
const CONTEXT_BYTES: u64 = 512 << 20;
/// What NCCL takes for its buffers, likewise.
const NCCL_BYTES: u64 = 512 << 20;

/// What a rank will take of its GPU.
pub(crate) fn memory(order: &LoadOrder, rank: usize, share: &Share, kv_blocks: usize) -> RankMemory {
    let model = RankModel::new(order, rank, share);
    let &LoadOrder { max_batched_tokens, max_seqs, .. } = order;
    let weights = Weights::bytes(&model);
    RankMemory {
        weights: weights.all,
        looked_up: weights.looked_up,
        kv: kv_blocks as u64 * Pass::block_bytes(&model),
        activations: Pass::activation_bytes(&model, max_batched_tokens, step::rows_at_once(max_seqs))
            + step::buffer_bytes(&model, max_batched_tokens, max_seqs)
            + CONTEXT_BYTES,
        link: if order.comm == CommKind::Nccl { NCCL_BYTES } else { 0 },
    }
}

/// What the peers of this rank, the first, need to join it over NCCL.
pub(crate) fn new_nccl_id() -> Result<Vec<u8>, WorkerError> {
    Nccl::load().and_then(|nccl| nccl.new_id()).of_rank(0)
}

/// A rank's slices, on its GPU.
pub(crate) struct Held {
    pub(crate) order: LoadOrder,
    pub(crate) model: RankModel,
    pub(crate) weights: Weights,
    pub(crate) gpu: Gpu,
}

impl Held {
    /// Copies `share` of a checkpoint to GPU `ordinal`.
    pub(crate) fn load(
        order: &LoadOrder,
        ordinal: u32,
        rank: usize,
        share: &Share,
        checkpoint: &Checkpoint,
    ) -> Result<Self, WorkerError> {
        let load = || {
            fits(order.on_host.device, &order.shape, order.dtype, order.kv_dtype).map_err(GpuError::Unfit)?;
            let model = RankModel::new(order, rank, share);
            let _context = find::open_one(ordinal)?;
            let gpu = Gpu::open(ordinal, model.element)?;
            let needed = Weights::bytes(&model).all;
            let free = gpu.free_bytes()?;
            if needed > free {
                let name = gpu.name.clone();
                return Err(GpuError::Memory { ordinal, name, free, needed, what: WEIGHTS }.into());
            }
            tracing::info!(rank, gpu = ordinal, name = gpu.name, "loading");
            let weights = Weights::load(&gpu, Some(checkpoint), &model, order.on_host.threads)?;
            Ok::<_, Failure>(Self { order: order.clone(), model, weights, gpu })
        };
        load().of_rank(rank)
    }

    /// A runner, whose decode steps are captured where `with_graphs` and nothing in them needs the host.
    pub(crate) fn runner(
        self,
        kv_blocks: usize,
        link: Link,
        trace: Trace,
        with_graphs: bool,
    ) -> Result<StepRunner, WorkerError> {
        let Self { order: LoadOrder { max_batched_tokens, max_seqs, .. }, model, weights, gpu } = self;
        let rank = model.rank;
        let reduction = match link {
            Link::Host(comm) if comm.world() == 1 => Reduction::Alone,
            Link::Host(comm) => {
                let staging = gpu.pinned(buffers::reduced_floats(&model, max_batched_tokens)).of_rank(rank)?;
                Reduction::Staged { comm, staging }
            }
            Link::Nccl { rank, world, id } => {
                let joined = Nccl::load().and_then(|nccl| Communicator::join(nccl, gpu.context(), rank, world, &id));
                Reduction::Nccl(joined.of_rank(rank)?)
            }
        };
        let (bounds, rows) = (Bounds { max_batched_tokens, max_seqs, kv_blocks }, step::rows_at_once(max_seqs));
        let pass = Pass::new(gpu, model, weights, reduction, bounds, rows).of_rank(rank)?;
        StepRunner::new(pass, bounds, trace, with_graphs).of_rank(rank)
    }
}

impl Loaded for Held {
    fn weight_bytes(&self) -> u64 {
        Weights::bytes(&self.model).all
    }

    fn kv_block_bytes(&self) -> u64 {
        Pass::block_bytes(&self.model)
    }

    fn free_bytes(&self) -> Option<u64> {
        let RankMemory { activations, link, .. } = memory(&self.order, self.model.rank, &self.model.share, 0);
        // The context is there already. A failure will be met, and told, by what follows.
        let still_taken = activations - CONTEXT_BYTES + link;
        self.gpu.free_bytes().ok().map(|free| free.saturating_sub(still_taken))
    }

    fn start(
        self: Box<Self>,
        kv_blocks: usize,
        _pool: Option<&File>,
        link: Link,
        trace: Trace,
    ) -> Result<Box<dyn Runner>, WorkerError> {
        Ok(Box::new(self.runner(kv_blocks, link, trace, true)?))
    }
}
