//! Step 1. What a model is: matrices, biases, and a vector for each token and each position.
//!
//! Knows the file's names and shapes; does not know what is done with them ([`crate::pass`]), nor how a product is computed:
//! [`Product`] is what steps 7 and 8 replace.

use std::{fs, ops::Range, path::Path};

use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors};

/// `y = x W`, for any number of rows of `x` at once.
pub trait Product: Send + Sync {
    /// `x` is `[rows][inputs]`, the result `[rows][outputs]`.
    fn times(&self, x: &[f32]) -> Vec<f32>;
    /// Bytes that are read for it, however many rows there are.
    fn bytes(&self) -> usize;
}

/// A matrix in f32, `[outputs][inputs]`: what makes one output lies side by side.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The numbers.
    pub values: Vec<f32>,
    /// Length of a row of `x`.
    pub inputs: usize,
}

/// Sizes of a GPT-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Layers.
    pub layers: usize,
    /// Heads of attention in each.
    pub heads: usize,
    /// Numbers of a token's vector.
    pub width: usize,
    /// Longest text, in tokens.
    pub positions: usize,
    /// Known tokens.
    pub vocab: usize,
}

impl Sizes {
    /// GPT-2 of 124 million parameters: four hundred times as many bytes as fit a core's cache.
    pub const GPT2: Self = Self { layers: 12, heads: 12, width: 768, positions: 1024, vocab: 50257 };
    /// Of one head.
    pub fn head(&self) -> usize {
        self.width / self.heads
    }
}

/// `x W + b`.
pub struct Linear {
    /// W.
    pub matrix: Box<dyn Product>,
    /// b.
    pub bias: Vec<f32>,
}

/// Gain and bias of a LayerNorm.
#[derive(Clone, Debug)]
pub struct Norm {
    gain: Vec<f32>,
    bias: Vec<f32>,
}

/// One layer.
pub struct Layer {
    /// Before attention.
    pub norm_1: Norm,
    /// Queries, keys and values of all heads.
    pub qkv: Linear,
    /// Back to the width.
    pub out: Linear,
    /// Before the MLP.
    pub norm_2: Norm,
    /// To four times the width.
    pub up: Linear,
    /// And back.
    pub down: Linear,
}

/// A GPT-2.
pub struct Model {
    /// Of the whole model, also where this is a part of it.
    pub sizes: Sizes,
    /// Heads that are computed here: all, until step 9.
    pub heads: usize,
    /// A row for each token, `[vocab][width]`.
    pub tokens: Vec<f32>,
    /// A row for each position, `[positions][width]`.
    pub places: Vec<f32>,
    /// In their order.
    pub layers: Vec<Layer>,
    /// After the last.
    pub norm: Norm,
    /// From a vector to a logit for each token: the rows of `tokens` once more.
    pub head: Box<dyn Product>,
}

/// Makes of a matrix whatever computes with it.
pub type Packing<'a> = &'a dyn Fn(Matrix) -> Box<dyn Product>;

/// As it is.
pub fn plain(matrix: Matrix) -> Box<dyn Product> {
    Box::new(matrix)
}

impl Product for Matrix {
    fn times(&self, x: &[f32]) -> Vec<f32> {
        let (rows, outputs) = (x.len() / self.inputs, self.values.len() / self.inputs);
        let mut y = vec![0.0; rows * outputs];
        // A row of the matrix is read once and meets all rows of x: that is what step 5 lives from.
        for (o, weights) in self.values.chunks_exact(self.inputs).enumerate() {
            for (r, x) in x.chunks_exact(self.inputs).enumerate() {
                y[r * outputs + o] = dot(x, weights);
            }
        }
        y
    }

    fn bytes(&self) -> usize {
        4 * self.values.len()
    }
}

/// Sixteen sums at a time, which a compiler makes vectors of.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

impl Linear {
    /// Of `[rows][inputs]`.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.matrix.times(x);
        let biases = self.bias.iter().cycle();
        y.iter_mut().zip(biases).for_each(|(y, bias)| *y += bias);
        y
    }
}

