//! Owns every KV block: who holds it, what content it is known by, and which is given out next.
//!
//! ```text
//!            grow                              publish (its step is done)
//!  blank ───────────► held by one table ──────────────► held, content known ◄──┐ reuse: by more tables
//!    ▲                   │ release                         │ release           │
//!    └───────────────────┘                                 ▼ (last holder)     │
//!            grow, when no block is blank: the longest idle ◄── idle ──────────┘ reuse
//! ```
//! A table is a list of blocks; block i of it holds positions 16 i .. 16 i + 16. Does not know sequences, tokens or ranks;
//! does no I/O.
//! Invariant: a block is blank or idle exactly when nobody holds it; counts equal the tables that hold it; a block of
//! several tables has a known content, so it is full and nobody writes to it.

use std::collections::{BTreeMap, HashMap};

use nanoinfer_shared::protocol::{BLOCK_TOKENS, BlockId};

use crate::engine::block_hash::BlockHash;

/// The pool of KV blocks. The same index is the same block on every rank.
#[derive(Debug, Default)]
pub(crate) struct BlockManager {
    blocks: Vec<Block>,
    /// Held by nobody, content unknown. The last is given out next: what was used last is the warmest.
    blank: Vec<BlockId>,
    /// Held by nobody, content known, by when they were given back: the first is overwritten next.
    idle: BTreeMap<u64, BlockId>,
    /// Where a known content is.
    cached: HashMap<BlockHash, BlockId>,
    /// Blocks given back so far.
    given_back: u64,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// Tables that hold it.
    holders: u32,
    /// What it is found by.
    content: Option<BlockHash>,
    /// Its key while it is idle.
    idle_since: u64,
}

/// The blocks of one sequence in the order of its positions. Only [`BlockManager`] changes it.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<BlockId>,
    /// How many of the first blocks have been published, or need not be as others were before.
    published: usize,
}

impl BlockManager {
    /// A pool of `blocks`, all blank.
    pub(crate) fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).expect("kv_blocks was bounded by u32 when it was chosen");
        Self {
            blocks: vec![Block::default(); blocks],
            blank: (0..count).rev().map(BlockId).collect(),
            ..Self::default()
        }
    }

    /// Blocks in the pool.
    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// Blocks that come free where `table` gives back its own.
    pub(crate) fn held_alone(&self, table: &BlockTable) -> usize {
        table.blocks.iter().filter(|block| self.blocks[block.0 as usize].holders == 1).count()
    }

    /// Blocks of known content, held or not.
    pub(crate) fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Whether nobody holds a block that can be found by its content.
    pub(crate) fn is_idle(&self, block: BlockId) -> bool {
        let state = &self.blocks[block.0 as usize];
        state.holders == 0 && state.content.is_some()
    }

    /// Extends `table` to cover `positions`. Takes all that is needed or, where the pool has too few, nothing.
    #[must_use]
    pub(crate) fn grow(&mut self, table: &mut BlockTable, positions: usize) -> bool {
        let needed = positions.div_ceil(BLOCK_TOKENS).saturating_sub(table.blocks.len());
        if needed > self.free() {
            return false;
        }
        for _ in 0..needed {
            let block = self.take_free();
            self.blocks[block.0 as usize].holders = 1;
            table.blocks.push(block);
        }
        true
    }

    /// Begins an empty `table` with blocks that hold the leading `contents`, as far as there are any; tells how many.
    pub(crate) fn reuse(&mut self, table: &mut BlockTable, contents: &[BlockHash]) -> usize {
        assert!(table.blocks.is_empty(), "blocks are reused at the start of a table only");
        let found = contents.iter().map_while(|content| self.cached.get(content).copied());
        table.blocks.extend(found);
        for block in &table.blocks {
            let state = &mut self.blocks[block.0 as usize];
            if state.holders == 0 {
                self.idle.remove(&state.idle_since);
            }
            state.holders += 1;
        }
        table.published = table.blocks.len();
        table.published
    }

    /// Makes the first blocks of `table` known by their `contents`: they are full, and the steps that computed them are
    /// done. Where a content is in another block already, this one stays unknown.
    pub(crate) fn publish(&mut self, table: &mut BlockTable, contents: &[BlockHash]) {
        let full = table.blocks.iter().zip(contents);
        for (&block, &content) in full.skip(table.published) {
            self.cached.entry(content).or_insert_with(|| {
                self.blocks[block.0 as usize].content = Some(content);
                block
            });
        }
        table.published = table.published.max(contents.len());
    }

    /// Gives back all blocks of `table`. The last goes first, so that a prefix outlives what follows it.
    pub(crate) fn release(&mut self, table: &mut BlockTable) {
        table.published = 0;
        for block in table.blocks.drain(..).rev() {
            let state = &mut self.blocks[block.0 as usize];
            assert!(state.holders > 0, "block {} is given back by a table that does not hold it", block.0);
            state.holders -= 1;
            if state.holders > 0 {
                continue;
            }
            if state.content.is_some() {
                state.idle_since = self.given_back;
                self.idle.insert(self.given_back, block);
                self.given_back += 1;
            } else {
                self.blank.push(block);
            }
        }
    }

    /// Whether every block is accounted for: `tables` are all that there are.
    ///
    /// # Errors
    /// Says in plain words what is not as it must be.
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Result<(), String> {
        let mut counted = vec![0; self.total()];
        tables.flat_map(|table| &table.blocks).for_each(|block| counted[block.0 as usize] += 1);
        let mut free = vec![0; self.total()];
        self.blank.iter().chain(self.idle.values()).for_each(|block| free[block.0 as usize] += 1);
        for (i, state) in self.blocks.iter().enumerate() {
            let holds = |yes: bool, what: &str| if yes { Ok(()) } else { Err(format!("block {i}: {what}: {state:?}")) };
            holds(counted[i] == state.holders, "its count is not that of the tables that hold it")?;
            holds(free[i] == u32::from(state.holders == 0), "it is free although held, or not free although not")?;
            holds(state.holders <= 1 || state.content.is_some(), "several tables hold it and its content is unknown")?;
            let found = state.content.map(|content| self.cached.get(&content) == Some(&BlockId(i as u32)));
            holds(found.unwrap_or(true), "it is not found by its content")?;
            let idle = self.idle.get(&state.idle_since) == Some(&BlockId(i as u32));
            holds(idle == (state.holders == 0 && state.content.is_some()), "it is idle exactly if known and not held")?;
        }
        let known = self.blocks.iter().filter(|state| state.content.is_some()).count();
        if known != self.cached.len() {
            return Err(format!("{} contents are found in {known} blocks", self.cached.len()));
        }
        Ok(())
    }

    /// A block that nobody holds; its content is forgotten.
    fn take_free(&mut self) -> BlockId {
        if let Some(block) = self.blank.pop() {
            return block;
        }
        let (_, block) = self.idle.pop_first().expect("the free blocks were counted");
        let content = self.blocks[block.0 as usize].content.take().expect("an idle block has a content");
        self.cached.remove(&content);
        block
    }
}

