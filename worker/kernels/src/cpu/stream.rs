//! What some models do to the residual stream and to values beside adding to them: mixtures, gates that read a few channels.
//!
//! Row by row, each by itself. Does not know which model does what, nor where its numbers come from.

use crate::cpu::kernels::Kernels;

/// Gates of what is added to values, one a head.
#[derive(Clone, Copy, Debug)]
pub struct ValueGates<'a> {
    /// `[G, KV_local]`.
    pub weights: &'a [f32],
    /// What a gate, between 0 and 1, is multiplied by.
    pub factor: f32,
}

impl Kernels {
    /// `x[i] = a · x[i] + b · other[i]`; `width` is that of a row.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn mix(&mut self, x: &mut [f32], a: f32, other: &[f32], b: f32, width: usize) {
        assert!(x.len() == other.len() && x.len().is_multiple_of(width), "both are [T, C]");
        self.rows(x, width, |row, x| {
            x.iter_mut().zip(&other[row * width..]).for_each(|(x, other)| *x = a * *x + b * other);
        });
    }

    /// `out[t] = e[t] + scale · sigmoid(gate · e[t][..G]) · e[before[t]]`, where there is one before, for the first rows of `e`,
    /// `[T′, C]`.
    ///
    /// # Panics
    /// When the sizes do not agree, or there is no such row.
    pub fn smear(&mut self, e: &[f32], before: &[Option<usize>], gate: &[f32], scale: f32, out: &mut [f32]) {
        let width = out.len() / before.len();
        assert!(out.len() == before.len() * width && e.len() >= out.len(), "out is [T, C]");
        self.rows(out, width, |row, out| {
            let own = &e[row * width..][..width];
            out.copy_from_slice(own);
            if let Some(before) = before[row] {
                let amount = scale * sigmoid(dot(gate, own));
                out.iter_mut().zip(&e[before * width..][..width]).for_each(|(out, before)| *out += amount * before);
            }
        });
    }

    /// `v[t][k] += factor · sigmoid(gate[k] · x[t][..G]) · added[t][k]` for each head of values: `qkv` is `[T, … + KV_local · D]`, of which
    /// values are the last, `x` is `[T, C]`, `added` is `[T, KV_local · D]`.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn add_to_values(
        &mut self,
        qkv: &mut [f32],
        x: &[f32],
        gates: ValueGates<'_>,
        added: &[f32],
        heads: usize,
        dim: usize,
    ) {
        let rows = added.len() / (heads * dim);
        let (width, stream) = (qkv.len() / rows, x.len() / rows);
        assert!(added.len() == rows * heads * dim && width >= heads * dim && stream * heads >= gates.weights.len());
        self.rows(qkv, width, |row, qkv| {
            let x = &x[row * stream..][..gates.weights.len() / heads];
            let values = qkv[width - heads * dim..].chunks_exact_mut(dim);
            for (head, (value, added)) in values.zip(added[row * heads * dim..].chunks_exact(dim)).enumerate() {
                let score = x.iter().zip(gates.weights.chunks_exact(heads)).map(|(x, gates)| x * gates[head]).sum();
                let amount = gates.factor * sigmoid(score);
                value.iter_mut().zip(added).for_each(|(value, added)| *value += amount * added);
            }
        });
    }
}

fn dot(gate: &[f32], x: &[f32]) -> f32 {
    gate.iter().zip(x).map(|(gate, x)| gate * x).sum()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 37 % 101) as f32 - 50.0) / 40.0).collect()
    }

    fn kernels() -> Kernels {
        Kernels::new(Isa::Portable, 2, false).unwrap()
    }

    fn gate(weights: impl Iterator<Item = f32>, x: &[f32]) -> f64 {
        let score: f64 = weights.zip(x).map(|(w, x)| f64::from(w) * f64::from(*x)).sum();
        1.0 / (1.0 + (-score).exp())
    }

    #[test]
    fn the_token_before_is_added_as_far_as_the_gate_is_open() {
        // Three rows of two texts, the second of which goes on behind the row at the end.
        let (width, before, scale) = (20, [None, Some(0), Some(3)], -1.7);
        let (e, weights) = (numbers(4 * width, 0), numbers(7, 5));
        let mut out = vec![0.0; 3 * width];
        kernels().smear(&e, &before, &weights, scale, &mut out);
        for (i, got) in out.into_iter().enumerate() {
            let (row, column) = (i / width, i % width);
            let open = gate(weights.iter().copied(), &e[row * width..]);
            let before = before[row].map_or(0.0, |before| f64::from(e[before * width + column]));
            let expected = f64::from(e[i]) + f64::from(scale) * open * before;
            assert!((f64::from(got) - expected).abs() < 1e-6, "{i}: {got} {expected}");
        }
    }

    #[test]
    fn values_get_what_the_gate_of_their_head_lets_through() {
        let (rows, heads, dim, channels, stream) = (3, 2, 6, 5, 9);
        let width = 4 * dim + 2 * heads * dim;
        let (qkv, x) = (numbers(rows * width, 0), numbers(rows * stream, 3));
        let (weights, added) = (numbers(channels * heads, 8), numbers(rows * heads * dim, 11));
        let mut got = qkv.clone();
        kernels().add_to_values(&mut got, &x, ValueGates { weights: &weights, factor: 3.0 }, &added, heads, dim);
        for (i, got) in got.into_iter().enumerate() {
            let (row, column) = (i / width, i % width);
            let mut expected = f64::from(qkv[i]);
            if let Some(place) = column.checked_sub(width - heads * dim) {
                let weights = (0..channels).map(|channel| weights[channel * heads + place / dim]);
                expected += 3.0 * gate(weights, &x[row * stream..]) * f64::from(added[row * heads * dim + place]);
            }
            assert!((f64::from(got) - expected).abs() < 1e-6, "{i}: {got} {expected}");
        }
    }
}
