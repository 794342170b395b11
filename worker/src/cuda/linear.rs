//! A linear layer with what stands before and behind it, queued in one of two ways.
//!
//! ```text
//! few rows    project_normed, project_rows: norm of the inputs, product, and where its outputs go, in one kernel that reads each weight once
//! more rows   layer_norm ─► project_many: product, and where its outputs go
//! ```
//! Where weights are bytes, inputs that are not normed are quantised by a kernel of their own first.
//! The residual stream: a row-parallel layer's product is added to `x` on the first rank, with the bias, and replaces it on the others,
//! so that the sum over all ranks is the stream itself. Does not know layers' order.

use nanoinfer_kernels::Element;
use nanoinfer_kernels::cuda::{
    Finish, InputRows, Launch, Norm as NormOf, NormArguments, ProjectArguments, QkvPlaces, QuantiseArguments,
    gated_outputs, row_stride, scales, weight_stride,
};
use nanoinfer_shared::model::{
    partition::{Linear, WIDTH_BLOCK},
    shape::NormKind,
};

use super::{
    error::GpuError,
    gpu::{Gpu, Memory},
    load::{Matrix, Norm},
    model::RankModel,
};
use crate::element::activation;

/// What a layer is applied to.
pub(crate) enum Input<'a> {
    /// The norm of the residual stream.
    Norm {
        norm: &'a Norm,
        /// Address of the numbers of the rows that are wanted, or 0 for all.
        rows: u64,
    },
    /// What a kernel before left, `[T, K]` in whole slices.
    Carried(u64),
}

/// Where a layer's outputs go.
pub(crate) enum Output {
    /// Queries, and the KV cache.
    Qkv(QkvPlaces),
    /// Through the activation, or the gate, into elements, `[T, F_local]` in whole slices.
    Hidden(u64),
    /// Into the residual stream.
    Residual,
    /// f32, `[T, N]`.
    Sums(u64),
    /// The same, behind the cap of a model that has one.
    Logits(u64),
}

/// The layers of one rank, with the buffers between them.
pub(crate) struct Linears {
    /// Up to so many rows are few.
    few_rows: usize,
    model: RankModel,
    /// f32 `[T, C]`.
    pub(crate) x: Memory,
    /// What products take that kernels before them made for them, `[T or R, K]` in whole slices, and of bytes their scales.
    inputs: [Memory; 2],
}

impl Linears {
    /// Bytes of the buffers for steps of up to `tokens` rows, of which at most `rows` logits are wanted at once.
    pub(crate) fn bytes(model: &RankModel, tokens: usize, rows: usize) -> u64 {
        let [inputs, scales] = input_bytes(model, tokens, rows);
        (tokens * model.shape.width * size_of::<f32>() + inputs + scales) as u64
    }

    pub(crate) fn new(gpu: &Gpu, model: &RankModel, tokens: usize, rows: usize) -> Result<Self, GpuError> {
        let (width, element) = (model.shape.width, model.element);
        let buffer = |bytes| gpu.allocate(bytes, "activations");
        let [inputs, scales] = input_bytes(model, tokens, rows);
        Ok(Self {
            few_rows: Launch::few_rows(width, element, gpu.shared_bytes("project_normed")),
            model: model.clone(),
            x: buffer(tokens * width * size_of::<f32>())?,
            // What fills units up stays zero.
            inputs: [gpu.zeroed(inputs, "activations")?, buffer(scales)?],
        })
    }

    /// Whether this rank brings the residual stream, and biases, to a reduction.
    fn is_first(&self) -> bool {
        self.model.rank == 0
    }

