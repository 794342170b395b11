//! Weight matrices as the products stream them.
//!
//! ```text
//! [K, N] in panels of 16 columns; the last panel is padded with zeros
//!   f32    panel p:  [k = 0: columns 16p … 16p + 15][k = 1: …] … [k = K − 1: …]
//!   bf16   panel p:  [k = 0, 1: column 16p (k, k + 1), column 16p + 1 (k, k + 1), …][k = 2, 3: …] …   an odd K is padded
//!   int8   panel p:  [scales of unit 0: 16 bf16][unit 1] … padded to 64 bytes, then
//!                    [k = 0 … 3: column 16p (k … k + 3), column 16p + 1 …][k = 4 … 7] …   each unit of K is padded to fours
//! ```
//! Bytes are signed, or with 128 added where the instruction that multiplies fours wants one side unsigned, so that no product has
//! to add it again. The pairs and fours are what instructions that multiply pairs and fours take; a bf16 is the upper half of an f32, so that
//! others widen it with a shift and a mask. K comes in canonical units (a head, a block of the FFN): an int8 matrix has one scale
//! for each unit and column, which depends on no other unit, so that a rank needs only its own part of K and finds the same
//! scales however K is split.

use std::ops::Range;

use crate::{
    Element,
    cpu::{
        buffer::{Arena, Buffer},
        isa::Isa,
        lanes::{LANES, Lanes},
        rounding::{from_bf16, to_bf16},
        versions::versions,
    },
};

/// A weight matrix `[K, N]` in panels of 16 columns.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    shape: Shape,
    panels: Panels,
}

#[derive(Clone, Debug)]
pub(crate) enum Panels {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
    Int8(Buffer<i8>),
}

/// Sizes of a matrix, and where its elements lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    element: Element,
    rows: usize,
    columns: usize,
    unit: usize,
    /// Whether bytes have 128 added.
    biased: bool,
    /// Counted once: each tile asks, and a division takes as long as dozens of products.
    units: usize,
}

impl Shape {
    fn new(element: Element, unit: usize, rows: usize, columns: usize) -> Self {
        Self { element, rows, columns, unit, biased: false, units: rows.div_ceil(unit) }
    }

    /// Units of K; the last may be short.
    pub(crate) fn units(self) -> usize {
        self.units
    }

    /// K of one unit in an int8 matrix, padded to fours.
    pub(crate) fn padded_unit(self) -> usize {
        self.unit.next_multiple_of(4)
    }

    pub(crate) fn element(self) -> Element {
        self.element
    }

    /// K of one unit.
    pub(crate) fn unit(self) -> usize {
        self.unit
    }

    /// Elements of a column that lie side by side: one, a pair, or four.
    pub(crate) fn packed(self) -> usize {
        match self.element {
            Element::F32 => 1,
            Element::Bf16 | Element::F16 => 2,
            Element::Int8 => 4,
        }
    }

    pub(crate) fn is_biased(self) -> bool {
        self.biased
    }

    /// What is flipped in a byte to make it signed or the other way around.
    fn flip(self) -> i8 {
        if self.biased { i8::MIN } else { 0 }
    }

    pub(crate) fn scaled(self) -> bool {
        self.element == Element::Int8
    }

    /// K as it lies in memory.
    pub(crate) fn depth(self) -> usize {
        if self.scaled() { self.units() * self.padded_unit() } else { self.rows.next_multiple_of(self.packed()) }
    }

    /// Steps over K that a product takes.
    pub(crate) fn steps(self) -> usize {
        self.depth() / self.packed()
    }

    /// Bytes of a column over which a sum runs before anything is scaled.
    pub(crate) fn sum_bytes(self) -> usize {
        if self.scaled() { self.padded_unit() } else { self.depth() * self.element.bytes() }
    }

    /// Pieces of 64 bytes that each of these is cut into, of a whole column.
    pub(crate) fn chunks(self) -> usize {
        self.sum_bytes().div_ceil(64) * if self.scaled() { self.units() } else { 1 }
    }

