//! Starts and watches a NanoInfer cluster.
#![allow(dead_code)]

pub mod build;
pub mod model;
mod names;
pub mod size;
