//! Llama and its like: Llama 2 and 3, SmolLM2, TinyLlama, Mistral without its window, Qwen2 and 2.5, Qwen3.
//!
//! One pass: they differ in biases (Qwen2), norms of heads (Qwen3) and defaults. What one of them does that is not served is
//! refused by the field that asks for it.
//! Reference: `transformers/models/{llama,mistral,qwen2,qwen3}/configuration_*.py`, `transformers/modeling_rope_utils.py`.

use serde_json::{Map, Value, json};

use super::gguf::GGUF;
use crate::{
    json::show,
    model::{
        config::{
            ShapeError, as_written, choice, ends_as_written, flag, fraction, number, present, size, token_ids, wrong,
        },
        family::{Family, Names, QkvNames},
        rotary::{Rotary, RotaryScaling, Rounding},
        shape::{Activation, AttentionShape, MlpShape, ModelShape, NormKind, Positions, QkNorm, StreamShape},
    },
};

pub(super) const LLAMA: Family = Family {
    model_types: &["llama", "mistral", "qwen2", "qwen3"],
    read_config,
    write_config,
    namings: &[
        Names {
            written_prefix: "model.",
            embedding: "embed_tokens",
            positions: "",
            head: "lm_head",
            final_norm: "norm",
            layers: "layers.",
            attention_norm: "input_layernorm",
            qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
            attention_output: "self_attn.o_proj",
            mlp_norm: "post_attention_layernorm",
            gate: "mlp.gate_proj",
            up: "mlp.up_proj",
            down: "mlp.down_proj",
            value_gate: "",
            stream: None,
            biases_may_be_absent: false,
        },
        GGUF,
    ],
};

/// What a configuration leaves out, by its type.
struct Defaults {
    vocab_size: usize,
    inner: usize,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    context: usize,
    ends: Option<u32>,
    sliding_window: Option<usize>,
}

fn defaults(model_type: &str) -> Defaults {
    let qwen = Defaults {
        vocab_size: 151_936,
        inner: 22_016,
        kv_heads: Some(32),
        head_dim: None,
        context: 32_768,
        ends: None,
        sliding_window: Some(4096),
    };
    match model_type {
        "qwen3" => Defaults { head_dim: Some(128), ..qwen },
        "qwen2" => qwen,
        "mistral" => Defaults {
            vocab_size: 32_000,
            inner: 14_336,
            kv_heads: Some(8),
            head_dim: None,
            context: 131_072,
            ends: Some(2),
            sliding_window: Some(4096),
        },
        _ => Defaults {
            vocab_size: 32_000,
            inner: 11_008,
            kv_heads: None,
            head_dim: None,
            context: 2048,
            ends: Some(2),
            sliding_window: None,
        },
    }
}

fn read_config(config: &Value) -> Result<ModelShape, ShapeError> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let defaults = defaults(model_type);
    let width = size(config, &["hidden_size"], 4096)?;
    let heads = size(config, &["num_attention_heads"], 32)?;
    // Left out it has the type's default; null means one for each query head.
    let kv_default = if config.get("num_key_value_heads").is_some() { None } else { defaults.kv_heads };
    let kv_heads = size(config, &["num_key_value_heads"], kv_default.unwrap_or(heads))?;
    if heads % kv_heads != 0 {
        let (of, heads_of) = ("num_attention_heads", "num_key_value_heads");
        return Err(ShapeError::NotMultiple { of, sum: heads, heads_of, heads: kv_heads });
    }
    let head_default = if config.get("head_dim").is_some() { None } else { defaults.head_dim };
    let head_dim = size(config, &["head_dim"], head_default.unwrap_or(width / heads))?;
    if present(config, "head_dim").is_none() && head_default.is_none() && width % heads != 0 {
        let (of, heads_of) = ("hidden_size", "num_attention_heads");
        return Err(ShapeError::NotMultiple { of, sum: width, heads_of, heads });
    }
    if head_dim % 2 != 0 {
        return wrong("head_dim", "an even number, as halves of it are rotated", head_dim.to_string());
    }
    let context = size(config, &["max_position_embeddings"], defaults.context)?;
    refuse_windows(config, model_type, defaults.sliding_window, context)?;
    let output_bias = ["llama", "qwen3"].contains(&model_type) && flag(config, "attention_bias", false)?;
    Ok(ModelShape {
        vocab_size: size(config, &["vocab_size"], defaults.vocab_size)?,
        context,
        width,
        layers: size(config, &["num_hidden_layers"], 32)?,
        mlp: MlpShape {
            inner: size(config, &["intermediate_size"], defaults.inner)?,
            activation: choice(config, "hidden_act", "silu", Activation::names(), Activation::from_name)?,
            gated: true,
            bias: model_type == "llama" && flag(config, "mlp_bias", false)?,
        },
        norm: NormKind::Rms,
        norm_epsilon: fraction(config, "rms_norm_eps", 1e-6)?,
        attention: AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scaled_by_width: true,
            scaled_by_layer: false,
            positions: Positions::Rotary(rotary(config, context)?),
            qk_norm: if model_type == "qwen3" { QkNorm::Gains } else { QkNorm::None },
            qkv_bias: output_bias || model_type == "qwen2",
            output_bias,
        },
        stream: StreamShape::default(),
        windows: Vec::new(),
        value_tables: None,
        tied_head: flag(config, "tie_word_embeddings", false)?,
        logit_softcap: None,
        eos_token_ids: token_ids(config, "eos_token_id", defaults.ends)?,
    })
}

