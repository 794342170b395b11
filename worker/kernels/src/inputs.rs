//! The rows that a product multiplies, in the form that its weights want: as they are, rounded to bf16, or quantised.
//!
//! A row's form depends on that row alone, and its int8 scales on one unit of K each.
//! Does not know panels or tiles.

use crate::{
    Isa, Kernels,
    lanes::LANES,
    packed::{Shape, WeightType, from_bf16, to_bf16, to_int8},
    pool::Shards,
};

/// Buffers that hold the rows of one product; kept, so that a step allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct InputBuffers {
    floats: Vec<f32>,
    pairs: Vec<u16>,
    bytes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// Rows of a product, `[rows, depth]`, where `depth` is K as it lies in the weights' memory.
#[derive(Clone, Copy)]
pub(crate) enum Inputs<'a> {
    /// f32, for f32 weights; or bf16 values widened, for bf16 weights on instruction sets that multiply f32.
    F32(&'a [f32]),
    /// bf16, for the instruction that multiplies pairs.
    Bf16(&'a [u16]),
    /// Bytes, with a scale and the bytes' sum for each row and unit, `[rows, units]`.
    Int8 { values: &'a [i8], scales: &'a [f32], sums: &'a [i32] },
}

impl Inputs<'_> {
    /// Of `count` rows from `row` on.
    pub(crate) fn rows(self, row: usize, count: usize, shape: Shape) -> Self {
        let (depth, units) = (shape.depth(), shape.units());
        match self {
            Self::F32(x) => Self::F32(&x[row * depth..][..count * depth]),
            Self::Bf16(x) => Self::Bf16(&x[row * depth..][..count * depth]),
            Self::Int8 { values, scales, sums } => Self::Int8 {
                values: &values[row * depth..][..count * depth],
                scales: &scales[row * units..][..count * units],
                sums: &sums[row * units..][..count * units],
            },
        }
    }
}

impl Kernels {
    /// Brings `x`, `[rows, K]`, into the form for weights of `shape`, in `buffers`.
    pub(crate) fn inputs<'a>(
        &mut self,
        x: &'a [f32],
        rows: usize,
        shape: Shape,
        buffers: &'a mut InputBuffers,
    ) -> Inputs<'a> {
        let (depth, k) = (shape.depth(), x.len() / rows.max(1));
        let row_of = |row: usize| &x[row * k..][..k];
        match shape.kind() {
            WeightType::F32 => Inputs::F32(x),
            WeightType::Bf16 if self.isa == Isa::Avx512Bf16 => {
                buffers.pairs.resize(rows * depth, 0);
                let pairs = Shards::new(&mut buffers.pairs);
                self.pool.run(rows, &|row| {
                    // SAFETY: each task writes its own row.
                    let to = unsafe { pairs.slice(row * depth, depth) };
                    to[k..].fill(0);
                    to.iter_mut().zip(row_of(row)).for_each(|(to, &x)| *to = to_bf16(x));
                });
                Inputs::Bf16(&buffers.pairs)
            }
            WeightType::Bf16 => {
                buffers.floats.resize(rows * depth, 0.0);
                let floats = Shards::new(&mut buffers.floats);
                self.pool.run(rows, &|row| {
                    // SAFETY: each task writes its own row.
                    let to = unsafe { floats.slice(row * depth, depth) };
                    to[k..].fill(0.0);
                    to.iter_mut().zip(row_of(row)).for_each(|(to, &x)| *to = from_bf16(to_bf16(x)));
                });
                Inputs::F32(&buffers.floats)
            }
            WeightType::Int8 => {
                let units = shape.units();
                buffers.bytes.resize(rows * depth, 0);
                buffers.scales.resize(rows * units, 0.0);
                buffers.sums.resize(rows * units, 0);
                let bytes = Shards::new(&mut buffers.bytes);
                let (scales, sums) = (Shards::new(&mut buffers.scales), Shards::new(&mut buffers.sums));
                self.pool.run(rows, &|row| {
                    let whole = row_of(row).chunks(shape.unit());
                    for (unit, x) in whole.enumerate() {
                        let (at, len) = (row * depth + unit * shape.padded_unit(), shape.padded_unit());
                        // SAFETY: each task writes its own row.
                        let (to, scale, sum) = unsafe {
                            (
                                bytes.slice(at, len),
                                scales.slice(row * units + unit, 1),
                                sums.slice(row * units + unit, 1),
                            )
                        };
                        (scale[0], sum[0]) = quantise(x, to);
                    }
                });
                let InputBuffers { bytes, scales, sums, .. } = buffers;
                Inputs::Int8 { values: bytes, scales, sums }
            }
        }
    }
}

/// Writes a unit of a row as bytes, with zeros behind it; returns its scale and the sum of the bytes.
fn quantise(x: &[f32], to: &mut [i8]) -> (f32, i32) {
    // Sixteen maxima side by side, which the compiler makes vectors of.
    let (groups, tail) = x.as_chunks::<LANES>();
    let mut largest = [0.0f32; LANES];
    for group in groups {
        largest
            .iter_mut()
            .zip(group)
            .for_each(|(largest, x)| *largest = if x.abs() > *largest { x.abs() } else { *largest });
    }
    let largest = largest.iter().chain(tail).fold(0.0f32, |largest, x| largest.max(x.abs()));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut sum = 0;
    to[x.len()..].fill(0);
    for (to, x) in to.iter_mut().zip(x) {
        *to = to_int8(x * inverse);
        sum += i32::from(*to);
    }
    (largest / 127.0, sum)
}
