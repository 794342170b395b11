//! How many blocks the KV pool has.
//!
//! The one rule, used before a start (to tell) and after loading (to decide). Does not know where the numbers come from.
//! Invariant: every rank has as many blocks, and they hold at least one sequence of full length.

use nanoinfer_shared::{ModelShape, protocol::BLOCK_TOKENS};

/// Of a host's free memory, which others want too, KV pools take one in so many where nothing is said.
const HOST_SHARE: u64 = 4;
/// Of a GPU's they leave one in so many: what ranks take beside them is not in it any more.
const LEFT_ON_GPU: u64 = 10;

/// What one rank has room for.
#[derive(Clone, Copy, Debug)]
pub struct RankRoom {
    /// Bytes of one block on this rank, which depends on its heads.
    pub block_bytes: u64,
    /// Bytes of memory that its host has free once weights are loaded; of a GPU also less what the rank will take beside the pool.
    pub free_bytes: u64,
    /// Whether that is a GPU's.
    pub is_gpu: bool,
    /// Ranks that share that memory: a host's, or a GPU's.
    pub ranks_per_memory: usize,
}

/// What decides the size of the pool.
#[derive(Clone, Copy, Debug)]
pub struct KvBudget {
    /// Bytes on each rank, if that was said.
    pub kv_memory: Option<u64>,
}

/// Not one sequence of full length fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "rank {rank}: a sequence of {n_positions} tokens needs {} of KV pool, its budget is {}\n  \
     hint: --kv-memory {} or more, or a smaller model",
    at_least(*.needed), at_least(*.budget), at_least(*.needed)
)]
pub struct KvTooSmall {
    /// The rank with too little room.
    pub rank: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// Bytes of its blocks on that rank.
    pub needed: u64,
    /// Bytes that rank may use.
    pub budget: u64,
}

/// As --kv-memory takes it, rounded up.
fn at_least(bytes: u64) -> String {
    if bytes < 10 << 20 { format!("{}KiB", bytes.div_ceil(1 << 10)) } else { format!("{}MiB", bytes.div_ceil(1 << 20)) }
}

impl KvBudget {
    /// Positions of the longest sequence for which every rank has room, where a tenth of the memory that is free now may be gone by
    /// the time it is asked for.
    pub fn longest(&self, rooms: &[RankRoom]) -> usize {
        let budget = |room: &RankRoom| self.kv_memory.unwrap_or_else(|| self.part(room) / 10 * 9);
        let blocks = rooms.iter().map(|room| budget(room) / room.block_bytes.max(1)).min().unwrap_or(0);
        (blocks as usize).saturating_mul(BLOCK_TOKENS)
    }

    /// What a rank may take where nothing is said.
    fn part(&self, room: &RankRoom) -> u64 {
        let all =
            if room.is_gpu { room.free_bytes - room.free_bytes / LEFT_ON_GPU } else { room.free_bytes / HOST_SHARE };
        all / room.ranks_per_memory.max(1) as u64
    }

    /// Blocks of the pool: what fits the rank with the least room. Where no budget was said, the smaller of what
    /// `max_seqs` full sequences need and this rank's part of a quarter of its host's free memory, or of nine tenths of its GPU's.
    ///
    /// # Errors
    /// When one sequence of full length does not fit.
    pub fn blocks(&self, shape: &ModelShape, max_seqs: usize, rooms: &[RankRoom]) -> Result<usize, KvTooSmall> {
        let full_length = shape.context.div_ceil(BLOCK_TOKENS) as u64;
        let mut fewest = u64::from(u32::MAX);
        for (rank, room) in rooms.iter().enumerate() {
            let block_bytes = room.block_bytes.max(1);
            let enough = block_bytes.saturating_mul(full_length).saturating_mul(max_seqs as u64);
            let budget = self.kv_memory.unwrap_or_else(|| enough.min(self.part(room)));
            if budget / block_bytes < full_length {
                let needed = full_length.saturating_mul(block_bytes);
                return Err(KvTooSmall { rank, n_positions: shape.context, needed, budget });
            }
            fewest = fewest.min(budget / block_bytes);
        }
        Ok(fewest as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one block of gpt2-xl with 13 heads; the other rank has 12.
    const BLOCK: u64 = 48 * 2 * 13 * 64 * 16 * 4;

    fn blocks(kv_memory: Option<u64>, ranks_per_memory: usize, free: [u64; 2]) -> Result<usize, KvTooSmall> {
        blocks_for(4, kv_memory, ranks_per_memory, free)
    }

    fn blocks_for(
        max_seqs: usize,
        kv_memory: Option<u64>,
        ranks_per_memory: usize,
        free: [u64; 2],
    ) -> Result<usize, KvTooSmall> {
        let shape = ModelShape::from_config_json(r#"{"n_embd":1600,"n_layer":48,"n_head":25}"#).unwrap();
        let room = |block_bytes, free_bytes| RankRoom { block_bytes, free_bytes, is_gpu: false, ranks_per_memory };
        let rooms = [room(BLOCK, free[0]), room(BLOCK / 13 * 12, free[1])];
        KvBudget { kv_memory }.blocks(&shape, max_seqs, &rooms)
    }

    #[test]
    fn the_rank_with_the_least_room_decides() {
        let plenty = 1 << 40;
        assert_eq!(blocks(None, 1, [plenty; 2]), Ok(4 * 64), "no more than can be used");
        assert_eq!(blocks(None, 1, [4 * 100 * BLOCK, plenty]), Ok(100));
        assert_eq!(blocks(Some(80 * BLOCK), 1, [1, 1]), Ok(80), "what was said counts");
        assert_eq!(blocks(None, 2, [8 * 100 * BLOCK; 2]), Ok(100), "two ranks share a host");
    }

    #[test]
    fn a_gpus_memory_is_nobody_elses() {
        let shape = ModelShape::from_config_json(r#"{"n_embd":1600,"n_layer":48,"n_head":25}"#).unwrap();
        let blocks = |is_gpu| {
            let room = RankRoom { block_bytes: BLOCK, free_bytes: 400 * BLOCK, is_gpu, ranks_per_memory: 2 };
            KvBudget { kv_memory: None }.blocks(&shape, 1000, &[room])
        };
        assert_eq!((blocks(true), blocks(false).is_err()), (Ok(180), true));
    }

    #[test]
    fn a_host_decides_where_sequences_have_no_bound() {
        // The product would wrap to a few blocks.
        for max_seqs in [u32::MAX as usize, 1 << 58, usize::MAX] {
            assert_eq!(blocks_for(max_seqs, None, 1, [4 * 100 * BLOCK, 1 << 40]), Ok(100), "{max_seqs}");
        }
    }

    #[test]
    fn a_pool_below_one_full_sequence_is_refused_with_the_numbers() {
        let error = blocks(Some(1000), 1, [1, 1]).unwrap_err().to_string();
        for part in ["rank 0", "1024 tokens needs 312MiB", "budget is 1KiB", "--kv-memory 312MiB"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