/// Attention that forgets is not served, where it would forget anything.
fn refuse_windows(config: &Value, model_type: &str, default: Option<usize>, context: usize) -> Result<(), ShapeError> {
    let Some(default) = default else { return Ok(()) };
    if model_type != "mistral" && !flag(config, "use_sliding_window", false)? {
        return Ok(());
    }
    if config.get("sliding_window").is_some_and(Value::is_null) {
        return Ok(());
    }
    let window = size(config, &["sliding_window"], default)?;
    if window >= context {
        return Ok(());
    }
    let expected = format!("null, or the {context} of `max_position_embeddings`: attention to a window is not served");
    wrong("sliding_window", expected, window.to_string())
}

/// `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of 4.
pub(super) fn rotary(config: &Value, context: usize) -> Result<Rotary, ShapeError> {
    let nothing = Value::Object(Map::new());
    let scaling = present(config, "rope_parameters").or_else(|| present(config, "rope_scaling")).unwrap_or(&nothing);
    if !scaling.is_object() {
        return wrong("rope_scaling", "an object", show(scaling));
    }
    // Version 5 has it inside, version 4 beside.
    let theta = number(scaling, "rope_theta", Some(number(config, "rope_theta", Some(10_000.0))?))?;
    for outside in [scaling, config] {
        if present(outside, "partial_rotary_factor").is_some_and(|factor| factor.as_f64() != Some(1.0)) {
            return wrong("partial_rotary_factor", "1", show(&outside["partial_rotary_factor"]));
        }
    }
    let kind = present(scaling, "rope_type").or_else(|| present(scaling, "type"));
    let factor = || number(scaling, "factor", None);
    let original = |default| number(scaling, "original_max_position_embeddings", default);
    let scaling = match kind.map_or(Some("default"), Value::as_str) {
        Some("default") => RotaryScaling::None,
        Some("linear") => RotaryScaling::Linear { factor: factor()? },
        Some("llama3") => RotaryScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: number(scaling, "low_freq_factor", None)?,
            high_freq_factor: number(scaling, "high_freq_factor", None)?,
            original_context: original(None)?,
        },
        Some("yarn") => {
            let factor = factor()?;
            RotaryScaling::Yarn {
                factor,
                original_context: original(Some(context as f64))?,
                beta_fast: number(scaling, "beta_fast", Some(32.0))?,
                beta_slow: number(scaling, "beta_slow", Some(1.0))?,
                truncate: flag(scaling, "truncate", true)?,
                attention_factor: yarn_attention_factor(scaling, factor)? as f32,
            }
        }
        _ => {
            let got = kind.map_or_else(String::new, show);
            return wrong("rope_type", "one of default, linear, llama3, yarn", got);
        }
    };
    Ok(Rotary { theta, scaling, backwards: false, rounding: Rounding::None })
}

fn yarn_attention_factor(scaling: &Value, factor: f64) -> Result<f64, ShapeError> {
    let magnitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let default = match ["mscale", "mscale_all_dim"].map(|name| present(scaling, name).and_then(Value::as_f64)) {
        [Some(m), Some(all)] if m != 0.0 && all != 0.0 => magnitude(m) / magnitude(all),
        _ => magnitude(1.0),
    };
    number(scaling, "attention_factor", Some(default))
}

fn write_config(shape: &ModelShape) -> Value {
    let AttentionShape { heads, kv_heads, head_dim, positions, output_bias, .. } = shape.attention;
    let model_type = shape.model_type();
    let architecture = match model_type {
        "qwen3" => "Qwen3ForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        _ => "LlamaForCausalLM",
    };
    let mut config = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": shape.mlp.inner,
        "hidden_act": shape.mlp.activation.name(),
        "rms_norm_eps": as_written(shape.norm_epsilon),
        "tie_word_embeddings": shape.tied_head,
        "eos_token_id": ends_as_written(shape),
    });
    if model_type != "qwen2" {
        config["attention_bias"] = output_bias.into();
    }
    if model_type == "llama" {
        config["mlp_bias"] = shape.mlp.bias.into();
    }
    if let Positions::Rotary(Rotary { theta, scaling, .. }) = positions {
        config["rope_theta"] = theta.into();
        config["rope_scaling"] = match scaling {
            RotaryScaling::None => Value::Null,
            RotaryScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_context as u64,
            }),
            RotaryScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, attention_factor } => {
                json!({
                    "rope_type": "yarn",
                    "factor": factor,
                    "original_max_position_embeddings": original_context as u64,
                    "beta_fast": beta_fast,
                    "beta_slow": beta_slow,
                    "truncate": truncate,
                    "attention_factor": attention_factor,
                })
            }
        };
    }
    config
}
