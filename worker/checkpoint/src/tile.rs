//! From a tensor's bytes to f32: a tile of rows and columns, whichever of the two lie side by side.
//!
//! ```text
//! rows are contiguous:      each row of the tile is one run
//! columns are contiguous:   32 columns, 128 rows of each at a time, are runs; a block of them is turned within the cache
//! ```
//! Every run is read from its first byte to its last, so that nothing of the file is passed over twice. Does not judge values.

use std::{array, ops::Range};

use half::{
    f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use safetensors::Dtype;

use super::tensor::{ElementType, TensorSlice};

/// Rows of a block that is turned at once: with [`COLUMNS`] of f32 they take 16 KB, half of the smallest first-level cache.
const ROWS: usize = 128;
/// Columns of it: two cache lines of f32.
const COLUMNS: usize = 32;
/// Elements that are widened at once.
const CHUNK: usize = 64;

impl TensorSlice<'_> {
    /// Makes `out` the elements of a tile, row by row, whatever their values are.
    pub(super) fn fill(&self, rows: Range<usize>, columns: Range<usize>, out: &mut Vec<f32>) {
        assert!(rows.end <= self.rows && columns.end <= self.columns, "the tile lies inside the tensor");
        // What is there is written over: only what is new needs to become zero first.
        out.resize(rows.len() * columns.len(), 0.0);
        let bytes = self.bytes;
        let dtype = match self.dtype {
            ElementType::Plain(dtype) => dtype,
            ElementType::Blocks(blocks) => {
                return self.fill_by(rows, columns, out, |at, stride, run| match stride {
                    1 => blocks.read(bytes, at, run),
                    _ => run.chunks_exact_mut(1).enumerate().for_each(|(i, x)| blocks.read(bytes, at + i * stride, x)),
                });
            }
        };
        match dtype {
            Dtype::F32 => self.fill_by(rows, columns, out, |at, stride, run| {
                gather(bytes, at, stride, run, |words, run| each(words, run, f32::from_le_bytes));
            }),
            Dtype::F16 => self.fill_by(rows, columns, out, |at, stride, run| gather(bytes, at, stride, run, widen_f16)),
            Dtype::BF16 => self.fill_by(rows, columns, out, |at, stride, run| {
                // The upper half of an f32; what is no number stays none.
                let widen = |word| f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16);
                gather(bytes, at, stride, run, |words, run| each(words, run, widen));
            }),
            other => unreachable!("`check` refuses {other:?}"),
        }
    }

    /// The same, given how a run is read: its first element, and how far from one to the next.
    fn fill_by(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
        read: impl Fn(usize, usize, &mut [f32]),
    ) {
        let width = columns.len();
        if width == 0 {
            return;
        }
        if self.column_pairs.is_none() && (self.column_stride == 1 || rows.len() == 1) {
            for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
                read(self.place(row, columns.start), self.column_stride, out);
            }
            return;
        }
        assert!(self.row_pairs.is_none(), "only outputs stand as pairs");
        let mut block = [0.0; ROWS * COLUMNS];
        for (band, out) in out.chunks_mut(ROWS * width).enumerate() {
            let (first_row, height) = (rows.start + band * ROWS, out.len() / width);
            for left in (0..width).step_by(COLUMNS) {
                let side_by_side = COLUMNS.min(width - left);
                for (column, run) in block.chunks_exact_mut(ROWS).take(side_by_side).enumerate() {
                    let at = self.place(first_row, columns.start + left + column);
                    read(at, self.row_stride, &mut run[..height]);
                }
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    let turned: [f32; COLUMNS] = array::from_fn(|column| block[column * ROWS + row]);
                    match out[left..].first_chunk_mut() {
                        Some(line) => *line = turned,
                        None => out[left..].copy_from_slice(&turned[..side_by_side]),
                    }
                }
            }
        }
    }

    /// Where a tile lies from the tensor's start on, as runs of bytes: of its rows or of its columns, whichever lie side by side.
    pub(super) fn runs(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<Range<usize>> {
        let run = |row: usize, column: usize, elements: usize, stride: usize| match elements {
            0 => 0..0,
            _ => self.dtype.bytes(self.place(row, column), (elements - 1) * stride + 1),
        };
        if self.column_pairs.is_none() && (rows.len() == 1 || self.column_stride <= self.row_stride) {
            rows.map(|row| run(row, columns.start, columns.len(), self.column_stride)).collect()
        } else {
            columns.map(|column| run(rows.start, column, rows.len(), self.row_stride)).collect()
        }
    }

    /// Which element of the tensor stands there. Of heads that stand as pairs, each element `i` of the first half has the one of
    /// the second beside it.
    pub(super) fn place(&self, row: usize, column: usize) -> usize {
        let (row, column) =
            (among_pairs(row, self.row_pairs), among_pairs(self.first_column + column, self.column_pairs));
        row * self.row_stride + column * self.column_stride
    }
}