    /// Bytes of an int8 panel's scales.
    pub(crate) fn scale_bytes(self) -> usize {
        if self.scaled() { (self.units() * LANES * size_of::<u16>()).next_multiple_of(64) } else { 0 }
    }

    /// Elements of a panel; bytes, with the scales, where they are int8.
    pub(crate) fn panel_len(self) -> usize {
        self.scale_bytes() + self.depth() * LANES
    }

    pub(crate) fn panel_bytes(self) -> usize {
        self.panel_len() * self.element.bytes()
    }

    pub(crate) fn panels(self) -> usize {
        self.columns.div_ceil(LANES)
    }

    /// Where an element lies.
    fn at(self, row: usize, column: usize) -> usize {
        let k = if self.scaled() { row / self.unit * self.padded_unit() + row % self.unit } else { row };
        // A power of two, which the compiler would divide by.
        let (packed, within) = (self.packed(), k & (self.packed() - 1));
        let panel = column / LANES * self.panel_len() + self.scale_bytes();
        panel + (k - within) * LANES + column % LANES * packed + within
    }

    /// Where the two bytes of a scale lie.
    fn scale_at(self, unit: usize, column: usize) -> usize {
        column / LANES * self.panel_len() + (unit * LANES + column % LANES) * 2
    }

    /// Rows of one unit.
    fn rows_of(self, unit: usize) -> Range<usize> {
        unit * self.unit..((unit + 1) * self.unit).min(self.rows)
    }
}

impl PackedMatrix {
    /// A matrix `[K = rows, N = columns]` for products with `isa`, whose K comes in units of `unit`: of zeros until it is filled, when
    /// memory becomes resident.
    ///
    /// # Panics
    /// When a unit is empty, or the element is f16.
    pub fn zeros(arena: &Arena, isa: Isa, element: Element, unit: usize, rows: usize, columns: usize) -> Self {
        assert!(unit > 0, "a unit of K has rows");
        let biased = element == Element::Int8 && isa.biases_bytes();
        let shape = Shape { biased, ..Shape::new(element, unit, rows, columns) };
        let len = shape.panels() * shape.panel_len();
        let panels = match element {
            Element::F32 => Panels::F32(Buffer::zeros(arena, len)),
            Element::Bf16 => Panels::Bf16(Buffer::zeros(arena, len)),
            Element::Int8 => Panels::Int8(Buffer::zeros(arena, len)),
            Element::F16 => panic!("no product on a CPU is of f16"),
        };
        Self { shape, panels }
    }

    /// Bytes that such a matrix takes.
    pub fn bytes(element: Element, unit: usize, rows: usize, columns: usize) -> usize {
        let shape = Shape::new(element, unit, rows, columns);
        shape.panels() * shape.panel_bytes()
    }

    /// K.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// N.
    pub fn columns(&self) -> usize {
        self.shape.columns
    }

