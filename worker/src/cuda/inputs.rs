//! The inputs of a forward pass, as words that are copied to the GPU at once.
//!
//! ```text
//! tokens [T] | tokens before [S], where they count | positions [T] | sequences [T] | tables [S, table_blocks] | tiles [N, 2], for prompts
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
    pub(crate) of_sequence: OfSequence,
    /// Groups of rows that attend together; 0 where each does alone.
    pub(crate) tiles: usize,
}

/// What a model wants to know of each sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OfSequence {
    /// Blocks of the longest one.
    pub(crate) table_blocks: usize,
    /// Tokens before its first: one, or none where it does not count.
    tokens_before: usize,
}

impl OfSequence {
    pub(crate) fn new(shape: &ModelShape) -> Self {
        Self { table_blocks: shape.context.div_ceil(BLOCK), tokens_before: shape.stream.smear.is_some().into() }
    }
}

/// Groups of tokens that attend together, those of the same sixteen positions: the first token of each, and how many there are.
fn tiles(sequence: &SequenceStep) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (start, end) = (sequence.start as usize, sequence.start as usize + sequence.tokens.len());
    let of = move |tile: usize| {
        let (from, to) = (start.max(tile * TILE_ROWS), end.min((tile + 1) * TILE_ROWS));
        (from - start, to - from)
    };
    (start / TILE_ROWS..end.div_ceil(TILE_ROWS)).map(of)
}

impl Inputs {
    /// Of a decode step that is padded to `rows` rows.
    pub(crate) fn decode(rows: usize, of_sequence: OfSequence) -> Self {
        Self { rows, sequences: rows, of_sequence, tiles: 0 }
    }

    /// Of any step, without padding.
    pub(crate) fn of(sequences: &[SequenceStep], of_sequence: OfSequence) -> Self {
        let lengths = || sequences.iter().map(|sequence| sequence.tokens.len());
        let is_prompt = lengths().any(|length| length > 1);
        let tiles = if is_prompt { sequences.iter().map(|sequence| tiles(sequence).count()).sum() } else { 0 };
        Self { rows: lengths().sum(), sequences: sequences.len(), of_sequence, tiles }
    }

    /// Most words of a step of up to `tokens` tokens.
    pub(crate) fn most_words(tokens: usize, of_sequence: OfSequence) -> usize {
        Self { rows: tokens, sequences: tokens, of_sequence, tiles: tokens }.words()
    }

    /// Words in all.
    pub(crate) fn words(&self) -> usize {
        self.embeddings() + 2 * self.rows + self.sequences * self.of_sequence.table_blocks + 2 * self.tiles
    }

    /// Tokens whose embeddings are wanted: those of all rows, then those before each sequence.
    pub(crate) fn embeddings(&self) -> usize {
        self.rows + self.sequences * self.of_sequence.tokens_before
    }

    /// Writes a step that lies so. Where there are fewer sequences, rows at `spare_block` fill it up.
    pub(crate) fn write(&self, sequences: &[SequenceStep], tables: &[Vec<u32>], spare_block: u32, to: &mut Pinned) {
        let mut words = &mut to.words_mut()[..self.words()];
        words.fill(0);
        let OfSequence { table_blocks, .. } = self.of_sequence;
        let outside = self.embeddings() - self.rows;
        let arrays = [self.rows, outside, self.rows, self.rows, self.sequences * table_blocks, 2 * self.tiles];
        let [tokens, before, positions, owners, table_words, tile_words] =
            arrays.map(|length| words.split_off_mut(..length).expect("as many words as were counted"));
        let (mut row, mut tiles) = (0, tile_words.chunks_exact_mut(2));
        for (index, table) in table_words.chunks_exact_mut(table_blocks).enumerate() {
            let Some(sequence) = sequences.get(index) else {
                (owners[row], table[0]) = (index as u32, spare_block);
                row += 1;
                continue;
            };
            if let Some(to) = before.get_mut(index) {
                *to = sequence.before.unwrap_or_default();
            }
            // A block table may be longer than the sequence can ever be.
            table.iter_mut().zip(&tables[index]).for_each(|(to, &block)| *to = block);
            // Asked second, as whoever is asked first may lose one.
            for ((first, rows), words) in self::tiles(sequence).zip(tiles.by_ref()) {
                words.copy_from_slice(&[(row + first) as u32, rows as u32]);
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
        let positions = self.tokens(memory) + 4 * self.embeddings() as u64;
        let rows = 4 * self.rows as u64;
        Placement { positions, sequences: positions + rows, tables: positions + 2 * rows }
    }

    /// The address of the tiles, 0 where there are none.
    pub(crate) fn tiles_address(&self, memory: &Memory) -> u64 {
        if self.tiles == 0 { 0 } else { self.tokens(memory) + (self.words() - 2 * self.tiles) as u64 * 4 }
    }
}
