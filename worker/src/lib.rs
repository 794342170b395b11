//! One rank: its slices of a checkpoint, and one forward step over them.
//!
//! Reading order: [`shard`] copies this rank's slices of it into packed form;
//! [`gpt2`] is the forward pass, over a [`kv_pool`]; [`step`] turns a plan into rows of answers; [`rank`] is the life of a
//! rank, message by message; [`cuda`] is the same on a GPU.  [`plan`] foretells the memory; [`trace`] draws where the time of a step goes.
//!
//! Does not know requests, text or policy, and has no async.

pub mod shard;
pub mod kv_pool;
pub mod gpt2;
pub mod step;
mod progress;
pub mod rank;
pub mod plan;
pub mod limits;
pub mod trace;

mod backend;
mod bounds;
mod error;
mod pack;
mod memory;

pub use backend::cuda;
pub use error::WorkerError;
pub use memory::free_bytes;

/// The element type for who does not choose: bf16 where this CPU multiplies it, else f32.
pub fn default_dtype() -> nanoinfer_shared::protocol::DType {
    use nanoinfer_shared::protocol::DType::{Bf16, F32};
    if nanoinfer_kernels::Isa::detect() == nanoinfer_kernels::Isa::Avx512Bf16 { Bf16 } else { F32 }
}
