//! Work that takes long, away from the threads that serve: few pieces at a time, however many ask.
//!
//! Does not know what the work is. Invariant: a place is given back when its work is done, also where who asked has gone.

use std::{num::NonZero, sync::Arc, thread};

use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};

/// Places for pieces of such work.
#[derive(Clone, Debug)]
pub(crate) struct OffRuntime {
    places: Arc<Semaphore>,
}

impl OffRuntime {
    /// So many places; one at least.
    pub(crate) fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places.max(1))) }
    }

    /// Does `work` once there is a place for it.
    ///
    /// # Errors
    /// When it panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let place = self.places.clone().acquire_owned().await.expect("nobody closes it");
        let done = spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await
    }

    /// Places that are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.places.available_permits()
    }
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
