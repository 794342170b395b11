//! karpathy's nanochat, of every generation: what it trained from October 2025 on, and transformers' port of the first.
//!
//! A checkpoint of its own says sizes only; which generation it is of is read from its tensors, by whoever opens it, and said in the
//! fields that [`write_config`] writes too. transformers has the first generation alone and would compute another model of a later one:
//! those are called otherwise, so that it refuses them.
//! Reference: <https://github.com/karpathy/nanochat>, `nanochat/gpt.py`; `transformers/models/nanochat/configuration_nanochat.py`.

use serde_json::{Value, json};

use super::llama::rotary;
use crate::{
    json::show,
    model::{
        config::{
            ShapeError, as_written, choice, ends_as_written, flag, fraction, number, present, size, sizes, token_ids,
            wrong,
        },
        family::{Family, Names, QkvNames, StreamNames},
        rotary::{Rotary, Rounding},
        shape::{
            Activation, AttentionShape, MlpShape, ModelShape, NormKind, Positions, QkNorm, StreamShape, ValueTables,
        },
    },
};

/// What transformers knows, and what it does not.
const MODEL_TYPES: [&str; 2] = ["nanochat", "nanochat_later"];

pub(super) const NANOCHAT: Family = Family {
    model_types: &MODEL_TYPES,
    read_config,
    write_config,
    namings: &[
        Names {
            written_prefix: "model.",
            embedding: "embed_tokens",
            layers: "layers.",
            qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            attention_output: "self_attn.o_proj",
            up: "mlp.fc1",
            down: "mlp.fc2",
            value_gate: "self_attn.ve_gate",
            ..OWN
        },
        OWN,
    ],
};

const OWN: Names = Names {
    written_prefix: "transformer.",
    embedding: "wte",
    positions: "",
    head: "lm_head",
    final_norm: "",
    layers: "h.",
    attention_norm: "",
    qkv: QkvNames::Separate(["attn.c_q", "attn.c_k", "attn.c_v"]),
    qk_norm: ["", ""],
    value_gate: "attn.ve_gate",
    attention_output: "attn.c_proj",
    mlp_norm: "",
    gate: "",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    stream: Some(StreamNames {
        stream_scales: "resid_lambdas",
        origin_scales: "x0_lambdas",
        smear_gate: "smear_gate.weight",
        smear_scale: "smear_lambda",
        backout_scale: "backout_lambda",
        value_tables: "value_embeds.",
    }),
    biases_may_be_absent: false,
};

/// How sine and cosine are rounded, as configurations of ours say it.
const ROUNDINGS: [(&str, Rounding); 3] =
    [("none", Rounding::None), ("bfloat16", Rounding::Bf16), ("as_computed", Rounding::AsComputed)];

pub(super) fn model_type(shape: &ModelShape) -> &'static str {
    MODEL_TYPES[usize::from(!is_first_generation(shape))]
}

fn is_first_generation(shape: &ModelShape) -> bool {
    let first = StreamShape { normed_embedding: true, ..StreamShape::default() };
    let factor = matches!(shape.attention.qk_norm, QkNorm::Rotated { factor: 1.0 });
    shape.stream == first && shape.value_tables.is_none() && shape.windows.is_empty() && factor
}

