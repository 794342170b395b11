//! What this machine can do at most: measured beside every benchmark, as figures of different sittings do not compare.

use std::time::{Duration, Instant};

use nanoinfer_kernels::{Isa, Kernels};

/// f32 elements read to measure memory: 512 MB, far above any cache.
const READ_ELEMENTS: usize = 128 << 20;
/// Multiply-adds of one round of measuring arithmetic: some 20 ms.
const MULTIPLY_ROUNDS: usize = 5_000_000;
/// How long each limit is measured. The best repetition counts, as a limit is what is possible; a machine that others use too
/// needs many of them.
const MEASURE_FOR: Duration = Duration::from_millis(1500);

/// Limits with a number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Reading memory.
    pub read_bytes_per_s: f64,
    /// f32 multiplications and additions, in registers.
    pub f32_ops_per_s: f64,
}

impl Limits {
    /// Measures them on `threads` threads; takes about four seconds.
    pub fn measure(threads: usize) -> Self {
        let mut kernels = kernels(threads);
        // Not zeros: untouched zero pages all lie in one place.
        let data = vec![1.0; READ_ELEMENTS];
        let read_s = best(|| kernels.read_all(&data));
        let mut operations = 0;
        let multiply_s = best(|| {
            let (done, end) = kernels.multiply_add(MULTIPLY_ROUNDS);
            operations = done;
            end
        });
        Self { read_bytes_per_s: size_of_val(&data[..]) as f64 / read_s, f32_ops_per_s: operations as f64 / multiply_s }
    }

    /// The higher of two measurements, limit by limit.
    pub fn best_of(self, other: Self) -> Self {
        Self {
            read_bytes_per_s: self.read_bytes_per_s.max(other.read_bytes_per_s),
            f32_ops_per_s: self.f32_ops_per_s.max(other.f32_ops_per_s),
        }
    }
}

/// Seconds that reading `bytes` takes at least, over and over, wherever the machine keeps them: what fits a cache is read faster
/// than memory.
pub fn reading_s(bytes: u64, threads: usize) -> f64 {
    let mut kernels = kernels(threads);
    let data = vec![1.0; (bytes as usize).div_ceil(size_of::<f32>()).max(1)];
    best(|| kernels.read_all(&data))
}

fn kernels(threads: usize) -> Kernels {
    Kernels::new(Isa::detect(), threads, true).expect("the ranks that are measured beside it had as many threads")
}

/// The shortest time of several runs, in seconds.
fn best(mut run: impl FnMut() -> f32) -> f64 {
    let begun = Instant::now();
    let mut best = f64::INFINITY;
    while begun.elapsed() < MEASURE_FOR {
        let run_begun = Instant::now();
        std::hint::black_box(run());
        best = best.min(run_begun.elapsed().as_secs_f64());
    }
    best
}
