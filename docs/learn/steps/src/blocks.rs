//! Step 6. Keys and values lie in blocks of 16 positions out of one pool: nothing is reserved, and texts that begin alike share.
//!
//! ```text
//! table of text 0   [ 0 ][ 1 ][ 4 ]        blocks 0 and 1 are full and the same tokens: held by both
//! table of text 1   [ 0 ][ 1 ][ 2 ][ 3 ]
//! ```
//! Invariant: a block that several texts hold is full, so nobody writes to it.

use std::collections::HashMap;

use crate::pass::{Memory, Row};

/// Positions of a block.
pub const BLOCK: usize = 16;

/// A pool of blocks, and who holds which.
#[derive(Debug)]
pub struct Blocks {
    /// `[layer][block][position][2][width]`.
    pool: Vec<Vec<f32>>,
    width: usize,
    /// Blocks that nobody holds.
    free: Vec<usize>,
    /// How many texts hold each.
    holders: Vec<usize>,
    /// By text.
    tables: HashMap<usize, Vec<usize>>,
    /// Where full blocks are, by all tokens up to their end.
    known: HashMap<Vec<u32>, usize>,
}

impl Blocks {
    /// A pool of `count` blocks for `layers` layers and keys of `width` numbers.
    pub fn new(count: usize, layers: usize, width: usize) -> Self {
        Self {
            pool: vec![vec![0.0; count * BLOCK * 2 * width]; layers],
            width,
            free: (0..count).rev().collect(),
            holders: vec![0; count],
            tables: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// Begins a text with the blocks that hold how its prompt begins; tells how many tokens need not be computed. One always is, to
    /// draw from.
    pub fn begin(&mut self, text: usize, prompt: &[u32]) -> usize {
        let full = (1..=(prompt.len() - 1) / BLOCK).map(|n| &prompt[..n * BLOCK]);
        let found: Vec<usize> = full.map_while(|beginning| self.known.get(beginning).copied()).collect();
        found.iter().for_each(|&block| self.holders[block] += 1);
        let reused = found.len() * BLOCK;
        self.tables.insert(text, found);
        reused
    }

    /// Takes blocks for a text of so many tokens; `false`, and nothing taken, where there are too few.
    #[must_use]
    pub fn grow(&mut self, text: usize, tokens: usize) -> bool {
        let table = self.tables.entry(text).or_default();
        let lacking = tokens.div_ceil(BLOCK).saturating_sub(table.len());
        if lacking > self.free.len() {
            return false;
        }
        let taken = self.free.split_off(self.free.len() - lacking);
        for &block in taken.iter().rev() {
            self.holders[block] = 1;
            // What it held can be found no more.
            self.known.retain(|_, &mut known| known != block);
            table.push(block);
        }
        true
    }

    /// Makes the full blocks of a text findable: its tokens are computed.
    pub fn publish(&mut self, text: usize, tokens: &[u32]) {
        let table = self.tables.get(&text).into_iter().flatten();
        for (n, &block) in table.enumerate().take(tokens.len() / BLOCK) {
            self.known.entry(tokens[..(n + 1) * BLOCK].to_vec()).or_insert(block);
        }
    }

    /// Gives back what a text holds; what is known stays known until it is taken.
    pub fn end(&mut self, text: usize) {
        for block in self.tables.remove(&text).unwrap_or_default().into_iter().rev() {
            self.holders[block] -= 1;
            if self.holders[block] == 0 {
                self.free.insert(0, block);
            }
        }
    }

    /// Blocks that somebody holds.
    pub fn held(&self) -> usize {
        self.holders.iter().filter(|&&holders| holders > 0).count()
    }

    /// Blocks that several hold.
    pub fn shared(&self) -> usize {
        self.holders.iter().filter(|&&holders| holders > 1).count()
    }

    /// A text's blocks.
    pub fn table(&self, text: usize) -> &[usize] {
        self.tables.get(&text).map_or(&[], Vec::as_slice)
    }

    fn place(&self, text: usize, position: usize) -> usize {
        (self.tables[&text][position / BLOCK] * BLOCK + position % BLOCK) * 2 * self.width
    }
}

impl Memory for Blocks {
    fn keep(&mut self, layer: usize, row: &Row, key: &[f32], value: &[f32]) {
        let place = self.place(row.text, row.position);
        let (keys, values) = self.pool[layer][place..][..2 * self.width].split_at_mut(self.width);
        keys.copy_from_slice(key);
        values.copy_from_slice(value);
    }

    fn at(&self, layer: usize, text: usize, position: usize) -> (&[f32], &[f32]) {
        self.pool[layer][self.place(text, position)..][..2 * self.width].split_at(self.width)
    }
}
