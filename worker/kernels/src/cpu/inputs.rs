//! The rows that a product multiplies, in the form that its weights want: as they are, rounded to bf16, or quantised.
//!
//! A row's form depends on that row alone, and its int8 scales on one unit of K each.
//! Does not know panels or tiles.

use crate::{
    Element,
    cpu::{
        isa::Isa,
        kernels::{InputBuffers, Kernels},
        lanes::{LANES, Lanes, byte_scale},
        packed::Shape,
        pool::Shards,
        rounding::{from_bf16, to_bf16, to_int8},
        versions::versions,
    },
};

/// Rows of a product, `[rows, depth]`, where `depth` is K as it lies in the weights' memory.
#[derive(Clone, Copy)]
pub(crate) enum Inputs<'a> {
    /// f32, for f32 weights; or bf16 values widened, for bf16 weights on instruction sets that multiply f32.
    F32(&'a [f32]),
    /// bf16, for the instruction that multiplies pairs.
    Bf16(&'a [u16]),
    /// Bytes.
    Int8(Bytes<'a>),
}

/// Quantised rows, with a scale and what sums begin with for each row and unit, `[rows, units]`.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    pub(crate) values: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) offsets: &'a [i32],
}

impl Inputs<'_> {
    /// Bytes of a row.
    pub(crate) fn row_bytes(self, shape: Shape) -> usize {
        shape.depth()
            * match self {
                Self::F32(_) => 4,
                Self::Bf16(_) => 2,
                Self::Int8(_) => 1,
            }
    }

    /// Of `count` rows from `row` on.
    pub(crate) fn rows(self, row: usize, count: usize, shape: Shape) -> Self {
        let (depth, units) = (shape.depth(), shape.units());
        match self {
            Self::F32(x) => Self::F32(&x[row * depth..][..count * depth]),
            Self::Bf16(x) => Self::Bf16(&x[row * depth..][..count * depth]),
            Self::Int8(x) => Self::Int8(Bytes {
                values: &x.values[row * depth..][..count * depth],
                scales: &x.scales[row * units..][..count * units],
                offsets: &x.offsets[row * units..][..count * units],
            }),
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
        let (isa, depth, k) = (self.isa, shape.depth(), x.len() / rows.max(1));
        let row_of = |row: usize| &x[row * k..][..k];
        match shape.element() {
            Element::F32 | Element::F16 => Inputs::F32(x),
            Element::Bf16 if isa == Isa::Avx512Bf16 => {
                buffers.pairs.resize(rows * depth, 0);
                let pairs = Shards::new(&mut buffers.pairs);
                self.pool.run(rows, &|row| {
                    // SAFETY: each task writes its own row; the instruction set is available.
                    unsafe { halves(isa, row_of(row), pairs.slice(row * depth, depth)) };
                });
                Inputs::Bf16(&buffers.pairs)
            }
            Element::Bf16 => {
                buffers.floats.resize(rows * depth, 0.0);
                let floats = Shards::new(&mut buffers.floats);
                self.pool.run(rows, &|row| {
                    // SAFETY: each task writes its own row; the instruction set is available.
                    unsafe { rounded(isa, row_of(row), floats.slice(row * depth, depth)) };
                });
                Inputs::F32(&buffers.floats)
            }
            Element::Int8 => {
                let units = shape.units();
                buffers.bytes.resize(rows * depth, 0);
                buffers.scales.resize(rows * units, 0.0);
                buffers.offsets.resize(rows * units, 0);
                let bytes = Shards::new(&mut buffers.bytes);
                let (scales, offsets) = (Shards::new(&mut buffers.scales), Shards::new(&mut buffers.offsets));
                self.pool.run(rows, &|row| {
                    // SAFETY: each task writes its own row; the instruction set is available.
                    unsafe {
                        let to = Quantised {
                            values: bytes.slice(row * depth, depth),
                            scales: scales.slice(row * units, units),
                            offsets: offsets.slice(row * units, units),
                        };
                        quantise(isa, row_of(row), shape, to);
                    }
                });
                let InputBuffers { bytes, scales, offsets, .. } = buffers;
                Inputs::Int8(Bytes { values: bytes, scales, offsets })
            }
        }
    }
}

versions! { unsafe fn halves(x: &[f32], to: &mut [u16]) = halves_body }
versions! { unsafe fn rounded(x: &[f32], to: &mut [f32]) = rounded_body }
versions! { unsafe fn quantise(x: &[f32], shape: Shape, to: Quantised<'_>) = quantise_body }

/// Rounds a row to bf16, with zeros behind it.
#[inline(always)]
unsafe fn halves_body<V: Lanes>(x: &[f32], to: &mut [u16]) {
    let (whole, tail) = x.as_chunks::<LANES>();
    to[x.len()..].fill(0);
    let (to_whole, to_tail) = to.split_at_mut(whole.len() * LANES);
    for (x, to) in whole.iter().zip(to_whole.chunks_exact_mut(LANES)) {
        // SAFETY: slices of 16; the instruction set is the caller's promise.
        unsafe { V::load(x.as_ptr()).round_to_bf16().store_upper_halves(to.as_mut_ptr()) };
    }
    to_tail.iter_mut().zip(tail).for_each(|(to, &x)| *to = to_bf16(x));
}

/// The same, as f32.
#[inline(always)]
unsafe fn rounded_body<V: Lanes>(x: &[f32], to: &mut [f32]) {
    let (whole, tail) = x.as_chunks::<LANES>();
    to[x.len()..].fill(0.0);
    let (to_whole, to_tail) = to.split_at_mut(whole.len() * LANES);
    for (x, to) in whole.iter().zip(to_whole.chunks_exact_mut(LANES)) {
        // SAFETY: slices of 16; the instruction set is the caller's promise.
        unsafe { V::load(x.as_ptr()).round_to_bf16().store(to.as_mut_ptr()) };
    }
    to_tail.iter_mut().zip(tail).for_each(|(to, &x)| *to = from_bf16(to_bf16(x)));
}

/// A row in bytes: values with zeros behind each unit, and for each unit a scale and what its sums begin with.
pub(crate) struct Quantised<'a> {
    values: &'a mut [i8],
    scales: &'a mut [f32],
    offsets: &'a mut [i32],
}

#[inline(always)]
unsafe fn quantise_body<V: Lanes>(x: &[f32], shape: Shape, to: Quantised<'_>) {
    let units = x.chunks(shape.unit()).zip(to.values.chunks_mut(shape.padded_unit()));
    for ((x, to), (scale, offset)) in units.zip(to.scales.iter_mut().zip(to.offsets)) {
        to[x.len()..].fill(0);
        let (whole, tail) = x.as_chunks::<LANES>();
        let (to_whole, to_tail) = to.split_at_mut(whole.len() * LANES);
        // SAFETY: arrays of 16; the instruction set is the caller's promise.
        unsafe {
            let (unit_scale, inverse) = byte_scale::<V>(x);
            let mut bytes = V::splat(0.0);
            for (x, to) in whole.iter().zip(to_whole.chunks_exact_mut(LANES)) {
                let x = V::load(x.as_ptr()).mul(V::splat(inverse)).round_to_bytes();
                // Whole numbers, whose sums f32 holds exactly.
                bytes = bytes.add(x);
                x.store_bytes(to.as_mut_ptr());
            }
            to_tail.iter_mut().zip(tail).for_each(|(to, x)| *to = to_int8(x * inverse));
            let tail_bytes: i32 = to_tail[..tail.len()].iter().map(|&byte| i32::from(byte)).sum();
            *offset = -V::WEIGHT_OFFSET * (bytes.sum() as i32 + tail_bytes);
            *scale = unit_scale;
        }
    }
}
