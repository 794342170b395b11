//! A linear layer with what stands before and behind it, queued in one of two ways.
//!
//! ```text
//! few rows    project_normed, project_rows: LayerNorm of the inputs, product, and where its outputs go, in one kernel that reads each weight once
//! more rows   layer_norm ─► product by cublasLt ─► write_kv | activate
//! ```
//! The residual stream: a row-parallel layer's product is added to `x` on the first rank, with the bias, and replaces it on the others,
//! so that the sum over all ranks is the stream itself. Does not know layers' order.

use nanoinfer_kernels::cuda::{
    ActivateArguments, Finish, Launch, Norm as NormOf, NormArguments, ProjectArguments, QkvPlaces, WriteKvArguments,
    row_stride,
};
use nanoinfer_shared::model::partition::Linear;

use super::{
    error::GpuError,
    gpu::{Gpu, Memory},
    load::{Matrix, Norm},
    model::RankModel,
    products::{Products, Shape},
};
use crate::element::activation;

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
    model: RankModel,
    /// f32 `[T, C]`.
    pub(crate) x: Memory,
    /// `[T or R, C]` in whole slices.
    normed: Memory,
    /// f32 `[T, N]` of the widest layer behind whose product a kernel stands.
    sums: Memory,
}

impl Linears {
    /// Bytes of the buffers for steps of up to `tokens` rows, of which at most `rows` logits are wanted at once.
    pub(crate) fn bytes(model: &RankModel, tokens: usize, rows: usize) -> u64 {
        let floats = tokens * (model.shape.width + widest_sums(model));
        (floats * size_of::<f32>() + normed_bytes(model, tokens, rows)) as u64 + Products::bytes()
    }

    pub(crate) fn new(gpu: &Gpu, model: &RankModel, tokens: usize, rows: usize) -> Result<Self, GpuError> {
        let (width, element) = (model.shape.width, model.element);
        let buffer = |bytes| gpu.allocate(bytes, "activations");
        Ok(Self {
            products: Products::new(gpu, element)?,
            few_rows: Launch::projected_rows(width, element, gpu.shared_bytes("project_normed")),
            model: model.clone(),
            x: buffer(tokens * width * size_of::<f32>())?,
            normed: buffer(normed_bytes(model, tokens, rows))?,
            sums: buffer(tokens * widest_sums(model) * size_of::<f32>())?,
        })
    }

    /// Whether this rank brings the residual stream, and biases, to a reduction.
    fn is_first(&self) -> bool {
        self.model.rank == 0
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
                    bias: next.filter(|_| self.is_first()).map_or(0, |next| next.bias),
                    out: self.normed.address(),
                    stride: row_stride(self.model.shape.width) as u32,
                    padding: 0,
                };
                gpu.launch(Launch::rows(rows), &arguments)?;
                self.normed.address()
            }
        };
        let (sums, outputs) = (self.sums.address(), layer.outputs);
        let (to, stride, add) = match output {
            Output::Residual => (self.x.address(), outputs, self.is_first()),
            Output::Logits { at, stride } => (at, stride, false),
            Output::Qkv(_) | Output::Activation(_) => (sums, outputs, false),
        };
        let product = Shape { rows, inputs: layer.inputs, outputs, stride };
        self.products.multiply(gpu, product, layer.weights, inputs, to, add)?;
        match output {
            Output::Residual | Output::Logits { .. } => Ok(()),
            Output::Qkv(to) => gpu.launch(Launch::rows(rows), &WriteKvArguments { to, sums, bias: layer.bias }),
            Output::Activation(out) => {
                let arguments = ActivateArguments {
                    sums,
                    bias: layer.bias,
                    out,
                    count: (rows * outputs) as u32,
                    width: outputs as u32,
                    activation: self.activation(),
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
        let width = self.model.shape.width;
        let mut arguments = ProjectArguments {
            weights: layer.weights,
            bias: layer.bias,
            rows: rows as u32,
            outputs: layer.outputs as u32,
            stride: row_stride(layer.inputs) as u32,
            activation: self.activation(),
            ..ProjectArguments::default()
        };
        let normed = match input {
            Input::Norm { norm, rows, .. } => {
                arguments.norm = self.norm(norm, *rows);
                Some(width)
            }
            Input::Elements(at) => {
                arguments.inputs = *at;
                None
            }
        };
        let (finish, out_stride) = match output {
            Output::Qkv(to) => {
                arguments.to = to;
                (Finish::Qkv, 0)
            }
            Output::Activation(out) => {
                arguments.out = out;
                (Finish::Activation, row_stride(layer.outputs))
            }
            Output::Residual => {
                arguments.sums = self.x.address();
                arguments.bias = if self.is_first() { layer.bias } else { 0 };
                (Finish::Residual, width)
            }
            Output::Logits { at, stride } => {
                arguments.sums = at;
                (Finish::Logits, stride)
            }
        };
        (arguments.finish, arguments.out_stride) = (finish as u32, out_stride as u32);
        let (name, launch) = Launch::project(rows, layer.outputs, normed, self.model.element, gpu.multiprocessors);
        gpu.launch_as(name, launch, &arguments)
    }

    /// As `rows.h` counts them.
    fn activation(&self) -> u32 {
        activation(self.model.shape.mlp.activation) as u32
    }

    fn norm(&self, norm: &Norm, rows: u64) -> NormOf {
        NormOf {
            x: self.x.address(),
            gain: norm.gain,
            shift: norm.bias,
            rows,
            width: self.model.shape.width as u32,
            epsilon: self.model.shape.norm_epsilon,
        }
    }
}

fn widest_sums(RankModel { shape, share, .. }: &RankModel) -> usize {
    [Linear::Qkv, Linear::Up].map(|linear| share.linear(shape, linear).outputs()).into_iter().max().unwrap_or(0)
}

fn normed_bytes(RankModel { shape, element, .. }: &RankModel, tokens: usize, rows: usize) -> usize {
    tokens.max(rows) * row_stride(shape.width) * element.bytes()
}
