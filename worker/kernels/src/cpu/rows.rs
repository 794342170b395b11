//! Rows of a step as attention sees them, grouped once for all its layers.
//!
//! Invariant: a group is a run of rows of one sequence, one position behind the other; no block is written by two groups.

use std::ops::Range;

use crate::cpu::layout::KvLayout;

/// One row of a step: where in its sequence it is, and where that sequence's keys and values are.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRow<'a> {
    /// Block table of its sequence.
    pub blocks: &'a [u32],
    /// It attends to positions `0 .. positions`; the last is its own.
    pub positions: usize,
}

impl AttentionRow<'_> {
    /// The block of its own position.
    pub(crate) fn own_block(&self) -> u32 {
        self.blocks[(self.positions - 1) / KvLayout::BLOCK]
    }

    /// Where in that block it lies.
    pub(crate) fn slot(&self) -> usize {
        (self.positions - 1) % KvLayout::BLOCK
    }

    /// Whether `next` is the row behind this one in the same sequence.
    fn is_followed_by(&self, next: &Self) -> bool {
        std::ptr::eq(self.blocks, next.blocks) && self.positions + 1 == next.positions
    }
}

/// Most queries that read keys and values together.
pub(crate) const MOST_TOGETHER: usize = 4;

/// All rows of a step.
#[derive(Debug)]
pub struct AttentionRows<'a> {
    rows: Vec<AttentionRow<'a>>,
    /// Rows that write the same block: they share the cache lines of its keys.
    by_block: Vec<Range<usize>>,
    /// Rows that attend together, for one reading of keys and values.
    together: Vec<Range<usize>>,
}

impl<'a> AttentionRows<'a> {
    /// Groups `rows`, in which those of a sequence lie one behind the other.
    ///
    /// # Panics
    /// When a block would be written by two sequences.
    pub fn new(rows: Vec<AttentionRow<'a>>) -> Self {
        let mut by_block: Vec<Range<usize>> = Vec::new();
        let mut together: Vec<Range<usize>> = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let follows = i > 0 && rows[i - 1].is_followed_by(row);
            match by_block.last_mut() {
                Some(part) if follows && row.slot() > 0 => part.end = i + 1,
                _ => by_block.push(i..i + 1),
            }
            match together.last_mut() {
                Some(group) if follows && group.len() < MOST_TOGETHER => group.end = i + 1,
                _ => together.push(i..i + 1),
            }
        }
        let mut written: Vec<_> = by_block.iter().map(|part| rows[part.start].own_block()).collect();
        written.sort_unstable();
        assert!(written.is_sorted_by(|a, b| a < b), "a block is written by one sequence");
        Self { together, rows, by_block }
    }

    /// Their number T.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn by_block(&self) -> &[Range<usize>] {
        &self.by_block
    }

    pub(crate) fn together(&self) -> &[Range<usize>] {
        &self.together
    }

    pub(crate) fn part(&self, part: &Range<usize>) -> &[AttentionRow<'a>] {
        &self.rows[part.clone()]
    }
}
