//! A checkpoint's matrices as loaders of every device read them: a canonical unit of K (a head, a block of the FFN, 64 rows) of some outputs
//! at a time, which is what an int8 scale covers: no scale depends on rows or columns of other ranks.
//!
//! An int8 matrix behind a norm takes that norm's gain into its rows, and its bias into its own: the same function, but what is quantised are
//! then plain normalised activations, without the few channels that a gain makes large.
//! Does not know which part of a model a matrix is, what it becomes, nor ranks.

use std::ops::Range;

use nanoinfer_checkpoint::{CheckpointError, TensorSlice};

/// Columns of a tensor, or elements of a vector.
pub(crate) type Piece<'a> = (TensorSlice<'a>, Range<usize>);

/// Gain and bias of a norm, where it has them.
#[derive(Debug)]
pub struct Norm {
    /// `[C]`, or empty.
    pub gain: Vec<f32>,
    /// `[C]`, or empty.
    pub bias: Vec<f32>,
}

/// Some columns of a unit of some tensors side by side.
#[derive(Default)]
pub(crate) struct Tile {
    rows: Range<usize>,
    columns: Range<usize>,
    /// `[rows, columns]`.
    pub(crate) values: Vec<f32>,
    /// Of one tensor.
    piece: Vec<f32>,
}

impl Tile {
    pub(crate) fn read(
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
    pub(crate) fn absorb(
        &mut self,
        norm: &Norm,
        bias: &mut [f32],
        weights: &[Piece<'_>],
    ) -> Result<(), CheckpointError> {
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

/// That what [`Tile::absorb`] made of biases is finite.
///
/// # Errors
/// Names the tensor, where it is not.
pub(crate) fn check_bias(biases: &[Piece<'_>], bias: &[f32]) -> Result<(), CheckpointError> {
    check_made("f32, with the bias of its norm", biases, 0..bias.len(), bias, 0)
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
