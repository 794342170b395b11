//! Sizes and switches of one model: all that the forward pass has to know of its architecture.
//!
//! Does not know names of fields or tensors. All sizes are global, never a rank's share.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::rotary::Rotary;

/// A pre-norm decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Rows of the token embedding `V`, padding rows included.
    pub vocab_size: usize,
    /// Longest sequence in tokens: the hard wall where positions are learned, what it was trained for where they are rotations.
    pub context: usize,
    /// Width of the residual stream `C`.
    pub width: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Of every block.
    pub attention: AttentionShape,
    /// Of every block.
    pub mlp: MlpShape,
    /// Of every norm.
    pub norm: NormKind,
    /// Added to the variance, or to the mean of squares, in every norm.
    pub norm_epsilon: f32,
    /// What is done to the residual stream beside adding to it.
    pub stream: StreamShape,
    /// How many positions before its own a token of each block sees; empty where it sees all.
    pub windows: Vec<usize>,
    /// What some blocks add to their values.
    pub value_tables: Option<ValueTables>,
    /// The head that makes logits is the token embedding.
    pub tied_head: bool,
    /// Logits `z` are `cap · tanh(z / cap)`.
    pub logit_softcap: Option<f32>,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// The attention of a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionShape {
    /// Query heads `H`.
    pub heads: usize,
    /// Heads of keys and of values: query heads in equal groups, in order, share one of each.
    pub kv_heads: usize,
    /// Width `D` of a head.
    pub head_dim: usize,
    /// Scores are divided by `sqrt(D)`.
    pub scaled_by_width: bool,
    /// Scores of layer `l` are further divided by `l + 1`.
    pub scaled_by_layer: bool,
    /// How a token knows where it stands.
    pub positions: Positions,
    /// Whether each head of queries and of keys is normed by itself.
    pub qk_norm: QkNorm,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// So has what comes behind attention.
    pub output_bias: bool,
}

/// What is done to each head of queries and of keys by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum QkNorm {
    /// Nothing.
    None,
    /// Before it is rotated it is normed, with a gain `[D]` for each of the two.
    Gains,
    /// Once it is rotated it is normed and multiplied by a number.
    Rotated {
        /// This one.
        factor: f32,
    },
}

/// How a token knows where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Positions {
    /// A row of a table is added to the token's embedding.
    Learned,
    /// Queries and keys are rotated by angles that grow with the position.
    Rotary(Rotary),
}

impl AttentionShape {
    /// What the scores `q·k` of layer `layer` (from 0) are multiplied by.
    pub fn scale(&self, layer: usize) -> f32 {
        let by_width = if self.scaled_by_width { (self.head_dim as f32).sqrt().recip() } else { 1.0 };
        let by_layer = if self.scaled_by_layer { (layer as f32 + 1.0).recip() } else { 1.0 };
        by_width * by_layer
    }

    /// Query heads that read the same keys and values.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Learned => f.write_str("a table, learned"),
            Self::Rotary(rotary) => write!(f, "rotations, {rotary}"),
        }
    }
}

/// The MLP of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MlpShape {
    /// Width of the hidden layer `F`.
    pub inner: usize,
    /// Its non-linearity.
    pub activation: Activation,
    /// The hidden layer is `activation(gate) · up`, of two matrices.
    pub gated: bool,
    /// Its matrices have biases.
    pub bias: bool,
}

/// What is done to the residual stream `x` beside adding to it: in most families nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamShape {
    /// Embeddings are normed.
    pub normed_embedding: bool,
    /// Before each block `x = a · x + b · x₀`: two numbers a block, and what came into the first one.
    pub lambdas: bool,
    /// The embedding of the token before is added, times a gate that reads so many channels of the token's own.
    pub smear: Option<usize>,
    /// What came out of block `L / 2` is taken away again before the last norm, times a number.
    pub backout: bool,
}

/// Tables of values `[V, KV · D]`, of which a token's row is added to its values: in the last block, and in every other before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValueTables {
    /// Channels of a block's normed input that the gate of each head reads.
    pub gate_channels: usize,
    /// What the gate, between 0 and 1, is multiplied by.
    pub gate_factor: f32,
}

impl ModelShape {
    /// Whether a block has a table of values.
    pub fn has_value_table(&self, layer: usize) -> bool {
        self.value_tables.is_some() && layer % 2 == (self.layers + 1) % 2
    }

    /// The window of a block, where it has one that anything lies outside of.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().filter(|window| window + 1 < self.context)
    }
}

/// What norms compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormKind {
    /// `(x − mean) / sqrt(variance + epsilon) · gain + bias`.
    Layer,
    /// `x / sqrt(mean(x²) + epsilon) · gain`.
    Rms,
    /// The same without a gain.
    BareRms,
}

/// Non-linearities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt(2)))`.
    GeluErf,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    Relu2,
    /// `x sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

/// As configurations spell them, the name that is written first.
const ACTIVATIONS: [(&str, Activation); 10] = [
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu", Activation::GeluErf),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

impl Activation {
    /// All names by which one is known to transformers.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ACTIVATIONS.iter().map(|&(name, _)| name)
    }

    /// By a name of it.
    pub fn from_name(name: &str) -> Option<Self> {
        ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|&(_, activation)| activation)
    }

    /// As `activation_function` spells it.
    pub fn name(self) -> &'static str {
        ACTIVATIONS.iter().find(|&&(_, known)| known == self).map_or("", |&(name, _)| name)
    }
}
