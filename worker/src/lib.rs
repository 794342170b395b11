//! One rank: its slices of a checkpoint, and one forward step over them.
//!
//! Reading order: [`rank`] is the life of a rank, message by message; a device is chosen for it (`backend`), the processor
//! ([`cpu`]) or a GPU ([`cuda`]), each behind the same seam (`runner`): a checkpoint's slices are loaded there, and a plan becomes
//! rows of answers. [`mod@gpu_check`] tries a GPU; [`roofline`] is what the processor could do at most; [`trace`] draws where the
//! time of a step goes.
//!
//! Does not know requests, text or policy, and has no async.

pub mod rank;
pub mod cpu;
pub mod cuda;
pub mod gpu_check;
pub mod roofline;
pub mod trace;

mod answer;
mod backend;
mod bounds;
mod element;
mod error;
mod fit;
mod memory;
mod progress;
mod runner;
mod tile;

pub use backend::memory as rank_memory;
pub use cpu::level::{CpuLevels, Level};
pub use error::WorkerError;
pub use fit::{Unfit, fits, kv_dtype_on_gpu};
pub use memory::free_bytes;
pub use runner::RankMemory;
