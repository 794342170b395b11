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

/// Gain and bias of a norm, where it has them.
#[derive(Debug)]
pub struct Norm {
    /// `[C]`, or empty.
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
        let weights: Vec<Piece<'_>> =
            weights.iter().map(|(tensor, outputs)| (self.narrowed(*tensor), outputs.clone())).collect();
        let mut tile = Tile::default();
        for columns in (0..outputs).step_by(STRIP).map(|first| first..outputs.min(first + STRIP)) {
            for index in 0..matrix.units() {
                let rows = inputs.start + index * unit..inputs.end.min(inputs.start + (index + 1) * unit);
                tile.read(&weights, rows.clone(), columns.clone())?;
                if let Some(norm) = &absorbed {
                    tile.absorb(norm, &mut bias[columns.clone()], &weights)?;
                }
                matrix.set_tile(index, columns.clone(), &tile.values);
            }
        }
        if let Some(norm) = absorbed {
            check_made("f32, with the bias of its norm", biases, 0..bias.len(), &bias, 0)?;
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
        Ok(self.linear(&[(tensor.transposed(), range)], &[], 0..width, WIDTH_BLOCK, None)?.weights)
    }

    /// `tensor`, whose elements must fit the type of the matrices.
    fn narrowed<'a>(&self, tensor: TensorSlice<'a>) -> TensorSlice<'a> {
        tensor.narrowed_to(range_of(self.element))
    }
}

/// Outputs that are packed at once: a unit of theirs stays in the cache.
const STRIP: usize = 512;

/// Some columns of a unit of some tensors side by side.
#[derive(Default)]
struct Tile {
    rows: Range<usize>,
    columns: Range<usize>,
    /// `[rows, columns]`.
    values: Vec<f32>,
    /// Of one tensor.
    piece: Vec<f32>,
}

impl Tile {
    fn read(
        &mut self,
        weights: &[Piece<'_>],
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<(), CheckpointError> {
        let width = columns.len();
        self.values.resize(rows.len() * width, 0.0);
        for (tensor, of_tensor, place) in within(weights, &columns) {
            tensor.read_tile(rows.clone(), of_tensor, &mut self.piece)?;
            for (to, from) in self.values.chunks_exact_mut(width).zip(self.piece.chunks_exact(place.len())) {
                to[place.clone()].copy_from_slice(from);
            }
        }
        (self.rows, self.columns) = (rows, columns);
        Ok(())
    }

    /// Takes over what `norm`, which computes the inputs, multiplies with, and into `bias` what it adds.
    fn absorb(&mut self, norm: &Norm, bias: &mut [f32], weights: &[Piece<'_>]) -> Result<(), CheckpointError> {
        for (k, made) in self.rows.clone().zip(self.values.chunks_exact_mut(self.columns.len())) {
            if let Some(norm_bias) = norm.bias.get(k) {
                bias.iter_mut().zip(&*made).for_each(|(bias, weight)| *bias += norm_bias * weight);
            }
            let Some(gain) = norm.gain.get(k) else { continue };
            made.iter_mut().for_each(|weight| *weight *= gain);
            check_made("f32, with the gain of its norm", weights, self.columns.clone(), made, k)?;
        }
        Ok(())
    }
}

/// That numbers made of those of a row of some tensors, side by side, in some columns, are finite.
fn check_made(
    what: &'static str,
    pieces: &[Piece<'_>],
    columns: Range<usize>,
    made: &[f32],
    row: usize,
) -> Result<(), CheckpointError> {
    for (tensor, of_tensor, place) in within(pieces, &columns) {
        tensor.check_made(what, &made[place], row, of_tensor.start)?;
    }
    Ok(())
}

/// What of `pieces` side by side lies in `columns`: the columns of each tensor, and where they are among those.
fn within<'a, 'b>(
    pieces: &'b [Piece<'a>],
    columns: &'b Range<usize>,
) -> impl Iterator<Item = (TensorSlice<'a>, Range<usize>, Range<usize>)> + use<'a, 'b> {
    let mut end = 0;
    pieces.iter().filter_map(move |(tensor, outputs)| {
        let start = end;
        end += outputs.len();
        let there = columns.start.max(start)..columns.end.min(end);
        if there.is_empty() {
            return None;
        }
        let of_tensor = outputs.start + there.start - start..outputs.start + there.end - start;
        Some((*tensor, of_tensor, there.start - columns.start..there.end - columns.start))
    })
}
