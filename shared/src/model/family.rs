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
    /// As configurations call it and its like.
    pub model_types: &'static [&'static str],
    /// Reads a configuration of it.
    pub read_config: fn(&Value) -> Result<ModelShape, ShapeError>,
    /// The fields of a configuration that reads so, and that transformers reads too.
    pub write_config: fn(&ModelShape) -> Value,
    /// What its tensors are called: as transformers does, and elsewhere.
    pub namings: &'static [Names],
}

/// Names of tensors, without prefixes and endings; empty for what no model of a family has.
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
    /// Queries, keys and values.
    pub qkv: QkvNames,
    /// Norm of each head of queries, and of keys.
    pub qk_norm: [&'static str; 2],
    /// Gate of what is added to values.
    pub value_gate: &'static str,
    /// Behind attention.
    pub attention_output: &'static str,
    /// Norm before the MLP.
    pub mlp_norm: &'static str,
    /// Into the MLP's hidden layer, behind the non-linearity.
    pub gate: &'static str,
    /// Into the MLP's hidden layer.
    pub up: &'static str,
    /// Out of it.
    pub down: &'static str,
    /// What works on the residual stream. Of models that may have such, a tensor without a place makes another one.
    pub stream: Option<StreamNames>,
    /// Biases that no block has are zeros.
    pub biases_may_be_absent: bool,
}

/// Names of tensors outside of blocks, in full.
#[derive(Clone, Copy, Debug)]
pub struct StreamNames {
    /// What the stream is multiplied by before each block.
    pub stream_scales: &'static str,
    /// What of its origin is added there.
    pub origin_scales: &'static str,
    /// Gate of the token before.
    pub smear_gate: &'static str,
    /// What that is multiplied by.
    pub smear_scale: &'static str,
    /// How much of the middle is taken away at the end.
    pub backout_scale: &'static str,
    /// Before the number of a block that has a table of values.
    pub value_tables: &'static str,
}

/// Where queries, keys and values lie.
#[derive(Clone, Copy, Debug)]
pub enum QkvNames {
    /// Side by side in one tensor, whose layout may be either.
    Fused(&'static str),
    /// Each in its own; matrices of such families are torch's.
    Separate([&'static str; 3]),
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
    /// Further rows than the vocabulary's pad it.
    pub has_row_a_token: bool,
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
        f.write_str(self.model_types[0])
    }
}

impl Family {
    /// The family, and its naming, that a set of tensors belongs to: told by the embedding, and by queries and MLP of the first block;
    /// the first of those that are told as well.
    pub fn of_tensors(
        families: &'static [&'static Family],
        has: impl Fn(&str) -> bool,
    ) -> (&'static Family, &'static Names) {
        let all = families.iter().flat_map(|&family| family.namings.iter().map(move |names| (family, names)));
        let known = |names: &Names| {
            let embedding = with_ending(names.embedding, Term::Weight);
            let telling = [embedding, names.first_queries(), names.of_layer(0, names.up, Term::Weight)];
            telling.iter().filter(|name| has(name)).count()
        };
        // Of equals the first, which `max_by_key` finds as the last.
        all.rev().max_by_key(|(_, names)| known(names)).expect("there is a family")
    }
}

impl Names {
    /// Where a part is.
    pub fn source(&self, shape: &ModelShape, part: Part) -> Source {
        let names = self;
        let mut sizes = part.sizes(shape);
        let last = sizes.len() - 1;
        let mut columns = 0..sizes[last];
        let of_stream = |name: fn(&StreamNames) -> &'static str| names.stream.as_ref().map_or("", name).to_owned();
        let tensor = match part {
            Part::StreamScales => of_stream(|names| names.stream_scales),
            Part::OriginScales => of_stream(|names| names.origin_scales),
            Part::SmearGate => of_stream(|names| names.smear_gate),
            Part::SmearScale => of_stream(|names| names.smear_scale),
            Part::BackoutScale => of_stream(|names| names.backout_scale),
            Part::Embedding => with_ending(names.embedding, Term::Weight),
            Part::Positions => with_ending(names.positions, Term::Weight),
            Part::Head => with_ending(names.head, Term::Weight),
            Part::FinalNorm(term) => with_ending(names.final_norm, term),
            Part::Layer(layer, part, term) => {
                let name = match part {
                    LayerPart::ValueTable => {
                        let tables = names.stream.map_or("", |stream| stream.value_tables);
                        let tensor = with_ending(&format!("{tables}{layer}"), term);
                        return Source {
                            tensor,
                            sizes,
                            columns,
                            may_be_turned: false,
                            may_be_absent: false,
                            has_row_a_token: true,
                        };
                    }
                    LayerPart::AttentionNorm => names.attention_norm,
                    LayerPart::Query | LayerPart::Key | LayerPart::Value => {
                        let before = LayerPart::QKV.iter().take_while(|&before| *before != part);
                        match names.qkv {
                            QkvNames::Separate(each) => each[before.count()],
                            QkvNames::Fused(name) => {
                                let outputs = |part: &LayerPart| part.inputs_outputs(shape).1;
                                let start: usize = before.map(outputs).sum();
                                columns = start..start + sizes[last];
                                sizes[last] = LayerPart::QKV.iter().map(outputs).sum();
                                name
                            }
                        }
                    }
                    LayerPart::QueryNorm => names.qk_norm[0],
                    LayerPart::KeyNorm => names.qk_norm[1],
                    LayerPart::ValueGate => names.value_gate,
                    LayerPart::AttentionOutput => names.attention_output,
                    LayerPart::MlpNorm => names.mlp_norm,
                    LayerPart::Gate => names.gate,
                    LayerPart::Up => names.up,
                    LayerPart::Down => names.down,
                };
                names.of_layer(layer, name, term)
            }
        };
        let may_be_turned = matches!(part, Part::Layer(..)) && sizes.len() == 2;
        let is_bias = matches!(part, Part::FinalNorm(Term::Bias) | Part::Layer(_, _, Term::Bias));
        let may_be_absent = is_bias && names.biases_may_be_absent;
        let has_row_a_token = matches!(part, Part::Embedding | Part::Head);
        Source { tensor, sizes, columns, may_be_turned, may_be_absent, has_row_a_token }
    }