impl Norm {
    /// Every row to mean 0 and variance 1, then scaled and shifted.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let width = self.gain.len();
        let row = |x: &[f32]| {
            let mean = x.iter().sum::<f32>() / width as f32;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / width as f32;
            let scale = 1.0 / (variance + 1e-5).sqrt();
            x.iter()
                .zip(self.gain.iter().zip(&self.bias))
                .map(|(x, (gain, bias))| (x - mean) * scale * gain + bias)
                .collect::<Vec<f32>>()
        };
        x.chunks_exact(width).flat_map(row).collect()
    }
}

/// What of a model is wanted: all, or in step 9 the share of a rank.
#[derive(Clone, Debug)]
pub struct Part {
    /// Heads.
    pub heads: Range<usize>,
    /// Columns of the MLP.
    pub inner: Range<usize>,
    /// Tokens whose logits are computed.
    pub vocab: Range<usize>,
    /// Whether the biases behind the two sums over ranks are added here.
    pub adds_bias: bool,
}

impl Part {
    /// All of it.
    pub fn whole(sizes: &Sizes) -> Self {
        Self { heads: 0..sizes.heads, inner: 0..4 * sizes.width, vocab: 0..sizes.vocab, adds_bias: true }
    }
}

impl Model {
    /// All of the model in a folder.
    ///
    /// # Errors
    /// When a file is missing or has other tensors than a GPT-2.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_part(folder, Part::whole, &plain)
    }

    /// The part of it that `part` names, packed.
    ///
    /// # Errors
    /// The same.
    pub fn load_part(folder: &Path, part: impl FnOnce(&Sizes) -> Part, packing: Packing<'_>) -> Result<Self> {
        let config: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
        let size = |name: &str| {
            config[name].as_u64().map(|n| n as usize).with_context(|| format!("config.json has no {name}"))
        };
        let sizes = Sizes {
            layers: size("n_layer")?,
            heads: size("n_head")?,
            width: size("n_embd")?,
            positions: size("n_positions")?,
            vocab: size("vocab_size")?,
        };
        let file =
            fs::read(folder.join("model.safetensors")).with_context(|| format!("cannot read {}", folder.display()))?;
        let tensors = SafeTensors::deserialize(&file)?;
        let read = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.tensor(&format!("transformer.{name}")).or_else(|_| tensors.tensor(name))?;
            let wide = |bytes: &[u8]| match tensor.dtype() {
                Dtype::BF16 => Ok(f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)),
                Dtype::F16 => Ok(half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
                Dtype::F32 => Ok(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
                other => anyhow::bail!("{name} is {other:?}"),
            };
            let bytes = tensor.data().len() / tensor.shape().iter().product::<usize>().max(1);
            tensor.data().chunks_exact(bytes).map(wide).collect()
        };
        Self::build(sizes, part(&sizes), packing, read)
    }

    /// Random numbers in the shape of a model: what it says is nonsense, and takes as long as sense.
    ///
    /// # Errors
    /// None that sizes of a model could cause.
    pub fn random(sizes: Sizes, packing: Packing<'_>) -> Result<Self> {
        let (c, mut state) = (sizes.width, 1u32);
        let count = |name: &str| match name.rsplit('.').take(2).collect::<Vec<_>>()[..] {
            ["weight", "wte"] => sizes.vocab * c,
            ["weight", "wpe"] => sizes.positions * c,
            ["weight", "c_attn"] => 3 * c * c,
            ["weight", "c_fc"] => 4 * c * c,
            ["weight", "c_proj"] => {
                if name.contains("mlp") {
                    4 * c * c
                } else {
                    c * c
                }
            }
            ["bias", "c_attn"] => 3 * c,
            ["bias", "c_fc"] => 4 * c,
            _ => c,
        };
        let random = |name: &str| {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.07
            };
            Ok((0..count(name)).map(|_| next()).collect())
        };
        Self::build(sizes, Part::whole(&sizes), packing, random)
    }

    fn build(
        sizes: Sizes,
        part: Part,
        packing: Packing<'_>,
        mut read: impl FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let (c, d) = (sizes.width, sizes.head());
        ensure!(c % sizes.heads == 0, "{c} numbers are no whole number of heads");
        let channels = part.heads.start * d..part.heads.end * d;
        // Files have [inputs][outputs]; what is kept are some outputs of some inputs, turned around.
        let matrix = |values: Vec<f32>, all: usize, inputs: Range<usize>, outputs: &[Range<usize>]| {
            let column = |o: usize| inputs.clone().map(move |i| (i, o));
            let values = outputs.iter().cloned().flatten().flat_map(column).map(|(i, o)| values[i * all + o]).collect();
            packing(Matrix { values, inputs: inputs.len() })
        };
        let bias = |values: Vec<f32>, outputs: &[Range<usize>]| {
            outputs.iter().flat_map(|range| values[range.clone()].to_vec()).collect()
        };
        let summed = |values: Vec<f32>| if part.adds_bias { values } else { vec![0.0; values.len()] };
        // Q, K and V lie side by side, each with all heads.
        let qkv: Vec<_> = (0..3).map(|i| i * c + channels.start..i * c + channels.end).collect();
        let (all, inner) = (0..c, part.inner.clone());
        let mut layers = Vec::new();
        for i in 0..sizes.layers {
            let mut norm = |name: &str| -> Result<Norm> {
                Ok(Norm { gain: read(&format!("h.{i}.{name}.weight"))?, bias: read(&format!("h.{i}.{name}.bias"))? })
            };
            let (norm_1, norm_2) = (norm("ln_1")?, norm("ln_2")?);
            let mut tensor = |name: &str| read(&format!("h.{i}.{name}"));
            layers.push(Layer {
                norm_1,
                qkv: Linear {
                    matrix: matrix(tensor("attn.c_attn.weight")?, 3 * c, all.clone(), &qkv),
                    bias: bias(tensor("attn.c_attn.bias")?, &qkv),
                },
                out: Linear {
                    matrix: matrix(tensor("attn.c_proj.weight")?, c, channels.clone(), std::slice::from_ref(&all)),
                    bias: summed(tensor("attn.c_proj.bias")?),
                },
                norm_2,
                up: Linear {
                    matrix: matrix(tensor("mlp.c_fc.weight")?, 4 * c, all.clone(), std::slice::from_ref(&inner)),
                    bias: bias(tensor("mlp.c_fc.bias")?, std::slice::from_ref(&inner)),
                },
                down: Linear {
                    matrix: matrix(tensor("mlp.c_proj.weight")?, c, inner.clone(), std::slice::from_ref(&all)),
                    bias: summed(tensor("mlp.c_proj.bias")?),
                },
            });
        }
        let tokens = read("wte.weight")?;
        let head = Matrix { values: tokens[part.vocab.start * c..part.vocab.end * c].to_vec(), inputs: c };
        let norm = Norm { gain: read("ln_f.weight")?, bias: read("ln_f.bias")? };
        let places = read("wpe.weight")?;
        Ok(Self { sizes, heads: part.heads.len(), tokens, places, layers, norm, head: packing(head) })
    }

    /// The vector that a token begins with: its meaning plus its place.
    pub fn embedding(&self, token: u32, position: usize) -> impl Iterator<Item = f32> {
        let c = self.sizes.width;
        let (meaning, place) = (&self.tokens[token as usize * c..][..c], &self.places[position * c..][..c]);
        meaning.iter().zip(place).map(|(a, b)| a + b)
    }

    /// The tokens whose vectors point most nearly where this one's does, itself first, with the cosine between them.
    pub fn neighbours(&self, token: u32, count: usize) -> Vec<(u32, f32)> {
        let vector = |id: u32| &self.tokens[id as usize * self.sizes.width..][..self.sizes.width];
        let length = |v: &[f32]| dot(v, v).sqrt();
        let cosine = |id: u32| dot(vector(token), vector(id)) / (length(vector(token)) * length(vector(id))).max(1e-9);
        let mut all: Vec<(u32, f32)> = (0..self.sizes.vocab as u32).map(|id| (id, cosine(id))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(count);
        all
    }

    /// Bytes of weights that every step reads: all matrices once.
    pub fn bytes(&self) -> usize {
        let of = |layer: &Layer| {
            [&layer.qkv, &layer.out, &layer.up, &layer.down].map(|linear| linear.matrix.bytes()).iter().sum::<usize>()
        };
        self.layers.iter().map(of).sum::<usize>() + self.head.bytes()
    }
}