    /// Units of K; the last may be short.
    pub fn units(&self) -> usize {
        self.shape.units()
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Where a panel begins.
    pub(crate) fn address(&self, panel: usize) -> usize {
        let start = match &self.panels {
            Panels::F32(all) => all.as_slice().as_ptr().addr(),
            Panels::Bf16(all) => all.as_slice().as_ptr().addr(),
            Panels::Int8(all) => all.as_slice().as_ptr().addr(),
        };
        start + panel * self.shape.panel_bytes()
    }

    /// Sets the rows of one unit in some columns, `[unit, N']`, rounded to the element type. No value is NaN.
    ///
    /// # Panics
    /// When the matrix has no such unit or columns, the first is no panel's first, or the values are of another size.
    pub fn set_tile(&mut self, unit: usize, columns: Range<usize>, values: &[f32]) {
        let (shape, width) = (self.shape, columns.len());
        let rows = shape.rows_of(unit);
        assert!(unit < shape.units() && values.len() == rows.len() * width, "a tile is [unit, N']");
        assert!(columns.end <= shape.columns && columns.start.is_multiple_of(LANES), "a tile begins with a panel");
        let isa = Isa::detect();
        let mut lanes = vec![[0.0; LANES]; rows.len()];
        for column in columns.clone().step_by(LANES) {
            let (left, there) = (column - columns.start, LANES.min(columns.end - column));
            for (lanes, row) in lanes.iter_mut().zip(values.chunks_exact(width)) {
                lanes[..there].copy_from_slice(&row[left..left + there]);
                lanes[there..].fill(0.0);
            }
            let panel = column / LANES * shape.panel_len();
            let at = shape.at(rows.start, column);
            // SAFETY: `isa` was detected.
            unsafe {
                match &mut self.panels {
                    Panels::F32(panels) => {
                        panels.as_mut_slice()[at..].as_chunks_mut().0[..lanes.len()].copy_from_slice(&lanes)
                    }
                    Panels::Bf16(panels) => {
                        let first = rows.start % 2;
                        set_pairs(isa, &lanes, first, &mut panels.as_mut_slice()[at - first..]);
                    }
                    Panels::Int8(panels) => {
                        let (scales, bytes) = panels.as_mut_slice()[panel..].split_at_mut(at - panel);
                        let scales = &mut scales[unit * LANES * 2..][..LANES * 2];
                        set_fours(isa, &lanes, shape.flip(), scales, bytes);
                    }
                }
            }
        }
    }

    /// Copies one column, `[K]`, to `to`.
    ///
    /// # Panics
    /// When the matrix has no such column, or of another length.
    pub fn copy_column(&self, column: usize, to: &mut [f32]) {
        let shape = self.shape;
        assert!(column < shape.columns && to.len() == shape.rows, "one column has K elements");
        for (row, value) in to.iter_mut().enumerate() {
            let at = shape.at(row, column);
            *value = match &self.panels {
                Panels::F32(panels) => panels.as_slice()[at],
                Panels::Bf16(panels) => from_bf16(panels.as_slice()[at]),
                Panels::Int8(panels) => {
                    let bytes = panels.as_slice();
                    let scale = shape.scale_at(row / shape.unit, column);
                    let scale = u16::from_le_bytes([bytes[scale].cast_unsigned(), bytes[scale + 1].cast_unsigned()]);
                    f32::from(bytes[at] ^ shape.flip()) * from_bf16(scale)
                }
            };
        }
    }
}

versions! { unsafe fn set_pairs(rows: &[[f32; LANES]], first: usize, to: &mut [u16]) = set_pairs_body }
versions! { unsafe fn set_fours(rows: &[[f32; LANES]], flip: i8, scales: &mut [i8], to: &mut [i8]) = set_fours_body }

/// Rows of a panel of bf16, the first of which is of a pair the one or the other; `to` begins with that pair.
///
/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
unsafe fn set_pairs_body<V: Lanes>(rows: &[[f32; LANES]], first: usize, to: &mut [u16]) {
    let (alone, paired) = rows.split_at(first.min(rows.len()));
    let (pairs, last) = paired.as_chunks::<2>();
    let (first_pair, others) = to.split_at_mut(alone.len() * 2 * LANES);
    let mut others = others.chunks_exact_mut(2 * LANES);
    for (pair, to) in pairs.iter().zip(&mut others) {
        // SAFETY: the caller's promise.
        let (even, odd) = unsafe { (narrow::<V>(&pair[0]), narrow::<V>(&pair[1])) };
        to.copy_from_slice(std::array::from_fn::<_, LANES, _>(|lane| [even[lane], odd[lane]]).as_flattened());
    }
    // A pair that two tiles share.
    if let [lanes] = alone {
        // SAFETY: the caller's promise.
        let odd = unsafe { narrow::<V>(lanes) };
        first_pair.iter_mut().skip(1).step_by(2).zip(odd).for_each(|(to, x)| *to = x);
    }
    if let ([lanes], Some(pair)) = (last, others.next()) {
        // SAFETY: the caller's promise.
        let even = unsafe { narrow::<V>(lanes) };
        pair.iter_mut().step_by(2).zip(even).for_each(|(to, x)| *to = x);
    }
}

/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
unsafe fn narrow<V: Lanes>(lanes: &[f32; LANES]) -> [u16; LANES] {
    let mut halves = [0; LANES];
    // SAFETY: arrays of 16; the instruction set is the caller's promise.
    unsafe { V::load(lanes.as_ptr()).round_to_bf16().store_upper_halves(halves.as_mut_ptr()) };
    halves
}

/// Rows of one unit of a panel of bytes, and their scales.
///
/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
unsafe fn set_fours_body<V: Lanes>(rows: &[[f32; LANES]], flip: i8, scales: &mut [i8], to: &mut [i8]) {
    // SAFETY: arrays of 16; the instruction set is the caller's promise.
    unsafe {
        let mut largest = V::splat(0.0);
        for lanes in rows {
            largest = V::load(lanes.as_ptr()).abs().max(largest);
        }
        let mut inverses = [0.0; LANES];
        for ((inverse, largest), to) in inverses.iter_mut().zip(largest.to_array()).zip(scales.chunks_exact_mut(2)) {
            // Rounded before anything is divided by it, so that the rounding costs no accuracy.
            let scale = to_bf16(largest / 127.0);
            to.copy_from_slice(&scale.to_le_bytes().map(u8::cast_signed));
            let scale = from_bf16(scale);
            *inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
        }
        let inverses = V::load(inverses.as_ptr());
        for (fours, to) in rows.chunks(4).zip(to.chunks_exact_mut(4 * LANES)) {
            let mut bytes = [[0; LANES]; 4];
            for (lanes, bytes) in fours.iter().zip(&mut bytes) {
                V::load(lanes.as_ptr()).mul(inverses).round_to_bytes().store_bytes(bytes.as_mut_ptr());
            }
            for (lane, to) in to.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&[0, 1, 2, 3].map(|row: usize| bytes[row][lane] ^ flip));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_write_the_same_matrix_however_they_are_cut_and_it_reads_back() {
        use Element::{Bf16, F16, F32, Int8};
        let cases = [
            (F32, 4, 9, 35),
            (Bf16, 4, 9, 35),
            (Bf16, 3, 10, 16),
            (Int8, 4, 9, 35),
            (Int8, 5, 23, 16),
            (Int8, 64, 64, 1),
        ];
        for (isa, (kind, unit, rows, columns)) in Isa::ALL.into_iter().flat_map(|isa| cases.map(|case| (isa, case))) {
            let value = |row: usize, column: usize| (row * columns + column) as f32 / 8.0 - 3.0;
            let packed = |width: usize| {
                let mut matrix = PackedMatrix::zeros(&Arena::default(), isa, kind, unit, rows, columns);
                for (index, left) in
                    (0..matrix.units()).flat_map(|index| (0..columns).step_by(width).map(move |l| (index, l)))
                {
                    let (rows, tile) = (index * unit..rows.min((index + 1) * unit), left..columns.min(left + width));
                    let values = rows.flat_map(|row| tile.clone().map(move |column| value(row, column)));
                    matrix.set_tile(index, tile.clone(), &values.collect::<Vec<_>>());
                }
                matrix
            };
            let whole = packed(columns.next_multiple_of(LANES));
            assert_eq!(format!("{whole:?}"), format!("{:?}", packed(LANES)));
            for column in 0..columns {
                let mut read = vec![0.0; rows];
                whole.copy_column(column, &mut read);
                let values: Vec<_> = (0..rows).map(|row| value(row, column)).collect();
                for (unit, (read, values)) in read.chunks(unit).zip(values.chunks(unit)).enumerate() {
                    let largest = values.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    // bf16 has 8 significant bits; int8 half a step of 1/127 of the largest, the scale's rounding included.
                    let error = |value: f32| match kind {
                        F32 | F16 => 0.0,
                        Bf16 => value.abs() / 256.0,
                        Int8 => largest / 127.0 * 0.75,
                    };
                    assert!(
                        read.iter().zip(values).all(|(a, b)| (a - b).abs() <= error(*b)),
                        "{kind:?} unit {unit}: {read:?} {values:?}"
                    );
                }
            }
        }
    }
}
