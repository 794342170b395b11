//! Products of a few rows with a packed weight matrix.
//!
//! A tile is M rows × one panel of 16 columns, held in registers while the panel streams by once, front to back. Every element
//! of the result is one chain over K in ascending order, whatever M is: a row's result does not depend on its batch.
//! With bf16 weights the rows are rounded to bf16 first, on every instruction set; sums are f32.

use crate::{
    Activation, Isa, Kernels,
    activation::activate,
    lanes::{LANES, Lanes, versions},
    packed::{PackedMatrix, Panels, WeightType, to_bf16},
    pool::Shards,
};

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
    /// `out[m, n] = epilogue(Σ_k x[m, k] · w[k, n])`: `x` is `[M, K]`, `out` is `[M, N]`, both dense and f32; sums are f32.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn matmul(&mut self, x: &[f32], weights: &PackedMatrix, epilogue: Epilogue<'_>, out: &mut [f32]) {
        let (k, n) = (weights.rows(), weights.columns());
        if n == 0 {
            assert!(out.is_empty(), "no columns, no output");
            return;
        }
        let rows = out.len() / n;
        assert!(out.len() == rows * n && x.len() == rows * k, "x is [M, K] and out is [M, N]");
        if let Epilogue::Bias(bias) | Epilogue::BiasActivation(bias, _) = epilogue {
            assert_eq!(bias.len(), n, "one bias a column");
        }
        let depth = weights.kind().padded_rows(k);
        let x = match weights.kind() {
            WeightType::F32 => x,
            WeightType::Bf16 => {
                self.rounded.resize(rows * depth, 0.0);
                let rounded = Shards::new(&mut self.rounded);
                self.pool.run(rows, &|row| {
                    // SAFETY: each task writes its own row.
                    round_row(&x[row * k..][..k], unsafe { rounded.slice(row * depth, depth) });
                });
                &self.rounded
            }
        };
        let product = Product { isa: self.isa, x, depth, rows, columns: n, epilogue };
        let out = Shards::new(out);
        // Several panels a task where there are many, so that taking tasks costs nothing beside running them.
        let panels = n.div_ceil(LANES);
        let per_task = panels.div_ceil(self.pool.threads() * 8).max(1);
        self.pool.run(panels.div_ceil(per_task), &|task| {
            for panel in task * per_task..((task + 1) * per_task).min(panels) {
                product.panel(weights.panels(), panel, &out);
            }
        });
    }
}

/// Rounds a row to bf16 values; what `out` has more than `x` becomes 0.
fn round_row(x: &[f32], out: &mut [f32]) {
    out[x.len()..].fill(0.0);
    out.iter_mut().zip(x).for_each(|(out, &x)| *out = f32::from_bits(u32::from(to_bf16(x)) << 16));
}

/// One product, but for its weights and where it goes.
struct Product<'a> {
    isa: Isa,
    /// `[rows, depth]`.
    x: &'a [f32],
    /// K, padded as the weights are.
    depth: usize,
    rows: usize,
    columns: usize,
    epilogue: Epilogue<'a>,
}

impl Product<'_> {
    /// One panel's columns of every row.
    fn panel(&self, panels: &Panels, index: usize, out: &Shards<f32>) {
        let (column, len) = (index * LANES, self.depth * LANES);
        let width = LANES.min(self.columns - column);
        let most = if self.isa == Isa::Avx512 { 12 } else { 6 };
        let mut row = 0;
        while row < self.rows {
            let height = tile_height(self.rows - row, most);
            let mut tile = [[0.0; LANES]; 12];
            let (tile, x) = (&mut tile[..height], &self.x[row * self.depth..(row + height) * self.depth]);
            // SAFETY: `isa` was detected or listed as available.
            unsafe {
                match panels {
                    Panels::F32(all) => f32_tile(self.isa, x, &all[index * len..][..len], tile),
                    Panels::Bf16(all) => bf16_tile(self.isa, x, &all[index * len..][..len], tile),
                }
            }
            for (i, sums) in tile.iter_mut().enumerate() {
                let sums = &mut sums[..width];
                self.finish(sums, column);
                // SAFETY: each task writes the columns of its own panels only.
                unsafe { out.slice((row + i) * self.columns + column, width) }.copy_from_slice(sums);
            }
            row += height;
        }
    }

    fn finish(&self, sums: &mut [f32], column: usize) {
        if let Epilogue::Bias(bias) | Epilogue::BiasActivation(bias, _) = self.epilogue {
            sums.iter_mut().zip(&bias[column..]).for_each(|(sum, b)| *sum += b);
        }
        if let Epilogue::BiasActivation(_, activation) = self.epilogue {
            activate(self.isa, activation, sums);
        }
    }
}

/// The height of the next tile where `rows` are left: as few tiles as `most` allows, of about the same height, since a tile of
/// one row streams the panel as long as one of several.
fn tile_height(rows: usize, most: usize) -> usize {
    let even = rows.div_ceil(rows.div_ceil(most));
    [12, 10, 8, 6, 5, 4, 3, 2, 1].into_iter().find(|&height| height <= even).expect("1 always fits")
}

