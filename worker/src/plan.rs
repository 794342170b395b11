//! How much memory a rank will take, before anything is loaded.

use nanoinfer_shared::{
    Geometry, Share,
    comm::ShmSegment,
    protocol::{CommKind, DType, Device, KvDType},
};

use crate::{cuda, gpt2::Gpt2, kv_pool::KvPool, shard::Shard, step::StepRunner};

/// Bytes of one rank, by what they are for: of its host's memory, or of its GPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// Packed weights, biases, position embedding.
    pub weights: u64,
    /// KV pool when every block is in use.
    pub kv: u64,
    /// Activations and logits of the largest step; on a GPU also what products need, and the driver for itself.
    pub activations: u64,
    /// Data link: the segment that the ranks of a host share, socket buffers, or what NCCL takes of a GPU.
    pub link: u64,
}

/// The largest step.
#[derive(Clone, Copy, Debug)]
pub struct StepSizes {
    /// Most new tokens.
    pub max_batched_tokens: usize,
    /// Most rows of candidates.
    pub max_seqs: usize,
}

impl RankMemory {
    /// What `rank` with `share` will take on `device`.
    pub fn estimate(
        geometry: &Geometry,
        (rank, share): (usize, &Share),
        device: &Device,
        dtype: DType,
        (comm, world): (CommKind, usize),
        (kv_dtype, kv_blocks): (KvDType, usize),
        step: StepSizes,
    ) -> Self {
        if let Device::Gpus(_) = device {
            return cuda::memory(geometry, (rank, share), dtype, comm, kv_blocks, step);
        }
        let StepSizes { max_batched_tokens, max_seqs } = step;
        Self {
            weights: Shard::bytes(geometry, share, dtype),
            kv: kv_blocks as u64 * KvPool::block_bytes(geometry, share, kv_dtype),
            activations: Gpt2::activation_bytes(geometry, share, max_batched_tokens)
                + StepRunner::buffer_bytes(share, max_seqs),
            link: match comm {
                CommKind::Local | CommKind::Nccl => 0,
                CommKind::Shm => ShmSegment::bytes(world) as u64,
                CommKind::Tcp => nanoinfer_shared::comm::Tcp::buffer_bytes(world) as u64,
            },
        }
    }

    /// Everything together.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.activations + self.link
    }
}
