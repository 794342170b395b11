//! One tensor, still in its file: a matrix or a vector with strides, read piece by piece as f32.
//!
//! ```text
//! Conv1D [in, out] as stored:      row_stride = out, column_stride = 1      rows are contiguous
//! Linear [out, in] seen as above:  row_stride = 1,   column_stride = in     columns are contiguous
//! a bias that the file leaves out: one zero, column_stride = 0
//! ```
//! So whoever cuts a shard sees one orientation, and nothing is transposed in memory. Invariant: every element lies inside
//! `bytes`, checked when the file was opened; and nobody computes with what is no number: reading it is an error.

use std::{fmt, ops::Range};

use safetensors::Dtype;

use super::{blocks::BlockType, error::CheckpointError};

/// Most tensors of a checkpoint: those of 5,000 layers.
pub(super) const MAX_TENSORS: usize = 1 << 16;
/// Most dimensions of a tensor: mask buffers have 4.
pub(super) const MAX_DIMENSIONS: usize = 8;

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ElementType {
    /// Each by itself.
    Plain(Dtype),
    /// Some of a row together; none of a block is of another row.
    Blocks(BlockType),
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => f.pad(&dtype.to_string()),
            Self::Blocks(blocks) => blocks.fmt(f),
        }
    }
}

impl ElementType {
    /// Whether they are read as f32.
    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::Blocks(_) | Self::Plain(Dtype::F32 | Dtype::F16 | Dtype::BF16))
    }

    /// What they are written as where they are copied: blocks are read.
    pub(super) fn copied(self) -> Dtype {
        match self {
            Self::Plain(dtype) => dtype,
            Self::Blocks(_) => Dtype::F32,
        }
    }

    /// Elements that stand together.
    pub(super) fn block(self) -> usize {
        match self {
            Self::Plain(_) => 1,
            Self::Blocks(blocks) => blocks.elements(),
        }
    }

    /// Bytes of these.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::Plain(dtype) => element_bytes(dtype),
            Self::Blocks(blocks) => blocks.bytes(),
        }
    }

    /// Where the blocks lie that hold `len` elements from `start` on, in bytes.
    pub(super) fn bytes(self, start: usize, len: usize) -> Range<usize> {
        let (first, end) = (start / self.block(), (start + len).div_ceil(self.block()));
        first * self.block_bytes()..end * self.block_bytes()
    }
}

/// Where a tensor lies in its file, in units of its elements from `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Which of the checkpoint's files.
    pub(super) file: usize,
    /// Byte of the first element.
    pub(super) start: usize,
    pub(super) dtype: ElementType,
    pub(super) shape: Vec<usize>,
    /// Those of blocks are those of a tensor without gaps, its rows whole blocks.
    pub(super) strides: Vec<usize>,
    /// Width of a head whose rows (elements of a vector) stand as pairs: see [`TensorSlice::place`].
    pub(super) paired: Option<usize>,
}

