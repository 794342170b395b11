//! Which models a device computes, and in what: the one place that says so. Does not know what devices there are.

use nanoinfer_kernels::{MAX_HEAD_DIM, cuda};
use nanoinfer_shared::{
    ModelShape,
    protocol::{DType, Device},
};

/// Why a device does not compute a model, or not in the types asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// IEEE half precision where no GPU is.
    #[error("f16 is for GPUs{why}\n  hint: --dtype bf16; checkpoints of any element type load into it")]
    HalfOnCpu {
        /// Why there is none, behind a comma; empty where none was asked for.
        why: String,
    },
    /// A head wider than the CPU kernels' scratch.
    #[error("heads of {head_dim} are wider than the limit of {limit}")]
    HeadTooWideForCpu {
        /// The model's.
        head_dim: usize,
        /// The kernels'.
        limit: usize,
    },
    /// A KV cache of another type than goes with the weights.
    #[error(
        "on a GPU the KV cache beside {dtype} weights is {}, not {kv_dtype}\n  hint: leave --kv-dtype away",
        kv_dtype_on_gpu(*.dtype)
    )]
    KvDTypeOnGpu {
        /// Of the weights.
        dtype: DType,
        /// As asked for.
        kv_dtype: DType,
    },
    /// A head wider than the GPU kernels' registers.
    #[error("heads of {head_dim} are wider than the kernels' {limit}\n  hint: --device cpu")]
    HeadTooWideForGpu {
        /// The model's.
        head_dim: usize,
        /// The kernels'.
        limit: usize,
    },
}

/// What a KV cache on a GPU is, beside weights of a type: the same, but beside bytes.
pub fn kv_dtype_on_gpu(dtype: DType) -> DType {
    if dtype == DType::Int8 { DType::Bf16 } else { dtype }
}

/// Whether a device computes such a model in such types.
///
/// # Errors
/// Says what it does not do; of types before widths.
pub fn fits(device: Device, shape: &ModelShape, dtype: DType, kv_dtype: DType) -> Result<(), Unfit> {
    let head_dim = shape.attention.head_dim;
    match device {
        Device::Cpu if [dtype, kv_dtype].contains(&DType::F16) => Err(Unfit::HalfOnCpu { why: String::new() }),
        Device::Cpu if head_dim > MAX_HEAD_DIM => Err(Unfit::HeadTooWideForCpu { head_dim, limit: MAX_HEAD_DIM }),
        Device::Gpu(_) if kv_dtype != kv_dtype_on_gpu(dtype) => Err(Unfit::KvDTypeOnGpu { dtype, kv_dtype }),
        Device::Gpu(_) if head_dim > cuda::MAX_HEAD_DIM => {
            Err(Unfit::HeadTooWideForGpu { head_dim, limit: cuda::MAX_HEAD_DIM })
        }
        _ => Ok(()),
    }
}
