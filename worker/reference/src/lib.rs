//! Every family in plain candle: one readable page, the truth that the fast path is tested against.
//!
//! The whole text goes through at once, without a cache, in f32. Letters of shapes: `T` tokens, `C` width, `H` heads, `KV` heads of
//! keys and values, `D` width of a head, `F` width of the MLP, `V` vocabulary.
//! Reference: `transformers/models/{gpt2,llama,qwen2,qwen3}/modeling_*.py`.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, ops::softmax_last_dim};
use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    Activation, ModelShape,
    model::{
        parts::{LayerPart, Part, Term},
        rotary::Rotary,
        shape::{AttentionShape, NormKind, Positions},
    },
};

/// A whole model on one device.
pub struct Reference {
    shape: ModelShape,
    embedding: Embedding,
    /// Learned ones.
    positions: Option<Embedding>,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    head: Linear,
}

struct Block {
    attention_norm: LayerNorm,
    /// Queries, keys, values.
    qkv: [Projection; 3],
    /// Of each head of queries, of keys.
    qk_norm: Option<[LayerNorm; 2]>,
    attention_output: Projection,
    mlp_norm: LayerNorm,
    gate: Option<Projection>,
    up: Projection,
    down: Projection,
}

/// A linear layer: the weight is `[in, out]`, and `y = x W + b`, or `x W`.
struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Projection {
    /// `[T, in]` → `[T, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight)?;
        self.bias.as_ref().map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
    }
}

/// Turns heads `[H, T, D]`: halves of a head are the two coordinates of D / 2 planes.
fn rotate(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (_, t, width) = x.dims3()?;
    let frequencies = rotary.frequencies(width);
    let of = |circle: fn(f64) -> f64| {
        // The angle is rounded to f32, as in training.
        let angles = (0..t).flat_map(|position| frequencies.iter().map(move |f| f64::from(f * position as f32)));
        let factors = angles.map(|angle| circle(angle) as f32 * rotary.attention_factor());
        Tensor::from_iter(factors, &Device::Cpu)?.reshape((1, t, width / 2))
    };
    let (cos, sin) = (of(f64::cos)?, of(f64::sin)?);
    let (a, b) = (x.narrow(D::Minus1, 0, width / 2)?, x.narrow(D::Minus1, width / 2, width / 2)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)
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
        let optional = |part: Part| part.is_in(&shape).then(|| tensor(part)).transpose();
        let rows = |part| Ok::<_, candle_core::Error>(optional(part)?.map(|rows| Embedding::new(rows, shape.width)));
        let norm = |part: &dyn Fn(Term) -> Part| {
            let (gain, epsilon) = (tensor(part(Term::Weight))?, f64::from(shape.norm_epsilon));
            Ok::<_, candle_core::Error>(match shape.norm {
                NormKind::Layer => LayerNorm::new(gain, tensor(part(Term::Bias))?, epsilon),
                NormKind::Rms => LayerNorm::rms_norm(gain, epsilon),
            })
        };
        let block = |layer| {
            let norm = |part| norm(&|term| Part::Layer(layer, part, term));
            let projection = |part| {
                let [weight, bias] = [Term::Weight, Term::Bias].map(|term| Part::Layer(layer, part, term));
                Ok::<_, candle_core::Error>(Projection { weight: tensor(weight)?, bias: optional(bias)? })
            };
            let qk_norm = || Ok::<_, candle_core::Error>([norm(LayerPart::QueryNorm)?, norm(LayerPart::KeyNorm)?]);
            Ok(Block {
                attention_norm: norm(LayerPart::AttentionNorm)?,
                qkv: [projection(LayerPart::Query)?, projection(LayerPart::Key)?, projection(LayerPart::Value)?],
                qk_norm: shape.attention.qk_norm.then(qk_norm).transpose()?,
                attention_output: projection(LayerPart::AttentionOutput)?,
                mlp_norm: norm(LayerPart::MlpNorm)?,
                gate: shape.mlp.gated.then(|| projection(LayerPart::Gate)).transpose()?,
                up: projection(LayerPart::Up)?,
                down: projection(LayerPart::Down)?,
            })
        };
        let embedding = Embedding::new(tensor(Part::Embedding)?, shape.width);
        let head = optional(Part::Head)?.unwrap_or_else(|| embedding.embeddings().clone());
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
        let mut x = self.embedding.forward(&Tensor::new(tokens, &Device::Cpu)?)?;
        if let Some(table) = &self.positions {
            x = (x + table.forward(&Tensor::arange(0, tokens.len() as u32, &Device::Cpu)?)?)?;
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            x = (&x + self.attention(layer, block, &block.attention_norm.forward(&x)?)?)?;
            x = (&x + self.mlp(block, &block.mlp_norm.forward(&x)?)?)?;
        }
        self.head.forward(&self.final_norm.forward(&x)?)
    }

    fn attention(&self, layer: usize, block: &Block, x: &Tensor) -> Result<Tensor> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape.attention;
        let t = x.dim(0)?;
        // [T, C] → [heads, T, D]
        let of_heads = |projection: &Projection, heads| {
            projection.forward(x)?.reshape((t, heads, head_dim))?.transpose(0, 1)?.contiguous()
        };
        let [query, key, value] = &block.qkv;
        let (mut q, mut k, v) = (of_heads(query, heads)?, of_heads(key, kv_heads)?, of_heads(value, kv_heads)?);
        if let Some([query_norm, key_norm]) = &block.qk_norm {
            (q, k) = (query_norm.forward(&q)?, key_norm.forward(&k)?);
        }
        if let Positions::Rotary(rotary) = &self.shape.attention.positions {
            (q, k) = (rotate(&q, rotary)?, rotate(&k, rotary)?);
        }
        // Neighbouring query heads share one of keys and of values: [KV, T, D] → [H, T, D]
        let for_queries =
            |x: Tensor| x.unsqueeze(1)?.repeat((1, heads / kv_heads, 1, 1))?.reshape((heads, t, head_dim));
        let (k, v) = (for_queries(k)?, for_queries(v)?);
        let scores = (q.matmul(&k.t()?)? * f64::from(self.shape.attention.scale(layer)))?;
        // A token sees itself and what came before.
        let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let weights = softmax_last_dim(&scores.broadcast_add(&Tensor::from_vec(mask, (t, t), &Device::Cpu)?)?)?;
        block.attention_output.forward(&weights.matmul(&v)?.transpose(0, 1)?.reshape((t, heads * head_dim))?)
    }

    fn mlp(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let up = block.up.forward(x)?;
        let hidden = block.gate.as_ref().map_or(Ok(up.clone()), |gate| gate.forward(x))?;
        let hidden = match self.shape.mlp.activation {
            Activation::GeluTanh => hidden.gelu()?,
            Activation::GeluErf => hidden.gelu_erf()?,
            Activation::QuickGelu => (&hidden * candle_nn::ops::sigmoid(&(&hidden * 1.702)?)?)?,
            Activation::Relu => hidden.relu()?,
            Activation::Relu2 => hidden.relu()?.sqr()?,
            Activation::Silu => hidden.silu()?,
            Activation::Tanh => hidden.tanh()?,
        };
        block.down.forward(&if block.gate.is_some() { (hidden * up)? } else { hidden })
    }
}
