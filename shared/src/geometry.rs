//! The shape of a GPT-2 model, read from Hugging Face's `config.json`.
//!
//! Knows names, defaults and aliases of the configuration; does not know weights or files.
//! Reference: `transformers/models/gpt2/configuration_gpt2.py`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::{self, show};

/// Sizes and switches of one GPT-2 model. All sizes are global, never a rank's share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Geometry {
    /// Rows of the token embedding `V`, padding rows included.
    pub vocab_size: usize,
    /// Longest sequence in tokens: the hard wall, as positions are learned.
    pub n_positions: usize,
    /// Width of the residual stream `C`.
    pub n_embd: usize,
    /// Transformer blocks.
    pub n_layer: usize,
    /// Attention heads `H`; `n_embd / n_head` is the width `D` of one.
    pub n_head: usize,
    /// Width of the hidden layer of the MLP `F`; `4 * n_embd` unless the checkpoint says otherwise.
    pub n_inner: usize,
    /// Non-linearity of the MLP.
    pub activation: Activation,
    /// Added to the variance in every LayerNorm.
    pub layer_norm_epsilon: f32,
    /// Scores are divided by `sqrt(D)`.
    pub scale_attn_weights: bool,
    /// Scores of layer `l` are further divided by `l + 1`.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// The head that makes logits is the token embedding.
    pub tie_word_embeddings: bool,
    /// Ids that end a text; GPT-2 has one, 50256.
    pub eos_token_ids: Vec<u32>,
}

/// Non-linearities that GPT-2 checkpoints name in `activation_function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt(2)))`: `gelu`.
    GeluErf,
    /// `x sigmoid(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    Relu2,
    /// `x sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// As `activation_function` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GeluTanh => "gelu_new",
            Self::GeluErf => "gelu",
            Self::QuickGelu => "quick_gelu",
            Self::Relu => "relu",
            Self::Relu2 => "relu2",
            Self::Silu => "silu",
            Self::Tanh => "tanh",
        }
    }
}

/// Why a `config.json` is not one that this server can run. Whoever read it names the file.
#[derive(Debug, thiserror::Error)]
pub enum GeometryError {
    /// Not JSON at all, or not an object.
    #[error("not a JSON object: {0}")]
    NotJson(String),
    /// Another architecture.
    #[error("it describes a `{model_type}` model, which is not GPT-2: {why}")]
    NotGpt2 {
        /// What `model_type` says.
        model_type: String,
        /// What sets it apart.
        why: &'static str,
    },
    /// A field is missing or of the wrong kind.
    #[error("`{field}` should be {expected}, got {got}")]
    Field {
        /// Name of the field as it stands in the file.
        field: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// What the file has.
        got: String,
    },
    /// Heads do not divide the width.
    #[error("n_embd {n_embd} is not a multiple of n_head {n_head}")]
    HeadWidth {
        /// Width of the model.
        n_embd: usize,
        /// Number of heads.
        n_head: usize,
    },
}

impl Geometry {
    /// Parses the text of a `config.json`, with the defaults of `transformers`' `GPT2Config`. An end of text that no
    /// vocabulary can have, like −1, is left out with a warning.
    ///
    /// # Errors
    /// Names the field that is missing, ill-typed, zero, or asks for what GPT-2 is not.
    pub fn from_config_json(text: &str) -> Result<Self, GeometryError> {
        let value = json::parse(text.as_bytes()).map_err(|e| GeometryError::NotJson(e.to_string()))?;
        let Value::Object(_) = &value else {
            return Err(GeometryError::NotJson("the top level is no object".into()));
        };
        if let Some(model_type) = value.get("model_type").and_then(Value::as_str)
            && model_type != "gpt2"
        {
            return Err(GeometryError::NotGpt2 { model_type: model_type.into(), why: what_sets_apart(model_type) });
        }
        if flag(&value, "add_cross_attention", false)? {
            return Err(GeometryError::Field {
                field: "add_cross_attention",
                expected: "false (an encoder's output is never there)",
                got: "true".into(),
            });
        }
        let n_embd = size(&value, &["n_embd", "hidden_size"], Some(768))?;
        let n_head = size(&value, &["n_head", "num_attention_heads"], Some(12))?;
        if n_embd % n_head != 0 {
            return Err(GeometryError::HeadWidth { n_embd, n_head });
        }
        Ok(Self {
            vocab_size: size(&value, &["vocab_size"], Some(50257))?,
            n_positions: size(&value, &["n_positions", "max_position_embeddings", "n_ctx"], Some(1024))?,
            n_embd,
            n_layer: size(&value, &["n_layer", "num_hidden_layers"], Some(12))?,
            n_head,
            n_inner: size(&value, &["n_inner"], Some(4 * n_embd))?,
            activation: activation(&value)?,
            layer_norm_epsilon: epsilon(&value)?,
            scale_attn_weights: flag(&value, "scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: flag(&value, "scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: flag(&value, "tie_word_embeddings", true)?,
            eos_token_ids: token_ids(&value, "eos_token_id", 50256)?,
        })
    }

    /// Leaves out ends of text that the vocabulary has not, with a warning: they are never drawn, so nothing ends by
    /// them. For when the rows of the embedding are known.
    pub fn keep_known_ends(&mut self) {
        let vocab_size = self.vocab_size;
        self.eos_token_ids.retain(|&id| is_known_end("config.json", i64::from(id), vocab_size));
    }

    /// Width `D` of one head.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// What the scores `q·k` of layer `layer` (from 0) are multiplied by.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let by_width = if self.scale_attn_weights { (self.head_dim() as f32).sqrt().recip() } else { 1.0 };
        let by_layer = if self.scale_attn_by_inverse_layer_idx { (layer as f32 + 1.0).recip() } else { 1.0 };
        by_width * by_layer
    }