    /// Queues one layer over `rows` rows.
    pub(crate) fn apply(
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
            stride: layer.stride(self.model.element) as u32,
            activation: activation(self.model.shape.mlp.activation) as u32,
            ..ProjectArguments::default()
        };
        let (finish, out_stride) = match output {
            Output::Qkv(to) => {
                arguments.to = to;
                (Finish::Qkv, 0)
            }
            Output::Hidden(out) if self.model.shape.mlp.gated => {
                let pairs = layer.outputs / 2;
                (arguments.out, arguments.pairs, arguments.outputs) = (out, pairs as u32, gated_outputs(pairs) as u32);
                (Finish::Gated, row_stride(pairs))
            }
            Output::Hidden(out) => {
                arguments.out = out;
                (Finish::Activation, row_stride(layer.outputs))
            }
            Output::Residual => {
                arguments.sums = self.x.address();
                arguments.bias = if self.is_first() { layer.bias } else { 0 };
                (if self.is_first() { Finish::Added } else { Finish::Sums }, width)
            }
            Output::Sums(at) => {
                arguments.sums = at;
                (Finish::Sums, layer.outputs)
            }
            Output::Logits(at) => {
                arguments.sums = at;
                arguments.cap = self.model.shape.logit_softcap.unwrap_or_default();
                (Finish::Sums, layer.outputs)
            }
        };
        (arguments.finish, arguments.out_stride) = (finish as u32, out_stride as u32);
        let is_few = rows <= self.few_rows;
        let normed = match input {
            Input::Norm { norm, rows: list } if is_few => {
                arguments.norm = self.norm(norm, *list);
                Some(width)
            }
            Input::Norm { norm, rows: list } => {
                let (InputRows { rows: out, scales }, stride) = (self.made_inputs(), arguments.stride);
                let norm = NormArguments { norm: self.norm(norm, *list), out, scales, count: rows as u32, stride };
                gpu.launch(Launch::warps(rows), &norm)?;
                arguments.inputs = self.made_inputs();
                None
            }
            Input::Carried(x) if self.model.element == Element::Int8 => {
                let InputRows { rows: out, scales } = self.made_inputs();
                let quantise = QuantiseArguments {
                    x: *x,
                    out,
                    scales,
                    count: rows as u32,
                    width: layer.inputs as u32,
                    x_stride: row_stride(layer.inputs) as u32,
                    stride: arguments.stride,
                    unit: layer.unit as u32,
                    padding: 0,
                };
                gpu.launch(Launch::quantise(rows, layer.inputs.div_ceil(layer.unit)), &quantise)?;
                arguments.inputs = self.made_inputs();
                None
            }
            Input::Carried(at) => {
                arguments.inputs = InputRows { rows: *at, scales: 0 };
                None
            }
        };
        if !is_few {
            let launch = Launch::project_many(rows, arguments.outputs as usize, self.model.element);
            return gpu.launch_as("project_many", launch, &arguments);
        }
        let (name, launch) = Launch::project(rows, arguments.outputs as usize, normed, self.model.element);
        gpu.launch_as(name, launch.in_turns(gpu.blocks_at_once(name, launch)?), &arguments)
    }

    fn made_inputs(&self) -> InputRows {
        let [rows, scales] = &self.inputs;
        InputRows { rows: rows.address(), scales: scales.address() }
    }

    /// A norm of the residual stream, of rows whose numbers are at `rows`, or of all.
    pub(crate) fn norm(&self, norm: &Norm, rows: u64) -> NormOf {
        NormOf { gain: norm.gain, shift: norm.bias, rows, ..self.norm_of(self.x.address()) }
    }

    /// One without gain and shift, of all rows at `x`.
    pub(crate) fn norm_of(&self, x: u64) -> NormOf {
        NormOf {
            x,
            width: self.model.shape.width as u32,
            epsilon: self.model.shape.norm_epsilon,
            is_centred: u32::from(self.model.shape.norm == NormKind::Layer),
            ..NormOf::default()
        }
    }
}

/// Bytes of inputs that are made for products, and of their scales.
fn input_bytes(RankModel { shape, share, element, .. }: &RankModel, tokens: usize, rows: usize) -> [usize; 2] {
    let normed = tokens.max(rows) * weight_stride(shape.width, WIDTH_BLOCK, *element);
    let carried = Linear::ALL.map(|linear| share.linear(shape, linear));
    let carried = carried.iter().map(|held| tokens * weight_stride(held.inputs.len(), held.unit, *element)).max();
    let most = if *element == Element::Int8 { normed.max(carried.unwrap_or_default()) } else { normed };
    [most * element.bytes(), scales(most, *element) * size_of::<f32>()]
}
