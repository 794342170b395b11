//! Kernels for CPUs: each is written once, over vectors of 16 f32 lanes (`lanes`), and compiled for each instruction set (`versions`).

mod isa;
mod rounding;
mod lanes;
mod versions;
mod pool;
mod kernels;
mod buffer;
mod packed;
mod ahead;
mod inputs;
mod tiles;
mod matmul;
mod norm;
mod heads;
mod stream;
mod activation;
mod layout;
mod rows;
mod kv;
mod attention;
mod logits;
mod limits;

pub use activation::Activation;
pub use attention::{MAX_HEAD_DIM, Scoring};
pub use buffer::{Arena, KvMark, KvMemory};
pub use heads::{Angles, HeadNorms, Turns};
pub use isa::Isa;
pub use kernels::Kernels;
pub use kv::KvLayer;
pub use layout::{KvLayout, QueryHeads};
pub use logits::{arg_top_k, log_sum_exp};
pub use matmul::Epilogue;
pub use packed::PackedMatrix;
pub use pool::{ThreadPool, keep_on};
pub use rows::{AttentionRow, AttentionRows};
pub use stream::ValueGates;
