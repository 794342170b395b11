//! Every family in plain candle: one readable page, the truth that the fast path is tested against.
//!
//! The whole text goes through at once, without a cache, in f32. Letters of shapes: `T` tokens, `C` width, `H` heads, `D`
//! width of a head, `F` width of the MLP, `V` vocabulary.
//! Reference: `transformers/models/gpt2/modeling_gpt2.py`.

use candle_core::{Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, ops::softmax_last_dim};
use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    Activation, ModelShape,
    model::{
        parts::{LayerPart, Part, Term},
        shape::AttentionShape,
    },
};

/// A whole model on one device.
pub struct Reference {
    shape: ModelShape,
    embedding: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    head: Linear,
}

struct Block {
    attention_norm: LayerNorm,
    /// Queries, keys, values.
    qkv: [Projection; 3],
    attention_output: Projection,
    mlp_norm: LayerNorm,
    up: Projection,
    down: Projection,
}

/// A linear layer: the weight is `[in, out]`, and `y = x W + b`.
struct Projection {
    weight: Tensor,
    bias: Tensor,
}

impl Projection {
    /// `[T, in]` → `[T, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

impl Reference {
    /// Loads a checkpoint that was checked against `shape`, its types widened to f32.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or a weight is no number.
    pub fn load(checkpoint: &Checkpoint, shape: ModelShape) -> Result<Self> {
        let tensor = |part: Part| {
            let values = checkpoint.part(&shape, part).and_then(|slice| slice.read_matrix());
            Tensor::from_vec(values.map_err(candle_core::Error::wrap)?, part.sizes(&shape), &Device::Cpu)
        };
        let rows = |part| Ok::<_, candle_core::Error>(Embedding::new(tensor(part)?, shape.width));
        let norm = |part: &dyn Fn(Term) -> Part| {
            let (gain, bias) = (tensor(part(Term::Weight))?, tensor(part(Term::Bias))?);
            Ok::<_, candle_core::Error>(LayerNorm::new(gain, bias, f64::from(shape.norm_epsilon)))
        };
        let block = |layer| {
            let norm = |part| norm(&|term| Part::Layer(layer, part, term));
            let projection = |part| {
                let [weight, bias] = [Term::Weight, Term::Bias].map(|term| tensor(Part::Layer(layer, part, term)));
                Ok::<_, candle_core::Error>(Projection { weight: weight?, bias: bias? })
            };
            Ok(Block {
                attention_norm: norm(LayerPart::AttentionNorm)?,
                qkv: [projection(LayerPart::Query)?, projection(LayerPart::Key)?, projection(LayerPart::Value)?],
                attention_output: projection(LayerPart::AttentionOutput)?,
                mlp_norm: norm(LayerPart::MlpNorm)?,
                up: projection(LayerPart::Up)?,
                down: projection(LayerPart::Down)?,
            })
        };
        let embedding = rows(Part::Embedding)?;
        let head = if shape.tied_head { embedding.embeddings().clone() } else { tensor(Part::Head)? };
        Ok(Self {
            positions: rows(Part::Positions)?,
            blocks: (0..shape.layers).map(block).collect::<Result<_>>()?,
            final_norm: norm(&Part::FinalNorm)?,
            head: Linear::new(head, None),
            embedding,
            shape,
        })
    }

    /// Logits `[T, V]` after every token of a text.
    ///
    /// # Errors
    /// When an id or the length is beyond the model.
    pub fn logits(&self, tokens: &[u32]) -> Result<Tensor> {
        let t = tokens.len();
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let positions = Tensor::arange(0, t as u32, &Device::Cpu)?;
        let mut x = (self.embedding.forward(&ids)? + self.positions.forward(&positions)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = (&x + self.attention(layer, block, &block.attention_norm.forward(&x)?)?)?;
            x = (&x + self.mlp(block, &block.mlp_norm.forward(&x)?)?)?;
        }
        self.head.forward(&self.final_norm.forward(&x)?)
    }

    fn attention(&self, layer: usize, block: &Block, x: &Tensor) -> Result<Tensor> {
        let AttentionShape { heads, head_dim, .. } = self.shape.attention;
        let t = x.dim(0)?;
        // [T, C] → [H, T, D]
        let of_heads = |projection: &Projection| {
            projection.forward(x)?.reshape((t, heads, head_dim))?.transpose(0, 1)?.contiguous()
        };
        let [query, key, value] = &block.qkv;
        let (q, k, v) = (of_heads(query)?, of_heads(key)?, of_heads(value)?);
        let scores = (q.matmul(&k.t()?)? * f64::from(self.shape.attention.scale(layer)))?;
        // A token sees itself and what came before.
        let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let weights = softmax_last_dim(&scores.broadcast_add(&Tensor::from_vec(mask, (t, t), &Device::Cpu)?)?)?;
        block.attention_output.forward(&weights.matmul(&v)?.transpose(0, 1)?.reshape((t, heads * head_dim))?)
    }

    fn mlp(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let hidden = block.up.forward(x)?;
        let hidden = match self.shape.mlp.activation {
            Activation::GeluTanh => hidden.gelu()?,
            Activation::GeluErf => hidden.gelu_erf()?,
            Activation::QuickGelu => (&hidden * candle_nn::ops::sigmoid(&(&hidden * 1.702)?)?)?,
            Activation::Relu => hidden.relu()?,
            Activation::Relu2 => hidden.relu()?.sqr()?,
            Activation::Silu => hidden.silu()?,
            Activation::Tanh => hidden.tanh()?,
        };
        block.down.forward(&hidden)
    }
}