fn read_config(config: &Value) -> Result<ModelShape, ShapeError> {
    let width = size(config, &["hidden_size"], 768)?;
    let heads = size(config, &["num_attention_heads"], 6)?;
    let kv_heads = size(config, &["num_key_value_heads"], heads)?;
    let layers = size(config, &["num_hidden_layers"], 12)?;
    for (of, sum, heads_of, heads) in [
        ("num_attention_heads", heads, "num_key_value_heads", kv_heads),
        ("hidden_size", width, "num_attention_heads", heads),
    ] {
        if sum % heads != 0 {
            return Err(ShapeError::NotMultiple { of, sum, heads_of, heads });
        }
    }
    let head_dim = width / heads;
    if head_dim % 2 != 0 {
        return wrong("hidden_size", "heads of an even width, as halves of them are rotated", width.to_string());
    }
    for bias in ["attention_bias", "mlp_bias"] {
        if flag(config, bias, false)? {
            return wrong(bias, "false", "true");
        }
    }
    let context = size(config, &["max_position_embeddings"], 2048)?;
    let windows = sizes(config, "attention_windows")?;
    if !windows.is_empty() && windows.len() != layers {
        return wrong("attention_windows", format!("one for each of {layers} layers"), format!("{}", windows.len()));
    }
    let value_tables = match present(config, "value_gate_channels") {
        None => None,
        Some(_) => Some(ValueTables {
            gate_channels: channels(config, "value_gate_channels", width)?,
            gate_factor: number(config, "value_gate_factor", None)? as f32,
        }),
    };
    let smear = match present(config, "smear_gate_channels") {
        None => None,
        Some(_) => Some(channels(config, "smear_gate_channels", width)?),
    };
    let factor = number(config, "qk_norm_factor", Some(1.0))? as f32;
    let names = || ROUNDINGS.iter().map(|&(name, _)| name);
    let rounding = |name: &str| ROUNDINGS.iter().find(|(known, _)| *known == name).map(|&(_, rounding)| rounding);
    Ok(ModelShape {
        vocab_size: size(config, &["vocab_size"], 50_304)?,
        context,
        width,
        layers,
        mlp: MlpShape {
            inner: size(config, &["intermediate_size"], 8192)?,
            activation: choice(config, "hidden_act", "relu2", Activation::names(), Activation::from_name)?,
            gated: false,
            bias: false,
        },
        norm: NormKind::BareRms,
        norm_epsilon: fraction(config, "rms_norm_eps", 1e-6)?,
        attention: AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scaled_by_width: true,
            scaled_by_layer: false,
            positions: Positions::Rotary(Rotary {
                backwards: true,
                rounding: choice(config, "rotary_rounding", "as_computed", names(), rounding)?,
                ..rotary(config, context)?
            }),
            qk_norm: QkNorm::Rotated { factor },
            qkv_bias: false,
            output_bias: false,
        },
        stream: StreamShape {
            normed_embedding: true,
            lambdas: flag(config, "residual_lambdas", false)?,
            smear,
            backout: flag(config, "backout", false)?,
        },
        windows,
        value_tables,
        tied_head: flag(config, "tie_word_embeddings", false)?,
        logit_softcap: match config.get("final_logit_softcapping") {
            Some(Value::Null) => None,
            _ => Some(number(config, "final_logit_softcapping", Some(15.0))? as f32),
        },
        eos_token_ids: token_ids(config, "eos_token_id", None)?,
    })
}

/// How many channels a gate reads.
fn channels(config: &Value, field: &'static str, width: usize) -> Result<usize, ShapeError> {
    let channels = size(config, &[field], 1)?;
    if channels > width {
        return wrong(field, format!("at most `hidden_size` {width}"), show(&config[field]));
    }
    Ok(channels)
}

fn write_config(shape: &ModelShape) -> Value {
    let AttentionShape { heads, kv_heads, positions, qk_norm, .. } = shape.attention;
    let mut config = json!({
        "model_type": model_type(shape),
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": shape.mlp.activation.name(),
        "rms_norm_eps": as_written(shape.norm_epsilon),
        "final_logit_softcapping": shape.logit_softcap.map(as_written),
        "tie_word_embeddings": shape.tied_head,
        "eos_token_id": ends_as_written(shape),
    });
    if let Positions::Rotary(Rotary { theta, rounding, .. }) = positions {
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": theta});
        let name = ROUNDINGS.iter().find(|(_, known)| *known == rounding).map(|&(name, _)| name);
        config["rotary_rounding"] = name.into();
    }
    if is_first_generation(shape) {
        config["architectures"] = json!(["NanoChatForCausalLM"]);
        return config;
    }
    if let QkNorm::Rotated { factor } = qk_norm {
        config["qk_norm_factor"] = as_written(factor);
    }
    config["residual_lambdas"] = shape.stream.lambdas.into();
    config["smear_gate_channels"] = shape.stream.smear.into();
    config["backout"] = shape.stream.backout.into();
    if let Some(ValueTables { gate_channels, gate_factor }) = shape.value_tables {
        config["value_gate_channels"] = gate_channels.into();
        config["value_gate_factor"] = as_written(gate_factor);
    }
    if !shape.windows.is_empty() {
        config["attention_windows"] = shape.windows.clone().into();
    }
    config
}
