//! Non-linearities of the MLP, element by element.

use crate::cpu::{
    isa::Isa,
    kernels::Kernels,
    lanes::{LANES, Lanes},
    versions::versions,
};

/// Which non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt(2)))`.
    GeluErf,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    Relu2,
    /// `x sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Kernels {
    /// `out[t] = activation(gate[t]) · up[t]` for each row of `both`, `[T, 2 · F_local]`, gate and up side by side.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn gate(&mut self, activation: Activation, both: &[f32], width: usize, out: &mut [f32]) {
        assert!(both.len() == 2 * out.len(), "out is [T, F_local], of both it is twice as much");
        if width == 0 {
            return;
        }
        let isa = self.isa;
        self.rows(out, width, |row, out| {
            let (gate, up) = both[2 * row * width..][..2 * width].split_at(width);
            out.copy_from_slice(gate);
            let (whole, tail) = out.as_chunks_mut::<LANES>();
            activate(isa, activation, whole);
            if !tail.is_empty() {
                let mut lanes = [[0.0; LANES]];
                lanes[0][..tail.len()].copy_from_slice(tail);
                activate(isa, activation, &mut lanes);
                tail.copy_from_slice(&lanes[0][..tail.len()]);
            }
            out.iter_mut().zip(up).for_each(|(out, up)| *out *= up);
        });
    }
}

impl Kernels {
    /// `z = cap · tanh(z / cap)` for each of `logits`, `[R, V_local]`.
    pub fn softcap(&mut self, logits: &mut [f32], width: usize, cap: f32) {
        if width == 0 {
            return;
        }
        let isa = self.isa;
        self.rows(logits, width, |_, row| {
            let (whole, tail) = row.as_chunks_mut::<LANES>();
            let mut last = [[0.0; LANES]];
            last[0][..tail.len()].copy_from_slice(tail);
            // SAFETY: `isa` was detected or listed as available.
            unsafe {
                soft_cap(isa, whole, cap);
                soft_cap(isa, &mut last, cap);
            }
            tail.copy_from_slice(&last[0][..tail.len()]);
        });
    }
}

/// Applies `activation` to vectors in place.
pub(crate) fn activate(isa: Isa, activation: Activation, values: &mut [[f32; LANES]]) {
    let each =
        |values: &mut [[f32; LANES]], f: fn(f32) -> f32| values.as_flattened_mut().iter_mut().for_each(|x| *x = f(*x));
    match activation {
        Activation::GeluErf => each(values, |x| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))),
        Activation::Relu => each(values, |x| x.max(0.0)),
        Activation::Relu2 => each(values, |x| x.max(0.0) * x.max(0.0)),
        Activation::Tanh => each(values, f32::tanh),
        // SAFETY: `isa` was detected or listed as available.
        Activation::GeluTanh => unsafe { gelu_tanh(isa, values) },
        // SAFETY: as above.
        Activation::QuickGelu => unsafe { scaled_silu(isa, values, 1.702) },
        // SAFETY: as above.
        Activation::Silu => unsafe { scaled_silu(isa, values, 1.0) },
    }
}

versions! { unsafe fn gelu_tanh(values: &mut [[f32; LANES]]) = gelu_tanh_body }
versions! { unsafe fn soft_cap(values: &mut [[f32; LANES]], cap: f32) = soft_cap_body }
versions! { unsafe fn scaled_silu(values: &mut [[f32; LANES]], scale: f32) = scaled_silu_body }

/// `0.5 (1 + tanh(z)) = sigmoid(2 z)`, so the tanh form is `x · sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))`.
#[inline(always)]
unsafe fn gelu_tanh_body<V: Lanes>(values: &mut [[f32; LANES]]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 2.0 * 0.797_884_6;
    for lanes in values {
        // SAFETY: arrays of 16; the instruction set is the caller's promise.
        unsafe {
            let x = V::load(lanes.as_ptr());
            let cubic = x.mul(x).mul_add(V::splat(0.044715), V::splat(1.0)).mul(x);
            x_times_sigmoid(x, cubic.mul(V::splat(TWICE_SQRT_2_OVER_PI))).store(lanes.as_mut_ptr());
        }
    }
}

