//! A linear layer with what stands before and behind it, queued in one of two ways.
//!
//! ```text
//! few rows    project_normed, project_rows: LayerNorm of the inputs, product, and where its outputs go, in one kernel that reads each weight once
//! more rows   layer_norm ─► product by cublasLt ─► write_kv | activate
//! ```
//! The residual stream: a row-parallel layer's product is added to `x` on the first rank, with the bias, and replaces it on the others,
//! so that the sum over all ranks is the stream itself. Does not know layers' order.

use nanoinfer_kernels::Element;
use nanoinfer_kernels::cuda::{
    ActivateArguments, Finish, Launch, Norm as NormOf, NormArguments, ProjectArguments, QkvPlaces, WriteKvArguments,
    row_stride,
};
use nanoinfer_shared::{Activation, ModelShape, Share, model::partition::Linear};

use super::{
    error::GpuError,
    gpu::{Gpu, Memory},
    load::{Matrix, Norm},
    products::{Products, Shape},
};

/// What a layer is applied to.
pub(crate) enum Input<'a> {
    /// The LayerNorm of the residual stream.
    Norm {
        norm: &'a Norm,
        /// Address of the numbers of the rows that are wanted, or 0 for all.
        rows: u64,
        /// The layer whose product will be added to the stream next.
        next: Option<Matrix>,
    },
    /// Elements, `[T, K]` in whole slices.
    Elements(u64),
}

/// Where a layer's outputs go.
pub(crate) enum Output {
    /// Queries, and the KV cache.
    Qkv(QkvPlaces),
    /// Through the activation into elements, `[T, N]` in whole slices.
    Activation(u64),
    /// Into the residual stream.
    Residual,
    /// f32, `[T, stride]`.
    Logits { at: u64, stride: usize },
}

/// The layers of one rank, with the buffers between them.
pub(crate) struct Linears {
    products: Products,
    /// Up to so many rows are few.
    few_rows: usize,
    /// Whether this rank brings the residual stream, and biases, to a reduction.
    is_first: bool,
    width: usize,
    epsilon: f32,
    activation: u32,
    element: Element,
    /// f32 `[T, C]`.
    pub(crate) x: Memory,
    /// `[T or R, C]` in whole slices.
    normed: Memory,
    /// f32 `[T, N]` of the widest layer behind whose product a kernel stands.
    sums: Memory,
}

impl Linears {
    /// Bytes of the buffers for steps of up to `tokens` rows, of which at most `rows` logits are wanted at once.
    pub(crate) fn bytes(shape: &ModelShape, share: &Share, element: Element, tokens: usize, rows: usize) -> u64 {
        let c = shape.width;
        let floats = tokens * (c + widest_sums(shape, share));
        (floats * size_of::<f32>() + tokens.max(rows) * row_stride(c) * element.bytes()) as u64 + Products::bytes()
    }

    pub(crate) fn new(
        gpu: &Gpu,
        shape: &ModelShape,
        share: &Share,
        rank: usize,
        element: Element,
        (tokens, rows): (usize, usize),
    ) -> Result<Self, GpuError> {
        let c = shape.width;
        let floats = |width: usize| gpu.allocate(tokens * width * size_of::<f32>(), "activations");
        Ok(Self {
            products: Products::new(gpu, element)?,
            few_rows: Launch::projected_rows(c, element, gpu.shared_bytes("project_normed")),
            is_first: rank == 0,
            width: c,
            epsilon: shape.norm_epsilon,
            activation: activation_number(shape.mlp.activation),
            element,
            x: floats(c)?,
            normed: gpu.allocate(tokens.max(rows) * row_stride(c) * element.bytes(), "activations")?,
            sums: floats(widest_sums(shape, share))?,
        })
    }

