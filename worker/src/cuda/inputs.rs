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

    /// Of any step, without padding.
    pub(crate) fn of(sequences: &[SequenceStep], table_blocks: usize) -> Self {
        let lengths = || sequences.iter().map(|sequence| sequence.tokens.len());
        let is_prompt = lengths().any(|length| length > 1);
        let tiles = if is_prompt { lengths().map(|length| length.div_ceil(TILE_ROWS)).sum() } else { 0 };
        Self { rows: lengths().sum(), sequences: sequences.len(), table_blocks, tiles }
    }

    /// Most words of a step of up to `tokens` tokens.
    pub(crate) fn most_words(tokens: usize, table_blocks: usize) -> usize {
        Self { rows: tokens, sequences: tokens, table_blocks, tiles: tokens }.words()
    }

    /// Words in all.
    pub(crate) fn words(&self) -> usize {
        3 * self.rows + self.sequences * self.table_blocks + 2 * self.tiles
    }

    /// Writes a step that lies so. Where there are fewer sequences, rows at `spare_block` fill it up.
    pub(crate) fn write(&self, sequences: &[SequenceStep], tables: &[Vec<u32>], spare_block: u32, to: &mut Pinned) {
        let mut words = &mut to.words_mut()[..self.words()];
        words.fill(0);
        let arrays = [self.rows, self.rows, self.rows, self.sequences * self.table_blocks, 2 * self.tiles];
        let [tokens, positions, owners, table_words, tile_words] =
            arrays.map(|length| words.split_off_mut(..length).expect("as many words as were counted"));
        let (mut row, mut tiles) = (0, tile_words.chunks_exact_mut(2));
        for (index, table) in table_words.chunks_exact_mut(self.table_blocks).enumerate() {
            let Some(sequence) = sequences.get(index) else {
                (owners[row], table[0]) = (index as u32, spare_block);
                row += 1;
                continue;
            };
            // A block table may be longer than the sequence can ever be.
            table.iter_mut().zip(&tables[index]).for_each(|(to, &block)| *to = block);
            // Asked second, as whoever is asked first may lose one.
            for (group, (rows, words)) in sequence.tokens.chunks(TILE_ROWS).zip(tiles.by_ref()).enumerate() {
                words.copy_from_slice(&[(row + group * TILE_ROWS) as u32, rows.len() as u32]);
            }
            for (position, &token) in (sequence.start..).zip(&sequence.tokens) {
                (tokens[row], positions[row], owners[row]) = (token, position, index as u32);
                row += 1;
            }
        }
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
