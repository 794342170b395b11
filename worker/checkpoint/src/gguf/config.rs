//! What the keys of a GGUF say of a model, as the text of the `config.json` that says the same, and what its file has otherwise
//! than Hugging Face's: heads of queries and keys whose rows stand as pairs.
//!
//! Knows keys; of tensors only the one that stands for a key. What the server does not compute is refused by name.
//! Reference: llama.cpp, `convert_hf_to_gguf.py`, `gguf-py/gguf/constants.py`, `src/llama-model.cpp`.

use nanoinfer_shared::model::family::{Names, QkvNames};
use serde_json::{Map, Value as Json, json};

use super::{GgufError, Header};

/// Architectures that are read, and which model type each is.
const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gpt2"];
/// Its queries and keys stand as pairs, since llama.cpp rotates neighbours there; those of others as halves.
const PAIRED: &str = "llama";
/// Behind the architecture: what no model that is served has, unless it is 0.
const NOT_SERVED: [(&str, &str); 8] = [
    ("expert_count", "a mixture of experts"),
    ("attention.clamp_kqv", "attention with clamped queries, keys and values"),
    ("attention.scale", "attention with a scale of its own"),
    ("attn_logit_softcapping", "attention with capped scores"),
    ("final_logit_softcapping", "a model with capped logits"),
    ("logit_scale", "a model with scaled logits"),
    ("embedding_scale", "a model with scaled embeddings"),
    ("residual_scale", "a model with scaled residuals"),
];
/// Keys of tokens that end a text.
const ENDS: [&str; 3] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// What the angles of rotation are divided by, one by one.
const DIVISORS: &str = "rope_freqs.weight";

/// The scaling of rotations of Llama 3.1 and later, but for its factor: wave lengths from 8192 / 4 to 8192 / 1 are in between.
const LLAMA3: (f64, f64, f64) = (8192.0, 1.0, 4.0);
/// How far a divisor may be from that, relatively: they were computed in f32.
const DIVISOR_TOLERANCE: f64 = 1e-4;

/// What there is of tensors, in all parts of a model.
pub(crate) struct Tensors<'a> {
    pub(crate) names: &'static Names,
    pub(crate) sizes: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    pub(crate) vector: &'a dyn Fn(&str) -> Option<Vec<f32>>,
}

/// What a file says of its model.
#[derive(Debug)]
pub(crate) struct Description {
    /// The text of a `config.json`.
    pub(crate) config: String,
    /// Width of heads whose rows stand as pairs, and what their tensors are called in a block.
    paired: Option<(usize, [&'static str; 2])>,
}

impl Description {
    pub(crate) fn read(header: &Header<'_>, tensors: &Tensors<'_>) -> Result<Self, GgufError> {
        let architecture =
            header.text("general.architecture")?.ok_or("it does not say `general.architecture`".to_owned())?;
        if !ARCHITECTURES.contains(&architecture) {
            let (architecture, known) = (super::shown(architecture), ARCHITECTURES.join(", "));
            return Err(GgufError::NotServed(format!(
                "it is a model of architecture {architecture}; {known} are read"
            )));
        }
        let keys = Keys { header, architecture };
        for (key, what) in NOT_SERVED {
            if keys.number(key)?.is_some_and(|number| number != 0.0) {
                return Err(GgufError::NotServed(format!(
                    "it is {what} (key `{architecture}.{key}`), which is not served"
                )));
            }
        }
        let context = keys.size("context_length")?;
        if let Some(window) = keys.optional_size("attention.sliding_window")?.filter(|&window| window < context) {
            let reason = format!("its tokens attend to {window} others only, of {context}, which is not served");
            return Err(GgufError::NotServed(reason));
        }
        let names = tensors.names;
        let has = |name: String| (tensors.sizes)(&name).is_some();
        let embedding = format!("{}.weight", names.embedding);
        let Some(&[vocabulary, _]) = (tensors.sizes)(&embedding).as_deref() else {
            return Err(format!("it has no tensor `{embedding}`, or it is no matrix").into());
        };
        let mut config = Map::new();
        let mut set = |field: &str, value: Json| drop(config.insert(field.to_owned(), value));
        set("model_type", architecture.into());
        set("vocab_size", vocabulary.into());
        set("tie_word_embeddings", (!has(format!("{}.weight", names.head))).into());
        set("bos_token_id", header.unsigned("tokenizer.ggml.bos_token_id")?.into());
        let mut ends = ENDS.iter().filter_map(|key| header.unsigned(key).transpose()).collect::<Result<Vec<_>, _>>()?;
        ends.dedup();
        set("eos_token_id", if let [one] = ends[..] { one.into() } else { ends.into() });
        let (width, layers) = (keys.size("embedding_length")?, keys.size("block_count")?);
        let (heads, inner) = (keys.size("attention.head_count")?, keys.size("feed_forward_length")?);
        if heads == 0 {
            return Err(format!("key `{architecture}.attention.head_count` is 0").into());
        }
        if architecture == "gpt2" {
            set("n_positions", context.into());
            set("n_embd", width.into());
            set("n_layer", layers.into());
            set("n_head", heads.into());
            set("n_inner", inner.into());
            set("activation_function", "gelu_new".into());
            set("layer_norm_epsilon", keys.decimal("attention.layer_norm_epsilon", None)?);
            return Ok(Self { config: Json::Object(config).to_string(), paired: None });
        }
        let QkvNames::Separate([query, key, _]) = names.qkv else {
            let reason = format!("its queries have no tensor of their own, which is not served of a {architecture}");
            return Err(GgufError::NotServed(reason));
        };
        let head_dim = keys.optional_size("attention.key_length")?.unwrap_or(width / heads);
        for part in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = keys.optional_size(part)?.filter(|&other| other != head_dim) {
                let reason = format!(
                    "its heads are {head_dim} wide, and `{architecture}.{part}` is {other}, which is not served"
                );
                return Err(GgufError::NotServed(reason));
            }
        }
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(format!("its heads are {head_dim} wide, which is no number of pairs").into());
        }
        set("max_position_embeddings", context.into());
        set("hidden_size", width.into());
        set("intermediate_size", inner.into());
        set("num_hidden_layers", layers.into());
        set("num_attention_heads", heads.into());
        set("num_key_value_heads", keys.optional_size("attention.head_count_kv")?.unwrap_or(heads).into());
        set("head_dim", head_dim.into());
        set("hidden_act", "silu".into());
        set("rms_norm_eps", keys.decimal("attention.layer_norm_rms_epsilon", None)?);
        set("attention_bias", has(format!("{}0.{query}.bias", names.layers)).into());
        set("mlp_bias", has(format!("{}0.{}.bias", names.layers, names.up)).into());
        set("use_sliding_window", false.into());
        set("rope_theta", keys.decimal("rope.freq_base", Some(10_000.0))?);
        set("rope_scaling", keys.scaling(head_dim, (tensors.vector)(DIVISORS))?);
        let paired = (architecture == PAIRED).then_some((head_dim, [query, key]));
        Ok(Self { config: Json::Object(config).to_string(), paired })
    }

