//! The inputs of a forward pass, as words that are copied to the GPU at once.
//!
//! ```text
//! tokens [T] | positions [T] | sequences [T] | tables [S, table_blocks] | tiles [N, 2], for prompts
//! ```
//! A decode step of a batch of B is always laid out for B rows of B sequences, so that a captured graph finds each array where it was;
//! rows that only fill the batch write to a block that nobody owns.

use nanoinfer_kernels::cuda::{BLOCK, Placement, TILE_ROWS};
use nanoinfer_shared::{ModelShape, protocol::SequenceStep};

use super::gpu::{Memory, Pinned};

/// Where a step's arrays lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// T.
    pub(crate) rows: usize,
    sequences: usize,
    pub(crate) table_blocks: usize,
    /// Groups of rows that attend together; 0 where each does alone.
    pub(crate) tiles: usize,
}

/// Blocks of the longest sequence.
pub(crate) fn table_blocks(shape: &ModelShape) -> usize {
    shape.context.div_ceil(BLOCK)
}

impl Inputs {
    /// Of a decode step that is padded to `rows` rows.
    pub(crate) fn decode(rows: usize, table_blocks: usize) -> Self {
        Self { rows, sequences: rows, table_blocks, tiles: 0 }
    }

    /// Most words of a step of up to `tokens` tokens.
    pub(crate) fn most_words(tokens: usize, table_blocks: usize) -> usize {
        Self { rows: tokens, sequences: tokens, table_blocks, tiles: tokens }.words()
    }

    /// Words in all.
    pub(crate) fn words(&self) -> usize {
        3 * self.rows + self.sequences * self.table_blocks + 2 * self.tiles
    }

    /// Writes a decode step: one row a sequence, padded with rows at `spare_block`.
    pub(crate) fn write_decode(
        &self,
        sequences: &[SequenceStep],
        tables: &[Vec<u32>],
        spare_block: u32,
        to: &mut Pinned,
    ) {
        let words = &mut to.words_mut()[..self.words()];
        words.fill(0);
        let (tokens, words) = words.split_at_mut(self.rows);
        let (positions, words) = words.split_at_mut(self.rows);
        let (owners, words) = words.split_at_mut(self.rows);
        for (row, owner) in owners.iter_mut().enumerate() {
            *owner = row as u32;
        }
        for (row, table) in words.chunks_exact_mut(self.table_blocks).enumerate() {
            match sequences.get(row) {
                Some(sequence) => {
                    tokens[row] = sequence.tokens[0];
                    positions[row] = sequence.start;
                    copy_table(&tables[row], table);
                }
                None => table[0] = spare_block,
            }
        }
    }

    /// Writes any step, and says how it lies.
    pub(crate) fn write(sequences: &[SequenceStep], tables: &[Vec<u32>], table_blocks: usize, to: &mut Pinned) -> Self {
        let rows: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let is_prompt = sequences.iter().any(|sequence| sequence.tokens.len() > 1);
        let of = |sequence: &SequenceStep| if is_prompt { sequence.tokens.len().div_ceil(TILE_ROWS) } else { 0 };
        let tiles = sequences.iter().map(of).sum();
        let inputs = Self { rows, sequences: sequences.len(), table_blocks, tiles };
        let words = &mut to.words_mut()[..inputs.words()];
        words.fill(0);
        let (tokens, words) = words.split_at_mut(rows);
        let (positions, words) = words.split_at_mut(rows);
        let (owners, words) = words.split_at_mut(rows);
        let (table_words, tile_words) = words.split_at_mut(inputs.sequences * table_blocks);
        let (mut row, mut tile) = (0, tile_words.chunks_exact_mut(2));
        for (index, sequence) in sequences.iter().enumerate() {
            copy_table(&tables[index], &mut table_words[index * table_blocks..][..table_blocks]);
            if is_prompt {
                for (group, rows) in sequence.tokens.chunks(TILE_ROWS).enumerate() {
                    let words = tile.next().expect("as many tiles as were counted");
                    words.copy_from_slice(&[(row + group * TILE_ROWS) as u32, rows.len() as u32]);
                }
            }
            for (offset, &token) in sequence.tokens.iter().enumerate() {
                tokens[row] = token;
                positions[row] = sequence.start + offset as u32;
                owners[row] = index as u32;
                row += 1;
            }
        }
        inputs
    }

    /// The address of the tokens, once copied to `memory`.
    pub(crate) fn tokens(&self, memory: &Memory) -> u64 {
        memory.at(0, self.words() * 4)
    }

    /// Addresses of what says where rows stand.
    pub(crate) fn placement(&self, memory: &Memory) -> Placement {
        let rows = self.rows as u64 * 4;
        let base = self.tokens(memory);
        Placement { positions: base + rows, sequences: base + 2 * rows, tables: base + 3 * rows }
    }

    /// The address of the tiles, 0 where there are none.
    pub(crate) fn tiles_address(&self, memory: &Memory) -> u64 {
        if self.tiles == 0 { 0 } else { self.tokens(memory) + (self.words() - 2 * self.tiles) as u64 * 4 }
    }
}

/// A block table may be longer than the sequence can ever be.
fn copy_table(from: &[u32], to: &mut [u32]) {
    let blocks = from.len().min(to.len());
    to[..blocks].copy_from_slice(&from[..blocks]);
}