    /// Number of parameters, a tied head counted once.
    pub fn parameters(&self) -> usize {
        let (c, f) = (self.n_embd, self.n_inner);
        let layer = 4 * c + (c * 3 * c + 3 * c) + (c * c + c) + (c * f + f) + (f * c + c);
        let head = if self.tie_word_embeddings { 0 } else { self.vocab_size * c };
        (self.vocab_size + self.n_positions) * c + self.n_layer * layer + 2 * c + head
    }

    /// The text of a `config.json` that [`Geometry::from_config_json`] reads as this geometry, and transformers too.
    pub fn to_config_json(&self) -> String {
        let eos: Value = match self.eos_token_ids[..] {
            [] => Value::Null,
            [one] => one.into(),
            _ => self.eos_token_ids.clone().into(),
        };
        let config = serde_json::json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "activation_function": self.activation.name(),
            // By way of its decimal form, so that 1e-5 does not become 9.999999747378752e-6.
            "layer_norm_epsilon": self.layer_norm_epsilon.to_string().parse::<f64>().unwrap_or(1e-5),
            "scale_attn_weights": self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.eos_token_ids.first(),
            "eos_token_id": eos,
        });
        format!("{config:#}\n")
    }
}

/// Why a model of another type cannot run as GPT-2.
fn what_sets_apart(model_type: &str) -> &'static str {
    match model_type {
        "gpt_neo" => "every other layer attends to 256 tokens only, and scores are not scaled",
        "gpt_bigcode" => "all heads share one pair of keys and values",
        "gptj" => "positions are rotations, and attention and MLP run side by side",
        "gpt_neox" | "phi" => "positions are rotations",
        "bloom" | "mpt" => "positions are biases of attention",
        "opt" => "queries, keys and values are separate, and positions are offset",
        "llama" | "mistral" | "qwen2" | "qwen3" | "gemma" | "gemma2" | "gemma3" | "phi3" | "olmo" | "olmo2" => {
            "positions are rotations, norms are RMS, and the MLP is gated"
        }
        "nanochat" => "positions are rotations, norms have no weights, and the MLP is squared ReLU without biases",
        _ => "only models of type `gpt2` are served",
    }
}

/// The first of `names` that is present and not null, as a positive whole number.
fn size(config: &Value, names: &[&'static str], default: Option<usize>) -> Result<usize, GeometryError> {
    /// No GPT-2 has a dimension near this; a larger one is a corrupt file, and products of two stay in 64 bits.
    const LIMIT: u64 = 1 << 24;
    let found = names.iter().find_map(|&name| config.get(name).filter(|v| !v.is_null()).map(|v| (name, v)));
    let wrong = |field, got: String| GeometryError::Field { field, expected: "a whole number from 1 to 16777216", got };
    match (found, default) {
        (Some((name, value)), _) => match value.as_u64() {
            Some(n) if (1..=LIMIT).contains(&n) => Ok(n as usize),
            _ => Err(wrong(name, show(value))),
        },
        (None, Some(default)) => Ok(default),
        (None, None) => Err(wrong(names[0], "nothing".into())),
    }
}

fn flag(config: &Value, field: &'static str, default: bool) -> Result<bool, GeometryError> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(b)) => Ok(*b),
        Some(other) => Err(GeometryError::Field { field, expected: "true or false", got: show(other) }),
    }
}

fn epsilon(config: &Value) -> Result<f32, GeometryError> {
    match config.get("layer_norm_epsilon") {
        None | Some(Value::Null) => Ok(1e-5),
        Some(value) => match value.as_f64() {
            Some(e) if e > 0.0 && e < 1.0 => Ok(e as f32),
            _ => Err(GeometryError::Field {
                field: "layer_norm_epsilon",
                expected: "a number between 0 and 1",
                got: show(value),
            }),
        },
    }
}

fn activation(config: &Value) -> Result<Activation, GeometryError> {
    let name = match config.get("activation_function") {
        None | Some(Value::Null) => "gelu_new",
        Some(Value::String(name)) => name,
        Some(other) => return Err(unknown_activation(show(other))),
    };
    Ok(match name {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "gelu" => Activation::GeluErf,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "relu2" => Activation::Relu2,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        other => return Err(unknown_activation(other.into())),
    })
}

fn unknown_activation(got: String) -> GeometryError {
    GeometryError::Field {
        field: "activation_function",
        expected: "one of gelu_new, gelu_pytorch_tanh, gelu_fast, gelu, quick_gelu, relu, relu2, silu, swish, tanh",
        got,
    }
}

