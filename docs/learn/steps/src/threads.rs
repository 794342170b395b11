//! Step 8. Several cores read at once: each thread has some outputs of every matrix. And how fast this machine is at best, to know when
//! there is nothing left to gain.
//!
//! Threads are started for each product, which takes some 20 µs: too much for a small model, little for a large one. The server keeps its
//! threads.

use std::{hint::black_box, thread, time::Instant};

use crate::model::{Matrix, Product, dot};

/// A matrix cut by outputs, a part for each thread.
pub struct Threaded {
    parts: Vec<Box<dyn Product>>,
    /// Outputs of each part.
    widths: Vec<usize>,
}

/// Cuts a matrix into parts for so many threads, each packed.
pub fn cut(matrix: Matrix, threads: usize, packing: &dyn Fn(Matrix) -> Box<dyn Product>) -> Box<dyn Product> {
    let outputs = matrix.values.len() / matrix.inputs;
    let of_each = outputs.div_ceil(threads) * matrix.inputs;
    let part = |values: &[f32]| packing(Matrix { values: values.to_vec(), inputs: matrix.inputs });
    let parts = matrix.values.chunks(of_each).map(part).collect();
    let widths = matrix.values.chunks(of_each).map(|values| values.len() / matrix.inputs).collect();
    Box::new(Threaded { parts, widths })
}

impl Product for Threaded {
    fn times(&self, x: &[f32]) -> Vec<f32> {
        let [others @ .., own] = &self.parts[..] else { return Vec::new() };
        let all: Vec<Vec<f32>> = thread::scope(|scope| {
            let started: Vec<_> = others.iter().map(|part| scope.spawn(|| part.times(x))).collect();
            let last = own.times(x);
            started.into_iter().map(|one| one.join().expect("a product does not panic")).chain([last]).collect()
        });
        // Side by side again, row by row.
        let rows = all[0].len() / self.widths[0];
        let row =
            |r: usize| all.iter().zip(&self.widths).flat_map(move |(part, &width)| &part[r * width..(r + 1) * width]);
        (0..rows).flat_map(row).copied().collect()
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes()).sum()
    }
}

/// What a machine can do at best, on so many threads.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// Bytes that are read from memory.
    pub read_bytes_per_s: f64,
    /// Products and sums of f32.
    pub ops_per_s: f64,
}

impl Roofline {
    /// Measures it, with the loop that everything here is made of: over numbers that fit no cache, and over some that fit the nearest.
    pub fn measure(threads: usize) -> Self {
        let rate = |numbers: usize, times: usize| {
            let run = || {
                let (a, b) = (vec![1.0f32; numbers], vec![0.5f32; 2048]);
                // Written to, so that the pages are there.
                let begun = Instant::now();
                for _ in 0..times {
                    for a in a.chunks_exact(2048) {
                        black_box(dot(black_box(a), &b));
                    }
                }
                (numbers * times) as f64 / begun.elapsed().as_secs_f64()
            };
            thread::scope(|scope| {
                let all: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
                all.into_iter().map(|one| one.join().expect("a sum does not panic")).sum::<f64>()
            })
        };
        Self { read_bytes_per_s: 4.0 * rate(32 << 20, 3), ops_per_s: 2.0 * rate(2048, 50_000) }
    }

    /// The least seconds that a step can take which reads so many bytes and does so many products and sums.
    pub fn least_s(&self, bytes: f64, ops: f64) -> f64 {
        (bytes / self.read_bytes_per_s).max(ops / self.ops_per_s)
    }
}
