//! Step 7. A step takes as long as its weights take to be read, so they are made smaller: a byte each, and a scale for each output.
//!
//! Inputs are rounded to bytes as well, row by row, so that products are whole numbers and their sums exact.

use crate::model::{Matrix, Product};

/// A matrix in bytes.
#[derive(Clone, Debug)]
pub struct Int8 {
    /// `[outputs][inputs]`.
    values: Vec<i8>,
    /// Of each output: what 1 stands for.
    scales: Vec<f32>,
    inputs: usize,
}

/// Rounds a matrix.
pub fn packed(matrix: Matrix) -> Box<dyn Product> {
    Box::new(Int8::of(&matrix))
}

impl Int8 {
    /// The nearest bytes.
    pub fn of(matrix: &Matrix) -> Self {
        let rounded = matrix.values.chunks_exact(matrix.inputs).map(round);
        let (values, scales): (Vec<Vec<i8>>, Vec<f32>) = rounded.unzip();
        Self { values: values.concat(), scales, inputs: matrix.inputs }
    }
}

/// A row in bytes: the largest becomes ±127.
fn round<T: From<i8>>(row: &[f32]) -> (Vec<T>, f32) {
    let most = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let scale = most.max(1e-12) / 127.0;
    (row.iter().map(|x| ((x / scale).round() as i8).into()).collect(), scale)
}

impl Product for Int8 {
    fn times(&self, x: &[f32]) -> Vec<f32> {
        let (rows, outputs) = (x.len() / self.inputs, self.scales.len());
        // Bytes too, but kept wider, as they meet every row of weights.
        let x: Vec<(Vec<i16>, f32)> = x.chunks_exact(self.inputs).map(round).collect();
        let mut y = vec![0.0; rows * outputs];
        for (o, weights) in self.values.chunks_exact(self.inputs).enumerate() {
            for (r, (x, scale)) in x.iter().enumerate() {
                y[r * outputs + o] = dot(x, weights) as f32 * scale * self.scales[o];
            }
        }
        y
    }

    fn bytes(&self) -> usize {
        self.values.len() + 4 * self.scales.len()
    }
}

/// Exact: 127 · 127 · inputs fits an i32 up to 133,000 inputs.
fn dot(x: &[i16], weights: &[i8]) -> i32 {
    x.iter().zip(weights).map(|(&x, &weight)| i32::from(x) * i32::from(weight)).sum()
}
