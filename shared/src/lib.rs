//! What every NanoInfer process agrees on, and nothing more.
//!
//! Reading order: a [`model`] is a shape, read from [`json`], which a partition deals out; the coordinator and its ranks
//! talk in the messages of [`protocol`], carried by a [`link`], [`seal`]ed between hosts, after a [`handshake`] at a [`door`]; the ranks add up partial
//! results through a [`comm`]unicator. What comes from outside is [`utf8`], in tokenizers
//! spelled in an alphabet of [`byte_level`], and people are told by [`say`].
//!
//! This crate does not know HTTP, text, the tensors of any library, CUDA, or scheduling.

pub mod json;
pub mod utf8;
pub mod byte_level;
pub mod say;
pub mod model;
pub mod protocol;
pub mod seal;
pub mod link;
pub mod handshake;
pub mod door;
pub mod comm;

pub use model::{
    config::ShapeError,
    partition::{Partition, PartitionError, Share},
    shape::{Activation, ModelShape},
};
pub use say::say;