    /// Queues one layer over `rows` rows.
    pub(crate) fn apply(
        &mut self,
        gpu: &Gpu,
        rows: usize,
        input: Input<'_>,
        layer: Matrix,
        output: Output,
    ) -> Result<(), GpuError> {
        if rows <= self.few_rows {
            return self.project(gpu, rows, &input, layer, output);
        }
        let inputs = match input {
            Input::Elements(at) => at,
            Input::Norm { norm, rows: list, next } => {
                let arguments = NormArguments {
                    norm: self.norm(norm, list),
                    bias: next.filter(|_| self.is_first).map_or(0, |next| next.bias),
                    out: self.normed.address(),
                    stride: row_stride(self.width) as u32,
                    padding: 0,
                };
                gpu.launch(Launch::rows(rows), &arguments)?;
                self.normed.address()
            }
        };
        let (sums, outputs) = (self.sums.address(), layer.outputs);
        let mut product = Shape { rows, inputs: layer.inputs, outputs, stride: outputs };
        match output {
            Output::Residual => {
                self.products.multiply(gpu, product, layer.weights, inputs, self.x.address(), self.is_first)
            }
            Output::Logits { at, stride } => {
                product.stride = stride;
                self.products.multiply(gpu, product, layer.weights, inputs, at, false)
            }
            Output::Qkv(to) => {
                self.products.multiply(gpu, product, layer.weights, inputs, sums, false)?;
                gpu.launch(Launch::rows(rows), &WriteKvArguments { to, sums, bias: layer.bias })
            }
            Output::Activation(out) => {
                self.products.multiply(gpu, product, layer.weights, inputs, sums, false)?;
                let arguments = ActivateArguments {
                    sums,
                    bias: layer.bias,
                    out,
                    count: (rows * outputs) as u32,
                    width: outputs as u32,
                    activation: self.activation,
                    stride: row_stride(outputs) as u32,
                };
                gpu.launch(Launch::elements(rows * outputs), &arguments)
            }
        }
    }

    fn project(
        &self,
        gpu: &Gpu,
        rows: usize,
        input: &Input<'_>,
        layer: Matrix,
        output: Output,
    ) -> Result<(), GpuError> {
        let (norm, inputs) = match input {
            Input::Norm { norm, rows, .. } => (self.norm(norm, *rows), 0),
            Input::Elements(at) => (NormOf::default(), *at),
        };
        let mut arguments = ProjectArguments {
            norm,
            inputs,
            weights: layer.weights,
            bias: layer.bias,
            to: QkvPlaces::default(),
            out: 0,
            sums: 0,
            rows: rows as u32,
            outputs: layer.outputs as u32,
            stride: row_stride(layer.inputs) as u32,
            out_stride: 0,
            finish: Finish::Logits as u32,
            activation: self.activation,
        };
        match output {
            Output::Qkv(to) => (arguments.to, arguments.finish) = (to, Finish::Qkv as u32),
            Output::Activation(out) => {
                let stride = row_stride(layer.outputs) as u32;
                (arguments.out, arguments.out_stride, arguments.finish) = (out, stride, Finish::Activation as u32);
            }
            Output::Residual => {
                let (x, width) = (self.x.address(), self.width as u32);
                (arguments.sums, arguments.out_stride, arguments.finish) = (x, width, Finish::Residual as u32);
                arguments.bias = if self.is_first { layer.bias } else { 0 };
            }
            Output::Logits { at, stride } => (arguments.sums, arguments.out_stride) = (at, stride as u32),
        }
        let normed = matches!(input, Input::Norm { .. }).then_some(self.width);
        let (name, launch) = Launch::project(rows, layer.outputs, normed, self.element, gpu.multiprocessors);
        gpu.launch_as(name, launch, &arguments)
    }

    fn norm(&self, norm: &Norm, rows: u64) -> NormOf {
        NormOf {
            x: self.x.address(),
            gain: norm.gain.address(),
            shift: norm.bias.address(),
            rows,
            width: self.width as u32,
            epsilon: self.epsilon,
        }
    }
}

fn widest_sums(shape: &ModelShape, share: &Share) -> usize {
    [Linear::Qkv, Linear::Up].map(|linear| share.linear(shape, linear).outputs()).into_iter().max().unwrap_or(0)
}

/// As `rows.h` counts them.
fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::QuickGelu => 2,
        Activation::Relu => 3,
        Activation::Relu2 => 4,
        Activation::Silu => 5,
        Activation::Tanh => 6,
    }
}