impl BlockTable {
    /// The blocks that hold the first `positions` positions.
    pub(crate) fn covering(&self, positions: usize) -> &[BlockId] {
        &self.blocks[..positions.div_ceil(BLOCK_TOKENS)]
    }

    /// Blocks that it holds.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many of the first blocks others can find, or could when this table began with them.
    pub(crate) fn published(&self) -> usize {
        self.published
    }
}

#[cfg(test)]
mod tests {
    use nanoinfer_shared::protocol::TokenId;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::block_hash::PrefixHashes;

    /// Contents of the blocks of a text that begins with `shared` blocks like every other's.
    fn contents(text: u32, shared: usize, blocks: usize) -> Vec<BlockHash> {
        let token = |i: usize| if i / BLOCK_TOKENS < shared { 7 } else { 1000 + text };
        let tokens: Vec<TokenId> = (0..blocks * BLOCK_TOKENS).map(token).collect();
        PrefixHashes::default().of(&tokens, blocks).to_vec()
    }

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
        manager.check([&a, &b].into_iter()).unwrap();
    }

    #[test]
    fn a_published_prefix_is_shared_while_held_and_found_when_idle() {
        let mut manager = BlockManager::new(6);
        let mut tables: [BlockTable; 3] = Default::default();
        let text = contents(0, 2, 3);
        assert_eq!(manager.reuse(&mut tables[0], &text), 0, "nothing is known yet");
        assert!(manager.grow(&mut tables[0], 48));
        assert_eq!(manager.reuse(&mut tables[1], &text), 0, "nor before it is published");
        manager.publish(&mut tables[0], &text[..2]);
        assert_eq!(manager.reuse(&mut tables[1], &text), 2);
        assert_eq!(tables[1].covering(32), tables[0].covering(32));
        assert!(manager.grow(&mut tables[1], 48));
        assert_eq!((manager.free(), manager.cached()), (2, 2));
        manager.check(tables.iter()).unwrap();
        let mut shared = tables[0].covering(32).to_vec();
        manager.release(&mut tables[0]);
        assert!(manager.idle.is_empty(), "still held");
        manager.release(&mut tables[1]);
        assert_eq!((manager.free(), manager.cached()), (6, 2), "idle, and still known");
        shared.reverse();
        assert_eq!(manager.idle.values().copied().collect::<Vec<_>>(), shared, "the end of a text is the longest idle");
        assert!(shared.iter().all(|&block| manager.is_idle(block)));
        assert_eq!(manager.reuse(&mut tables[2], &contents(5, 2, 3)), 2, "another text with the same beginning");
        manager.check(tables.iter()).unwrap();
    }

    #[test]
    fn the_longest_idle_is_forgotten_first_and_the_end_of_a_text_before_its_beginning() {
        let mut manager = BlockManager::new(4);
        let texts = [contents(1, 0, 2), contents(2, 0, 2)];
        for text in &texts {
            let mut table = BlockTable::default();
            assert!(manager.grow(&mut table, 32));
            manager.publish(&mut table, text);
            manager.release(&mut table);
        }
        let mut table = BlockTable::default();
        assert!(manager.grow(&mut table, 16));
        let mut known = |text: &[BlockHash]| {
            let mut table = BlockTable::default();
            let found = manager.reuse(&mut table, text);
            manager.release(&mut table);
            found
        };
        assert_eq!((known(&texts[0]), known(&texts[1])), (1, 2));
        // The first text was looked up before the second: it is the longest idle again.
        assert!(manager.grow(&mut table, 32));
        let mut found = BlockTable::default();
        assert_eq!((manager.reuse(&mut found, &texts[0]), manager.cached()), (0, 2));
        manager.check([&table, &found].into_iter()).unwrap();
    }

    #[test]
    fn of_two_blocks_with_one_content_the_first_is_found() {
        let mut manager = BlockManager::new(4);
        let mut tables: [BlockTable; 2] = Default::default();
        let text = contents(0, 0, 2);
        for table in &mut tables {
            assert!(manager.grow(table, 32));
            manager.publish(table, &text);
        }
        assert_eq!(manager.cached(), 2);
        manager.check(tables.iter()).unwrap();
        manager.release(&mut tables[1]);
        assert_eq!(manager.free(), 2);
        manager.check(tables.iter()).unwrap();
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Grow(usize),
        Begin,
        Publish(usize),
        Release,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            3 => (0usize..200).prop_map(Operation::Grow),
            2 => Just(Operation::Begin),
            3 => (0usize..12).prop_map(Operation::Publish),
            2 => Just(Operation::Release),
        ]
    }

    proptest! {
        #[test]
        fn every_block_is_accounted_for_after_every_operation(
            blocks in 0usize..20,
            operations in prop::collection::vec((0usize..4, 0u32..3, operation()), 1..80),
        ) {
            let mut manager = BlockManager::new(blocks);
            let mut tables: [BlockTable; 4] = Default::default();
            let mut texts = [0; 4];
            for (which, text, operation) in operations {
                let table = &mut tables[which];
                let (held, free) = (table.blocks.len(), manager.free());
                match operation {
                    Operation::Grow(positions) => {
                        let needed = positions.div_ceil(BLOCK_TOKENS).saturating_sub(held);
                        let grown = manager.grow(table, positions);
                        prop_assert_eq!(grown, needed <= free);
                        prop_assert_eq!(table.blocks.len(), if grown { held + needed } else { held });
                        prop_assert_eq!(manager.free(), if grown { free - needed } else { free });
                    }
                    Operation::Begin if held == 0 => {
                        texts[which] = text;
                        let found = manager.reuse(table, &contents(text, 2, 12));
                        prop_assert_eq!(table.blocks.len(), found);
                        let again = contents(text, 2, found);
                        let known: Vec<_> = again.iter().map(|content| manager.cached[content]).collect();
                        prop_assert_eq!(&known, &table.blocks);
                    }
                    Operation::Begin => {}
                    Operation::Publish(count) => {
                        let full = contents(texts[which], 2, count.min(held));
                        let before = table.published.min(full.len());
                        manager.publish(table, &full);
                        prop_assert!(full[before..].iter().all(|content| manager.cached.contains_key(content)));
                        prop_assert_eq!(manager.free(), free);
                    }
                    Operation::Release => {
                        let alone = table.blocks.iter().filter(|b| manager.blocks[b.0 as usize].holders == 1).count();
                        manager.release(table);
                        prop_assert_eq!(manager.free(), free + alone);
                    }
                }
                prop_assert_eq!(manager.check(tables.iter()), Ok(()));
            }
            tables.iter_mut().for_each(|table| manager.release(table));
            prop_assert_eq!(manager.free(), blocks);
            prop_assert_eq!(manager.check(tables.iter()), Ok(()));
        }
    }
}
