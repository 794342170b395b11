//! Norms over rows of the residual stream.

use crate::cpu::{
    kernels::Kernels,
    lanes::{LANES, Lanes},
    pool::Shards,
    versions::versions,
};

/// Rows that one task normalises.
const ROWS_PER_TASK: usize = 8;

impl Kernels {
    /// `out[t] = (x[t] − mean) / sqrt(variance + epsilon) · gain + bias` for each row of `x`, `[T, C]`; f32, two passes.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn layer_norm(&mut self, x: &[f32], gain: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
        let width = gain.len();
        assert!(bias.len() == width && x.len() == out.len() && x.len().is_multiple_of(width), "x and out are [T, C]");
        let isa = self.isa;
        self.rows(out, width, |row, out| {
            // SAFETY: `isa` was detected or listed as available.
            unsafe { normalise(isa, &x[row * width..][..width], gain, bias, epsilon, out) };
        });
    }

    /// `out[t] = x[t] / sqrt(mean(x[t]²) + epsilon) · gain` for each row of `x`, `[T, C]`, an empty gain being 1; f32.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn rms_norm(&mut self, x: &[f32], width: usize, gain: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(gain.is_empty() || gain.len() == width, "the gain is [C]");
        assert!(x.len() == out.len() && x.len().is_multiple_of(width), "x and out are [T, C]");
        let isa = self.isa;
        self.rows(out, width, |row, out| {
            // SAFETY: `isa` was detected or listed as available.
            unsafe { scale_to_one(isa, &x[row * width..][..width], gain, epsilon, out) };
        });
    }

    /// `x[t] += delta[t] + bias` for each row, `[T, C]`: the residual connection behind a row-parallel layer, whose bias is
    /// added here once, after the reduction.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn add_residual(&mut self, x: &mut [f32], delta: &[f32], bias: &[f32]) {
        assert!(x.len() == delta.len() && x.len().is_multiple_of(bias.len()), "x and delta are [T, C]");
        let width = bias.len();
        self.rows(x, width, |row, x| {
            x.iter_mut().zip(&delta[row * width..]).zip(bias).for_each(|((x, delta), bias)| *x += delta + bias);
        });
    }

    /// Gives each row of `all`, `[T, width]`, to `body`, on all threads.
    pub(crate) fn rows(&mut self, all: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
        let rows = all.len() / width;
        let all = Shards::new(all);
        self.pool.run(rows.div_ceil(ROWS_PER_TASK), &|task| {
            for row in task * ROWS_PER_TASK..((task + 1) * ROWS_PER_TASK).min(rows) {
                // SAFETY: rows are disjoint, and each belongs to one task.
                body(row, unsafe { all.slice(row * width, width) });
            }
        });
    }
}

versions! {
    unsafe fn normalise(x: &[f32], gain: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) = normalise_body
}

#[inline(always)]
unsafe fn normalise_body<V: Lanes>(x: &[f32], gain: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = x.len();
    assert!(gain.len() == width && bias.len() == width && out.len() == width);
    let whole = width / LANES * LANES;
    // SAFETY: vectors are read and written below `whole` only; the instruction set is the caller's promise.
    unsafe {
        let mut sum = V::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            sum = sum.add(V::load(x.as_ptr().add(i)));
        }
        let mean = (sum.sum() + x[whole..].iter().sum::<f32>()) / width as f32;
        let mut squares = V::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let d = V::load(x.as_ptr().add(i)).sub(V::splat(mean));
            squares = d.mul_add(d, squares);
        }
        let tail: f32 = x[whole..].iter().map(|x| (x - mean) * (x - mean)).sum();
        let scale = ((squares.sum() + tail) / width as f32 + epsilon).sqrt().recip();
        for i in (0..whole).step_by(LANES) {
            let d = V::load(x.as_ptr().add(i)).sub(V::splat(mean)).mul(V::splat(scale));
            d.mul_add(V::load(gain.as_ptr().add(i)), V::load(bias.as_ptr().add(i))).store(out.as_mut_ptr().add(i));
        }
        for i in whole..width {
            out[i] = (x[i] - mean) * scale * gain[i] + bias[i];
        }
    }
}

versions! { unsafe fn scale_to_one(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) = scale_to_one_body }

#[inline(always)]
unsafe fn scale_to_one_body<V: Lanes>(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) {
    // SAFETY: the instruction set is the caller's promise.
    let scale = unsafe { inverse_rms::<V>(x, epsilon) };
    if gain.is_empty() {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * scale);
    }
    out.iter_mut().zip(x).zip(gain).for_each(|((out, x), gain)| *out = x * scale * gain);
}

/// `1 / sqrt(mean(x²) + epsilon)`.
///
/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
pub(crate) unsafe fn inverse_rms<V: Lanes>(x: &[f32], epsilon: f32) -> f32 {
    let (whole, tail) = x.as_chunks::<LANES>();
    // SAFETY: arrays of 16; the instruction set is the caller's promise.
    let squares = unsafe {
        let mut squares = V::splat(0.0);
        for lanes in whole {
            let lanes = V::load(lanes.as_ptr());
            squares = lanes.mul_add(lanes, squares);
        }
        squares.sum()
    };
    let tail: f32 = tail.iter().map(|x| x * x).sum();
    ((squares + tail) / x.len() as f32 + epsilon).sqrt().recip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn rows_follow_the_formula_on_odd_widths() {
        for isa in Isa::available() {
            for width in [1, 15, 16, 30, 40, 84] {
                let rows = 19;
                let x: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0 + 3.0).collect();
                let gain: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 / 50.0).collect();
                let bias: Vec<f32> = (0..width).map(|i| i as f32 / 9.0 - 1.0).collect();
                let mut out = vec![0.0; x.len()];
                let mut kernels = Kernels::new(isa, 2, false).unwrap();
                kernels.layer_norm(&x, &gain, &bias, 1e-5, &mut out);
                let mut rms = vec![0.0; x.len()];
                kernels.rms_norm(&x, width, &gain, 1e-5, &mut rms);
                let mut bare = vec![0.0; x.len()];
                kernels.rms_norm(&x, width, &[], 1e-5, &mut bare);
                assert!(bare.iter().zip(&rms).enumerate().all(|(i, (bare, rms))| bare * gain[i % width] == *rms));
                for row in 0..rows {
                    let x: Vec<f64> = x[row * width..][..width].iter().map(|&x| f64::from(x)).collect();
                    let mean = x.iter().sum::<f64>() / width as f64;
                    let square = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let exact = (x[i] - mean) / (variance + 1e-5).sqrt() * f64::from(gain[i]) + f64::from(bias[i]);
                        let got = f64::from(out[row * width + i]);
                        assert!((got - exact).abs() < 1e-5, "{isa:?} width {width}: {got} {exact}");
                        let exact = x[i] / (square + 1e-5).sqrt() * f64::from(gain[i]);
                        let got = f64::from(rms[row * width + i]);
                        assert!((got - exact).abs() < 1e-5, "{isa:?} width {width}, RMS: {got} {exact}");
                    }
                }
            }
        }
    }
}
