//! What the machine can do at most, with the same threads and instructions as the kernels: the yardstick of benchmarks.

use crate::cpu::{
    kernels::Kernels,
    lanes::{LANES, Lanes},
    versions::versions,
};

/// The most chains of multiply-adds of any instruction set.
const MOST_CHAINS: usize = 12;
/// f32 elements that one task reads.
const READ_TASK: usize = 1 << 16;

impl Kernels {
    /// Reads all of `data` once, on all threads. Returns a sum, so that the reading is not optimised away.
    pub fn read_all(&mut self, data: &[f32]) -> f32 {
        let isa = self.isa;
        let chunks: Vec<&[f32]> = data.chunks(READ_TASK).collect();
        // SAFETY: `isa` was detected or listed as available.
        self.map(chunks.len(), |i| unsafe { read(isa, chunks[i]) }).iter().sum()
    }

    /// Multiplies and adds in registers, `rounds` times on each thread. Returns the operations done, two for each
    /// multiply-add, and a number that depends on all of them.
    pub fn multiply_add(&mut self, rounds: usize) -> (u64, f32) {
        let isa = self.isa;
        let threads = self.pool.threads();
        // SAFETY: `isa` was detected or listed as available.
        let done = self.map(threads, |_| unsafe { multiply(isa, rounds) });
        let operations = done.iter().map(|&(multiplied, _)| multiplied as u64 * 2).sum();
        (operations, done.iter().map(|&(_, sum)| sum).sum())
    }
}

versions! { unsafe fn read(data: &[f32]) -> f32 = read_body }
versions! { unsafe fn multiply(rounds: usize) -> (usize, f32) = multiply_body }

#[inline(always)]
unsafe fn read_body<V: Lanes>(data: &[f32]) -> f32 {
    let (groups, _) = data.as_chunks::<{ 4 * LANES }>();
    // SAFETY: chunks of four vectors; the instruction set is the caller's promise.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        for group in groups {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = sum.max(V::load(group.as_ptr().add(i * LANES)));
            }
        }
        sums[0].max(sums[1]).max(sums[2].max(sums[3])).largest()
    }
}

/// Returns the multiply-adds done, and a number that depends on all of them.
#[inline(always)]
unsafe fn multiply_body<V: Lanes>(rounds: usize) -> (usize, f32) {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        // The compiler must not know the factors, or it would compute the end.
        let factor = V::splat(std::hint::black_box(0.999_999));
        let term = V::splat(std::hint::black_box(1e-6));
        let mut sums = [term; MOST_CHAINS];
        let sums = &mut sums[..V::CHAINS];
        for _ in 0..rounds {
            for sum in &mut *sums {
                *sum = sum.mul_add(factor, term);
            }
        }
        (rounds * V::CHAINS * LANES, sums.iter().map(|sum| sum.sum()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn all_is_read_and_all_is_counted() {
        for isa in Isa::available() {
            let mut kernels = Kernels::new(isa, 2, false).unwrap();
            let mut data = vec![0.0; 3 * READ_TASK];
            data[2 * READ_TASK + 77] = 5.0;
            assert_eq!(kernels.read_all(&data), 5.0);
            let (operations, end) = kernels.multiply_add(1000);
            let lanes = operations / (1000 * 2);
            assert!(lanes > 0 && lanes.is_multiple_of(2 * 16));
            // Each lane tends to 1 as 1 − 0.999999^n.
            let lane = end / lanes as f32;
            assert!((lane - 1e-3).abs() < 1e-5, "{lane}");
        }
    }
}