    /// All tensors of a model, each once. One after the other: a configuration may claim any number of layers.
    pub fn tensors<'a>(&'a self, shape: &'a ModelShape) -> impl Iterator<Item = Source> + use<'a> {
        // Of parts side by side the first stands for the tensor.
        let tensors = Part::all(shape).map(|part| self.source(shape, part)).filter(|source| source.columns.start == 0);
        tensors.map(|tensor| Source { columns: 0..tensor.sizes[tensor.sizes.len() - 1], ..tensor })
    }

    /// The block that a tensor is of, and its name there.
    pub fn in_layer<'a>(&self, tensor: &'a str) -> Option<(usize, &'a str)> {
        let (layer, part) = tensor.strip_prefix(self.layers)?.split_once('.')?;
        Some((layer.parse().ok()?, part))
    }

    /// As it is called where a checkpoint is written.
    pub fn written_name(&self, tensor: &str) -> String {
        let prefix = if tensor.starts_with(self.head) { "" } else { self.written_prefix };
        format!("{prefix}{tensor}")
    }

    /// How matrices are stored where a checkpoint is written.
    pub fn written_layout(&self) -> Layout {
        if matches!(self.qkv, QkvNames::Fused(_)) { Layout::Conv1d } else { Layout::Linear }
    }

    /// How matrices are stored, by the sizes of those there are: told by the fused one, whose two sizes always differ; that
    /// behind attention is square.
    ///
    /// # Errors
    /// When keys and values are fewer than queries.
    pub fn layout<'a>(&self, sizes: impl Fn(&str) -> Option<&'a [usize]>) -> Result<Layout, NotServed> {
        let QkvNames::Fused(_) = self.qkv else { return Ok(Layout::Linear) };
        let fused = self.first_queries();
        // Where one is missing, or no matrix, the check of all says so.
        let (Some(&[_, c]), Some(&[first, second])) =
            (sizes(&with_ending(self.embedding, Term::Weight)), sizes(&fused))
        else {
            return Ok(Layout::Conv1d);
        };
        let linear = second == c && Some(first) == c.checked_mul(3);
        if second == c && first > c && !linear {
            return Err(NotServed::one_kv_head(fused));
        }
        Ok(if linear { Layout::Linear } else { Layout::Conv1d })
    }

    /// The matrix of the first block that has its queries.
    fn first_queries(&self) -> String {
        let (QkvNames::Fused(name) | QkvNames::Separate([name, ..])) = self.qkv;
        self.of_layer(0, name, Term::Weight)
    }

    fn of_layer(&self, layer: usize, name: &str, term: Term) -> String {
        with_ending(&format!("{}{layer}.{name}", self.layers), term)
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

/// What programs stored with the weights and is none: causal masks (the bias of a layer ends otherwise), frequencies of rotations.
pub fn is_buffer(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"].iter().any(|end| name.ends_with(end))
}
