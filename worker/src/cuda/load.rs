//! One rank's weights on its GPU: slices of the checkpoint in the element type asked for, a row for each output.
//!
//! ```text
//! queries, keys, values [(H_local + 2·KV_local)·D, C], behind attention [C, H_local·D]   rows in whole slices
//! into the MLP [F_local, C], out of it [C, F_local], embedding, an untied head [V_local, C]   likewise
//! biases, norms, gains of heads, positions [P, C] (on the first rank), frequencies of rotations   f32, where there are
//! of bytes, the scales of each slice of each row   bf16 [slices, out]
//! ```
//! What a rank holds of a layer is [`Share::linear`]'s word, and so are the bytes that this takes.
//! How they get there is `upload.rs`.

use half::bf16;
use nanoinfer_checkpoint::{Checkpoint, CheckpointError};
use nanoinfer_kernels::{
    Element,
    cuda::{WeightRows, scales, weight_stride},
};
use nanoinfer_shared::model::{
    partition::{Linear, WIDTH_BLOCK, WeightBytes},
    parts::{LayerPart, Part, Term},
    shape::Positions,
};

use super::{
    failure::Failure,
    gpu::{Gpu, Memory},
    model::RankModel,
    upload::{Piece, Upload},
};
use crate::tile::{Norm as NormVectors, check_bias};

/// Where a rank's weights lie, which stay there as long as this.
pub(crate) struct Weights {
    /// `[V_local, C]`.
    pub(crate) embedding: WeightRows,
    /// What logits are made with, likewise: the embedding where there is no other.
    pub(crate) head: WeightRows,
    /// `[P, C]` f32 on the first rank, 0 on the others and where there are none.
    pub(crate) positions: u64,
    /// `[D / 2]` f32 where positions are rotations, else 0.
    pub(crate) frequencies: u64,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: Norm,
    pub(crate) stream: StreamWeights,
    _held: Vec<Memory>,
}

/// What works on the residual stream, on every rank; nothing in most families.
pub(crate) struct StreamWeights {
    /// What the stream is multiplied by before each block, and what of its origin is added.
    pub(crate) lambdas: Option<[Vec<f32>; 2]>,
    /// Gate of the token before `[G]`, and what comes of it.
    pub(crate) smear: Option<(u64, f32)>,
    /// How much of the middle is taken away at the end.
    pub(crate) backout: Option<f32>,
}

/// What is added to the values of a block.
pub(crate) struct ValueTable {
    /// `[V, KV_local · D]`.
    pub(crate) rows: WeightRows,
    /// `[G, KV_local]` f32.
    pub(crate) gates: u64,
}

pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Norm,
    pub(crate) qkv: Matrix,
    pub(crate) attention_output: Matrix,
    /// Of queries and of keys `[D]` f32, 0 where there are none.
    pub(crate) head_gains: [u64; 2],
    pub(crate) values: Option<ValueTable>,
    pub(crate) mlp_norm: Norm,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

/// Where a matrix lies, and its bias, 0 where it has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// `[out, in]`.
    pub(crate) weights: WeightRows,
    /// `[out]` f32.
    pub(crate) bias: u64,
    pub(crate) inputs: usize,
    /// Inputs that have one scale where weights are bytes.
    pub(crate) unit: usize,
    pub(crate) outputs: usize,
}

impl Matrix {
    /// From one row to the next.
    pub(crate) fn stride(&self, element: Element) -> usize {
        weight_stride(self.inputs, self.unit, element)
    }
}

/// Each `[C]` f32, or 0 where there is none.
pub(crate) struct Norm {
    pub(crate) gain: u64,
    pub(crate) bias: u64,
}

impl Weights {
    /// Bytes that [`Weights::load`] takes.
    pub(crate) fn bytes(RankModel { rank, shape, share, element }: &RankModel) -> WeightBytes {
        let matrix = |unit, inputs, outputs| {
            let stride = weight_stride(inputs, unit, *element);
            outputs * (stride * element.bytes() + scales(stride, *element) * size_of::<bf16>())
        };
        share.bytes(shape, *rank == 0, matrix)
    }

