//! From a checkpoint's tensors to the packed matrices that a rank multiplies with.
//!
//! Does not know which part of a model a matrix is, nor ranks.

use std::ops::Range;

use nanoinfer_checkpoint::{CheckpointError, TensorSlice};
use nanoinfer_kernels::{Arena, Element, Isa, PackedMatrix};
use nanoinfer_shared::model::partition::WIDTH_BLOCK;

use crate::{
    element::range_of,
    tile::{Norm, Piece, Tile, check_bias},
};

/// Weights and bias of a layer. A row-parallel layer holds its whole bias, to be added once after the reduction.
#[derive(Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub weights: PackedMatrix,
    /// `[out]`.
    pub bias: Vec<f32>,
}

/// Packs a rank's matrices, all of one type, for one instruction set and into one arena.
pub(crate) struct Packer {
    isa: Isa,
    element: Element,
    arena: Arena,
}

impl Packer {
    pub(crate) fn new(isa: Isa, element: Element) -> Self {
        Self { isa, element, arena: Arena::default() }
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
        let mut matrix = PackedMatrix::zeros(&self.arena, self.isa, self.element, unit, inputs.len(), outputs);
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
            check_bias(biases, &bias)?;
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
