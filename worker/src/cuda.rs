//! A rank on a GPU. No part of CUDA is linked: driver, cublasLt and NCCL are found at run time, and what is missing is named.
//!
//! Reading order: [`find`](mod@find) looks for libraries and GPUs; [`gpu`] is one GPU with its stream, memory and kernels; [`load`] copies a
//! rank's slices there; [`pass`] queues a forward pass of kernels, layers ([`linear`], [`products`]) and reductions ([`nccl`], or over the
//! host);
//! [`inputs`] and [`answers`] are what goes up and comes back; [`step`] turns plans into answers, decode steps as captured graphs.
//! The kernels are in `worker/kernels/cuda/`. See `docs/gpu.md`.

pub(crate) mod answers;
pub(crate) mod error;
#[allow(unsafe_code)]
pub(crate) mod find;
#[allow(unsafe_code)]
pub(crate) mod gpu;
pub(crate) mod inputs;
pub(crate) mod linear;
pub(crate) mod load;
#[allow(unsafe_code)]
pub(crate) mod nccl;
pub(crate) mod pass;
#[allow(unsafe_code)]
pub(crate) mod products;
pub(crate) mod step;

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_kernels::{Element, cuda::MAX_HEAD_DIM};
use nanoinfer_shared::{
    ModelShape, Share,
    protocol::{CommKind, DType, LoadOrder},
};

pub use self::{
    error::GpuError,
    find::{Found, GpuInfo, find},
};
use self::{
    gpu::Gpu,
    load::Weights,
    nccl::{Communicator, Nccl},
    pass::{Pass, Reduction, Sizes},
    step::StepRunner,
};
use crate::{
    WorkerError,
    bounds::Bounds,
    element::element,
    runner::{Link, Loaded, RankMemory, Runner, threads},
    trace::Trace,
};

/// The kernels' element type for a model, where they have what it needs.
///
/// # Errors
/// Says what they have not.
pub fn fits(shape: &ModelShape, dtype: DType, kv_dtype: DType) -> Result<(), GpuError> {
    element_of(shape, dtype, kv_dtype).map(drop)
}

/// The version of NCCL, where it is found.
///
/// # Errors
/// Names what was looked for and where.
pub fn nccl_version() -> Result<String, GpuError> {
    // Counted as MAJOR·10000 + MINOR·100 + PATCH.
    Nccl::load().map(|nccl| format!("{}.{}.{}", nccl.version / 10_000, nccl.version / 100 % 100, nccl.version % 100))
}

/// What a context, the modules of our kernels and of cublasLt's, and graphs take on a GPU, as a rule; no call tells beforehand.
const CONTEXT_BYTES: u64 = 512 << 20;
/// What NCCL takes for its buffers, likewise.
const NCCL_BYTES: u64 = 512 << 20;

/// What a rank will take of its GPU.
pub(crate) fn memory(order: &LoadOrder, rank: usize, share: &Share, kv_blocks: usize) -> RankMemory {
    let &LoadOrder { ref shape, max_batched_tokens, max_seqs, .. } = order;
    let (element, rows) = (element(order.dtype), step::rows_at_once(max_seqs));
    RankMemory {
        weights: Weights::bytes(shape, rank, share, element),
        kv: kv_blocks as u64 * Pass::block_bytes(shape, share, element),
        activations: Pass::activation_bytes(shape, share, element, max_batched_tokens, rows)
            + step::buffer_bytes(shape, share, max_batched_tokens, max_seqs)
            + CONTEXT_BYTES,
        link: if order.comm == CommKind::Nccl { NCCL_BYTES } else { 0 },
    }
}

/// What the peers of this rank, the first, need to join it over NCCL.
pub(crate) fn new_nccl_id() -> Result<Vec<u8>, WorkerError> {
    Nccl::load().and_then(|nccl| nccl.new_id()).map_err(|source| WorkerError::Gpu { rank: 0, source })
}

fn element_of(shape: &ModelShape, dtype: DType, kv_dtype: DType) -> Result<Element, GpuError> {
    if dtype == DType::Int8 {
        return Err(GpuError::DType { dtype });
    }
    if kv_dtype != dtype {
        return Err(GpuError::KvDType { dtype, kv_dtype });
    }
    if shape.attention.head_dim > MAX_HEAD_DIM {
        return Err(GpuError::HeadTooWide { head_dim: shape.attention.head_dim, limit: MAX_HEAD_DIM });
    }
    Ok(element(dtype))
}

/// A rank's slices, on its GPU.
pub(crate) struct Held {
    pub(crate) order: LoadOrder,
    pub(crate) rank: usize,
    pub(crate) share: Share,
    pub(crate) element: Element,
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
        let failed = |source| WorkerError::Gpu { rank, source };
        let element = element_of(&order.shape, order.dtype, order.kv_dtype).map_err(failed)?;
        let _context = find::open_one(ordinal).map_err(failed)?;
        let gpu = Gpu::open(ordinal, element).map_err(failed)?;
        let needed = Weights::bytes(&order.shape, rank, share, element);
        let free = gpu.free_bytes().map_err(failed)?;
        if needed > free {
            let (name, what) = (gpu.name.clone(), "weights");
            return Err(failed(GpuError::Memory { ordinal, name, free, needed, what }));
        }
        tracing::info!(rank, gpu = ordinal, name = gpu.name, "loading");
        let weights = Weights::load(&gpu, Some(checkpoint), &order.shape, (rank, share), element, threads(order))?;
        Ok(Self { order: order.clone(), rank, share: share.clone(), element, weights, gpu })
    }

    /// A runner, whose decode steps are captured where `with_graphs` and nothing in them needs the host.
    pub(crate) fn runner(
        self,
        kv_blocks: usize,
        link: Link,
        trace: Trace,
        with_graphs: bool,
    ) -> Result<StepRunner, WorkerError> {
        let Self { order, rank, share, element, weights, gpu } = self;
        let failed = |source| WorkerError::Gpu { rank, source };
        let tokens = order.max_batched_tokens;
        let reduction = match link {
            Link::Host(comm) if comm.world() == 1 => Reduction::Alone,
            Link::Host(comm) => {
                let staging = gpu.pinned(tokens * order.shape.width).map_err(failed)?;
                Reduction::Staged { comm, staging }
            }
            Link::Nccl { rank, world, id } => {
                let joined = Nccl::load().and_then(|nccl| Communicator::join(nccl, rank, world, &id));
                Reduction::Nccl(joined.map_err(failed)?)
            }
        };
        let sizes = Sizes { tokens, rows: step::rows_at_once(order.max_seqs), kv_blocks };
        let pass = Pass::new(gpu, order.shape, (rank, share), element, weights, reduction, sizes).map_err(failed)?;
        let bounds = Bounds { max_batched_tokens: tokens, max_seqs: order.max_seqs, kv_blocks };
        StepRunner::new(pass, rank, bounds, trace, with_graphs)
    }
}

impl Loaded for Held {
    fn weight_bytes(&self) -> u64 {
        Weights::bytes(&self.order.shape, self.rank, &self.share, self.element)
    }

    fn kv_block_bytes(&self) -> u64 {
        Pass::block_bytes(&self.order.shape, &self.share, self.element)
    }

    fn free_bytes(&self) -> Option<u64> {
        // A failure will be met, and told, by what follows.
        self.gpu.free_bytes().ok()
    }

    fn start(self: Box<Self>, kv_blocks: usize, link: Link, trace: Trace) -> Result<Box<dyn Runner>, WorkerError> {
        Ok(Box::new(self.runner(kv_blocks, link, trace, true)?))
    }
}
