//! What every kernel of a CPU runs with.

use std::io;

use crate::cpu::{
    ahead::Expected,
    isa::Isa,
    pool::ThreadPool,
    registers::{Line, TileUnit},
};

/// The kernels of one rank: an instruction set and threads to run on.
#[derive(Debug)]
pub struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) tiles: Option<TileUnit>,
    pub(crate) pool: ThreadPool,
    pub(crate) inputs: InputBuffers,
    /// What the product behind the next one reads.
    pub(crate) expected: Option<Expected>,
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
        #[cfg(target_arch = "x86_64")]
        let tiles = (isa == Isa::Amx).then_some(TileUnit::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        let tiles = None;
        Ok(Self { isa, tiles, pool: ThreadPool::new(threads, spin)?, inputs: InputBuffers::default(), expected: None })
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

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `body(0)` … `body(tasks − 1)`, each once, on all threads; returns when all are done.
    pub fn run(&mut self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        self.pool.run(tasks, body);
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// Buffers that hold the rows of one product; kept, so that a step allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct InputBuffers {
    pub(crate) floats: Vec<f32>,
    pub(crate) lines: Vec<Line>,
    pub(crate) scales: Vec<f32>,
    pub(crate) offsets: Vec<i32>,
}
