//! How far a rank has come in its step, for whoever asks while it computes.
//!
//! Counts reductions, of which every step has the same: one of the embeddings, two a layer. Costs two additions each.
//! A step on GPUs, whose reductions the processor does not see, shows its number only. Does not know who asks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use nanoinfer_shared::{
    comm::{CommError, Communicator, ReduceSite, Threads},
    protocol::Place,
};

/// Written by the thread that computes, read by the one that answers heartbeats. The two numbers may be of two moments: a rank
/// that moves is somewhere else at the next look anyway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<(AtomicU64, AtomicU32)>);

impl Progress {
    /// A step begins.
    pub(crate) fn begin(&self, step: u64) {
        let (number, passed) = &*self.0;
        number.store(step, Relaxed);
        passed.store(0, Relaxed);
    }

    /// Where the rank is.
    pub(crate) fn place(&self) -> Place {
        let (step, passed) = &*self.0;
        Place { step: step.load(Relaxed), passed: passed.load(Relaxed) }
    }

    fn pass(&self) {
        self.0.1.fetch_add(1, Relaxed);
    }
}

/// A communicator whose reductions count as progress: once as they begin, once as they end.
pub(crate) struct Watched {
    inner: Box<dyn Communicator>,
    progress: Progress,
}

impl Watched {
    pub(crate) fn new(inner: Box<dyn Communicator>, progress: Progress) -> Self {
        Self { inner, progress }
    }
}

impl Communicator for Watched {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world(&self) -> usize {
        self.inner.world()
    }

    fn all_reduce(
        &mut self,
        data: &mut [f32],
        site: ReduceSite,
        threads: &mut dyn Threads,
    ) -> Result<Duration, CommError> {
        self.progress.pass();
        let waited = self.inner.all_reduce(data, site, threads)?;
        self.progress.pass();
        Ok(waited)
    }
}

#[cfg(test)]
mod tests {
    use nanoinfer_shared::comm::{Local, OneThread};

    use super::*;

    #[test]
    fn reductions_move_a_rank_on_and_a_step_begins_anew() {
        let progress = Progress::default();
        let mut comm = Watched::new(Box::new(Local), progress.clone());
        progress.begin(7);
        assert_eq!(progress.place(), Place { step: 7, passed: 0 });
        for passed in [2, 4] {
            let site = ReduceSite { step: 7, layer: None, operation: "test" };
            comm.all_reduce(&mut [1.0], site, &mut OneThread).unwrap();
            assert_eq!(progress.place(), Place { step: 7, passed });
        }
        progress.begin(8);
        assert_eq!(progress.place(), Place { step: 8, passed: 0 });
    }
}
