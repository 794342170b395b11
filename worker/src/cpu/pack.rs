//! From a checkpoint's tensors to the packed matrices that a rank multiplies with.
//!
//! Reads a canonical unit of K at a time (a head, a block of the FFN, 64 rows), which is what an int8 scale covers: no scale
//! depends on rows or columns of other ranks.
//! An int8 matrix behind a norm takes that norm's gain into its rows, and its bias into its own: the same function, but
//! what is quantised are then plain normalised activations, without the few channels that a gain makes large.
//! Does not know which part of a model a matrix is, nor ranks.

use std::ops::Range;

use nanoinfer_checkpoint::{CheckpointError, TensorSlice};
use nanoinfer_kernels::{Arena, Element, PackedMatrix};
use nanoinfer_shared::model::partition::WIDTH_BLOCK;

use crate::element::range_of;

/// Weights and bias of a layer. A row-parallel layer holds its whole bias, to be added once after the reduction.
#[derive(Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub weights: PackedMatrix,
    /// `[out]`.
    pub bias: Vec<f32>,
}

/// Gain of a norm, and its bias where it has one.
#[derive(Debug)]
pub struct Norm {
    /// `[C]`.
    pub gain: Vec<f32>,
    /// `[C]`, or empty.
    pub bias: Vec<f32>,
}

/// Columns of a tensor, or elements of a vector.
pub(crate) type Piece<'a> = (TensorSlice<'a>, Range<usize>);

/// Packs a rank's matrices, all of one type and into one arena.
pub(crate) struct Packer {
    element: Element,
    arena: Arena,
}

impl Packer {
    pub(crate) fn new(element: Element) -> Self {
        Self { element, arena: Arena::default() }
    }

    /// A linear layer: the given columns of some tensors side by side, of the rows `inputs` in units of `unit`. What a quantised
    /// matrix takes over from `norm`, which computes its input, leaves that neutral.
    ///
    /// # Errors
    /// As the others: when a weight is no number, or too large for the type.
    pub(crate) fn linear(
        &self,
        weights: &[Piece<'_>],
        biases: &[Piece<'_>],
        inputs: Range<usize>,
        unit: usize,
        norm: Option<&mut Norm>,
    ) -> Result<Linear, CheckpointError> {
        let outputs = weights.iter().map(|(_, outputs)| outputs.len()).sum();
        let mut matrix = PackedMatrix::zeros(&self.arena, self.element, unit, inputs.len(), outputs);
        let mut bias = Vec::with_capacity(outputs);
        for (tensor, outputs) in biases {
            bias.extend(tensor.read_vector(outputs.clone())?);
        }
        // Where there are none.
        bias.resize(outputs, 0.0);
        let absorbed = norm.filter(|_| self.element == Element::Int8);
        let (mut values, mut row) = (Vec::new(), Vec::new());
        for index in 0..matrix.units() {
            values.clear();
            for k in inputs.clone().skip(index * unit).take(unit) {
                let start = values.len();
                for (tensor, outputs) in weights {
                    self.narrowed(*tensor).read_row(k, outputs.clone(), &mut row)?;
                    values.extend_from_slice(&row);
                }
                if let Some(norm) = &absorbed {
                    let made = &mut values[start..];
                    if let Some(norm_bias) = norm.bias.get(k) {
                        bias.iter_mut().zip(&*made).for_each(|(bias, weight)| *bias += norm_bias * weight);
                    }
                    made.iter_mut().for_each(|weight| *weight *= norm.gain[k]);
                    check_made("f32, with the gain of its norm", weights, made, k)?;
                }
            }
            matrix.set_unit(index, &values);
        }
        if let Some(norm) = absorbed {
            check_made("f32, with the bias of its norm", biases, &bias, 0)?;
            norm.gain.fill(1.0);
            norm.bias.fill(0.0);
        }
        Ok(Linear { weights: matrix, bias })
    }

    /// The given rows of an embedding `[V, C]`, as the columns of a head `[C, V_local]`.
    pub(crate) fn rows_as_columns(
        &self,
        tensor: TensorSlice<'_>,
        range: Range<usize>,
        width: usize,
    ) -> Result<PackedMatrix, CheckpointError> {
        let tensor = self.narrowed(tensor);
        let mut matrix = PackedMatrix::zeros(&self.arena, self.element, WIDTH_BLOCK, width, range.len());
        let mut values = Vec::new();
        for (column, row) in range.enumerate() {
            tensor.read_row(row, 0..width, &mut values)?;
            matrix.set_column(column, &values);
        }
        Ok(matrix)
    }

    /// `tensor`, whose elements must fit the type of the matrices.
    fn narrowed<'a>(&self, tensor: TensorSlice<'a>) -> TensorSlice<'a> {
        tensor.narrowed_to(range_of(self.element))
    }
}

/// That numbers made of those of a row of some tensors, side by side, are finite.
fn check_made(what: &'static str, pieces: &[Piece<'_>], made: &[f32], row: usize) -> Result<(), CheckpointError> {
    let mut made = made;
    for (tensor, columns) in pieces {
        let (of_piece, rest) = made.split_at(columns.len());
        tensor.check_made(what, of_piece, row, columns.start)?;
        made = rest;
    }
    Ok(())
}
