//! Heads of queries and keys on their way to attention: normed by themselves, and turned to where they stand.
//!
//! ```text
//! a head u = (a, b), halves of D / 2; a row's turn is [cos D / 2 | sin D / 2]
//!   (a · cos − b · sin,  b · cos + a · sin)
//! ```
//! Does not know what frequencies a model has. Invariant: a row's turn depends on its position alone.

use crate::cpu::{
    kernels::Kernels,
    lanes::Lanes,
    norm::inverse_rms,
    rounding::{from_bf16, to_bf16},
    versions::versions,
};

/// Cosines and sines of the rows of a step, for all its layers.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    /// `[T, D]`.
    rows: Vec<f32>,
    head_dim: usize,
}

/// By what angles heads are turned.
#[derive(Clone, Debug)]
pub struct Angles {
    /// Radians a position `[D / 2]`.
    pub frequencies: Vec<f32>,
    /// What cosine and sine are multiplied by.
    pub factor: f32,
    /// The angles' opposites are meant.
    pub backwards: bool,
    /// Cosine and sine are rounded to bf16.
    pub rounded: bool,
}

/// What norms do to each head of a row, the first of which are queries.
#[derive(Clone, Copy, Debug)]
pub enum HeadNorms<'a> {
    /// Nothing.
    None,
    /// Before the turn.
    Gains {
        /// Gain of queries `[D]`.
        query: &'a [f32],
        /// Gain of keys `[D]`.
        key: &'a [f32],
        /// Added to the mean of squares.
        epsilon: f32,
    },
    /// Behind it, where each is multiplied by the same number.
    Turned {
        /// This one.
        factor: f32,
        /// Added to the mean of squares.
        epsilon: f32,
    },
}

impl Kernels {
    /// Cosine and sine of each position's angles. An angle is rounded to f32, as in training; of that the two are exact.
    pub fn turns(&mut self, angles: &Angles, positions: &[usize], turns: &mut Turns) {
        let Angles { frequencies, factor, backwards, rounded } = angles;
        turns.head_dim = 2 * frequencies.len();
        turns.rows.resize(positions.len() * turns.head_dim, 0.0);
        let side = if *backwards { -factor } else { *factor };
        let round = |x: f32| if *rounded { from_bf16(to_bf16(x)) } else { x };
        self.rows(&mut turns.rows, 2 * frequencies.len(), |row, turn| {
            let (cos, sin) = turn.split_at_mut(frequencies.len());
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                let exact = libm::sincos(f64::from(frequency * positions[row] as f32));
                (*sin, *cos) = (round(exact.0 as f32 * side), round(exact.1 as f32 * factor));
            }
        });
    }

    /// Norms each head of queries and of keys as `norms` say, and turns it: `qkv` is `[T, (H_local + 2 · KV_local) · D]`, of
    /// which `queries` heads are queries and `keys` keys.
    ///
    /// # Panics
    /// When sizes do not agree.
    pub fn turn_heads(
        &mut self,
        qkv: &mut [f32],
        (queries, keys): (usize, usize),
        norms: HeadNorms<'_>,
        turns: &Turns,
    ) {
        let (isa, dim) = (self.isa, turns.head_dim);
        let width = (queries + 2 * keys) * dim;
        assert!(qkv.len() * dim == turns.rows.len() * width, "qkv and turns have T rows");
        if let HeadNorms::Gains { query, key, .. } = norms {
            assert!(query.len() == dim && key.len() == dim, "gains are [D]");
        }
        self.rows(qkv, width, |row, heads| {
            let (heads, turn) = (&mut heads[..(queries + keys) * dim], &turns.rows[row * dim..][..dim]);
            // SAFETY: `isa` was detected or listed as available.
            unsafe { turn_row(isa, heads, queries, norms, turn) };
        });
    }
}

