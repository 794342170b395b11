//! One tensor, still in its file: a matrix or a vector with strides, read piece by piece as f32.
//!
//! ```text
//! Conv1D [in, out] as stored:      row_stride = out, column_stride = 1      rows are contiguous
//! Linear [out, in] seen as above:  row_stride = 1,   column_stride = in     columns are contiguous
//! a bias that the file leaves out: one zero, column_stride = 0
//! ```
//! So whoever cuts a shard sees one orientation, and nothing is transposed in memory. Invariant: every element lies inside
//! `bytes`, checked when the file was opened.

use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype;

/// Where a tensor lies in its file, in units of its elements from `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Which of the checkpoint's files.
    pub(super) file: usize,
    /// Byte of the first element.
    pub(super) start: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// One tensor, still in its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorSlice<'a> {
    /// From the first element on.
    pub(super) bytes: &'a [u8],
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl Stored {
    /// Strides of a tensor without gaps, the last dimension contiguous.
    pub(super) fn contiguous(shape: &[usize]) -> Vec<usize> {
        let mut strides = vec![1usize; shape.len()];
        for i in (1..shape.len()).rev() {
            // An overflow makes `fits` say no.
            strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
        }
        strides
    }

    /// Whether every element lies within `bytes` bytes from `start`.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(0usize, |last, (&size, &stride)| last.checked_add((size - 1).checked_mul(stride)?));
        last.and_then(|last| last.checked_add(1)?.checked_mul(element_bytes(self.dtype)))
            .is_some_and(|needed| needed <= bytes)
    }
}

impl<'a> TensorSlice<'a> {
    /// A vector of `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Self { bytes: &[0; 4], dtype: Dtype::F32, rows: 1, columns: len, row_stride: 0, column_stride: 0 }
    }

    /// The same matrix with rows and columns exchanged; nothing moves.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Rows of the matrix; 1 of a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix; the length of a vector.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Reads columns `columns` of row `row` into `out`, as f32.
    pub fn read_row(&self, row: usize, columns: Range<usize>, out: &mut Vec<f32>) {
        assert!(row < self.rows && columns.end <= self.columns, "the slice lies inside the tensor");
        self.read(row * self.row_stride + columns.start * self.column_stride, self.column_stride, columns.len(), out);
    }

    /// Reads part of a vector, as f32.
    pub fn read_vector(&self, range: Range<usize>) -> Vec<f32> {
        let mut out = Vec::new();
        self.read_row(0, range, &mut out);
        out
    }

    /// Reads everything row by row, as f32.
    pub fn read_matrix(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.rows * self.columns);
        let mut values = Vec::new();
        for row in 0..self.rows {
            self.read_row(row, 0..self.columns, &mut values);
            out.extend_from_slice(&values);
        }
        out
    }

    /// The bytes of one row as the file would hold them if rows were contiguous, appended to `out`.
    pub(super) fn copy_row(&self, row: usize, out: &mut Vec<u8>) {
        let width = element_bytes(self.dtype);
        for column in 0..self.columns {
            let at = (row * self.row_stride + column * self.column_stride) * width;
            out.extend_from_slice(&self.bytes[at..at + width]);
        }
    }

    /// Whether both hold the same numbers, bit for bit.
    pub(super) fn equals(&self, other: &TensorSlice<'_>) -> bool {
        let same_place = std::ptr::eq(self.bytes.as_ptr(), other.bytes.as_ptr());
        let form = |t: &TensorSlice<'_>| (t.dtype, t.rows, t.columns, t.row_stride, t.column_stride);
        if same_place && form(self) == form(other) {
            return true;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        (self.rows, self.columns) == (other.rows, other.columns)
            && (0..self.rows).all(|row| {
                self.read_row(row, 0..self.columns, &mut ours);
                other.read_row(row, 0..self.columns, &mut theirs);
                ours.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits())
            })
    }

    fn read(&self, start: usize, stride: usize, len: usize, out: &mut Vec<f32>) {
        out.clear();
        match self.dtype {
            Dtype::F32 => gather(self.bytes, start, stride, len, out, f32::from_le_bytes),
            Dtype::F16 => gather(self.bytes, start, stride, len, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => gather(self.bytes, start, stride, len, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            other => unreachable!("`check` refuses {other:?}"),
        }
    }
}

/// Bytes of one element; types of less than a byte are none that torch or GPT-2 have.
pub(super) fn element_bytes(dtype: Dtype) -> usize {
    dtype.bitsize().div_ceil(8)
}

fn gather<const WIDTH: usize>(
    bytes: &[u8],
    start: usize,
    stride: usize,
    len: usize,
    out: &mut Vec<f32>,
    convert: impl Fn([u8; WIDTH]) -> f32,
) {
    let (words, _) = bytes.as_chunks::<WIDTH>();
    if stride == 1 {
        out.extend(words[start..start + len].iter().map(|&word| convert(word)));
    } else {
        out.extend((0..len).map(|i| convert(words[start + i * stride])));
    }
}
