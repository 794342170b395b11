//! From checkpoint to conversation: GPT-2 whole, in one page and without any trick. What the server does is this, faster.
//!
//!     cargo run --release --example conversation [-- FOLDER [TEMPERATURE]] [--no-cache]
use std::{collections::HashMap, error::Error, io::Write, path::Path};

use candle_core::{D, DType, Device::Cpu, Result, Tensor};
use candle_nn::{ops::softmax_last_dim, sampling::gumbel_softmax};
use tokenizers::Tokenizer;

pub(crate) struct Gpt2 {
    weights: HashMap<String, Tensor>,
    layers: usize,
    heads: usize,
    positions: usize,
}

/// Keys and values `[H, T, D]` of the tokens so far, by layer.
pub(crate) type Cache = HashMap<String, (Tensor, Tensor)>;

impl Gpt2 {
    pub(crate) fn load(folder: &Path) -> std::result::Result<Self, Box<dyn Error>> {
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
        let size = |name: &str| config[name].as_u64().map(|n| n as usize).ok_or(format!("config.json has no {name}"));
        let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Cpu)?.into_iter();
        let short =
            |(name, tensor): (String, Tensor)| Ok((name.replace("transformer.", ""), tensor.to_dtype(DType::F32)?));
        let weights = tensors.map(short).collect::<Result<_>>()?;
        Ok(Self { weights, layers: size("n_layer")?, heads: size("n_head")?, positions: size("n_positions")? })
    }

    /// `y = x W + b`, with W `[in, out]`.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.matmul(&self.weights[&format!("{name}.weight")])?.broadcast_add(&self.weights[&format!("{name}.bias")])
    }

    /// Every row to mean 0 and variance 1, then scaled and shifted.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (gain, bias) = (&self.weights[&format!("{name}.weight")], &self.weights[&format!("{name}.bias")]);
        candle_nn::ops::layer_norm(x, gain, bias, 1e-5)
    }

    /// Every token looks at itself and the tokens before it, once per head.
    fn attention(&self, x: &Tensor, layer: &str, cache: &mut Cache) -> Result<Tensor> {
        let (t, c) = x.dims2()?;
        let (qkv, d) = (self.linear(x, &format!("{layer}.attn.c_attn"))?, c / self.heads);
        let heads = |i| qkv.narrow(1, i * c, c)?.reshape((t, self.heads, d))?.transpose(0, 1)?.contiguous();
        let (mut k, mut v) = (heads(1)?, heads(2)?);
        if let Some((past_k, past_v)) = cache.get(layer) {
            (k, v) = (Tensor::cat(&[past_k, &k], 1)?, Tensor::cat(&[past_v, &v], 1)?);
        }
        let all = k.dim(1)?;
        let future = |i: usize| if i % all > i / all + all - t { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_vec((0..t * all).map(future).collect(), (t, all), &Cpu)?;
        let scores = (heads(0)?.matmul(&k.t()?)? / (d as f64).sqrt())?.broadcast_add(&mask)?;
        let mixed = softmax_last_dim(&scores)?.matmul(&v)?.transpose(0, 1)?.reshape((t, c))?;
        cache.insert(layer.to_owned(), (k, v));
        self.linear(&mixed, &format!("{layer}.attn.c_proj"))
    }

    fn mlp(&self, x: &Tensor, layer: &str) -> Result<Tensor> {
        let hidden = self.linear(x, &format!("{layer}.mlp.c_fc"))?.gelu()?;
        self.linear(&hidden, &format!("{layer}.mlp.c_proj"))
    }

    /// A score for every token of the vocabulary: how well would it come next? Computes what `cache` does not hold.
    pub(crate) fn next(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let (wte, wpe) = (&self.weights["wte.weight"], &self.weights["wpe.weight"]);
        let past = cache.get("h.0").map_or(Ok(0), |(k, _)| k.dim(1))?;
        let mut x = (wte.embedding(&Tensor::new(&ids[past..], &Cpu)?)? + wpe.narrow(0, past, ids.len() - past)?)?;
        for layer in (0..self.layers).map(|i| format!("h.{i}")) {
            x = (&x + self.attention(&self.norm(&x, &format!("{layer}.ln_1"))?, &layer, cache)?)?;
            x = (&x + self.mlp(&self.norm(&x, &format!("{layer}.ln_2"))?, &layer)?)?;
        }
        self.norm(&x.narrow(0, ids.len() - past - 1, 1)?, "ln_f")?.matmul(&wte.t()?)?.squeeze(0)
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let (switches, typed): (Vec<String>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let folder = Path::new(typed.first().map_or("launcher/demo/nano-chat", String::as_str));
    let temperature = typed.get(1).map_or(Ok(0.3), |t| t.parse())?;
    let model = Gpt2::load(folder)?;
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|e| e.to_string())?;
    let end = tokenizer.token_to_id("<|endoftext|>").ok_or("the tokenizer has no end of text")?;
    for line in std::io::stdin().lines() {
        let prompt = format!("User: {}\nAssistant:", line?);
        let mut ids = tokenizer.encode(prompt, false).map_err(|e| e.to_string())?.get_ids().to_vec();
        let (mut cache, mut text) = (Cache::new(), tokenizer.decode_stream(true));
        while ids.len() < model.positions && ids.last() != Some(&end) {
            cache = if switches.contains(&"--no-cache".into()) { Cache::new() } else { cache };
            let token = gumbel_softmax(&model.next(&ids, &mut cache)?, temperature, D::Minus1)?.to_scalar()?;
            ids.push(token);
            print!("{}", text.step(token).map_err(|e| e.to_string())?.unwrap_or_default());
            std::io::stdout().flush()?;
        }
        println!();
    }
    Ok(())
}
