//! GPT-2 in plain candle: one readable page, the truth that the fast path is tested against.
//!
//! The whole text goes through at once, without a cache, in f32. Letters of shapes: `T` tokens, `C` width, `H` heads, `D`
//! width of a head, `F` width of the MLP, `V` vocabulary.
//! Reference: `transformers/models/gpt2/modeling_gpt2.py`.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, ops::softmax_last_dim};
use nanoinfer_shared::{Activation, Geometry};

use nanoinfer_checkpoint::Checkpoint;

/// A whole model on one device.
pub struct Gpt2Reference {
    geometry: Geometry,
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
}

struct Block {
    ln_1: LayerNorm,
    c_attn: Conv1D,
    attn_c_proj: Conv1D,
    ln_2: LayerNorm,
    c_fc: Conv1D,
    mlp_c_proj: Conv1D,
}

/// GPT-2's linear layer: the weight is `[in, out]`, and `y = x W + b`.
struct Conv1D {
    weight: Tensor,
    bias: Tensor,
}

impl Conv1D {
    fn load(vb: VarBuilder<'_>, input: usize, output: usize) -> Result<Self> {
        Ok(Self { weight: vb.get((input, output), "weight")?, bias: vb.get(output, "bias")? })
    }

    /// `[T, in]` → `[T, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

impl Gpt2Reference {
    /// Loads a checkpoint that was checked against `geometry`, its types widened to f32.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or a weight is no number.
    pub fn load(checkpoint: &Checkpoint, geometry: Geometry) -> Result<Self> {
        let tensors = checkpoint.of_geometry(&geometry).map_err(candle_core::Error::wrap)?;
        let tensors = tensors.into_iter().map(|(name, shape, slice)| {
            let values = slice.read_matrix().map_err(candle_core::Error::wrap)?;
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        });
        let vb = VarBuilder::from_tensors(tensors.collect::<Result<_>>()?, DType::F32, &Device::Cpu);
        let (c, f) = (geometry.n_embd, geometry.n_inner);
        let norm = |vb: VarBuilder<'_>| candle_nn::layer_norm(c, f64::from(geometry.layer_norm_epsilon), vb);
        let block = |vb: VarBuilder<'_>| {
            Ok(Block {
                ln_1: norm(vb.pp("ln_1"))?,
                c_attn: Conv1D::load(vb.pp("attn.c_attn"), c, 3 * c)?,
                attn_c_proj: Conv1D::load(vb.pp("attn.c_proj"), c, c)?,
                ln_2: norm(vb.pp("ln_2"))?,
                c_fc: Conv1D::load(vb.pp("mlp.c_fc"), c, f)?,
                mlp_c_proj: Conv1D::load(vb.pp("mlp.c_proj"), f, c)?,
            })
        };
        let wte = candle_nn::embedding(geometry.vocab_size, c, vb.pp("wte"))?;
        let tied = geometry.tie_word_embeddings.then(|| wte.embeddings().clone());
        let head = tied.map_or_else(|| vb.get((geometry.vocab_size, c), "lm_head.weight"), Ok)?;
        Ok(Self {
            wte,
            wpe: candle_nn::embedding(geometry.n_positions, c, vb.pp("wpe"))?,
            blocks: (0..geometry.n_layer).map(|l| block(vb.pp(format!("h.{l}")))).collect::<Result<_>>()?,
            ln_f: norm(vb.pp("ln_f"))?,
            lm_head: Linear::new(head, None),
            geometry,
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
        let mut x = (self.wte.forward(&ids)? + self.wpe.forward(&positions)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = (&x + self.attention(layer, block, &block.ln_1.forward(&x)?)?)?;
            x = (&x + self.mlp(block, &block.ln_2.forward(&x)?)?)?;
        }
        self.lm_head.forward(&self.ln_f.forward(&x)?)
    }

    fn attention(&self, layer: usize, block: &Block, x: &Tensor) -> Result<Tensor> {
        let Geometry { n_head, n_embd, .. } = self.geometry;
        let t = x.dim(0)?;
        let qkv = block.c_attn.forward(x)?;
        // [T, C] → [H, T, D]
        let heads = |third: usize| {
            qkv.narrow(1, third * n_embd, n_embd)?.reshape((t, n_head, n_embd / n_head))?.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (heads(0)?, heads(1)?, heads(2)?);
        let scores = (q.matmul(&k.t()?)? * f64::from(self.geometry.attention_scale(layer)))?;
        // A token sees itself and what came before.
        let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let weights = softmax_last_dim(&scores.broadcast_add(&Tensor::from_vec(mask, (t, t), &Device::Cpu)?)?)?;
        block.attn_c_proj.forward(&weights.matmul(&v)?.transpose(0, 1)?.reshape((t, n_embd))?)
    }

    fn mlp(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let hidden = block.c_fc.forward(x)?;
        let hidden = match self.geometry.activation {
            Activation::GeluTanh => hidden.gelu()?,
            Activation::GeluErf => hidden.gelu_erf()?,
            Activation::QuickGelu => (&hidden * candle_nn::ops::sigmoid(&(&hidden * 1.702)?)?)?,
            Activation::Relu => hidden.relu()?,
            Activation::Relu2 => hidden.relu()?.sqr()?,
            Activation::Silu => hidden.silu()?,
            Activation::Tanh => hidden.tanh()?,
        };
        block.mlp_c_proj.forward(&hidden)
    }
}
