//! Arithmetic: on the CPU, the only home of `unsafe` arithmetic; for GPUs as PTX ([`cuda`]); and nothing else.
//!
//! Every kernel is written once, over vectors of 16 f32 lanes, and compiled for each instruction set;
//! [`Kernels`] picks one at run time and spreads the work over a pool of threads by output columns, never over K.
//!
//! Invariants: the order of accumulation over K is the same for any number of rows and threads, so a row's result does not
//! depend on its batch; AVX2, AVX-512 and AMX give the same bits (all fuse multiply and add, in the same order), the portable
//! form rounds twice; of bf16 AVX-512 BF16 adds up pairs its own way, and AMX another.
//!
//! Does not know models, processes, or any other crate of this project.

mod element;
mod cpu;

pub mod cuda;

pub use cpu::{
    Activation, Angles, Arena, AttentionRow, AttentionRows, Epilogue, HeadNorms, Isa, Kernels, KvLayer, KvLayout,
    KvMark, KvMemory, MAX_HEAD_DIM, PackedMatrix, QueryHeads, Scoring, ThreadPool, Turns, ValueGates, arg_top_k,
    keep_on, log_sum_exp,
};
pub use element::Element;
