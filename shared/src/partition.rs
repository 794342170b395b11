//! Who holds what: whole units of a layer, dealt out to ranks.
//!
//! ```text
//! gpt2-xl over 2 ranks     heads (25)              FFN blocks (100)        vocabulary blocks (786)
//!   rank 0                 0 .. 13                 columns 0 .. 3200       rows 0 .. 25152
//!   rank 1                 13 .. 25                columns 3200 .. 6400    rows 25152 .. 50257
//! ```
//! Invariant: the shares of each kind are contiguous, in rank order, disjoint, and cover everything; no unit is
//! ever cut. A share may be empty: its rank still joins every reduction.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::Geometry;

/// Columns of the MLP's hidden layer that stay together. The last block of a layer may be shorter.
pub const FFN_BLOCK: usize = 64;
/// Rows of the vocabulary that stay together. The last block may be shorter.
pub const VOCAB_BLOCK: usize = 64;

/// What one rank holds of every layer, as ranges of global indices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Attention heads; never empty.
    pub heads: Range<usize>,
    /// Columns of the MLP's hidden layer.
    pub ffn: Range<usize>,
    /// Rows of the token embedding, which is also the LM head.
    pub vocab: Range<usize>,
}

/// The shares of all ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    shares: Vec<Share>,
}

impl Share {
    /// The columns of Q, of K and of V in the one matrix that makes all three, `[C, 3 · C]`; those of Q are also the rows of the
    /// projection behind attention.
    pub fn qkv_columns(&self, geometry: &Geometry) -> [Range<usize>; 3] {
        let (c, d) = (geometry.n_embd, geometry.head_dim());
        [0, c, 2 * c].map(|third| third + self.heads.start * d..third + self.heads.end * d)
    }
}

/// Why a model cannot be split as asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// A head is the smallest unit of attention.
    #[error(
        "--nproc {world} is more than the model's {heads} attention heads\n  hint: a head is never split; use --nproc 1 to {heads}"
    )]
    MoreRanksThanHeads {
        /// Ranks asked for.
        world: usize,
        /// Heads of the model.
        heads: usize,
    },
    /// Nothing to run on.
    #[error("--nproc must be at least 1")]
    NoRanks,
}

impl Partition {
    /// Deals the units of `geometry` to `world` ranks, as evenly as whole units allow: where they do not divide,
    /// the first ranks hold one unit more.
    ///
    /// # Errors
    /// When there are no ranks, or more ranks than heads.
    pub fn new(geometry: &Geometry, world: usize) -> Result<Self, PartitionError> {
        if world == 0 {
            return Err(PartitionError::NoRanks);
        }
        if world > geometry.n_head {
            return Err(PartitionError::MoreRanksThanHeads { world, heads: geometry.n_head });
        }
        let shares = (0..world)
            .map(|rank| Share {
                heads: deal(geometry.n_head, 1, world, rank),
                ffn: deal(geometry.n_inner, FFN_BLOCK, world, rank),
                vocab: deal(geometry.vocab_size, VOCAB_BLOCK, world, rank),
            })
            .collect();
        Ok(Self { shares })
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.shares.len()
    }

    /// The share of `rank`.
    pub fn share(&self, rank: usize) -> &Share {
        &self.shares[rank]
    }

    /// All shares in rank order.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }
}

/// The range of `total` items that `rank` of `world` holds when whole blocks of `block` items are dealt out.
fn deal(total: usize, block: usize, world: usize, rank: usize) -> Range<usize> {
    let blocks = total.div_ceil(block);
    let (each, more) = (blocks / world, blocks % world);
    let first = |rank: usize| (rank * each + rank.min(more)) * block;
    first(rank).min(total)..first(rank + 1).min(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(n_head: usize, n_inner: usize, vocab_size: usize) -> Geometry {
        let json =
            format!(r#"{{"n_embd":{},"n_head":{n_head},"n_inner":{n_inner},"vocab_size":{vocab_size}}}"#, n_head * 8);
        Geometry::from_config_json(&json).unwrap()
    }

    #[test]
    fn twenty_five_heads_over_two_ranks() {
        let partition = Partition::new(&geometry(25, 6400, 50257), 2).unwrap();
        assert_eq!(partition.share(0), &Share { heads: 0..13, ffn: 0..3200, vocab: 0..25152 });
        assert_eq!(partition.share(1), &Share { heads: 13..25, ffn: 3200..6400, vocab: 25152..50257 });
    }

    #[test]
    fn every_split_covers_everything_once() {
        for (heads, inner, vocab) in [(5, 160, 307), (7, 77, 389), (3, 48, 61), (25, 6400, 50257), (1, 1, 1)] {
            let geometry = geometry(heads, inner, vocab);
            for world in 1..=heads {
                let partition = Partition::new(&geometry, world).unwrap();
                let check = |total: usize, unit: usize, ranges: Vec<Range<usize>>| {
                    let mut end = 0;
                    for range in &ranges {
                        assert_eq!(range.start, end, "contiguous in rank order");
                        assert!(range.is_empty() || range.start % unit == 0, "no unit is cut");
                        end = range.end;
                    }
                    assert_eq!(end, total);
                    let units = ranges.iter().map(|r| r.len().div_ceil(unit));
                    assert!(units.clone().max().unwrap() - units.min().unwrap() <= 1, "as even as units allow");
                };
                check(heads, 1, partition.shares().iter().map(|s| s.heads.clone()).collect());
                check(inner, FFN_BLOCK, partition.shares().iter().map(|s| s.ffn.clone()).collect());
                check(vocab, VOCAB_BLOCK, partition.shares().iter().map(|s| s.vocab.clone()).collect());
            }
        }
    }

    #[test]
    fn more_ranks_than_heads_is_refused_with_the_limit() {
        let error = Partition::new(&geometry(5, 160, 307), 6).unwrap_err();
        assert_eq!(error, PartitionError::MoreRanksThanHeads { world: 6, heads: 5 });
        assert!(error.to_string().contains("1 to 5"));
        assert_eq!(Partition::new(&geometry(5, 160, 307), 0), Err(PartitionError::NoRanks));
    }
}
