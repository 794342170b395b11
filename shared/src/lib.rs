//! What every NanoInfer process agrees on, and nothing more.
//!
//! Reading order: a model's [`geometry`], read from [`json`], is dealt out by a [`partition`]; the coordinator and its ranks
//! talk in the messages of [`protocol`], carried by a [`link`] after a [`handshake`] at a [`door`]; the ranks add up partial
//! results through a [`comm`]unicator.
//!
//! This crate does not know HTTP, text, the tensors of any library, CUDA, or scheduling.

pub mod json;
pub mod geometry;
pub mod partition;
pub mod protocol;
pub mod link;
pub mod handshake;
pub mod door;
pub mod comm;

pub use geometry::{Activation, Geometry, GeometryError};
pub use partition::{Partition, PartitionError, Share};