    /// Copies a rank's share of a checked checkpoint, read by `threads` threads; zeros, where there is none.
    ///
    /// # Errors
    /// When the GPU fails, a tensor is missing, a weight is no number or too large for the elements, or the files are written to
    /// meanwhile.
    ///
    /// # Panics
    /// When the system gives no thread.
    pub(crate) fn load(
        gpu: &Gpu,
        checkpoint: Option<&Checkpoint>,
        model: &RankModel,
        threads: usize,
    ) -> Result<Self, Failure> {
        let mut loader = Upload::new(gpu, checkpoint, model, threads)?;
        let shape = &model.shape;
        let embedding = loader.vocabulary(Part::Embedding)?;
        let weights = Self {
            embedding,
            head: if shape.tied_head { embedding } else { loader.vocabulary(Part::Head)? },
            positions: match model.rank {
                0 => loader.floats(&[(Part::Positions, 0..shape.width)], shape.context)?,
                _ => 0,
            },
            frequencies: match &shape.attention.positions {
                Positions::Learned => 0,
                Positions::Rotary(rotary) => loader.copied_floats(&rotary.frequencies(shape.attention.head_dim))?,
            },
            layers: (0..shape.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?,
            final_norm: {
                let norm = loader.norm_vectors(Part::FinalNorm)?;
                loader.norm(&norm)?
            },
            stream: loader.stream()?,
            _held: loader.into_held(),
        };
        checkpoint.map_or(Ok(()), Checkpoint::still_as_opened)?;
        Ok(weights)
    }
}

impl Upload<'_> {
    fn layer(&mut self, layer: usize) -> Result<LayerWeights, Failure> {
        let mut attention_norm = self.norm_vectors(|term| Part::Layer(layer, LayerPart::AttentionNorm, term))?;
        let mut mlp_norm = self.norm_vectors(|term| Part::Layer(layer, LayerPart::MlpNorm, term))?;
        Ok(LayerWeights {
            qkv: self.linear(layer, Linear::Qkv, Some(&mut attention_norm))?,
            attention_output: self.linear(layer, Linear::AttentionOutput, None)?,
            head_gains: {
                let width = self.model.shape.attention.head_dim;
                let mut gain = |part| self.floats(&[(Part::Layer(layer, part, Term::Weight), 0..width)], 1);
                [gain(LayerPart::QueryNorm)?, gain(LayerPart::KeyNorm)?]
            },
            values: self.model.shape.has_value_table(layer).then(|| self.values(layer)).transpose()?,
            up: self.linear(layer, Linear::Up, Some(&mut mlp_norm))?,
            down: self.linear(layer, Linear::Down, None)?,
            attention_norm: self.norm(&attention_norm)?,
            mlp_norm: self.norm(&mlp_norm)?,
        })
    }

    /// What bytes take over from `norm`, which computes the layer's input, leaves that without.
    fn linear(&mut self, layer: usize, linear: Linear, norm: Option<&mut NormVectors>) -> Result<Matrix, Failure> {
        let held = self.model.share.linear(&self.model.shape, linear);
        let (inputs, unit) = (held.inputs.clone(), held.unit);
        let of = |term| held.of_layer(layer, term).collect::<Vec<Piece>>();
        let mut absorbed = norm.filter(|_| self.model.element == Element::Int8);
        let biases = of(Term::Bias);
        let mut bias = self.vector(&biases)?;
        if absorbed.as_ref().is_some_and(|norm| !norm.bias.is_empty()) {
            bias.resize(held.outputs(), 0.0);
        }
        let weights = self.matrix(&of(Term::Weight), inputs.clone(), unit, absorbed.as_deref(), &mut bias)?;
        if let Some(norm) = &mut absorbed {
            if let Some(checkpoint) = self.checkpoint.filter(|_| !bias.is_empty()) {
                let there = biases.iter().filter(|(part, _)| part.is_in(&self.model.shape));
                let piece = |(part, outputs): &Piece| Ok((checkpoint.part(&self.model.shape, *part)?, outputs.clone()));
                check_bias(&there.map(piece).collect::<Result<Vec<_>, CheckpointError>>()?, &bias)?;
            }
            norm.gain.clear();
            norm.bias.clear();
        }
        Ok(Matrix { weights, bias: self.copied_floats(&bias)?, inputs: inputs.len(), unit, outputs: held.outputs() })
    }

    fn norm_vectors(&self, part: impl Fn(Term) -> Part) -> Result<NormVectors, Failure> {
        let vector = |term| self.vector(&[(part(term), 0..self.model.shape.width)]);
        Ok(NormVectors { gain: vector(Term::Weight)?, bias: vector(Term::Bias)? })
    }

    fn norm(&mut self, norm: &NormVectors) -> Result<Norm, Failure> {
        Ok(Norm { gain: self.copied_floats(&norm.gain)?, bias: self.copied_floats(&norm.bias)? })
    }

    fn values(&mut self, layer: usize) -> Result<ValueTable, Failure> {
        let RankModel { shape, share, .. } = self.model;
        let of = |part| Part::Layer(layer, part, Term::Weight);
        let channels = shape.value_tables.map_or(0, |tables| tables.gate_channels);
        Ok(ValueTable {
            rows: {
                let (columns, unit) = (share.value_columns(shape), shape.attention.head_dim);
                self.matrix(&[(of(LayerPart::ValueTable), 0..shape.vocab_size)], columns, unit, None, &mut [])?
            },
            gates: self.floats(&[(of(LayerPart::ValueGate), share.kv_heads.clone())], channels)?,
        })
    }

    fn stream(&mut self) -> Result<StreamWeights, Failure> {
        let (shape, layers) = (&self.model.shape, self.model.shape.layers);
        Ok(StreamWeights {
            lambdas: match shape.stream.lambdas {
                true => Some([
                    self.vector(&[(Part::StreamScales, 0..layers)])?,
                    self.vector(&[(Part::OriginScales, 0..layers)])?,
                ]),
                false => None,
            },
            smear: match shape.stream.smear {
                Some(channels) => Some((
                    self.floats(&[(Part::SmearGate, 0..channels)], 1)?,
                    self.vector(&[(Part::SmearScale, 0..1)])?[0],
                )),
                None => None,
            },
            backout: match shape.stream.backout {
                true => Some(self.vector(&[(Part::BackoutScale, 0..1)])?[0]),
                false => None,
            },
        })
    }

    fn vocabulary(&mut self, part: Part) -> Result<WeightRows, Failure> {
        let RankModel { shape, share, .. } = self.model;
        self.matrix(&[(part, share.vocab.clone())], 0..shape.width, WIDTH_BLOCK, None, &mut [])
    }
}
