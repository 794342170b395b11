//! What a family of models is: how its configurations are read, and what its tensors are called.
//!
//! With the families' own files the only place where the name of a tensor is written: who loads, checks, converts or lists
//! weights asks for a [`Part`]. Does not know which families there are, nor files, formats or ranks.

use std::{fmt, ops::Range};

use serde_json::Value;

use super::{
    config::ShapeError,
    parts::{LayerPart, Part, Term},
    shape::ModelShape,
    unserved::NotServed,
};

/// A family of models.
pub struct Family {
    /// As configurations call it.
    pub model_type: &'static str,
    /// Reads a configuration of it.
    pub read_config: fn(&Value) -> Result<ModelShape, ShapeError>,
    /// The fields of a configuration that reads so, and that transformers reads too.
    pub write_config: fn(&ModelShape) -> Value,
    /// What its tensors are called.
    pub names: Names,
}

/// Names of tensors, without prefixes and endings.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// What is put before all names but the head's where a checkpoint is written.
    pub written_prefix: &'static str,
    /// Token embedding.
    pub embedding: &'static str,
    /// Learned positions.
    pub positions: &'static str,
    /// A head of its own.
    pub head: &'static str,
    /// The norm before the head.
    pub final_norm: &'static str,
    /// Before the number of a block.
    pub layers: &'static str,
    /// Norm before attention.
    pub attention_norm: &'static str,
    /// Queries, keys and values, side by side.
    pub qkv: &'static str,
    /// Behind attention.
    pub attention_output: &'static str,
    /// Norm before the MLP.
    pub mlp_norm: &'static str,
    /// Into the MLP's hidden layer.
    pub up: &'static str,
    /// Out of it.
    pub down: &'static str,
}

/// Where a part lies: columns of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, without prefixes.
    pub tensor: String,
    /// Sizes of the whole tensor, a matrix of a block as `[in, out]`.
    pub sizes: Vec<usize>,
    /// The part's columns, or its elements.
    pub columns: Range<usize>,
    /// A matrix that may be stored as `[out, in]`: see [`Layout`].
    pub may_be_turned: bool,
    /// Zeros where no block has the tensor.
    pub may_be_absent: bool,
}

/// How the matrices of blocks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[in, out]`, as in transformers' GPT-2.
    Conv1d,
    /// `[out, in]`, as in torch's nn.Linear and so in nanoGPT.
    Linear,
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}

impl Family {
    /// The first of `families` that a set of tensors belongs to, told by its embedding; else the first of all.
    pub fn of_tensors(families: &'static [&'static Family], has: impl Fn(&str) -> bool) -> &'static Family {
        families.iter().find(|family| has(&with_ending(family.names.embedding, Term::Weight))).unwrap_or(&families[0])
    }

    /// Where a part is.
    pub fn source(&self, shape: &ModelShape, part: Part) -> Source {
        let names = &self.names;
        let mut sizes = part.sizes(shape);
        let last = sizes.len() - 1;
        let mut columns = 0..sizes[last];
        let tensor = match part {
            Part::Embedding => with_ending(names.embedding, Term::Weight),
            Part::Positions => with_ending(names.positions, Term::Weight),
            Part::Head => with_ending(names.head, Term::Weight),
            Part::FinalNorm(term) => with_ending(names.final_norm, term),
            Part::Layer(layer, part, term) => {
                let name = match part {
                    LayerPart::AttentionNorm => names.attention_norm,
                    LayerPart::Query | LayerPart::Key | LayerPart::Value => {
                        // Side by side in the tensor.
                        let outputs = |part: &LayerPart| part.inputs_outputs(shape).1;
                        let before = LayerPart::QKV.iter().take_while(|&before| *before != part);
                        let start: usize = before.map(outputs).sum();
                        columns = start..start + sizes[last];
                        sizes[last] = LayerPart::QKV.iter().map(outputs).sum();
                        names.qkv
                    }
                    LayerPart::AttentionOutput => names.attention_output,
                    LayerPart::MlpNorm => names.mlp_norm,
                    LayerPart::Up => names.up,
                    LayerPart::Down => names.down,
                };
                with_ending(&format!("{}{layer}.{name}", names.layers), term)
            }
        };
        let may_be_turned = matches!(part, Part::Layer(..)) && sizes.len() == 2;
        let may_be_absent = matches!(part, Part::FinalNorm(Term::Bias) | Part::Layer(_, _, Term::Bias));
        Source { tensor, sizes, columns, may_be_turned, may_be_absent }
    }

    /// All tensors of a model, each once. One after the other: a configuration may claim any number of layers.
    pub fn tensors<'a>(&'a self, shape: &'a ModelShape) -> impl Iterator<Item = Source> + use<'a> {
        // Of parts side by side the first stands for the tensor.
        let tensors = Part::all(shape).map(|part| self.source(shape, part)).filter(|source| source.columns.start == 0);
        tensors.map(|tensor| Source { columns: 0..tensor.sizes[tensor.sizes.len() - 1], ..tensor })
    }

    /// The block that a tensor is of, and its name there.
    pub fn in_layer<'a>(&self, tensor: &'a str) -> Option<(usize, &'a str)> {
        let (layer, part) = tensor.strip_prefix(self.names.layers)?.split_once('.')?;
        Some((layer.parse().ok()?, part))
    }

    /// As it is called where a checkpoint is written.
    pub fn written_name(&self, tensor: &str) -> String {
        let prefix = if tensor.starts_with(self.names.head) { "" } else { self.names.written_prefix };
        format!("{prefix}{tensor}")
    }

    /// How matrices are stored, by the sizes of those there are: told by the fused one, whose two sizes always differ; that
    /// behind attention is square.
    ///
    /// # Errors
    /// When keys and values are fewer than queries.
    pub fn layout<'a>(&self, sizes: impl Fn(&str) -> Option<&'a [usize]>) -> Result<Layout, NotServed> {
        let fused = with_ending(&format!("{}0.{}", self.names.layers, self.names.qkv), Term::Weight);
        // Where one is missing, or no matrix, the check of all says so.
        let (Some(&[_, c]), Some(&[first, second])) =
            (sizes(&with_ending(self.names.embedding, Term::Weight)), sizes(&fused))
        else {
            return Ok(Layout::Conv1d);
        };
        let linear = second == c && Some(first) == c.checked_mul(3);
        if second == c && first > c && !linear {
            return Err(NotServed::one_kv_head(fused));
        }
        Ok(if linear { Layout::Linear } else { Layout::Conv1d })
    }
}

fn with_ending(name: &str, term: Term) -> String {
    format!("{name}.{}", if term == Term::Weight { "weight" } else { "bias" })
}

/// What programs put before the names: data-parallel and compiled models, language models around the transformer.
const PREFIXES: [&str; 4] = ["_orig_mod.", "module.", "model.", "transformer."];

/// A name without the prefixes that programs put before it.
pub fn bare(name: &str) -> &str {
    let mut bare = name;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| bare.strip_prefix(prefix)) {
        bare = rest;
    }
    bare
}

/// Causal masks that transformers and nanoGPT stored with the weights; the bias of a layer ends otherwise.
pub fn is_mask(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}
