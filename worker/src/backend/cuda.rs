//! A rank on a GPU. No part of CUDA is linked: driver, cublasLt and NCCL are found at run time, and what is missing is named.
//!
//! Reading order: [`find`](mod@find) looks for libraries and GPUs; [`gpu`] is one GPU with its stream, memory and kernels; [`weights`] copies a
//! rank's slices there; [`model`] queues a forward pass of kernels, layers ([`linear`], [`products`]) and reductions ([`nccl`], or over the
//! host);
//! [`inputs`] and [`answers`] are what goes up and comes back; [`runner`] turns plans into steps, decode steps as captured graphs. [`check`](mod@check) tries all of it.
//! The kernels are in `worker/kernels/cuda/`. See `docs/gpu.md`.

mod answers;
mod check;
mod error;
#[allow(unsafe_code)]
mod find;
#[allow(unsafe_code)]
mod gpu;
mod inputs;
mod linear;
mod model;
#[allow(unsafe_code)]
mod nccl;
#[allow(unsafe_code)]
mod products;
mod runner;
mod weights;

use nanoinfer_kernels::cuda::{Element, MAX_HEAD_DIM};
use nanoinfer_shared::{
    Geometry, Share,
    protocol::{CommKind, DType, KvDType, LoadOrder},
};

pub use self::{
    check::{Finding, check},
    error::GpuError,
    find::{Found, GpuInfo, find},
};
use self::{
    gpu::Gpu,
    model::{Model, Reduction, Room},
    nccl::{Communicator, Nccl},
    runner::Runner,
    weights::Weights,
};
use crate::{
    WorkerError,
    backend::{self, Link, Loaded},
    bounds::Bounds,
    plan::{RankMemory, StepSizes},
    trace::Trace,
};
use nanoinfer_checkpoint::Checkpoint;

/// The kernels' element type for a model, where they have what it needs.
///
/// # Errors
/// Says what they have not.
pub fn fits(geometry: &Geometry, dtype: DType, kv_dtype: KvDType) -> Result<(), GpuError> {
    element_of(geometry, dtype, kv_dtype).map(drop)
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

/// Bytes of a rank on its GPU with a KV cache of `kv_blocks` blocks.
pub(crate) fn memory(
    geometry: &Geometry,
    (rank, share): (usize, &Share),
    dtype: DType,
    comm: CommKind,
    kv_blocks: usize,
    step: StepSizes,
) -> RankMemory {
    let (element, rows) = (element(dtype), runner::rows_at_once(step.max_seqs));
    RankMemory {
        weights: Weights::bytes(geometry, rank, share, element),
        kv: kv_blocks as u64 * Model::block_bytes(geometry, share, element),
        activations: Model::activation_bytes(geometry, share, element, step.max_batched_tokens, rows)
            + runner::buffer_bytes(geometry, share, step)
            + CONTEXT_BYTES,
        link: if comm == CommKind::Nccl { NCCL_BYTES } else { 0 },
    }
}

/// What the peers of this rank, the first, need to join it over NCCL.
pub(crate) fn new_nccl_id() -> Result<Vec<u8>, WorkerError> {
    Nccl::load().and_then(|nccl| nccl.new_id()).map_err(|source| WorkerError::Gpu { rank: 0, source })
}

fn element_of(geometry: &Geometry, dtype: DType, kv_dtype: KvDType) -> Result<Element, GpuError> {
    if dtype == DType::Int8 {
        return Err(GpuError::DType { dtype });
    }
    if kv_dtype != KvDType::beside(dtype) {
        return Err(GpuError::KvDType { dtype, kv_dtype });
    }
    if geometry.head_dim() > MAX_HEAD_DIM {
        return Err(GpuError::HeadTooWide { head_dim: geometry.head_dim(), limit: MAX_HEAD_DIM });
    }
    Ok(element(dtype))
}

fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::Bf16 => Element::Bf16,
        DType::Int8 => unreachable!("`fits` refuses it"),
    }
}

/// A rank's slices, on its GPU.
pub(crate) struct Held {
    order: LoadOrder,
    rank: usize,
    share: Share,
    element: Element,
    weights: Weights,
    gpu: Gpu,
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
        let element = element_of(&order.geometry, order.dtype, order.kv_dtype).map_err(failed)?;
        let _context = find::open_one(ordinal).map_err(failed)?;
        let gpu = Gpu::open(ordinal, element).map_err(failed)?;
        let needed = Weights::bytes(&order.geometry, rank, share, element);
        let free = gpu.free_bytes().map_err(failed)?;
        if needed > free {
            let (name, what) = (gpu.name.clone(), "weights");
            return Err(failed(GpuError::Memory { ordinal, name, free, needed, what }));
        }
        tracing::info!(rank, gpu = ordinal, name = gpu.name, "loading");
        let weights =
            Weights::load(&gpu, checkpoint, &order.geometry, (rank, share), element, backend::threads(order))?;
        Ok(Self { order: order.clone(), rank, share: share.clone(), element, weights, gpu })
    }

    /// A runner, whose decode steps are captured where `with_graphs` and nothing in them needs the host.
    fn runner(self, kv_blocks: usize, link: Link, trace: Trace, with_graphs: bool) -> Result<Runner, WorkerError> {
        let Self { order, rank, share, element, weights, gpu } = self;
        let failed = |source| WorkerError::Gpu { rank, source };
        let tokens = order.max_batched_tokens;
        let reduction = match link {
            Link::Host(comm) if comm.world() == 1 => Reduction::Alone,
            Link::Host(comm) => {
                let staging = gpu.pinned(tokens * order.geometry.n_embd).map_err(failed)?;
                Reduction::Staged { comm, staging }
            }
            Link::Nccl { rank, world, id } => {
                let joined = Nccl::load().and_then(|nccl| Communicator::join(nccl, rank, world, &id));
                Reduction::Nccl(joined.map_err(failed)?)
            }
        };
        let room = Room { tokens, rows: runner::rows_at_once(order.max_seqs), kv_blocks };
        let model =
            Model::new(gpu, order.geometry, (rank, share), element, weights, reduction, room).map_err(failed)?;
        let bounds = Bounds { max_batched_tokens: tokens, max_seqs: order.max_seqs, kv_blocks };
        Runner::new(model, rank, bounds, trace, with_graphs)
    }
}

impl Loaded for Held {
    fn weight_bytes(&self) -> u64 {
        Weights::bytes(&self.order.geometry, self.rank, &self.share, self.element)
    }

    fn kv_block_bytes(&self) -> u64 {
        Model::block_bytes(&self.order.geometry, &self.share, self.element)
    }

    fn free_bytes(&self) -> Option<u64> {
        // A failure will be met, and told, by what follows.
        self.gpu.free_bytes().ok()
    }

    fn start(
        self: Box<Self>,
        kv_blocks: usize,
        link: Link,
        trace: Trace,
    ) -> Result<Box<dyn backend::Runner>, WorkerError> {
        Ok(Box::new(self.runner(kv_blocks, link, trace, true)?))
    }
}