/// One tensor, still in its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorSlice<'a> {
    /// Without prefixes.
    name: &'a str,
    /// Type that elements must fit, once they are read.
    target: Dtype,
    /// The tensor's column that is its first.
    pub(super) first_column: usize,
    /// From the tensor's first element on.
    pub(super) bytes: &'a [u8],
    pub(super) dtype: ElementType,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
    /// Width of a head whose rows stand as pairs in the file.
    pub(super) row_pairs: Option<usize>,
    /// The same of its columns.
    pub(super) column_pairs: Option<usize>,
    /// Rows are the file's columns; for messages.
    is_turned: bool,
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

    /// Number of elements; as many as can be counted where they are more.
    pub(super) fn count(&self) -> usize {
        self.shape.iter().fold(1, |count, &size| count.saturating_mul(size))
    }

    /// Whether every element lies within `bytes` bytes from `start`, and they are no more than have room there: a view of stride 0
    /// could have any number, and whoever reads it would never end.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let all_bytes = |count: usize| count.div_ceil(self.dtype.block()).checked_mul(self.dtype.block_bytes());
        let has_room = |count| all_bytes(count).is_some_and(|all| all <= bytes);
        let further = |at: usize, (&size, &stride): (&usize, &usize)| at.checked_add((size - 1).checked_mul(stride)?);
        let last = self.shape.iter().zip(&self.strides).try_fold(0, further);
        has_room(self.count()) && last.and_then(|last| last.checked_add(1)).is_some_and(has_room)
    }

    /// Bytes of the file from its first element to its last.
    pub(super) fn extent(&self) -> Range<usize> {
        let elements = self.count().checked_sub(1).map_or(0, |last| self.place(last) + 1);
        self.start..self.start + self.dtype.bytes(0, elements).end
    }

    /// Which element, from `start`, stands at `index` in the order of the shape.
    pub(super) fn place(&self, mut index: usize) -> usize {
        let mut place = 0;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            place += index % size * stride;
            index /= size;
        }
        place
    }

    /// The tensor, its `bytes` from its start on, as a matrix of rows or a single row; `None` if it has more dimensions or none.
    pub(super) fn view<'a>(&self, name: &'a str, bytes: &'a [u8]) -> Option<TensorSlice<'a>> {
        let one = |columns, column_stride| TensorSlice {
            name,
            target: Dtype::F32,
            first_column: 0,
            bytes,
            dtype: self.dtype,
            rows: 1,
            columns,
            row_stride: 0,
            column_stride,
            row_pairs: None,
            column_pairs: self.paired,
            is_turned: false,
        };
        match (&self.shape[..], &self.strides[..]) {
            (&[len], &[stride]) => Some(one(len, stride)),
            (&[rows, columns], &[row_stride, stride]) => {
                let (row_pairs, column_pairs) = (self.paired, None);
                Some(TensorSlice { rows, row_stride, row_pairs, column_pairs, ..one(columns, stride) })
            }
            _ => None,
        }
    }
}

