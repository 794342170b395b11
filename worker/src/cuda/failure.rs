//! Why a rank on a GPU failed, before and after it is said which rank that is.

use super::error::GpuError;
use crate::WorkerError;

/// Why work on a GPU failed, before it is said of which rank it was.
#[derive(Debug)]
pub(crate) enum Failure {
    Gpu(GpuError),
    Other(WorkerError),
}

impl From<GpuError> for Failure {
    fn from(error: GpuError) -> Self {
        Self::Gpu(error)
    }
}

impl<E: Into<WorkerError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Says of which rank it was.
pub(crate) trait OfRank<T> {
    fn of_rank(self, rank: usize) -> Result<T, WorkerError>;
}

impl<T, E: Into<Failure>> OfRank<T> for Result<T, E> {
    fn of_rank(self, rank: usize) -> Result<T, WorkerError> {
        self.map_err(|error| match error.into() {
            Failure::Gpu(source) => WorkerError::Gpu { rank, source },
            Failure::Other(error) => error,
        })
    }
}
