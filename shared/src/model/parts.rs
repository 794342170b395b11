//! The weights of a model one by one, whatever a checkpoint calls them.
//!
//! Matrices are `[in, out]` but for the vocabulary's and the positions', of which a row is a token's or a position's. Does not
//! know names, files or ranks.

use std::ops::Range;

use super::shape::{ModelShape, NormKind, Positions, QkNorm};

/// One weight of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Token embedding `[V, C]`.
    Embedding,
    /// Learned positions `[P, C]`, where there are.
    Positions,
    /// The head `[V, C]`, where it is not the embedding.
    Head,
    /// The norm before the head `[C]`.
    FinalNorm(Term),
    /// What the stream is multiplied by before each block `[L]`.
    StreamScales,
    /// What of its origin is added there `[L]`.
    OriginScales,
    /// How far the token before is added: what channels of the embedding are multiplied by `[1, G]`.
    SmearGate,
    /// And what comes of it `[1]`.
    SmearScale,
    /// How much of the middle is taken away at the end `[1]`.
    BackoutScale,
    /// Of a block, counted from 0.
    Layer(usize, LayerPart, Term),
}

/// What is multiplied with, or what is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// A matrix, or the gain of a norm.
    Weight,
    /// A vector.
    Bias,
}

/// What a block is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerPart {
    /// Before attention `[C]`.
    AttentionNorm,
    /// `[C, H · D]`.
    Query,
    /// `[C, KV · D]`.
    Key,
    /// `[C, KV · D]`.
    Value,
    /// What is added to values, a row a token `[V, KV · D]`.
    ValueTable,
    /// How far, by some channels of the block's normed input `[G, KV]`.
    ValueGate,
    /// Of each head of queries `[D]`.
    QueryNorm,
    /// Of each head of keys `[D]`.
    KeyNorm,
    /// Behind attention `[H · D, C]`.
    AttentionOutput,
    /// Before the MLP `[C]`.
    MlpNorm,
    /// `[C, F]`, of a gated MLP.
    Gate,
    /// `[C, F]`.
    Up,
    /// `[F, C]`.
    Down,
}

impl Part {
    const OUTSIDE: [Self; 10] = [
        Self::Embedding,
        Self::Positions,
        Self::FinalNorm(Term::Weight),
        Self::FinalNorm(Term::Bias),
        Self::Head,
        Self::StreamScales,
        Self::OriginScales,
        Self::SmearGate,
        Self::SmearScale,
        Self::BackoutScale,
    ];

    /// All weights of a model, in the order in which checkpoints are written.
    pub fn all(shape: &ModelShape) -> impl Iterator<Item = Self> + use<> {
        Self::of_layers(shape, 0..shape.layers)
    }

