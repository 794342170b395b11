//! The threads of a rank, as a reduction may use them. Does not know whose they are, nor what else runs on them.

/// Threads that run a phase together.
pub trait Threads {
    /// How many, the caller's included.
    fn count(&self) -> usize;

    /// Runs `task(0)` … `task(tasks − 1)`, each once, and returns when all are done.
    fn run(&mut self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// The caller's alone.
#[derive(Debug)]
pub struct OneThread;

impl Threads for OneThread {
    fn count(&self) -> usize {
        1
    }

    fn run(&mut self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}
