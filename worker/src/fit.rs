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
    /// An element type that GPUs have no kernels for.
    #[error("{dtype} is for CPUs\n  hint: --dtype bf16 or f16, or --device cpu")]
    OnlyOnCpu {
        /// As asked for.
        dtype: DType,
    },
    /// A KV cache of another type than the weights.
    #[error(
        "on a GPU the KV cache has the type of the weights, {dtype}, not {kv_dtype}\n  hint: leave --kv-dtype away"
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

/// Whether a device computes such a model in such types.
///
/// # Errors
/// Says what it does not do; of types before widths.
pub fn fits(device: Device, shape: &ModelShape, dtype: DType, kv_dtype: DType) -> Result<(), Unfit> {
    let head_dim = shape.attention.head_dim;
    match device {
        Device::Cpu if [dtype, kv_dtype].contains(&DType::F16) => Err(Unfit::HalfOnCpu { why: String::new() }),
        Device::Cpu if head_dim > MAX_HEAD_DIM => Err(Unfit::HeadTooWideForCpu { head_dim, limit: MAX_HEAD_DIM }),
        Device::Gpu(_) if dtype == DType::Int8 => Err(Unfit::OnlyOnCpu { dtype }),
        Device::Gpu(_) if kv_dtype != dtype => Err(Unfit::KvDTypeOnGpu { dtype, kv_dtype }),
        Device::Gpu(_) if head_dim > cuda::MAX_HEAD_DIM => {
            Err(Unfit::HeadTooWideForGpu { head_dim, limit: cuda::MAX_HEAD_DIM })
        }
        _ => Ok(()),
    }
}