    /// Width of the heads of a tensor whose rows stand as pairs, by what it is called in its block, and how many rows it has.
    pub(crate) fn paired(&self, name: &str, rows: usize) -> Option<usize> {
        let (head, names) = self.paired?;
        let is_rotated = name.rsplit_once('.').is_some_and(|(part, _)| names.contains(&part));
        (is_rotated && rows.is_multiple_of(head)).then_some(head)
    }
}

/// Keys of an architecture.
struct Keys<'a> {
    header: &'a Header<'a>,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        self.optional_size(key)?.ok_or_else(|| format!("it has no key `{}`", self.name(key)))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, String> {
        self.header.unsigned(&self.name(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.header.number(&self.name(key))
    }

    /// A number as it was before it became an f32: 1e-5, not 9.999999747378752e-6.
    fn decimal(&self, key: &str, default: Option<f64>) -> Result<Json, String> {
        let number = self.number(key)?.or(default).ok_or_else(|| format!("it has no key `{}`", self.name(key)))?;
        Ok(decimal(number).into())
    }

    /// How rotations are scaled, as `rope_scaling` of a configuration; null where they are not.
    fn scaling(&self, head_dim: usize, divisors: Option<Vec<f32>>) -> Result<Json, GgufError> {
        let key = "rope.scaling.type";
        let kind = self.header.text(&self.name(key))?.filter(|kind| *kind != "none");
        let factor = self.number("rope.scaling.factor")?.map(decimal);
        let original = self.optional_size("rope.scaling.original_context_length")?;
        if let Some(divisors) = divisors {
            let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
            return llama3_scaling(&divisors, head_dim, theta).filter(|_| kind.is_none()).ok_or_else(|| {
                GgufError::NotServed(format!("its rotations are scaled (tensor `{DIVISORS}`), not as those of Llama 3"))
            });
        }
        match kind {
            None => Ok(Json::Null),
            Some("linear") => Ok(json!({"rope_type": "linear", "factor": factor.unwrap_or(1.0)})),
            Some("yarn") => {
                let original = original.map_or(Json::Null, Json::from);
                Ok(json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}))
            }
            Some(other) => {
                let (other, name) = (super::shown(other), self.name(key));
                Err(GgufError::NotServed(format!(
                    "its rotations are scaled by `{other}` (key `{name}`), which is not served"
                )))
            }
        }
    }
}

fn decimal(number: f64) -> f64 {
    (number as f32).to_string().parse().unwrap_or(number)
}

/// The scaling of Llama 3 by which these divisors were made. Its factor is the last of them, where waves are longest; the rest of
/// it is the same in all that there are, and every divisor is compared.
pub(super) fn llama3_scaling(divisors: &[f32], head_dim: usize, theta: f64) -> Option<Json> {
    let (original, low, high) = LLAMA3;
    let factor = f64::from(*divisors.last()?);
    let expected = |i: usize| {
        let frequency = theta.powf(-(2.0 * i as f64) / head_dim as f64);
        let waves = original * frequency / std::f64::consts::TAU;
        let smooth = ((waves - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let fits = |(i, &divisor): (usize, &f32)| (f64::from(divisor) / expected(i) - 1.0).abs() < DIVISOR_TOLERANCE;
    (divisors.len() == head_dim / 2 && factor >= 1.0 && divisors.iter().enumerate().all(fits)).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original as usize,
        })
    })
}