/// Makes `name(isa, x, panel, tile)` that picks the version of `$tile` for the tile's height.
macro_rules! by_height {
    ($name:ident, $element:ty, $versions:ident) => {
        /// # Safety
        /// The CPU has `isa`.
        unsafe fn $name(isa: Isa, x: &[f32], panel: &[$element], tile: &mut [[f32; LANES]]) {
            // SAFETY: the caller's promise.
            unsafe {
                match tile.len() {
                    1 => $versions::<1>(isa, x, panel, tile),
                    2 => $versions::<2>(isa, x, panel, tile),
                    3 => $versions::<3>(isa, x, panel, tile),
                    4 => $versions::<4>(isa, x, panel, tile),
                    5 => $versions::<5>(isa, x, panel, tile),
                    6 => $versions::<6>(isa, x, panel, tile),
                    8 => $versions::<8>(isa, x, panel, tile),
                    10 => $versions::<10>(isa, x, panel, tile),
                    12 => $versions::<12>(isa, x, panel, tile),
                    height => unreachable!("no tile of {height} rows"),
                }
            }
        }
    };
}
by_height!(f32_tile, f32, f32_tile_of);
by_height!(bf16_tile, u16, bf16_tile_of);

versions! {
    unsafe fn f32_tile_of<const M: usize>(x: &[f32], panel: &[f32], tile: &mut [[f32; LANES]]) = f32_tile_body
}
versions! {
    unsafe fn bf16_tile_of<const M: usize>(x: &[f32], panel: &[u16], tile: &mut [[f32; LANES]]) = bf16_tile_body
}

/// `tile[m] = Σ_k x[m, k] · panel[k]`.
#[inline(always)]
unsafe fn f32_tile_body<V: Lanes, const M: usize>(x: &[f32], panel: &[f32], tile: &mut [[f32; LANES]]) {
    let depth = panel.len() / LANES;
    assert!(x.len() == M * depth && tile.len() == M);
    // SAFETY: offsets are below the lengths just checked; the instruction set is the caller's promise.
    unsafe {
        let mut sums = [V::splat(0.0); M];
        let (x, panel) = (x.as_ptr(), panel.as_ptr());
        for k in 0..depth {
            let weights = V::load(panel.add(k * LANES));
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = V::splat(*x.add(m * depth + k)).mul_add(weights, *sum);
            }
        }
        for (sum, row) in sums.iter().zip(tile) {
            sum.store(row.as_mut_ptr());
        }
    }
}

/// The same over pairs of bf16.
#[inline(always)]
unsafe fn bf16_tile_body<V: Lanes, const M: usize>(x: &[f32], panel: &[u16], tile: &mut [[f32; LANES]]) {
    let depth = panel.len() / LANES;
    assert!(x.len() == M * depth && depth.is_multiple_of(2) && tile.len() == M);
    // SAFETY: offsets are below the lengths just checked; the instruction set is the caller's promise.
    unsafe {
        let mut sums = [V::splat(0.0); M];
        let (x, panel) = (x.as_ptr(), panel.as_ptr());
        for k in (0..depth).step_by(2) {
            let (first, second) = V::load_bf16_pairs(panel.add(k * LANES));
            for (m, sum) in sums.iter_mut().enumerate() {
                let x = x.add(m * depth + k);
                *sum = V::splat(*x).mul_add(first, *sum);
                *sum = V::splat(*x.add(1)).mul_add(second, *sum);
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

    const KINDS: [WeightType; 2] = [WeightType::F32, WeightType::Bf16];

    fn rounded(kind: WeightType, x: f32) -> f64 {
        f64::from(if kind == WeightType::F32 { x } else { f32::from_bits(u32::from(to_bf16(x)) << 16) })
    }

    fn packed(kind: WeightType, k: usize, n: usize) -> (Vec<f32>, PackedMatrix) {
        let dense = noise(k * n, 3);
        let mut matrix = PackedMatrix::zeros(kind, k, n);
        for row in 0..k {
            matrix.set_row(row, 0, &dense[row * n..][..n]);
        }
        (dense, matrix)
    }

    #[test]
    fn products_agree_with_f64_on_odd_sizes_every_isa_and_type() {
        for (isa, kind) in Isa::available().into_iter().flat_map(|isa| KINDS.map(|kind| (isa, kind))) {
            for (m, k, n) in [(1, 1, 1), (1, 40, 120), (5, 77, 33), (13, 64, 16), (31, 129, 47), (2, 0, 5)] {
                let (dense, matrix) = packed(kind, k, n);
                let (x, bias) = (noise(m * k, 1), noise(n, 2));
                let mut out = vec![f32::NAN; m * n];
                Kernels::new(isa, 2, false).matmul(&x, &matrix, Epilogue::Bias(&bias), &mut out);
                for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                    let terms = (0..k).map(|i| rounded(kind, x[row * k + i]) * rounded(kind, dense[i * n + column]));
                    let exact = terms.sum::<f64>() + f64::from(bias[column]);
                    let got = f64::from(out[row * n + column]);
                    // Rounding of K products near 1: K · 2^-24 at worst.
                    assert!(
                        (got - exact).abs() < 1e-6 * (k as f64 + 1.0),
                        "{isa:?} {kind:?} {m}x{k}x{n}: {got} {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads() {
        let (k, n) = (77, 50);
        let x = noise(29 * k, 9);
        for (isa, kind) in Isa::available().into_iter().flat_map(|isa| KINDS.map(|kind| (isa, kind))) {
            let (_, matrix) = packed(kind, k, n);
            let mut whole = vec![0.0; 29 * n];
            Kernels::new(isa, 3, false).matmul(&x, &matrix, Epilogue::None, &mut whole);
            for batch in [1, 2, 3, 4, 5, 7, 12, 13] {
                let mut kernels = Kernels::new(isa, 1, false);
                for (x, expected) in x.chunks(batch * k).zip(whole.chunks(batch * n)) {
                    let mut out = vec![0.0; expected.len()];
                    kernels.matmul(x, &matrix, Epilogue::None, &mut out);
                    assert_eq!(out, expected, "{isa:?} {kind:?}, batches of {batch}");
                }
            }
        }
    }
}
