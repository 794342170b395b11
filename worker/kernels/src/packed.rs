//! Weight matrices as the products stream them.
//!
//! ```text
//! [K, N] in panels of 16 columns; the last panel is padded with zeros
//!   f32    panel p:  [k = 0: columns 16p … 16p + 15][k = 1: …] … [k = K − 1: …]
//!   bf16   panel p:  [k = 0, 1: column 16p (k, k + 1), column 16p + 1 (k, k + 1), …][k = 2, 3: …] …   an odd K is padded
//! ```
//! The pairs of the bf16 form are what instructions that multiply pairs take; a bf16 is the upper half of an f32, so that others
//! widen them with a shift and a mask.

use crate::lanes::LANES;

/// Element type of a weight matrix, and with it the arithmetic of products with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// The upper half of one, rounded to nearest even; the other factor is rounded likewise, sums are f32.
    Bf16,
}

/// A weight matrix `[K, N]` in panels of 16 columns.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    rows: usize,
    columns: usize,
    panels: Panels,
}

#[derive(Clone, Debug)]
pub(crate) enum Panels {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl WeightType {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Rows that a panel has in memory.
    pub(crate) fn padded_rows(self, rows: usize) -> usize {
        match self {
            Self::F32 => rows,
            Self::Bf16 => rows.next_multiple_of(2),
        }
    }
}

impl PackedMatrix {
    /// A matrix `[K = rows, N = columns]` of zeros; memory becomes resident as it is filled.
    pub fn zeros(kind: WeightType, rows: usize, columns: usize) -> Self {
        let len = columns.div_ceil(LANES) * kind.padded_rows(rows) * LANES;
        let panels = match kind {
            WeightType::F32 => Panels::F32(vec![0.0; len]),
            WeightType::Bf16 => Panels::Bf16(vec![0; len]),
        };
        Self { rows, columns, panels }
    }

    /// Bytes that such a matrix takes.
    pub fn bytes(kind: WeightType, rows: usize, columns: usize) -> usize {
        columns.div_ceil(LANES) * kind.padded_rows(rows) * LANES * kind.bytes()
    }

    /// K.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// N.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Element type.
    pub fn kind(&self) -> WeightType {
        match self.panels {
            Panels::F32(_) => WeightType::F32,
            Panels::Bf16(_) => WeightType::Bf16,
        }
    }

    pub(crate) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Sets part of one row: `values[i]` goes to column `column + i`, rounded to the element type.
    ///
    /// # Panics
    /// When the values do not lie inside the matrix.
    pub fn set_row(&mut self, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.columns, "the values lie inside the matrix");
        let mut done = 0;
        while done < values.len() {
            let run = (LANES - (column + done) % LANES).min(values.len() - done);
            let at = self.at(row, column + done);
            let values = &values[done..done + run];
            match &mut self.panels {
                Panels::F32(panels) => panels[at..at + run].copy_from_slice(values),
                Panels::Bf16(panels) => {
                    values.iter().enumerate().for_each(|(i, &value)| panels[at + 2 * i] = to_bf16(value));
                }
            }
            done += run;
        }
    }

    /// Sets one column, `[K]`, rounded to the element type.
    ///
    /// # Panics
    /// When the matrix has no such column, or of another length.
    pub fn set_column(&mut self, column: usize, values: &[f32]) {
        assert!(column < self.columns && values.len() == self.rows, "one column has K elements");
        for (row, &value) in values.iter().enumerate() {
            let at = self.at(row, column);
            match &mut self.panels {
                Panels::F32(panels) => panels[at] = value,
                Panels::Bf16(panels) => panels[at] = to_bf16(value),
            }
        }
    }

    /// Copies one column, `[K]`, to `to`.
    ///
    /// # Panics
    /// When the matrix has no such column, or of another length.
    pub fn copy_column(&self, column: usize, to: &mut [f32]) {
        assert!(column < self.columns && to.len() == self.rows, "one column has K elements");
        for (row, value) in to.iter_mut().enumerate() {
            let at = self.at(row, column);
            *value = match &self.panels {
                Panels::F32(panels) => panels[at],
                Panels::Bf16(panels) => f32::from_bits(u32::from(panels[at]) << 16),
            };
        }
    }

    fn at(&self, row: usize, column: usize) -> usize {
        let (panel, lane) = (column / LANES, column % LANES);
        match self.panels {
            Panels::F32(_) => (panel * self.rows + row) * LANES + lane,
            Panels::Bf16(_) => panel * self.rows.next_multiple_of(2) * LANES + row / 2 * 2 * LANES + 2 * lane + row % 2,
        }
    }
}

/// The nearest bf16, ties to even; a NaN stays one.
pub(crate) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_write_the_same_matrix_and_read_back() {
        for (kind, rows, columns) in [(WeightType::F32, 9, 35), (WeightType::Bf16, 9, 35), (WeightType::Bf16, 4, 16)] {
            let value = |row: usize, column: usize| (row * columns + column) as f32 / 8.0 - 3.0;
            let mut by_row = PackedMatrix::zeros(kind, rows, columns);
            let mut by_column = by_row.clone();
            for row in 0..rows {
                let values: Vec<_> = (0..columns).map(|column| value(row, column)).collect();
                let (left, right) = values.split_at(columns / 3);
                by_row.set_row(row, 0, left);
                by_row.set_row(row, columns / 3, right);
            }
            for column in 0..columns {
                let values: Vec<_> = (0..rows).map(|row| value(row, column)).collect();
                by_column.set_column(column, &values);
                let mut read = vec![0.0; rows];
                by_row.copy_column(column, &mut read);
                // Eighths below 2^8 are exact in bf16 up to 8 significant bits; the others round.
                assert!(read.iter().zip(&values).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0), "{kind:?}");
                by_column.copy_column(column, &mut read);
                assert!(read.iter().zip(&values).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0), "{kind:?}");
            }
            assert_eq!(format!("{by_row:?}"), format!("{by_column:?}"));
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (bits, expected) in [
            (0x3f80_0000, 0x3f80),
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f81_8000, 0x3f82),
            (0x3f80_8001, 0x3f81),
            (0xff80_0000, 0xff80),
            (0x7f7f_ffff, 0x7f80),
        ] {
            assert_eq!(to_bf16(f32::from_bits(bits)), expected, "{bits:x}");
        }
        assert!(f32::from_bits(u32::from(to_bf16(f32::NAN)) << 16).is_nan());
    }
}
