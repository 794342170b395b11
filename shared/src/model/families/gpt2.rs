//! GPT-2 in all its forms: transformers' (Conv1D), nanoGPT's (Linear), without some biases, with a head of its own.
//!
//! Reference: `transformers/models/gpt2/configuration_gpt2.py`.

use serde_json::{Value, json};

use super::gguf::GGUF;
use crate::model::{
    config::{ShapeError, as_written, choice, ends_as_written, flag, fraction, size, token_ids, wrong},
    family::{Family, Names, QkvNames},
    shape::{Activation, AttentionShape, MlpShape, ModelShape, NormKind, Positions, QkNorm, StreamShape},
};

pub(super) const GPT2: Family = Family {
    model_types: &["gpt2"],
    read_config,
    write_config,
    namings: &[
        Names {
            written_prefix: "transformer.",
            embedding: "wte",
            positions: "wpe",
            head: "lm_head",
            final_norm: "ln_f",
            layers: "h.",
            attention_norm: "ln_1",
            qkv: QkvNames::Fused("attn.c_attn"),
            qk_norm: ["", ""],
            attention_output: "attn.c_proj",
            mlp_norm: "ln_2",
            gate: "",
            up: "mlp.c_fc",
            down: "mlp.c_proj",
            value_gate: "",
            stream: None,
            biases_may_be_absent: true,
        },
        Names { qkv: QkvNames::Fused("attn_qkv"), biases_may_be_absent: true, ..GGUF },
    ],
};

fn read_config(config: &Value) -> Result<ModelShape, ShapeError> {
    if flag(config, "add_cross_attention", false)? {
        return wrong("add_cross_attention", "false (an encoder's output is never there)", "true");
    }
    let width = size(config, &["n_embd", "hidden_size"], 768)?;
    let heads = size(config, &["n_head", "num_attention_heads"], 12)?;
    if width % heads != 0 {
        return Err(ShapeError::NotMultiple { of: "n_embd", sum: width, heads_of: "n_head", heads });
    }
    Ok(ModelShape {
        vocab_size: size(config, &["vocab_size"], 50257)?,
        context: size(config, &["n_positions", "max_position_embeddings", "n_ctx"], 1024)?,
        width,
        layers: size(config, &["n_layer", "num_hidden_layers"], 12)?,
        mlp: MlpShape {
            inner: size(config, &["n_inner"], 4 * width)?,
            activation: choice(config, "activation_function", "gelu_new", Activation::names(), Activation::from_name)?,
            gated: false,
            bias: true,
        },
        norm: NormKind::Layer,
        norm_epsilon: fraction(config, "layer_norm_epsilon", 1e-5)?,
        attention: AttentionShape {
            heads,
            kv_heads: heads,
            head_dim: width / heads,
            scaled_by_width: flag(config, "scale_attn_weights", true)?,
            scaled_by_layer: flag(config, "scale_attn_by_inverse_layer_idx", false)?,
            positions: Positions::Learned,
            qk_norm: QkNorm::None,
            qkv_bias: true,
            output_bias: true,
        },
        stream: StreamShape::default(),
        windows: Vec::new(),
        value_tables: None,
        tied_head: flag(config, "tie_word_embeddings", true)?,
        logit_softcap: None,
        eos_token_ids: token_ids(config, "eos_token_id", Some(50256))?,
    })
}

fn write_config(shape: &ModelShape) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": shape.vocab_size,
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.attention.heads,
        "n_inner": shape.mlp.inner,
        "activation_function": shape.mlp.activation.name(),
        "layer_norm_epsilon": as_written(shape.norm_epsilon),
        "scale_attn_weights": shape.attention.scaled_by_width,
        "scale_attn_by_inverse_layer_idx": shape.attention.scaled_by_layer,
        "tie_word_embeddings": shape.tied_head,
        "bos_token_id": shape.eos_token_ids.first(),
        "eos_token_id": ends_as_written(shape),
    })
}
