//! One rank's weights on the CPU: slices of the checkpoint in the kernels' packed form.
//!
//! ```text
//! queries, keys, values [C, …]: this rank's columns of each, side by side     q₁ q₂ │ k₁ k₂ │ v₁ v₂
//! behind attention, out of the MLP: rows of this rank's heads or FFN columns; the bias is whole, added after the reduction
//! embedding: this rank's rows, as columns of the LM head; the embedding is read back from there. An untied head is cut alike
//! ```
//! What a rank holds of a layer is [`Share::linear`]'s word, and so are the bytes that this takes. Only this rank's slices are
//! ever copied: resident anonymous memory stays at its share, also while loading.

use std::{
    iter::repeat_with,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use nanoinfer_checkpoint::{Checkpoint, CheckpointError};
use nanoinfer_kernels::PackedMatrix;
use nanoinfer_shared::{
    ModelShape, Share,
    model::{
        partition::{Linear as Which, WeightBytes},
        parts::{LayerPart, Part, Term},
        shape::QkNorm,
    },
    protocol::DType,
};

use super::{
    level::Level,
    pack::{Linear, Packer},
};
use crate::{element::element, tile::Norm};

/// Everything that a rank holds of a model.
#[derive(Debug)]
pub struct Shard {
    /// Token embedding, and LM head where that is tied: `[C, V_local]`, the token's row as a column.
    pub embedding: PackedMatrix,
    /// An LM head of its own: `[C, V_local]`.
    pub untied_head: Option<PackedMatrix>,
    /// Position embedding `[P, C]`, on every rank, where positions are learned.
    pub positions: Option<Vec<f32>>,
    /// Transformer blocks.
    pub layers: Vec<LayerShard>,
    /// The norm before the head, on every rank.
    pub final_norm: Norm,
    /// What works on the residual stream, on every rank.
    pub stream: StreamShard,
}

/// What a rank holds to work on the residual stream with; nothing in most families.
#[derive(Debug)]
pub struct StreamShard {
    /// What the stream is multiplied by before each block, and what of its origin is added.
    pub lambdas: Option<[Vec<f32>; 2]>,
    /// Gate of the token before `[G]`, and what comes of it.
    pub smear: Option<(Vec<f32>, f32)>,
    /// How much of the middle is taken away at the end.
    pub backout: Option<f32>,
}

/// What a rank adds to the values of a block.
#[derive(Debug)]
pub struct ValueShard {
    /// `[KV_local · D, V]`: a token's row as a column.
    pub table: PackedMatrix,
    /// `[G, KV_local]`.
    pub gates: Vec<f32>,
}

/// What a rank holds of one transformer block.
#[derive(Debug)]
pub struct LayerShard {
    /// Before attention, on every rank.
    pub attention_norm: Norm,
    /// Column-parallel: `[C, (H_local + 2 · KV_local) · D]`, q | k | v of this rank's heads.
    pub qkv: Linear,
    /// Gains of the norms of each head of queries and of keys `[D]`, where there are, on every rank.
    pub qk_norm: Option<[Vec<f32>; 2]>,
    /// What is added to values, where the block has such.
    pub values: Option<ValueShard>,
    /// Row-parallel: `[H_local · D, C]`.
    pub attention_output: Linear,
    /// Before the MLP, on every rank.
    pub mlp_norm: Norm,
    /// Column-parallel: `[C, F_local]`; of a gated MLP `[C, 2 · F_local]`, gate | up.
    pub up: Linear,
    /// Row-parallel: `[F_local, C]`.
    pub down: Linear,
}

impl Shard {
    /// Copies `share` of a checked checkpoint, for products at `level`, on `threads` threads.
    ///
    /// # Errors
    /// When a tensor is missing, a weight is no number or too large for `dtype`, or the files are written to meanwhile.
    pub fn load(
        checkpoint: &Checkpoint,
        shape: &ModelShape,
        share: &Share,
        dtype: DType,
        level: &Level,
        threads: usize,
    ) -> Result<Self, CheckpointError> {
        let loader = Loader { checkpoint, shape, share, packer: Packer::new(level.isa(), element(dtype)) };
        let next = AtomicUsize::new(0);
        // Each thread takes one layer after the other; the first begins with the embedding, the largest matrix there is.
        let load_layers = || {
            let taken = repeat_with(|| next.fetch_add(1, Relaxed)).take_while(|&layer| layer < shape.layers);
            taken.map(|layer| Ok((layer, loader.layer(layer)?))).collect::<Result<Vec<_>, CheckpointError>>()
        };
        let (outside, layers) = thread::scope(|scope| {
            // Where the system gives fewer threads, those take more layers.
            let more = |_| thread::Builder::new().spawn_scoped(scope, load_layers).ok();
            let others: Vec<_> = (1..threads.min(shape.layers)).map_while(more).collect();
            let head = || (!shape.tied_head).then(|| loader.vocabulary(Part::Head)).transpose();
            let outside = loader.vocabulary(Part::Embedding).and_then(|embedding| Ok((embedding, head()?)));
            let mut layers = vec![load_layers()];
            layers.extend(others.into_iter().map(|other| other.join().expect("loading does not panic")));
            (outside, layers.into_iter().collect::<Result<Vec<_>, _>>())
        });
        let mut layers: Vec<_> = layers?.into_iter().flatten().collect();
        layers.sort_unstable_by_key(|&(layer, _)| layer);
        let (embedding, untied_head) = outside?;
        let shard = Self {
            embedding,
            untied_head,
            positions: Part::Positions
                .is_in(shape)
                .then(|| checkpoint.part(shape, Part::Positions)?.read_matrix())
                .transpose()?,
            layers: layers.into_iter().map(|(_, layer)| layer).collect(),
            final_norm: loader.norm(Part::FinalNorm)?,
            stream: loader.stream()?,
        };
        checkpoint.still_as_opened()?;
        Ok(shard)
    }

    /// What logits are made with.
    pub fn head(&self) -> &PackedMatrix {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes that [`Shard::load`] will take for `share`.
    pub fn bytes(shape: &ModelShape, share: &Share, dtype: DType) -> WeightBytes {
        share.bytes(shape, true, |unit, inputs, outputs| PackedMatrix::bytes(element(dtype), unit, inputs, outputs))
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    shape: &'a ModelShape,
    share: &'a Share,
    packer: Packer,
}

impl Loader<'_> {
    fn layer(&self, layer: usize) -> Result<LayerShard, CheckpointError> {
        let norm = |part| self.norm(|term| Part::Layer(layer, part, term));
        let (mut attention_norm, mut mlp_norm) = (norm(LayerPart::AttentionNorm)?, norm(LayerPart::MlpNorm)?);
        Ok(LayerShard {
            qkv: self.linear(layer, Which::Qkv, Some(&mut attention_norm))?,
            attention_norm,
            qk_norm: match self.shape.attention.qk_norm {
                QkNorm::Gains => Some([self.gain(layer, LayerPart::QueryNorm)?, self.gain(layer, LayerPart::KeyNorm)?]),
                QkNorm::None | QkNorm::Rotated { .. } => None,
            },
            values: self.shape.has_value_table(layer).then(|| self.values(layer)).transpose()?,
            attention_output: self.linear(layer, Which::AttentionOutput, None)?,
            up: self.linear(layer, Which::Up, Some(&mut mlp_norm))?,
            mlp_norm,
            down: self.linear(layer, Which::Down, None)?,
        })
    }

    fn linear(&self, layer: usize, which: Which, norm: Option<&mut Norm>) -> Result<Linear, CheckpointError> {
        let held = self.share.linear(self.shape, which);
        let of = |term| {
            let piece = |(part, outputs)| Ok((self.checkpoint.part(self.shape, part)?, outputs));
            let there = held.of_layer(layer, term).filter(|(part, _)| part.is_in(self.shape));
            there.map(piece).collect::<Result<Vec<_>, CheckpointError>>()
        };
        self.packer.linear(&of(Term::Weight)?, &of(Term::Bias)?, held.inputs.clone(), held.unit, norm)
    }

    fn vocabulary(&self, part: Part) -> Result<PackedMatrix, CheckpointError> {
        self.packer.rows_as_columns(self.checkpoint.part(self.shape, part)?, self.share.vocab.clone(), self.shape.width)
    }

    fn norm(&self, part: impl Fn(Term) -> Part) -> Result<Norm, CheckpointError> {
        let of = |term| if part(term).is_in(self.shape) { self.vector(part(term)) } else { Ok(Vec::new()) };
        Ok(Norm { gain: of(Term::Weight)?, bias: of(Term::Bias)? })
    }

    fn values(&self, layer: usize) -> Result<ValueShard, CheckpointError> {
        let part = |part| self.checkpoint.part(self.shape, Part::Layer(layer, part, Term::Weight));
        let (table, unit) = (part(LayerPart::ValueTable)?.transposed(), self.shape.attention.head_dim);
        let columns = self.share.value_columns(self.shape);
        let table = self.packer.linear(&[(table, 0..self.shape.vocab_size)], &[], columns, unit, None)?.weights;
        let (gate, mut gates) = (part(LayerPart::ValueGate)?, Vec::new());
        gate.read_tile(0..gate.rows(), self.share.kv_heads.clone(), &mut gates)?;
        Ok(ValueShard { table, gates })
    }

    fn stream(&self) -> Result<StreamShard, CheckpointError> {
        let stream = &self.shape.stream;
        let number = |part| Ok::<_, CheckpointError>(self.vector(part)?[0]);
        Ok(StreamShard {
            lambdas: match stream.lambdas {
                true => Some([self.vector(Part::StreamScales)?, self.vector(Part::OriginScales)?]),
                false => None,
            },
            smear: match stream.smear {
                Some(_) => Some((self.vector(Part::SmearGate)?, number(Part::SmearScale)?)),
                None => None,
            },
            backout: stream.backout.then(|| number(Part::BackoutScale)).transpose()?,
        })
    }

    fn gain(&self, layer: usize, part: LayerPart) -> Result<Vec<f32>, CheckpointError> {
        self.vector(Part::Layer(layer, part, Term::Weight))
    }

    fn vector(&self, part: Part) -> Result<Vec<f32>, CheckpointError> {
        let vector = self.checkpoint.part(self.shape, part)?;
        vector.read_vector(0..vector.columns())
    }
}
