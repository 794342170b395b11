//! From a checkpoint's tensors to the packed matrices that a rank multiplies with.
//!
//! Reads a canonical unit of K at a time (a head, a block of the FFN, 64 rows), which is what an int8 scale covers: no scale
//! depends on rows or columns of other ranks.
//! An int8 matrix behind a LayerNorm takes that norm's gain into its rows, and its bias into its own: the same function, but
//! what is quantised are then plain normalised activations, without the few channels that a gain makes large.
//! Does not know which part of a model a matrix is.

use std::ops::Range;

use nanoinfer_kernels::{Arena, PackedMatrix, WeightType};
use safetensors::Dtype;

use crate::shard::{LayerNorm, Linear};
use nanoinfer_checkpoint::{CheckpointError, TensorSlice};

/// Rows of K in a unit where they are neither heads nor the FFN's.
pub(crate) const UNIT: usize = 64;

/// Packs a rank's matrices, all of one type and into one arena.
pub(crate) struct Packer {
    kind: WeightType,
    arena: Arena,
}

impl Packer {
    pub(crate) fn new(kind: WeightType) -> Self {
        Self { kind, arena: Arena::default() }
    }

    /// A column-parallel matrix of `height` rows and its bias: this rank's columns, side by side. What a quantised matrix takes
    /// over from `norm`, which computes its input, leaves that neutral.
    ///
    /// # Errors
    /// As the others: when a weight is no number, or too large for the type.
    pub(crate) fn columns(
        &self,
        height: usize,
        ranges: &[Range<usize>],
        (weights, bias): (TensorSlice<'_>, TensorSlice<'_>),
        norm: &mut LayerNorm,
    ) -> Result<Linear, CheckpointError> {
        let weights = self.narrowed(weights);
        let width = ranges.iter().map(Range::len).sum();
        let mut matrix = PackedMatrix::zeros(&self.arena, self.kind, UNIT, height, width);
        let (mut bias, of_tensor) = (Vec::with_capacity(width), bias);
        for range in ranges {
            bias.extend(of_tensor.read_vector(range.clone())?);
        }
        let absorbs = self.kind == WeightType::Int8;
        let (mut unit, mut row) = (Vec::new(), Vec::new());
        let column = |i| ranges.iter().flat_map(Range::clone).nth(i).expect("as many as there are columns");
        for index in 0..matrix.units() {
            unit.clear();
            for k in index * UNIT..height.min((index + 1) * UNIT) {
                let start = unit.len();
                for range in ranges {
                    weights.read_row(k, range.clone(), &mut row)?;
                    unit.extend_from_slice(&row);
                }
                if absorbs {
                    bias.iter_mut().zip(&unit[start..]).for_each(|(bias, weight)| *bias += norm.bias[k] * weight);
                    unit[start..].iter_mut().for_each(|weight| *weight *= norm.gain[k]);
                    weights.check_made("f32, with the gain of its LayerNorm", &unit[start..], k, column)?;
                }
            }
            matrix.set_unit(index, &unit);
        }
        if absorbs {
            of_tensor.check_made("f32, with the bias of its LayerNorm", &bias, 0, column)?;
            norm.gain.fill(1.0);
            norm.bias.fill(0.0);
        }
        Ok(Linear { weights: matrix, bias })
    }

    /// A row-parallel matrix: the given rows, in units of `unit`, of a tensor with `width` columns.
    pub(crate) fn rows(
        &self,
        unit: usize,
        tensor: TensorSlice<'_>,
        range: Range<usize>,
        width: usize,
    ) -> Result<PackedMatrix, CheckpointError> {
        let tensor = self.narrowed(tensor);
        let mut matrix = PackedMatrix::zeros(&self.arena, self.kind, unit, range.len(), width);
        let (mut values, mut row) = (Vec::new(), Vec::new());
        for index in 0..matrix.units() {
            values.clear();
            for from in range.clone().skip(index * unit).take(unit) {
                tensor.read_row(from, 0..width, &mut row)?;
                values.extend_from_slice(&row);
            }
            matrix.set_unit(index, &values);
        }
        Ok(matrix)
    }

    /// The given rows of an embedding `[V, C]`, as the columns of a head `[C, V_local]`.
    pub(crate) fn rows_as_columns(
        &self,
        tensor: TensorSlice<'_>,
        range: Range<usize>,
        width: usize,
    ) -> Result<PackedMatrix, CheckpointError> {
        let tensor = self.narrowed(tensor);
        let mut matrix = PackedMatrix::zeros(&self.arena, self.kind, UNIT, width, range.len());
        let mut values = Vec::new();
        for (column, row) in range.enumerate() {
            tensor.read_row(row, 0..width, &mut values)?;
            matrix.set_column(column, &values);
        }
        Ok(matrix)
    }

    /// `tensor`, whose elements must fit the type of the matrices. Bytes have a scale, which has the range of f32.
    fn narrowed<'a>(&self, tensor: TensorSlice<'a>) -> TensorSlice<'a> {
        tensor.narrowed_to(match self.kind {
            WeightType::F32 | WeightType::Int8 => Dtype::F32,
            WeightType::Bf16 => Dtype::BF16,
        })
    }
}