fn token_ids(config: &Value, field: &'static str, default: u32) -> Result<Vec<u32>, GeometryError> {
    let Some(value) = config.get(field) else {
        return Ok(vec![default]);
    };
    let ids = whole_numbers(value).ok_or_else(|| GeometryError::Field {
        field,
        expected: "a token id or a list of them",
        got: show(value),
    })?;
    // How many rows the vocabulary has is not known yet.
    Ok(ids
        .into_iter()
        .filter(|&id| is_known_end("config.json", id, 1 << 32))
        .filter_map(|id| id.try_into().ok())
        .collect())
}

/// A field that holds token ids: none, one or a list of them. Negative ones and too large ones are whole numbers too;
/// those that no integer can hold count as the largest. `None` where it is of another kind.
pub fn whole_numbers(value: &Value) -> Option<Vec<i64>> {
    let one = |value: &Value| value.as_i64().or_else(|| value.as_u64().map(|_| i64::MAX));
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(one).collect(),
        value => Some(vec![one(value)?]),
    }
}

/// Whether an end of text is in a vocabulary of so many tokens; says so where it is not.
pub fn is_known_end(file: &str, id: i64, vocab_size: usize) -> bool {
    let known = usize::try_from(id).is_ok_and(|id| id < vocab_size);
    if !known {
        tracing::warn!("{file}: eos_token_id {id} is not in the model's vocabulary, so no text ends by it");
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_config_is_gpt2_small() {
        let geometry = Geometry::from_config_json("{}").unwrap();
        assert_eq!((geometry.n_embd, geometry.n_head, geometry.n_layer), (768, 12, 12));
        assert_eq!(geometry.parameters(), 124_439_808);
        assert_eq!(geometry.attention_scale(3), 0.125);
    }

    #[test]
    fn what_is_not_gpt2_is_refused_by_name() {
        let error = Geometry::from_config_json(r#"{"model_type":"llama"}"#).unwrap_err().to_string();
        assert!(error.contains("`llama`"), "{error}");
        let error = Geometry::from_config_json(r#"{"n_embd":10,"n_head":3}"#).unwrap_err().to_string();
        assert!(error.contains("10") && error.contains('3'), "{error}");
        for bad in [r#"{"n_layer":0}"#, r#"{"n_layer":-1}"#, r#"{"n_layer":"x"}"#, r#"{"vocab_size":1e30}"#, "[]", "x"]
        {
            assert!(Geometry::from_config_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_geometry_survives_being_written() {
        for text in [
            "{}",
            r#"{"n_embd":30,"n_head":6,"n_inner":77,"activation_function":"relu2","layer_norm_epsilon":0.001,
                "scale_attn_by_inverse_layer_idx":true,"tie_word_embeddings":false,"eos_token_id":[1,2]}"#,
            r#"{"eos_token_id":null,"scale_attn_weights":false,"activation_function":"gelu"}"#,
        ] {
            let geometry = Geometry::from_config_json(text).unwrap();
            assert_eq!(Geometry::from_config_json(&geometry.to_config_json()).unwrap(), geometry);
        }
    }

    #[test]
    fn what_nobody_reads_may_be_infinite_and_what_is_read_is_named() {
        let text = "\u{feff}{\"n_head\": 12, \"some_limit\": Infinity, \"other\": [NaN, 1e999]}";
        assert_eq!(Geometry::from_config_json(text).unwrap(), Geometry::from_config_json("{}").unwrap());
        for field in ["n_embd", "layer_norm_epsilon", "tie_word_embeddings", "activation_function", "eos_token_id"] {
            let error = Geometry::from_config_json(&format!("{{\"{field}\": -Infinity}}")).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")) && error.ends_with("got -Infinity"), "{error}");
        }
    }

    #[test]
    fn ends_that_the_vocabulary_has_not_are_left_out() {
        let ends = |ids: &str| {
            let text = format!(r#"{{"vocab_size": 4096, "eos_token_id": {ids}}}"#);
            let mut geometry = Geometry::from_config_json(&text)?;
            geometry.keep_known_ends();
            Ok::<_, GeometryError>(geometry.eos_token_ids)
        };
        assert_eq!(ends("50256").unwrap(), [0_u32; 0]);
        assert_eq!(ends("[-1, 7, 4095, 4096, 18446744073709551615]").unwrap(), [7, 4095]);
        for wrong in ["1.5", "\"x\"", "[[1]]", "true", "{}"] {
            assert!(ends(wrong).unwrap_err().to_string().contains("`eos_token_id` should be a token id"), "{wrong}");
        }
    }

    #[test]
    fn null_fields_take_the_default_and_eos_may_be_a_list() {
        let geometry =
            Geometry::from_config_json(r#"{"n_inner":null,"n_embd":40,"n_head":5,"eos_token_id":[1,2]}"#).unwrap();
        assert_eq!(geometry.n_inner, 160);
        assert_eq!(geometry.eos_token_ids, [1, 2]);
    }
}
