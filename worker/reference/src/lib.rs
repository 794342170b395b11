//! Every family in plain candle: one readable page, the truth that the fast path is tested against.
//!
//! The whole text goes through at once, without a cache, in f32. Letters of shapes: `T` tokens, `C` width, `H` heads, `KV` heads of
//! keys and values, `D` width of a head, `F` width of the MLP, `V` vocabulary.
//! Reference: `transformers/models/{gpt2,llama,qwen2,qwen3}/modeling_*.py`, `nanochat/gpt.py`.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    Embedding, LayerNorm, Linear, Module,
    ops::{sigmoid, softmax_last_dim},
};
use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    Activation, ModelShape,
    model::{
        parts::{LayerPart, Part, Term},
        rotary::{Rotary, Rounding},
        shape::{AttentionShape, NormKind, Positions, QkNorm},
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
    /// Gate of the token before `[1, G]`, and what that is multiplied by.
    smear: Option<(Tensor, Tensor)>,
    /// How much of the middle is taken away at the end.
    backout: Option<Tensor>,
}

struct Block {
    attention_norm: LayerNorm,
    /// Queries, keys, values.
    qkv: [Projection; 3],
    /// Of each head of queries, of keys.
    qk_norm: Option<[LayerNorm; 2]>,
    /// What the stream is multiplied by before it, and what of its origin is added.
    lambdas: Option<[f64; 2]>,
    /// What is added to values, and the gates of that.
    values: Option<(Embedding, Projection)>,
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
    let side = if rotary.backwards { -1.0 } else { 1.0 };
    let of = |circle: fn(f64) -> f64| {
        // The angle is rounded to f32, as in training.
        let angles = (0..t).flat_map(|position| frequencies.iter().map(move |f| f64::from(f * position as f32)));
        let factors = angles.map(|angle| circle(side * angle) as f32 * rotary.attention_factor());
        let factors = Tensor::from_iter(factors, &Device::Cpu)?.reshape((1, t, width / 2))?;
        let rounded = rotary.rounding == Rounding::Bf16;
        if rounded { factors.to_dtype(DType::BF16)?.to_dtype(DType::F32) } else { Ok(factors) }
    };
    let (cos, sin) = (of(f64::cos)?, of(f64::sin)?);
    let (a, b) = (x.narrow(D::Minus1, 0, width / 2)?, x.narrow(D::Minus1, width / 2, width / 2)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}

/// A norm without weights.
fn bare_norm(shape: &ModelShape, width: usize) -> Result<LayerNorm> {
    Ok(LayerNorm::rms_norm(Tensor::ones(width, DType::F32, &Device::Cpu)?, f64::from(shape.norm_epsilon)))
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
        let numbers = |part: Part| optional(part)?.map(|numbers| numbers.to_vec1::<f32>()).transpose();
        let lambdas = [numbers(Part::StreamScales)?, numbers(Part::OriginScales)?];
        let rows = |part| Ok::<_, candle_core::Error>(optional(part)?.map(|rows| Embedding::new(rows, shape.width)));
        let norm = |part: &dyn Fn(Term) -> Part| {
            let (gain, epsilon) = (|| tensor(part(Term::Weight)), f64::from(shape.norm_epsilon));
            Ok::<_, candle_core::Error>(match shape.norm {
                NormKind::Layer => LayerNorm::new(gain()?, tensor(part(Term::Bias))?, epsilon),
                NormKind::Rms => LayerNorm::rms_norm(gain()?, epsilon),
                NormKind::BareRms => bare_norm(&shape, shape.width)?,
            })
        };
        let kv_width = shape.attention.kv_heads * shape.attention.head_dim;
        let block = |layer| {
            let norm = |part| norm(&|term| Part::Layer(layer, part, term));
            let projection = |part| {
                let [weight, bias] = [Term::Weight, Term::Bias].map(|term| Part::Layer(layer, part, term));
                Ok::<_, candle_core::Error>(Projection { weight: tensor(weight)?, bias: optional(bias)? })
            };
            let values = shape.has_value_table(layer).then(|| {
                let weight = |part| Part::Layer(layer, part, Term::Weight);
                let (table, gate) = (tensor(weight(LayerPart::ValueTable))?, projection(LayerPart::ValueGate)?);
                Ok::<_, candle_core::Error>((Embedding::new(table, kv_width), gate))
            });
            Ok(Block {
                lambdas: match &lambdas {
                    [Some(stream), Some(origin)] => Some([stream, origin].map(|each| each[layer].into())),
                    _ => None,
                },
                values: values.transpose()?,
                attention_norm: norm(LayerPart::AttentionNorm)?,
                qkv: [projection(LayerPart::Query)?, projection(LayerPart::Key)?, projection(LayerPart::Value)?],
                qk_norm: match shape.attention.qk_norm {
                    QkNorm::None => None,
                    QkNorm::Gains => Some([norm(LayerPart::QueryNorm)?, norm(LayerPart::KeyNorm)?]),
                    QkNorm::Rotated { .. } => {
                        let norm = bare_norm(&shape, shape.attention.head_dim)?;
                        Some([norm.clone(), norm])
                    }
                },
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
            smear: optional(Part::SmearGate)?.zip(optional(Part::SmearScale)?),
            backout: optional(Part::BackoutScale)?,
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
        if self.shape.stream.normed_embedding {
            x = bare_norm(&self.shape, self.shape.width)?.forward(&x)?;
        }
        if let Some((gate, scale)) = &self.smear {
            let before = x.narrow(0, 0, tokens.len() - 1)?.pad_with_zeros(0, 1, 0)?;
            let amount = sigmoid(&x.narrow(1, 0, gate.dim(1)?)?.matmul(&gate.t()?)?)?.broadcast_mul(scale)?;
            x = (x + before.broadcast_mul(&amount)?)?;
        }
        let (origin, mut middle) = (x.clone(), x.clone());
        for (layer, block) in self.blocks.iter().enumerate() {
            if let Some([stream, back]) = block.lambdas {
                x = ((x * stream)? + (&origin * back)?)?;
            }
            x = (&x + self.attention(tokens, layer, block, &block.attention_norm.forward(&x)?)?)?;
            x = (&x + self.mlp(block, &block.mlp_norm.forward(&x)?)?)?;
            if layer == self.blocks.len() / 2 {
                middle = x.clone();
            }
        }
        if let Some(scale) = &self.backout {
            x = (x - middle.broadcast_mul(scale)?)?;
        }
        let logits = self.head.forward(&self.final_norm.forward(&x)?)?;
        let cap = self.shape.logit_softcap.map(f64::from);
        cap.map_or(Ok(logits.clone()), |cap| (logits / cap)?.tanh()? * cap)
    }

    fn attention(&self, tokens: &[u32], layer: usize, block: &Block, x: &Tensor) -> Result<Tensor> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape.attention;
        let t = x.dim(0)?;
        // [T, C] → [heads, T, D]
        let of_heads = |projection: &Projection, heads| {
            projection.forward(x)?.reshape((t, heads, head_dim))?.transpose(0, 1)?.contiguous()
        };
        let [query, key, value] = &block.qkv;
        let (mut q, mut k, mut v) = (of_heads(query, heads)?, of_heads(key, kv_heads)?, of_heads(value, kv_heads)?);
        if let Some((table, gate)) = &block.values {
            let added = table.forward(&Tensor::new(tokens, &Device::Cpu)?)?.reshape((t, kv_heads, head_dim))?;
            let read = x.narrow(1, 0, gate.weight.dim(0)?)?;
            let factor = self.shape.value_tables.map_or(1.0, |tables| f64::from(tables.gate_factor));
            let amount = (sigmoid(&gate.forward(&read)?)? * factor)?.reshape((t, kv_heads, 1))?;
            v = (v + added.broadcast_mul(&amount)?.transpose(0, 1)?)?;
        }
        let normed = |q: &Tensor, k: &Tensor| match &block.qk_norm {
            Some([query_norm, key_norm]) => Ok((query_norm.forward(q)?, key_norm.forward(k)?)),
            None => Ok::<_, candle_core::Error>((q.clone(), k.clone())),
        };
        let turned = match self.shape.attention.qk_norm {
            QkNorm::Rotated { factor } => Some(f64::from(factor)),
            QkNorm::None | QkNorm::Gains => None,
        };
        if turned.is_none() {
            (q, k) = normed(&q, &k)?;
        }
        if let Positions::Rotary(rotary) = &self.shape.attention.positions {
            (q, k) = (rotate(&q, rotary)?, rotate(&k, rotary)?);
        }
        if let Some(factor) = turned {
            (q, k) = normed(&q, &k)?;
            (q, k) = ((q * factor)?, (k * factor)?);
        }
        // Neighbouring query heads share one of keys and of values: [KV, T, D] → [H, T, D]
        let for_queries =
            |x: Tensor| x.unsqueeze(1)?.repeat((1, heads / kv_heads, 1, 1))?.reshape((heads, t, head_dim));
        let (k, v) = (for_queries(k)?, for_queries(v)?);
        let scores = (q.matmul(&k.t()?)? * f64::from(self.shape.attention.scale(layer)))?;
        // A token sees itself and what came before, as far as its window reaches.
        let window = self.shape.window(layer).unwrap_or(t);
        let sees = |query: usize, key: usize| key <= query && query - key <= window;
        let mask: Vec<f32> = (0..t * t).map(|i| if sees(i / t, i % t) { 0.0 } else { f32::NEG_INFINITY }).collect();
        let weights = softmax_last_dim(&scores.broadcast_add(&Tensor::from_vec(mask, (t, t), &Device::Cpu)?)?)?;
        block.attention_output.forward(&weights.matmul(&v)?.transpose(0, 1)?.reshape((t, heads * head_dim))?)
    }

    fn mlp(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let up = block.up.forward(x)?;
        let hidden = block.gate.as_ref().map_or(Ok(up.clone()), |gate| gate.forward(x))?;
        let hidden = match self.shape.mlp.activation {
            Activation::GeluTanh => hidden.gelu()?,
            Activation::GeluErf => hidden.gelu_erf()?,
            Activation::QuickGelu => (&hidden * sigmoid(&(&hidden * 1.702)?)?)?,
            Activation::Relu => hidden.relu()?,
            Activation::Relu2 => hidden.relu()?.sqr()?,
            Activation::Silu => hidden.silu()?,
            Activation::Tanh => hidden.tanh()?,
        };
        block.down.forward(&if block.gate.is_some() { (hidden * up)? } else { hidden })
    }
}
