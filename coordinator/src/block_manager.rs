//! Owns every KV block: which are free, and how many hold each of the others.
//!
//! ```text
//! blocks   0 1 2 3 4 5 6 7        free [6 3 1]
//! held     1 0 2 0 1 1 0 1   ──►  a table is a list of blocks; block i of it holds positions 16 i .. 16 i + 16
//! ```
//! Does not know sequences, tokens or ranks; does no I/O.
//! Invariant: a block is in the free list exactly when its count is 0; counts equal the tables that hold it.

use nanoinfer_shared::protocol::{BLOCK_TOKENS, BlockId};

/// The pool of KV blocks. The same index is the same block on every rank.
#[derive(Debug)]
pub(crate) struct BlockManager {
    /// The last is given out next: what was used last is the warmest.
    free: Vec<BlockId>,
    /// Tables that hold each block.
    holders: Vec<u32>,
}

/// The blocks of one sequence in the order of its positions. Only [`BlockManager`] changes it.
#[derive(Debug, Default)]
pub(crate) struct BlockTable(Vec<BlockId>);

impl BlockManager {
    /// A pool of `blocks`, all free.
    pub(crate) fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).expect("kv_blocks was bounded by u32 when it was chosen");
        Self { free: (0..count).rev().map(BlockId).collect(), holders: vec![0; blocks] }
    }

    /// Blocks in the pool.
    pub(crate) fn total(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Extends `table` to cover `positions`. Takes all that is needed or, where the pool has too few, nothing.
    #[must_use]
    pub(crate) fn grow(&mut self, table: &mut BlockTable, positions: usize) -> bool {
        let needed = positions.div_ceil(BLOCK_TOKENS).saturating_sub(table.0.len());
        if needed > self.free.len() {
            return false;
        }
        for block in self.free.drain(self.free.len() - needed..).rev() {
            self.holders[block.0 as usize] += 1;
            table.0.push(block);
        }
        true
    }

    /// Gives back all blocks of `table`.
    pub(crate) fn release(&mut self, table: &mut BlockTable) {
        for block in table.0.drain(..).rev() {
            let holders = &mut self.holders[block.0 as usize];
            assert!(*holders > 0, "block {} is given back by a table that does not hold it", block.0);
            *holders -= 1;
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }

    /// Panics unless every block is either free or held as often as `tables` say.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut counted = vec![0; self.total()];
        tables.flat_map(|table| &table.0).for_each(|block| counted[block.0 as usize] += 1);
        assert_eq!(counted, self.holders, "counts equal the tables that hold a block");
        assert!(counted.iter().all(|&n| n <= 1), "no block is owned twice");
        let mut free: Vec<_> = self.free.iter().map(|block| block.0).collect();
        free.sort_unstable();
        let expected: Vec<u32> = (0..).zip(&counted).filter(|(_, n)| **n == 0).map(|(block, _)| block).collect();
        assert_eq!(free, expected, "free exactly where nobody holds it");
    }
}

impl BlockTable {
    /// The blocks that hold the first `positions` positions.
    pub(crate) fn covering(&self, positions: usize) -> &[BlockId] {
        &self.0[..positions.div_ceil(BLOCK_TOKENS)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grows_all_or_nothing_by_whole_blocks() {
        let mut manager = BlockManager::new(3);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        assert!(manager.grow(&mut a, 1) && manager.grow(&mut a, 16));
        assert_eq!(manager.free(), 2);
        assert!(manager.grow(&mut b, 17));
        assert!(!manager.grow(&mut a, 17), "the pool is empty");
        assert_eq!(a.covering(16).len(), 1);
        manager.release(&mut b);
        assert!(!manager.grow(&mut a, 100), "more than there is takes nothing");
        assert_eq!(manager.free(), 2);
        assert!(manager.grow(&mut a, 48));
        manager.check([&a, &b].into_iter());
    }

    proptest! {
        #[test]
        fn every_block_is_accounted_for_after_every_operation(
            blocks in 0usize..20,
            operations in prop::collection::vec((0usize..4, prop::option::of(0usize..200)), 1..80),
        ) {
            let mut manager = BlockManager::new(blocks);
            let mut tables: [BlockTable; 4] = Default::default();
            for (which, positions) in operations {
                let (held, free) = (tables[which].0.len(), manager.free());
                match positions {
                    Some(positions) => {
                        let needed = positions.div_ceil(BLOCK_TOKENS).saturating_sub(held);
                        let grown = manager.grow(&mut tables[which], positions);
                        prop_assert_eq!(grown, needed <= free);
                        prop_assert_eq!(tables[which].0.len(), if grown { held + needed } else { held });
                    }
                    None => {
                        manager.release(&mut tables[which]);
                        prop_assert_eq!(manager.free(), free + held);
                    }
                }
                manager.check(tables.iter());
            }
        }
    }
}
