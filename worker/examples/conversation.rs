//! From checkpoint to conversation: GPT-2 whole, in one page and without any trick. What the server does is this, faster.
//!
//!     cargo run --release -p nanoinfer-worker --example conversation [-- FOLDER [TEMPERATURE]]
use std::{collections::HashMap, error::Error, io::Write, path::Path};

use candle_core::{D, DType, Device::Cpu, Result, Tensor};
use candle_nn::{ops::softmax_last_dim, sampling::gumbel_softmax};
use tokenizers::Tokenizer;

struct Gpt2 {
    weights: HashMap<String, Tensor>,
    layers: usize,
    heads: usize,
    positions: usize,
}

impl Gpt2 {
    fn load(folder: &Path) -> std::result::Result<Self, Box<dyn Error>> {
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
        let size = |name: &str| config[name].as_u64().map(|n| n as usize).ok_or(format!("config.json has no {name}"));
        let mut weights = HashMap::new();
        for (name, tensor) in candle_core::safetensors::load(folder.join("model.safetensors"), &Cpu)? {
            weights.insert(name.trim_start_matches("transformer.").to_owned(), tensor.to_dtype(DType::F32)?);
        }
        Ok(Self { weights, layers: size("n_layer")?, heads: size("n_head")?, positions: size("n_positions")? })
    }

    /// `y = x W + b`, with W `[in, out]`.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = (&self.weights[&format!("{name}.weight")], &self.weights[&format!("{name}.bias")]);
        x.matmul(weight)?.broadcast_add(bias)
    }

    /// Every row to mean 0 and variance 1, then scaled and shifted.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (gain, bias) = (&self.weights[&format!("{name}.weight")], &self.weights[&format!("{name}.bias")]);
        candle_nn::ops::layer_norm(x, gain, bias, 1e-5)
    }

    /// Every token looks at itself and the tokens before it, once per head.
    fn attention(&self, x: &Tensor, layer: &str) -> Result<Tensor> {
        let (t, c) = x.dims2()?;
        let qkv = self.linear(x, &format!("{layer}.attn.c_attn"))?;
        let heads =
            |i: usize| qkv.narrow(1, i * c, c)?.reshape((t, self.heads, c / self.heads))?.transpose(0, 1)?.contiguous();
        let scores = (heads(0)?.matmul(&heads(1)?.t()?)? / ((c / self.heads) as f64).sqrt())?;
        let future: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let weights = softmax_last_dim(&scores.broadcast_add(&Tensor::from_vec(future, (t, t), &Cpu)?)?)?;
        let mixed = weights.matmul(&heads(2)?)?.transpose(0, 1)?.reshape((t, c))?;
        self.linear(&mixed, &format!("{layer}.attn.c_proj"))
    }

    fn mlp(&self, x: &Tensor, layer: &str) -> Result<Tensor> {
        let hidden = self.linear(x, &format!("{layer}.mlp.c_fc"))?.gelu()?;
        self.linear(&hidden, &format!("{layer}.mlp.c_proj"))
    }

    /// A score for every token of the vocabulary: how well would it come next?
    fn next(&self, ids: &[u32]) -> Result<Tensor> {
        let (wte, wpe) = (&self.weights["wte.weight"], &self.weights["wpe.weight"]);
        let mut x = (wte.embedding(&Tensor::new(ids, &Cpu)?)? + wpe.narrow(0, 0, ids.len())?)?;
        for layer in (0..self.layers).map(|i| format!("h.{i}")) {
            x = (&x + self.attention(&self.norm(&x, &format!("{layer}.ln_1"))?, &layer)?)?;
            x = (&x + self.mlp(&self.norm(&x, &format!("{layer}.ln_2"))?, &layer)?)?;
        }
        self.norm(&x.narrow(0, ids.len() - 1, 1)?, "ln_f")?.matmul(&wte.t()?)?.squeeze(0)
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "launcher/demo/nano-chat".into());
    let temperature: f64 = arguments.next().map_or(Ok(0.3), |t| t.parse())?;
    let model = Gpt2::load(Path::new(&folder))?;
    let tokenizer = Tokenizer::from_file(Path::new(&folder).join("tokenizer.json")).map_err(|e| e.to_string())?;
    let end = tokenizer.token_to_id("<|endoftext|>").ok_or("the tokenizer has no end of text")?;
    for line in std::io::stdin().lines() {
        let prompt = format!("User: {}\nAssistant:", line?);
        let mut ids = tokenizer.encode(prompt, false).map_err(|e| e.to_string())?.get_ids().to_vec();
        let start = ids.len();
        let mut said = String::new();
        while ids.len() < model.positions {
            let token = gumbel_softmax(&model.next(&ids)?, temperature, D::Minus1)?.to_scalar::<u32>()?;
            if token == end {
                break;
            }
            ids.push(token);
            let text = tokenizer.decode(&ids[start..], true).map_err(|e| e.to_string())?;
            print!("{}", text.strip_prefix(&said).unwrap_or_default());
            std::io::stdout().flush()?;
            said = text;
        }
        println!();
    }
    Ok(())
}