impl<'a> TensorSlice<'a> {
    /// A vector of `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let (dtype, shape, strides) = (ElementType::Plain(Dtype::F32), vec![len], vec![0]);
        let stored = Stored { file: 0, start: 0, dtype, shape, strides, paired: None };
        stored.view("a bias that is left out", &[0; 4]).expect("it is a vector")
    }

    /// The same for elements that will be rounded to `target`: f32, f16 or bf16.
    pub fn narrowed_to(self, target: Dtype) -> Self {
        Self { target, ..self }
    }

    /// Some of its columns.
    pub(super) fn columns_of(self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.columns, "a part lies inside its tensor");
        Self { columns: columns.len(), first_column: self.first_column + columns.start, ..self }
    }

    /// The same matrix with rows and columns exchanged; nothing moves.
    ///
    /// # Panics
    /// When it is some columns of another.
    pub fn transposed(self) -> Self {
        assert!(self.first_column == 0, "what is turned is whole");
        let Self { rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride, .. } = self;
        let Self { row_pairs: column_pairs, column_pairs: row_pairs, .. } = self;
        let is_turned = !self.is_turned;
        Self { rows, columns, row_stride, column_stride, row_pairs, column_pairs, is_turned, ..self }
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
    pub fn dtype(&self) -> ElementType {
        self.dtype
    }

    /// Reads columns `columns` of row `row` into `out`, as f32.
    ///
    /// # Errors
    /// As [`TensorSlice::read_tile`].
    pub fn read_row(&self, row: usize, columns: Range<usize>, out: &mut Vec<f32>) -> Result<(), CheckpointError> {
        self.read_tile(row..row + 1, columns, out)
    }

    /// Makes `out` the elements of columns `columns` of rows `rows`, row by row, as f32. Whichever of the two lie side by side in
    /// the file, that is quick where a tile has some dozens of both.
    ///
    /// # Errors
    /// Names the tensor and the element that is no number, or is infinite in the type it is read for.
    pub fn read_tile(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), CheckpointError> {
        let (row, column, width) = (rows.start, columns.start, columns.len());
        self.fill(rows, columns, out);
        let Some(i) = first_beyond(out, infinite_from(self.target)) else { return Ok(()) };
        let (name, element, value) = (self.name.to_owned(), self.element(row + i / width, column + i % width), out[i]);
        if !value.is_finite() {
            return Err(CheckpointError::NoNumber { name, element, value });
        }
        let target = if self.target == Dtype::F16 { "f16" } else { "bf16" };
        Err(CheckpointError::Overflow { name, element, value, target })
    }

    /// Reads part of a vector, as f32.
    ///
    /// # Errors
    /// As [`TensorSlice::read_row`].
    pub fn read_vector(&self, range: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        let mut out = Vec::new();
        self.read_row(0, range, &mut out)?;
        Ok(out)
    }

    /// Reads everything, row by row, as f32.
    ///
    /// # Errors
    /// As [`TensorSlice::read_row`].
    pub fn read_matrix(&self) -> Result<Vec<f32>, CheckpointError> {
        let mut out = Vec::new();
        self.read_tile(0..self.rows, 0..self.columns, &mut out)?;
        Ok(out)
    }

    /// Checks what was made of elements of row `row` together with others, from column `first` on.
    ///
    /// # Errors
    /// Names the tensor and the element of which no finite number came, and what it was to be.
    pub fn check_made(
        &self,
        what: &'static str,
        values: &[f32],
        row: usize,
        first: usize,
    ) -> Result<(), CheckpointError> {
        let Some(i) = first_beyond(values, infinite_from(Dtype::F32)) else { return Ok(()) };
        let mut value = Vec::new();
        self.fill(row..row + 1, first + i..first + i + 1, &mut value);
        let (name, element) = (self.name.to_owned(), self.element(row, first + i));
        Err(CheckpointError::Overflow { name, element, value: value[0], target: what })
    }

    fn element(&self, row: usize, column: usize) -> String {
        let column = self.first_column + column;
        match (self.rows, self.is_turned) {
            (1, _) => format!("{column}"),
            (_, false) => format!("[{row}, {column}]"),
            (_, true) => format!("[{column}, {row}]"),
        }
    }

    /// The bytes of one row, whose values are `values`, as the file would hold them if rows were contiguous and its elements
    /// [copied](ElementType::copied) as they are, appended to `out`.
    pub(super) fn copy_row(&self, row: usize, values: &[f32], out: &mut Vec<u8>) {
        if let ElementType::Blocks(_) = self.dtype {
            return out.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        }
        for column in 0..self.columns {
            out.extend_from_slice(&self.bytes[self.dtype.bytes(self.place(row, column), 1)]);
        }
    }

    /// Whether both hold the same numbers, bit for bit.
    pub(super) fn equals(&self, other: &TensorSlice<'_>) -> bool {
        let same_place = std::ptr::eq(self.bytes.as_ptr(), other.bytes.as_ptr());
        let form = |t: &TensorSlice<'_>| (t.dtype, t.rows, t.columns, t.row_stride, t.column_stride, t.first_column);
        if same_place && form(self) == form(other) {
            return true;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        (self.rows, self.columns) == (other.rows, other.columns)
            && (0..self.rows).all(|row| {
                self.fill(row..row + 1, 0..self.columns, &mut ours);
                other.fill(row..row + 1, 0..self.columns, &mut theirs);
                ours.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits())
            })
    }
}

/// The first of `values` whose magnitude has at least the bits of `limit`: NaN too.
fn first_beyond(values: &[f32], limit: i32) -> Option<usize> {
    let is_beyond = |x: &f32| (x.to_bits() & i32::MAX as u32) as i32 >= limit;
    // Without a branch, so that it is done in vectors: every weight comes through here.
    let any = values.iter().fold(false, |any, x| any | is_beyond(x));
    if any { values.iter().position(is_beyond) } else { None }
}

/// The bits of the smallest number that becomes infinite in a type, half a step above its largest.
fn infinite_from(target: Dtype) -> i32 {
    match target {
        Dtype::F16 => 65520f32.to_bits() as i32,
        Dtype::BF16 => 0x7f7f_8000,
        _ => f32::INFINITY.to_bits() as i32,
    }
}

/// Bytes of one element; types of less than a byte are none that torch or GPT-2 have.
pub(super) fn element_bytes(dtype: Dtype) -> usize {
    dtype.bitsize().div_ceil(8)
}
