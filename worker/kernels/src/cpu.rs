//! Kernels for CPUs. Every one is written once, over vectors of 16 f32 lanes ([`lanes`]).

mod lanes;
mod buffer;
mod packed;
mod inputs;
mod tiles;
mod matmul;
mod norm;
mod activation;
mod kv;
mod rows;
mod attention;
mod logits;
mod limits;
mod pool;

use std::io;

pub use activation::Activation;
pub use attention::MAX_HEAD_DIM;
pub use buffer::Arena;
pub use kv::{KvLayer, KvLayout, KvType};
pub use lanes::Isa;
pub use logits::{arg_top_k, log_sum_exp};
pub use matmul::Epilogue;
pub use packed::{PackedMatrix, WeightType};
pub use pool::{ThreadPool, keep_on};
pub use rows::{AttentionRow, AttentionRows};

/// The kernels of one rank: an instruction set and threads to run on.
#[derive(Debug)]
pub struct Kernels {
    isa: Isa,
    pool: ThreadPool,
    inputs: inputs::InputBuffers,
}

impl Kernels {
    /// Kernels for `isa` on `threads` threads, the caller's included. `spin` lets idle threads wait busily between the
    /// phases of a step.
    ///
    /// # Errors
    /// When the system does not give the threads.
    ///
    /// # Panics
    /// When this CPU has no `isa`: every kernel relies on it.
    pub fn new(isa: Isa, threads: usize, spin: bool) -> io::Result<Self> {
        assert!(isa.is_available(), "this CPU has no {}", isa.name());
        Ok(Self { isa, pool: ThreadPool::new(threads, spin)?, inputs: inputs::InputBuffers::default() })
    }

    /// Keeps each thread on one of these CPUs from now on, the caller on the first. A wish, where the system does not grant it.
    ///
    /// # Panics
    /// When there are fewer than threads.
    pub fn pin(&mut self, cpus: &[u32]) {
        self.pool.pin(cpus);
    }

    /// `[f(0), …, f(count − 1)]`, computed on all threads.
    pub fn map<T: Send>(&mut self, count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
        self.pool.map(count, f)
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}