/// Where element `i` of heads of width `head` stands.
fn among_pairs(i: usize, head: Option<usize>) -> usize {
    let Some(head) = head else { return i };
    let (within, half) = (i % head, head / 2);
    i - within + within % half * 2 + within / half
}

/// Makes `out` elements `at`, `at + stride`, … of `bytes`, by what widens those that lie side by side.
fn gather<const WIDTH: usize>(
    bytes: &[u8],
    at: usize,
    stride: usize,
    out: &mut [f32],
    widen: impl Fn(&[[u8; WIDTH]], &mut [f32]),
) {
    let (words, _) = bytes.as_chunks::<WIDTH>();
    if stride == 1 {
        widen(&words[at..at + out.len()], out);
    } else {
        out.chunks_exact_mut(1).enumerate().for_each(|(i, out)| widen(&words[at + i * stride..][..1], out));
    }
}

fn each<const WIDTH: usize>(words: &[[u8; WIDTH]], out: &mut [f32], widen: impl Fn([u8; WIDTH]) -> f32) {
    out.iter_mut().zip(words).for_each(|(out, &word)| *out = widen(word));
}

fn widen_f16(words: &[[u8; 2]], out: &mut [f32]) {
    let mut bits = [0; CHUNK];
    for (words, out) in words.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
        let bits = &mut bits[..words.len()];
        bits.iter_mut().zip(words).for_each(|(bits, &word)| *bits = u16::from_le_bytes(word));
        bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::{super::tensor::Stored, *};

    /// Of element `i`: exact in all types.
    fn value(i: usize) -> f32 {
        (i % 251) as f32 - 125.0
    }

    #[test]
    fn a_tile_is_its_elements_however_they_lie() {
        let encode = |dtype, x| match dtype {
            Dtype::F32 => f32::to_le_bytes(x).to_vec(),
            Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            _ => bf16::from_f32(x).to_le_bytes().to_vec(),
        };
        let (inputs, outputs) = (2 * ROWS + 3, 3 * COLUMNS + 5);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let bytes: Vec<u8> = (0..2 * inputs * outputs).flat_map(|i| encode(dtype, value(i))).collect();
            assert_eq!(bytes.len(), 2 * inputs * outputs * dtype.bitsize() / 8);
            // Outputs contiguous; inputs contiguous; every other element.
            for strides in [[outputs, 1], [1, inputs], [2 * outputs, 2]] {
                let shape = vec![inputs, outputs];
                let (dtype, strides) = (ElementType::Plain(dtype), strides.to_vec());
                let stored = Stored { file: 0, start: 0, dtype, shape, strides: strides.clone(), paired: None };
                let whole = stored.view("name", &bytes).unwrap();
                let (first, part) = (7, whole.columns_of(7..outputs - 2));
                for (rows, columns) in [
                    (0..inputs, 0..part.columns()),
                    (ROWS - 1..ROWS + 2, 3..4),
                    (5..6, 1..30),
                    (9..9, 0..2),
                    (3..5, 4..4),
                ] {
                    let mut got = vec![f32::NAN; 3];
                    part.read_tile(rows.clone(), columns.clone(), &mut got).unwrap();
                    let at = |row, column| value(row * strides[0] + (first + column) * strides[1]);
                    let expected = rows.flat_map(|row| columns.clone().map(move |column| at(row, column)));
                    assert!(got.iter().copied().eq(expected), "{dtype:?} {strides:?} {columns:?}");
                }
            }
        }
    }

    #[test]
    fn of_a_tile_the_first_element_that_is_no_number_is_named() {
        let mut bytes: Vec<u8> = (0..600).flat_map(|i| value(i).to_le_bytes()).collect();
        for at in [17 * 30 + 4, 12 * 30 + 9] {
            bytes[4 * at..4 * at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        let (dtype, shape, strides) = (ElementType::Plain(Dtype::F32), vec![30, 20], vec![1, 30]);
        let stored = Stored { file: 0, start: 0, dtype, shape, strides, paired: None };
        let part = stored.view("name", &bytes).unwrap().columns_of(5..20);
        let error = part.read_tile(2..30, 3..15, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("element [4, 17]"), "{error}");
        part.read_tile(5..9, 0..15, &mut Vec::new()).unwrap();
    }
}
