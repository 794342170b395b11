//! Products of a few rows with a packed weight matrix.
//!
//! ```text
//! weights [K, N], packed:   panel 0: columns 0..16    [k = 0: 16 columns][k = 1: …] … [k = K−1: …]
//!                           panel 1: columns 16..32   …            (the last panel is padded with zeros)
//! ```
//! A tile is M rows × one panel, held in registers while the panel streams by once, front to back. Every element of the
//! result is one chain over K in ascending order, whatever M is: a row's result does not depend on its batch.

use crate::{
    Activation, Isa, Kernels,
    activation::activate,
    lanes::{LANES, Lanes, versions},
    pool::Shards,
};

/// A weight matrix `[K, N]` in panels of 16 columns, f32.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    rows: usize,
    columns: usize,
    panels: Vec<f32>,
}

impl PackedMatrix {
    /// A matrix `[K = rows, N = columns]` of zeros; memory becomes resident as it is filled.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, panels: vec![0.0; columns.div_ceil(LANES) * rows * LANES] }
    }

    /// Bytes that such a matrix takes.
    pub fn bytes(rows: usize, columns: usize) -> usize {
        columns.div_ceil(LANES) * rows * LANES * size_of::<f32>()
    }

    /// K.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// N.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Sets part of one row: `values[i]` goes to column `column + i`.
    ///
    /// # Panics
    /// When the values do not lie inside the matrix.
    pub fn set_row(&mut self, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.columns, "the values lie inside the matrix");
        let mut done = 0;
        while done < values.len() {
            let run = (LANES - (column + done) % LANES).min(values.len() - done);
            let at = self.at(row, column + done);
            self.panels[at..at + run].copy_from_slice(&values[done..done + run]);
            done += run;
        }
    }

    /// Sets one column, `[K]`.
    ///
    /// # Panics
    /// When the matrix has no such column, or of another length.
    pub fn set_column(&mut self, column: usize, values: &[f32]) {
        assert!(column < self.columns && values.len() == self.rows, "one column has K elements");
        let first = self.at(0, column);
        values.iter().enumerate().for_each(|(k, &value)| self.panels[first + k * LANES] = value);
    }

    /// Copies one column, `[K]`, to `to`.
    ///
    /// # Panics
    /// When the matrix has no such column, or of another length.
    pub fn copy_column(&self, column: usize, to: &mut [f32]) {
        assert!(column < self.columns && to.len() == self.rows, "one column has K elements");
        let first = self.at(0, column);
        to.iter_mut().enumerate().for_each(|(k, value)| *value = self.panels[first + k * LANES]);
    }

    fn at(&self, row: usize, column: usize) -> usize {
        (column / LANES * self.rows + row) * LANES + column % LANES
    }

    fn panel(&self, index: usize) -> &[f32] {
        &self.panels[index * self.rows * LANES..][..self.rows * LANES]
    }
}

/// What happens to a product before it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// Nothing: a partial sum, or logits.
    None,
    /// Plus a bias `[N]`.
    Bias(&'a [f32]),
    /// Plus a bias `[N]`, then the activation.
    BiasActivation(&'a [f32], Activation),
}

impl Kernels {
    /// `out[m, n] = epilogue(Σ_k x[m, k] · w[k, n])`: `x` is `[M, K]`, `out` is `[M, N]`, both dense; f32 throughout.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn matmul(&mut self, x: &[f32], weights: &PackedMatrix, epilogue: Epilogue<'_>, out: &mut [f32]) {
        let (k, n) = (weights.rows, weights.columns);
        if n == 0 {
            assert!(out.is_empty(), "no columns, no output");
            return;
        }
        let rows = out.len() / n;
        assert!(out.len() == rows * n && x.len() == rows * k, "x is [M, K] and out is [M, N]");
        if let Epilogue::Bias(bias) | Epilogue::BiasActivation(bias, _) = epilogue {
            assert_eq!(bias.len(), n, "one bias a column");
        }
        let isa = self.isa;
        let out = Shards::new(out);
        // Several panels a task where there are many, so that taking tasks costs nothing beside running them.
        let panels = n.div_ceil(LANES);
        let per_task = panels.div_ceil(self.pool.threads() * 8).max(1);
        self.pool.run(panels.div_ceil(per_task), &|task| {
            for panel in task * per_task..((task + 1) * per_task).min(panels) {
                panel_product(isa, x, k, weights.panel(panel), epilogue, &out, rows, n, panel * LANES);
            }
        });
    }
}

/// One panel's columns of every row.
#[allow(clippy::too_many_arguments, reason = "one call site; a struct would only rename its locals")]
fn panel_product(
    isa: Isa,
    x: &[f32],
    k: usize,
    panel: &[f32],
    epilogue: Epilogue<'_>,
    out: &Shards<f32>,
    rows: usize,
    n: usize,
    column: usize,
) {
    let width = LANES.min(n - column);
    let most = if isa == Isa::Avx512 { 12 } else { 6 };
    let mut row = 0;
    while row < rows {
        let tile_rows = tile_height(rows - row, most);
        let mut tile = [[0.0; LANES]; 12];
        // SAFETY: `isa` was detected or listed as available; the tile's rows lie inside `x`.
        unsafe { tile_product(isa, &x[row * k..(row + tile_rows) * k], k, panel, &mut tile[..tile_rows]) };
        for (i, sums) in tile[..tile_rows].iter_mut().enumerate() {
            let sums = &mut sums[..width];
            if let Epilogue::Bias(bias) | Epilogue::BiasActivation(bias, _) = epilogue {
                sums.iter_mut().zip(&bias[column..]).for_each(|(sum, b)| *sum += b);
            }
            if let Epilogue::BiasActivation(_, activation) = epilogue {
                activate(isa, activation, sums);
            }
            // SAFETY: each task writes the columns of its own panels only.
            unsafe { out.slice((row + i) * n + column, width) }.copy_from_slice(sums);
        }
        row += tile_rows;
    }
}