versions! {
    unsafe fn turn_row(heads: &mut [f32], queries: usize, norms: HeadNorms<'_>, turn: &[f32]) = turn_row_body
}

/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
unsafe fn turn_row_body<V: Lanes>(heads: &mut [f32], queries: usize, norms: HeadNorms<'_>, turn: &[f32]) {
    let half = turn.len() / 2;
    let (cos, sin) = turn.split_at(half);
    for (index, head) in heads.chunks_exact_mut(turn.len()).enumerate() {
        if let HeadNorms::Gains { query, key, epsilon } = norms {
            // SAFETY: the caller's promise.
            let scale = unsafe { inverse_rms::<V>(head, epsilon) };
            let gain = if index < queries { query } else { key };
            head.iter_mut().zip(gain).for_each(|(x, gain)| *x = *x * scale * gain);
        }
        let (a, b) = head.split_at_mut(half);
        for i in 0..half {
            (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
        }
        if let HeadNorms::Turned { factor, epsilon } = norms {
            // SAFETY: the caller's promise.
            let scale = unsafe { inverse_rms::<V>(head, epsilon) } * factor;
            head.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn heads_are_normed_and_turned_by_the_formula() {
        for (isa, dim) in Isa::available().into_iter().flat_map(|isa| [2, 8, 40, 64].map(|dim| (isa, dim))) {
            let (queries, keys, positions) = (3, 2, [0, 1, 7, 100_003]);
            let frequencies: Vec<f32> = (0..dim / 2).map(|i| 0.37f32.powi(i as i32)).collect();
            let width = (queries + 2 * keys) * dim;
            let x: Vec<f32> = (0..positions.len() * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let gain = |kind: usize| (0..dim).map(|i| 1.0 + (i * kind) as f32 / 50.0).collect::<Vec<_>>();
            let (query, key) = (gain(1), gain(2));
            let gains = HeadNorms::Gains { query: &query, key: &key, epsilon: 1e-6 };
            let behind = HeadNorms::Turned { factor: 1.2, epsilon: 1e-6 };
            for (norms, backwards, rounded) in
                [(HeadNorms::None, false, false), (gains, false, false), (behind, true, false), (behind, true, true)]
            {
                let (mut kernels, mut turns) = (Kernels::new(isa, 2, false).unwrap(), Turns::default());
                let angles = Angles { frequencies: frequencies.clone(), factor: 1.5, backwards, rounded };
                kernels.turns(&angles, &positions, &mut turns);
                let mut got = x.clone();
                kernels.turn_heads(&mut got, (queries, keys), norms, &turns);
                let inverse_rms = |u: &[f64]| (u.iter().map(|x| x * x).sum::<f64>() / dim as f64 + 1e-6).sqrt().recip();
                for (row, position) in positions.into_iter().enumerate() {
                    for head in 0..queries + 2 * keys {
                        let at = row * width + head * dim;
                        let mut u: Vec<f64> = x[at..][..dim].iter().map(|&x| x.into()).collect();
                        if head < queries + keys {
                            if matches!(norms, HeadNorms::Gains { .. }) {
                                let scale = inverse_rms(&u);
                                let gain = if head < queries { &query } else { &key };
                                u.iter_mut().zip(gain).for_each(|(x, g)| *x *= f64::from(*g) * scale);
                            }
                            for m in 0..dim / 2 {
                                let angle = f64::from(frequencies[m] * position as f32);
                                let (sin, cos) = (if backwards { -angle } else { angle }).sin_cos();
                                let [sin, cos] = [sin, cos].map(|x| 1.5 * x as f32);
                                let round = |x: f32| f64::from(if rounded { from_bf16(to_bf16(x)) } else { x });
                                let (sin, cos, a, b) = (round(sin), round(cos), u[m], u[m + dim / 2]);
                                (u[m], u[m + dim / 2]) = (a * cos - b * sin, b * cos + a * sin);
                            }
                            if matches!(norms, HeadNorms::Turned { .. }) {
                                let scale = inverse_rms(&u);
                                u.iter_mut().for_each(|x| *x *= 1.2 * scale);
                            }
                        }
                        for (got, exact) in got[at..][..dim].iter().zip(u) {
                            assert!((f64::from(*got) - exact).abs() < 2e-5, "{isa:?} D {dim} row {row} head {head}");
                        }
                    }
                }
            }
        }
    }
}