    /// Those outside of blocks, and those of some blocks.
    fn of_layers(shape: &ModelShape, layers: Range<usize>) -> impl Iterator<Item = Self> + use<> {
        use LayerPart::{
            AttentionNorm, AttentionOutput, Down, Gate, KeyNorm, MlpNorm, QueryNorm, Up, ValueGate, ValueTable,
        };
        // Of weights that a checkpoint may have in one tensor, all weights come before their biases.
        const TOGETHER: [&[LayerPart]; 11] = [
            &[AttentionNorm],
            &LayerPart::QKV,
            &[ValueTable],
            &[ValueGate],
            &[QueryNorm],
            &[KeyNorm],
            &[AttentionOutput],
            &[MlpNorm],
            &[Gate],
            &[Up],
            &[Down],
        ];
        let terms = [Term::Weight, Term::Bias];
        let of_layer = move |layer| {
            let of = move |parts: &'static [LayerPart]| {
                terms.into_iter().flat_map(move |term| parts.iter().map(move |&part| Self::Layer(layer, part, term)))
            };
            TOGETHER.into_iter().flat_map(of)
        };
        let shape = shape.clone();
        Self::OUTSIDE.into_iter().chain(layers.flat_map(of_layer)).filter(move |part| part.is_in(&shape))
    }

    /// Whether a model has it.
    pub fn is_in(self, shape: &ModelShape) -> bool {
        let (attention, mlp) = (&shape.attention, &shape.mlp);
        match self {
            Self::Embedding => true,
            Self::FinalNorm(Term::Weight) => shape.norm != NormKind::BareRms,
            Self::Positions => attention.positions == Positions::Learned,
            Self::Head => !shape.tied_head,
            Self::FinalNorm(Term::Bias) => shape.norm == NormKind::Layer,
            Self::StreamScales | Self::OriginScales => shape.stream.lambdas,
            Self::SmearGate | Self::SmearScale => shape.stream.smear.is_some(),
            Self::BackoutScale => shape.stream.backout,
            Self::Layer(layer, part, term) => {
                let is_weight = term == Term::Weight;
                match part {
                    LayerPart::AttentionNorm | LayerPart::MlpNorm => match shape.norm {
                        NormKind::Layer => true,
                        NormKind::Rms => is_weight,
                        NormKind::BareRms => false,
                    },
                    LayerPart::QueryNorm | LayerPart::KeyNorm => is_weight && attention.qk_norm == QkNorm::Gains,
                    LayerPart::ValueTable | LayerPart::ValueGate => is_weight && shape.has_value_table(layer),
                    LayerPart::Query | LayerPart::Key | LayerPart::Value => is_weight || attention.qkv_bias,
                    LayerPart::AttentionOutput => is_weight || attention.output_bias,
                    LayerPart::Gate => mlp.gated && (is_weight || mlp.bias),
                    LayerPart::Up | LayerPart::Down => is_weight || mlp.bias,
                }
            }
        }
    }

    /// Sizes of it.
    pub fn sizes(self, shape: &ModelShape) -> Vec<usize> {
        let (v, c) = (shape.vocab_size, shape.width);
        match self {
            Self::Embedding | Self::Head => vec![v, c],
            Self::Positions => vec![shape.context, c],
            Self::FinalNorm(_) => vec![c],
            Self::StreamScales | Self::OriginScales => vec![shape.layers],
            Self::SmearGate => vec![1, shape.stream.smear.unwrap_or_default()],
            Self::SmearScale | Self::BackoutScale => vec![1],
            Self::Layer(_, part, term) => {
                let (inputs, outputs) = part.inputs_outputs(shape);
                if term == Term::Weight && inputs > 0 { vec![inputs, outputs] } else { vec![outputs] }
            }
        }
    }
}

impl LayerPart {
    /// What a checkpoint may have side by side in one tensor.
    pub const QKV: [Self; 3] = [Self::Query, Self::Key, Self::Value];

    /// Whether it is of a linear layer: not of a norm, and no table.
    pub fn is_linear(self) -> bool {
        use LayerPart::{AttentionNorm, KeyNorm, MlpNorm, QueryNorm, ValueGate, ValueTable};
        !matches!(self, AttentionNorm | QueryNorm | KeyNorm | MlpNorm | ValueTable | ValueGate)
    }

    /// Of its matrix; a norm has no inputs.
    pub fn inputs_outputs(self, shape: &ModelShape) -> (usize, usize) {
        let (c, f) = (shape.width, shape.mlp.inner);
        let attention = &shape.attention;
        match self {
            Self::AttentionNorm | Self::MlpNorm => (0, c),
            Self::QueryNorm | Self::KeyNorm => (0, attention.head_dim),
            Self::Query => (c, attention.heads * attention.head_dim),
            Self::Key | Self::Value => (c, attention.kv_heads * attention.head_dim),
            Self::ValueTable => (shape.vocab_size, attention.kv_heads * attention.head_dim),
            Self::ValueGate => (shape.value_tables.map_or(0, |tables| tables.gate_channels), attention.kv_heads),
            Self::AttentionOutput => (attention.heads * attention.head_dim, c),
            Self::Gate | Self::Up => (c, f),
            Self::Down => (f, c),
        }
    }
}

impl ModelShape {
    /// The sum of what `of` says of each weight. It is the same in every other block, so they are not counted one by one.
    pub fn sum_of_parts(&self, of: impl Fn(Part) -> usize) -> usize {
        let with_layers = |layers| Part::of_layers(self, layers).map(&of).sum::<usize>();
        let outside = with_layers(0..0);
        let block = |layer| with_layers(layer..layer + 1) - outside;
        outside + self.layers.div_ceil(2) * block(0) + self.layers / 2 * block(1)
    }

    /// Weights of all blocks that each token is multiplied with.
    pub fn multiplied_in_blocks(&self) -> usize {
        let is_matrix = |part| matches!(part, Part::Layer(_, of_block, Term::Weight) if of_block.is_linear());
        self.sum_of_parts(|part| if is_matrix(part) { part.sizes(self).iter().product() } else { 0 })
    }

    /// Number of parameters, a tied head counted once.
    pub fn parameters(&self) -> usize {
        self.sum_of_parts(|part| part.sizes(self).iter().product())
    }
}
