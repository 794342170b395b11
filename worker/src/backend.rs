//! Which device a rank computes on: the choice between those there are, and what each would take.
//!
//! ```text
//!             ┌─ cpu:  Held ─► Runner over a Pass of Kernels
//! LoadOrder ──┤
//!             └─ cuda: Held ─► Runner over a Pass of streams and graphs
//! ```

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    Partition, Share,
    comm::ShmSegment,
    protocol::{CommKind, Device, LoadOrder},
};

use crate::{
    WorkerError, cpu, cuda,
    runner::{Loaded, RankMemory},
};

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
    match order.on_host.device {
        Device::Cpu => Ok(Box::new(cpu::Held::load(order, rank, share, checkpoint)?)),
        Device::Gpu(gpu) => Ok(Box::new(cuda::Held::load(order, gpu, rank, share, &checkpoint()?)?)),
    }
}

/// What a rank will take with a KV pool of so many blocks, before anything is loaded.
pub fn memory(order: &LoadOrder, partition: &Partition, rank: usize, kv_blocks: usize) -> RankMemory {
    let share = partition.share(rank);
    if let Device::Gpu(_) = order.on_host.device {
        return cuda::memory(order, rank, share, kv_blocks);
    }
    let link = match order.comm {
        CommKind::Local | CommKind::Nccl => 0,
        CommKind::Shm | CommKind::Tcp => ShmSegment::bytes(partition.world()) as u64,
    };
    RankMemory { link, ..cpu::memory(order, share, kv_blocks) }
}
