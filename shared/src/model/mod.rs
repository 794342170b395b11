//! What a model is: data, without a device or a file.
//!
//! ```text
//! config.json ─► a family ─► ModelShape ─► Partition ─► Share ─► its linear layers, as pieces of parts
//! a checkpoint's names ─► a family ─► Part ─► Source: which tensor, which columns of it
//! ```
//! Reading order: a [`shape`] is sizes and switches, [`rotary`] the angles of some, which [`config`] helps to read; [`parts`] are what weights there are; a
//! family ([`families`]) says what tensors they are called; a [`partition`] deals them out.

pub mod shape;
pub mod rotary;
pub mod config;
pub mod parts;
pub mod unserved;
pub mod family;
pub mod families;
pub mod partition;
