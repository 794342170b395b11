//! Weight matrices as the products stream them.
//!
//! ```text
//! [K, N] in panels of 16 columns; the last panel is padded with zeros
//!   f32    panel p:  [k = 0: columns 16p … 16p + 15][k = 1: …] … [k = K − 1: …]
//!   bf16   panel p:  [k = 0, 1: column 16p (k, k + 1), column 16p + 1 (k, k + 1), …][k = 2, 3: …] …   an odd K is padded
//!   int8   panel p:  [scales of unit 0: 16 bf16][unit 1] … padded to 64 bytes, then
//!                    [k = 0 … 3: column 16p (k … k + 3), column 16p + 1 …][k = 4 … 7] …   each unit of K is padded to fours
//! ```
//! The pairs and fours are what instructions that multiply pairs and fours take; a bf16 is the upper half of an f32, so that
//! others widen it with a shift and a mask. K comes in canonical units (a head, a block of the FFN): an int8 matrix has one scale
//! for each unit and column, which depends on no other unit, so that a rank needs only its own part of K and finds the same
//! scales however K is split.

use std::ops::Range;

use crate::{
    Element,
    cpu::{
        buffer::{Arena, Buffer},
        kernels::Kernels,
        lanes::LANES,
        pool::Shards,
        rounding::{from_bf16, to_bf16, to_int8},
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

impl Panels {
    pub(crate) fn start(&self) -> *const u8 {
        match self {
            Self::F32(all) => all.as_slice().as_ptr().cast(),
            Self::Bf16(all) => all.as_slice().as_ptr().cast(),
            Self::Int8(all) => all.as_slice().as_ptr().cast(),
        }
    }
}

/// Sizes of a matrix, and where its elements lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    element: Element,
    rows: usize,
    columns: usize,
    unit: usize,
}

impl Shape {
    /// Units of K; the last may be short.
    pub(crate) fn units(self) -> usize {
        self.rows.div_ceil(self.unit)
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
        size_of::<f32>() / self.element.bytes()
    }

    fn scaled(self) -> bool {
        self.element == Element::Int8
    }

    /// K as it lies in memory.
    pub(crate) fn depth(self) -> usize {
        if self.scaled() { self.units() * self.padded_unit() } else { self.rows.next_multiple_of(self.packed()) }
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

    fn panels(self) -> usize {
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
    /// A matrix `[K = rows, N = columns]` of zeros, whose K comes in units of `unit`; memory becomes resident as it is filled.
    ///
    /// # Panics
    /// When a unit is empty, or the element is f16.
    pub fn zeros(arena: &Arena, element: Element, unit: usize, rows: usize, columns: usize) -> Self {
        assert!(unit > 0, "a unit of K has rows");
        let shape = Shape { element, rows, columns, unit };
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
        let shape = Shape { element, rows, columns, unit };
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

    /// Sets the rows of one unit, `[unit, N]`, rounded to the element type.
    ///
    /// # Panics
    /// When the matrix has no such unit, or of another size.
    pub fn set_unit(&mut self, unit: usize, values: &[f32]) {
        let (shape, n) = (self.shape, self.shape.columns);
        let rows = shape.rows_of(unit);
        assert!(unit < shape.units() && values.len() == rows.len() * n, "a unit is [unit, N]");
        if n == 0 {
            return;
        }
        let mut inverses = vec![1.0; n];
        if shape.scaled() {
            let mut largest = vec![0.0f32; n];
            for row in values.chunks_exact(n) {
                largest.iter_mut().zip(row).for_each(|(largest, x)| *largest = largest.max(x.abs()));
            }
            inverses = largest.iter().enumerate().map(|(column, &x)| self.set_scale(unit, column, x)).collect();
        }
        for (row, values) in rows.zip(values.chunks_exact(n)) {
            let lanes = values.chunks(LANES).zip(inverses.chunks(LANES));
            lanes.enumerate().for_each(|(panel, lanes)| self.set(row, panel * LANES, lanes));
        }
    }

    /// Sets one column, `[K]`, rounded to the element type.
    ///
    /// # Panics
    /// When the matrix has no such column, or of another length.
    pub fn set_column(&mut self, column: usize, values: &[f32]) {
        let shape = self.shape;
        assert!(column < shape.columns && values.len() == shape.rows, "one column has K elements");
        for unit in 0..shape.units() {
            let rows = shape.rows_of(unit);
            let mut inverse = 1.0;
            if shape.scaled() {
                let largest = values[rows.clone()].iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                inverse = self.set_scale(unit, column, largest);
            }
            rows.for_each(|row| self.set(row, column, (&values[row..=row], &[inverse])));
        }
    }

    /// Sets elements of a row from `column` on that lie in one panel, given their scales' inverses.
    fn set(&mut self, row: usize, column: usize, (values, inverses): (&[f32], &[f32])) {
        let at = self.shape.at(row, column);
        match &mut self.panels {
            Panels::F32(panels) => panels.as_mut_slice()[at..at + values.len()].copy_from_slice(values),
            Panels::Bf16(panels) => {
                let lanes = panels.as_mut_slice()[at..].iter_mut().step_by(2);
                lanes.zip(values).for_each(|(to, &value)| *to = to_bf16(value));
            }
            Panels::Int8(panels) => {
                let lanes = panels.as_mut_slice()[at..].iter_mut().step_by(4);
                lanes.zip(values).zip(inverses).for_each(|((to, value), inverse)| *to = to_int8(value * inverse));
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
                    f32::from(bytes[at]) * from_bf16(scale)
                }
            };
        }
    }

    /// Stores the scale of a unit's column whose largest magnitude is `largest`; returns its inverse.
    fn set_scale(&mut self, unit: usize, column: usize, largest: f32) -> f32 {
        let Panels::Int8(panels) = &mut self.panels else { return 1.0 };
        // Rounded before anything is divided by it, so that the rounding costs no accuracy.
        let scale = to_bf16(largest / 127.0);
        let at = self.shape.scale_at(unit, column);
        for (to, byte) in panels.as_mut_slice()[at..].iter_mut().zip(scale.to_le_bytes()) {
            *to = byte.cast_signed();
        }
        let scale = from_bf16(scale);
        if scale > 0.0 { scale.recip() } else { 0.0 }
    }
}

impl Kernels {
    /// Copies columns of `matrix`, `[K]` each, to the rows of `out`, `[T, K]`; zeros for none.
    ///
    /// # Panics
    /// When the sizes do not agree, or there is no such column.
    pub fn gather(&mut self, matrix: &PackedMatrix, columns: &[Option<usize>], out: &mut [f32]) {
        let width = matrix.rows();
        assert_eq!(out.len(), columns.len() * width, "out is [T, K]");
        let out = Shards::new(out);
        self.pool.run(columns.len(), &|row| {
            // SAFETY: each row is one task.
            let to = unsafe { out.slice(row * width, width) };
            match columns[row] {
                Some(column) => matrix.copy_column(column, to),
                None => to.fill(0.0),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_columns_write_the_same_matrix_and_read_back() {
        use Element::{Bf16, F16, F32, Int8};
        for (kind, unit, rows, columns) in [
            (F32, 4, 9, 35),
            (Bf16, 4, 9, 35),
            (Bf16, 2, 4, 16),
            (Int8, 4, 9, 35),
            (Int8, 5, 23, 16),
            (Int8, 64, 64, 1),
        ] {
            let value = |row: usize, column: usize| (row * columns + column) as f32 / 8.0 - 3.0;
            let mut by_unit = PackedMatrix::zeros(&Arena::default(), kind, unit, rows, columns);
            let mut by_column = by_unit.clone();
            for index in 0..by_unit.units() {
                let rows = index * unit..rows.min((index + 1) * unit);
                let values: Vec<_> = rows.flat_map(|row| (0..columns).map(move |column| value(row, column))).collect();
                by_unit.set_unit(index, &values);
            }
            for column in 0..columns {
                let values: Vec<_> = (0..rows).map(|row| value(row, column)).collect();
                by_column.set_column(column, &values);
                let mut read = vec![0.0; rows];
                by_unit.copy_column(column, &mut read);
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
            assert_eq!(format!("{by_unit:?}"), format!("{by_column:?}"));
        }
    }
}