#[inline(always)]
unsafe fn scaled_silu_body<V: Lanes>(values: &mut [[f32; LANES]], scale: f32) {
    for lanes in values {
        // SAFETY: arrays of 16; the instruction set is the caller's promise.
        unsafe {
            let x = V::load(lanes.as_ptr());
            x_times_sigmoid(x, x.mul(V::splat(scale))).store(lanes.as_mut_ptr());
        }
    }
}

/// `tanh(y) = 1 − 2 / (1 + e^2y)`.
#[inline(always)]
unsafe fn soft_cap_body<V: Lanes>(values: &mut [[f32; LANES]], cap: f32) {
    for lanes in values {
        // SAFETY: arrays of 16; the instruction set is the caller's promise.
        unsafe {
            let exponential = V::load(lanes.as_ptr()).mul(V::splat(2.0 / cap)).exp();
            let rest = V::splat(2.0 * cap).div(exponential.add(V::splat(1.0)));
            V::splat(cap).sub(rest).store(lanes.as_mut_ptr());
        }
    }
}

/// `x / (1 + e^-z)`.
#[inline(always)]
unsafe fn x_times_sigmoid<V: Lanes>(x: V, z: V) -> V {
    // SAFETY: the instruction set is the caller's promise.
    unsafe { x.div(V::splat(0.0).sub(z).exp().add(V::splat(1.0))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(activation: Activation, x: f64) -> f64 {
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        match activation {
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Relu => x.max(0.0),
            Activation::Relu2 => x.max(0.0).powi(2),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
        }
    }

    #[test]
    fn a_gate_lets_through_what_it_opens_for() {
        let (rows, width) = (5, 2 * LANES + 3);
        let both: Vec<f32> = (0..2 * rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; rows * width];
            Kernels::new(isa, 2, false).unwrap().gate(Activation::Silu, &both, width, &mut out);
            for (i, got) in out.into_iter().enumerate() {
                let (row, column) = (i / width, i % width);
                let at = |half: usize| f64::from(both[(2 * row + half) * width + column]);
                let expected = exact(Activation::Silu, at(0)) * at(1);
                assert!((f64::from(got) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{isa:?} {i}: {got}");
            }
        }
    }

    #[test]
    fn capped_logits_follow_the_formula() {
        let (rows, width) = (3, 2 * LANES + 5);
        let logits: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) * 2.3).collect();
        for isa in Isa::available() {
            let mut got = logits.clone();
            Kernels::new(isa, 2, false).unwrap().softcap(&mut got, width, 15.0);
            for (z, got) in logits.iter().zip(got) {
                let expected = 15.0 * (f64::from(*z) / 15.0).tanh();
                assert!((f64::from(got) - expected).abs() < 3e-6, "{isa:?} {z}: {got} {expected}");
            }
            let mut extreme = [f32::NEG_INFINITY, -1e30, 1e30, f32::INFINITY];
            Kernels::new(isa, 1, false).unwrap().softcap(&mut extreme, 4, 15.0);
            assert_eq!(extreme, [-15.0, -15.0, 15.0, 15.0], "{isa:?}");
        }
    }

    #[test]
    fn every_activation_follows_its_formula() {
        use Activation::*;
        for isa in Isa::available() {
            for activation in [GeluTanh, GeluErf, QuickGelu, Relu, Relu2, Silu, Tanh] {
                for start in -40..40 {
                    let inputs: [f32; LANES] = std::array::from_fn(|i| start as f32 * 0.5 + i as f32 * 0.04);
                    let mut values = [inputs; 3];
                    activate(isa, activation, &mut values);
                    assert!(values[1] == values[0] && values[2] == values[0]);
                    for (x, y) in inputs.into_iter().zip(values[0]) {
                        let expected = exact(activation, f64::from(x));
                        // A few roundings, relative to the size of the input.
                        let tolerance = 4e-7 * (1.0 + expected.abs());
                        assert!(
                            (f64::from(y) - expected).abs() < tolerance,
                            "{isa:?} {activation:?}({x}) = {y}, not {expected}"
                        );
                    }
                }
            }
        }
    }
}