/// The largest tile that has a version, not above `rows` or `most`.
fn tile_height(rows: usize, most: usize) -> usize {
    [12, 8, 6, 4, 3, 2, 1].into_iter().find(|&height| height <= rows.min(most)).expect("1 always fits")
}

/// # Safety
/// The CPU has `isa`.
unsafe fn tile_product(isa: Isa, x: &[f32], k: usize, panel: &[f32], tile: &mut [[f32; LANES]]) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.len() {
            1 => tile_of::<1>(isa, x, k, panel, tile),
            2 => tile_of::<2>(isa, x, k, panel, tile),
            3 => tile_of::<3>(isa, x, k, panel, tile),
            4 => tile_of::<4>(isa, x, k, panel, tile),
            6 => tile_of::<6>(isa, x, k, panel, tile),
            8 => tile_of::<8>(isa, x, k, panel, tile),
            12 => tile_of::<12>(isa, x, k, panel, tile),
            height => unreachable!("no tile of {height} rows"),
        }
    }
}

versions! {
    unsafe fn tile_of<const M: usize>(x: &[f32], k: usize, panel: &[f32], tile: &mut [[f32; LANES]]) = tile_body
}

/// `tile[m] = Σ_k x[m, k] · panel[k]`.
#[inline(always)]
unsafe fn tile_body<V: Lanes, const M: usize>(x: &[f32], k: usize, panel: &[f32], tile: &mut [[f32; LANES]]) {
    assert!(x.len() == M * k && panel.len() == k * LANES && tile.len() == M);
    // SAFETY: offsets are below the lengths just checked; the instruction set is the caller's promise.
    unsafe {
        let mut sums = [V::splat(0.0); M];
        let (x, panel) = (x.as_ptr(), panel.as_ptr());
        for i in 0..k {
            let weights = V::load(panel.add(i * LANES));
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = V::splat(*x.add(m * k + i)).mul_add(weights, *sum);
            }
        }
        for (sum, row) in sums.iter().zip(tile) {
            sum.store(row.as_mut_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    fn packed(k: usize, n: usize) -> (Vec<f32>, PackedMatrix) {
        let dense = noise(k * n, 3);
        let mut matrix = PackedMatrix::zeros(k, n);
        for row in 0..k {
            matrix.set_row(row, 0, &dense[row * n..][..n]);
        }
        (dense, matrix)
    }

    #[test]
    fn products_agree_with_f64_on_odd_sizes_and_every_isa() {
        for isa in Isa::available() {
            for (m, k, n) in [(1, 1, 1), (1, 40, 120), (5, 77, 33), (13, 64, 16), (31, 129, 47)] {
                let (dense, matrix) = packed(k, n);
                let x = noise(m * k, 1);
                let bias = noise(n, 2);
                let mut out = vec![f32::NAN; m * n];
                Kernels::new(isa, 2, false).matmul(&x, &matrix, Epilogue::Bias(&bias), &mut out);
                for row in 0..m {
                    for column in 0..n {
                        let exact: f64 =
                            (0..k).map(|i| f64::from(x[row * k + i]) * f64::from(dense[i * n + column])).sum::<f64>()
                                + f64::from(bias[column]);
                        let got = f64::from(out[row * n + column]);
                        // Rounding of K products near 1: K · 2^-24 at worst.
                        assert!((got - exact).abs() < 1e-6 * (k as f64 + 1.0), "{isa:?} {m}x{k}x{n}: {got} {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads() {
        let (k, n) = (77, 50);
        let (_, matrix) = packed(k, n);
        let x = noise(29 * k, 9);
        for isa in Isa::available() {
            let mut whole = vec![0.0; 29 * n];
            Kernels::new(isa, 3, false).matmul(&x, &matrix, Epilogue::None, &mut whole);
            for batch in [1, 2, 3, 4, 5, 7, 12, 13] {
                let mut kernels = Kernels::new(isa, 1, false);
                for (x, expected) in x.chunks(batch * k).zip(whole.chunks(batch * n)) {
                    let mut out = vec![0.0; expected.len()];
                    kernels.matmul(x, &matrix, Epilogue::None, &mut out);
                    assert_eq!(out, expected, "{isa:?}, batches of {batch}");
                }
            }
        }
    }

    #[test]
    fn columns_read_back_as_set() {
        let (dense, matrix) = packed(9, 35);
        let mut by_column = PackedMatrix::zeros(9, 35);
        for column in 0..35 {
            let values: Vec<_> = (0..9).map(|row| dense[row * 35 + column]).collect();
            by_column.set_column(column, &values);
            let mut read = vec![0.0; 9];
            matrix.copy_column(column, &mut read);
            assert_eq!(read, values);
        }
        assert_eq!(by_column.panels, matrix.panels);
    }
}
