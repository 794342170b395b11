//! What the protocol and models name, as kernels and readers of checkpoints know it.

use nanoinfer_kernels::{Activation, Element};
use nanoinfer_shared::{Activation as Nonlinearity, protocol::DType};
use safetensors::Dtype;

/// What kernels call it.
pub(crate) fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::Bf16 => Element::Bf16,
        DType::F16 => Element::F16,
        DType::Int8 => Element::Int8,
    }
}

/// What elements of a checkpoint must fit. Bytes have a scale, which has the range of f32.
pub(crate) fn range_of(element: Element) -> Dtype {
    match element {
        Element::F32 | Element::Int8 => Dtype::F32,
        Element::Bf16 => Dtype::BF16,
        Element::F16 => Dtype::F16,
    }
}

/// What kernels call it; they know no configuration, so each side has its own list.
pub(crate) fn activation(activation: Nonlinearity) -> Activation {
    match activation {
        Nonlinearity::GeluTanh => Activation::GeluTanh,
        Nonlinearity::GeluErf => Activation::GeluErf,
        Nonlinearity::QuickGelu => Activation::QuickGelu,
        Nonlinearity::Relu => Activation::Relu,
        Nonlinearity::Relu2 => Activation::Relu2,
        Nonlinearity::Silu => Activation::Silu,
        Nonlinearity::Tanh => Activation::Tanh,
    }
}
