//! What some families do to the residual stream beside adding to it; where a model does not, nothing is queued here.
//!
//! Does not know whose these terms are. The numbers come with the weights.

use nanoinfer_kernels::cuda::{AddedValues, BeginArguments, Launch, MixArguments, weight_stride};

use super::Pass;
use crate::cuda::{error::GpuError, gpu::Memory, inputs::Inputs, model::RankModel};

impl Pass {
    /// Where embeddings go: to the stream, unless more is done to them.
    pub(super) fn embeddings(&self) -> u64 {
        let is_normed = self.model.shape.stream.normed_embedding;
        (if is_normed { &self.buffers.embeddings } else { &self.linears.x }).address()
    }

    /// Queues what makes the stream of added-up embeddings.
    pub(super) fn norm_embeddings(&self, inputs: &Inputs, memory: &Memory) -> Result<(), GpuError> {
        let RankModel { shape, .. } = &self.model;
        if !shape.stream.normed_embedding {
            return Ok(());
        }
        let (gate, scale) = self.weights.stream.smear.unwrap_or_default();
        let placement = inputs.placement(memory);
        let arguments = BeginArguments {
            norm: self.linears.norm_of(self.buffers.embeddings.address()),
            positions: placement.positions,
            sequences: placement.sequences,
            gate,
            x: self.linears.x.address(),
            count: inputs.rows as u32,
            channels: shape.stream.smear.unwrap_or_default() as u32,
            scale,
            padding: 0,
        };
        self.gpu.launch(Launch::warps(inputs.rows), &arguments)
    }

    /// Queues what happens to the stream before a block, and keeps it where it comes back.
    pub(super) fn mix(&self, layer: usize, rows: usize) -> Result<(), GpuError> {
        let factors = self.weights.stream.lambdas.as_ref().map(|[stream, origin]| (stream[layer], origin[layer]));
        let is_behind_middle = self.model.shape.stream.backout && layer == self.model.shape.layers / 2 + 1;
        if factors.is_none() && !is_behind_middle {
            return Ok(());
        }
        let (factor, other_factor) = factors.unwrap_or((1.0, 0.0));
        let kept = match layer {
            0 => self.buffers.origin.address(),
            _ if is_behind_middle => self.buffers.middle.address(),
            _ => 0,
        };
        let other = if factors.is_some() { self.buffers.origin.address() } else { 0 };
        self.mix_with(other, kept, [factor, other_factor], rows)
    }

    /// Queues what happens to it behind the last one.
    pub(super) fn take_middle_away(&self, rows: usize) -> Result<(), GpuError> {
        let Some(scale) = self.weights.stream.backout else { return Ok(()) };
        let middle = self.buffers.middle.address();
        // Of a single block what comes out of it is the middle.
        let kept = if self.model.shape.layers == 1 { middle } else { 0 };
        self.mix_with(middle, kept, [1.0, -scale], rows)
    }

    fn mix_with(&self, other: u64, kept: u64, [factor, other_factor]: [f32; 2], rows: usize) -> Result<(), GpuError> {
        let (x, width) = (self.linears.x.address(), self.model.shape.width as u32);
        let arguments = MixArguments { x, other, kept, factor, other_factor, width, padding: 0 };
        self.gpu.launch(Launch::rows(rows), &arguments)
    }

    /// What a block adds to its values.
    pub(super) fn added_values(&self, layer: usize, inputs: &Inputs, memory: &Memory) -> AddedValues {
        let RankModel { shape, share, .. } = &self.model;
        let weights = &self.weights.layers[layer];
        let (Some(values), Some(tables)) = (&weights.values, &shape.value_tables) else {
            return AddedValues::default();
        };
        AddedValues {
            norm: self.linears.norm(&weights.attention_norm, 0),
            tokens: inputs.tokens(memory),
            table: values.rows,
            gates: values.gates,
            stride: weight_stride(share.value_columns(shape).len(), shape.attention.head_dim, self.model.element)
                as u32,
            channels: tables.gate_channels as u32,
            factor: tables.gate_factor,
            rows: shape.vocab_size as u32,
        }
    }
}
