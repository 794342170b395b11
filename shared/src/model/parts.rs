//! The weights of a model one by one, whatever a checkpoint calls them.
//!
//! Matrices are `[in, out]` but for the vocabulary's and the positions', of which a row is a token's or a position's. Does not
//! know names, files or ranks.

use super::shape::{ModelShape, NormKind, Positions};

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
    /// All weights of a model, in the order in which checkpoints are written.
    pub fn all(shape: &ModelShape) -> impl Iterator<Item = Self> + use<> {
        use LayerPart::{AttentionNorm, AttentionOutput, Down, Gate, KeyNorm, MlpNorm, QueryNorm, Up};
        // Of weights that a checkpoint may have in one tensor, all weights come before their biases.
        const TOGETHER: [&[LayerPart]; 9] = [
            &[AttentionNorm],
            &LayerPart::QKV,
            &[QueryNorm],
            &[KeyNorm],
            &[AttentionOutput],
            &[MlpNorm],
            &[Gate],
            &[Up],
            &[Down],
        ];
        let terms = [Term::Weight, Term::Bias];
        let outside =
            [Self::Embedding, Self::Positions].into_iter().chain(terms.map(Self::FinalNorm)).chain([Self::Head]);
        let layers = (0..shape.layers).flat_map(move |layer| {
            let of = move |parts: &'static [LayerPart]| {
                terms.into_iter().flat_map(move |term| parts.iter().map(move |&part| Self::Layer(layer, part, term)))
            };
            TOGETHER.into_iter().flat_map(of)
        });
        let shape = shape.clone();
        outside.chain(layers).filter(move |part| part.is_in(&shape))
    }

    /// Whether a model has it.
    pub fn is_in(self, shape: &ModelShape) -> bool {
        let (attention, mlp) = (&shape.attention, &shape.mlp);
        match self {
            Self::Embedding | Self::FinalNorm(Term::Weight) => true,
            Self::Positions => attention.positions == Positions::Learned,
            Self::Head => !shape.tied_head,
            Self::FinalNorm(Term::Bias) => shape.norm == NormKind::Layer,
            Self::Layer(_, part, term) => {
                let is_weight = term == Term::Weight;
                match part {
                    LayerPart::AttentionNorm | LayerPart::MlpNorm => is_weight || shape.norm == NormKind::Layer,
                    LayerPart::QueryNorm | LayerPart::KeyNorm => is_weight && attention.qk_norm,
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

    /// Whether it is of a linear layer, not a norm.
    pub fn is_linear(self) -> bool {
        !matches!(self, Self::AttentionNorm | Self::QueryNorm | Self::KeyNorm | Self::MlpNorm)
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
            Self::AttentionOutput => (attention.heads * attention.head_dim, c),
            Self::Gate | Self::Up => (c, f),
            Self::Down => (f, c),
        }
    }
}

impl ModelShape {
    /// The sum of what `of` says of each weight, which is the same in every block: they are not counted one by one.
    pub fn sum_of_parts(&self, of: impl Fn(Part) -> usize) -> usize {
        let with_layers = |layers| Part::all(&Self { layers, ..self.clone() }).map(&of).sum::<usize>();
        let outside = with_layers(0);
        outside + self.layers * (with_layers(1) - outside)
    }

    /// Number of parameters, a tied head counted once.
    pub fn parameters(&self) -> usize {
        self.sum_of_parts(|part| part.sizes(self).iter().product())
    }
}
