use super::*;
use crate::model::{
    family::{bare, is_buffer},
    parts::{LayerPart, Part, Term},
    unserved::NotServed,
};

#[test]
fn an_empty_config_is_gpt2_small() {
    let shape = ModelShape::from_config_json("{}").unwrap();
    assert_eq!((shape.width, shape.attention.heads, shape.layers), (768, 12, 12));
    assert_eq!(shape.parameters(), 124_439_808);
    assert_eq!(shape.attention.scale(3), 0.125);
}

#[test]
fn what_is_not_gpt2_is_refused_by_name() {
    let error = ModelShape::from_config_json(r#"{"model_type":"gemma2"}"#).unwrap_err().to_string();
    assert!(error.contains("`gemma2`"), "{error}");
    let error = ModelShape::from_config_json(r#"{"n_embd":10,"n_head":3}"#).unwrap_err().to_string();
    assert!(error.contains("10") && error.contains('3'), "{error}");
    for bad in [r#"{"n_layer":0}"#, r#"{"n_layer":-1}"#, r#"{"n_layer":"x"}"#, r#"{"vocab_size":1e30}"#, "[]", "x"] {
        assert!(ModelShape::from_config_json(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_other_programs_quantised_is_refused_by_the_tensor_that_tells() {
    for (tensor, what) in [
        ("qweight", "GPTQ- or AWQ"),
        ("weight.absmax", "bitsandbytes"),
        ("SCB", "bitsandbytes"),
        ("weight_scale_inv", "FP8"),
        ("scales", "MLX"),
    ] {
        let tensor = format!("layers.0.self_attn.q_proj.{tensor}");
        let error = NotServed::by_tensor(&tensor).unwrap().to_string();
        assert!(error.contains(what) && error.contains(&tensor) && error.contains("hint: "), "{error}");
    }
    assert_eq!(NotServed::by_tensor("layers.0.self_attn.q_proj.weight"), None);
}

#[test]
fn a_shape_survives_being_written() {
    for text in [
        "{}",
        r#"{"n_embd":30,"n_head":6,"n_inner":77,"activation_function":"relu2","layer_norm_epsilon":0.001,
            "scale_attn_by_inverse_layer_idx":true,"tie_word_embeddings":false,"eos_token_id":[1,2]}"#,
        r#"{"eos_token_id":null,"scale_attn_weights":false,"activation_function":"gelu"}"#,
        r#"{"model_type":"llama","num_key_value_heads":4,"mlp_bias":true,"attention_bias":true,"rope_theta":500000,"rope_scaling":
            {"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192}}"#,
        r#"{"model_type":"mistral","sliding_window":null,"rope_parameters":{"rope_type":"linear","rope_theta":1e6,"factor":2.5}}"#,
        r#"{"model_type":"qwen2","hidden_size":896,"num_attention_heads":14,"num_key_value_heads":2,"tie_word_embeddings":true,
            "rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":8192}}"#,
        r#"{"model_type":"qwen3","eos_token_id":151645}"#,
    ] {
        let shape = ModelShape::from_config_json(text).unwrap();
        let family = FAMILIES.iter().find(|family| family.model_types.contains(&shape.model_type())).unwrap();
        assert_eq!(ModelShape::from_config_json(&(family.write_config)(&shape).to_string()).unwrap(), shape);
    }
}

#[test]
fn llama_and_its_like_are_told_by_their_configuration() {
    let read = |text: &str| ModelShape::from_config_json(text);
    let smollm2 = read(
        r#"{"model_type":"llama","vocab_size":49152,"hidden_size":576,"num_hidden_layers":30,"num_attention_heads":9,
            "num_key_value_heads":3,"intermediate_size":1536,"max_position_embeddings":8192,"rms_norm_eps":1e-05,
            "rope_theta":100000,"tie_word_embeddings":true,"eos_token_id":2}"#,
    )
    .unwrap();
    assert_eq!(smollm2.parameters(), 134_515_008);
    assert_eq!((smollm2.attention.kv_heads, smollm2.attention.head_dim, smollm2.model_type()), (3, 64, "llama"));
    let qwen3 =
        read(r#"{"model_type":"qwen3","hidden_size":1024,"num_attention_heads":16,"num_key_value_heads":8}"#).unwrap();
    assert_eq!(
        (qwen3.attention.head_dim, qwen3.attention.qk_norm, qwen3.attention.qkv_bias),
        (128, QkNorm::Gains, false)
    );
    assert!(
        read(r#"{"model_type":"qwen2","sliding_window":1024}"#).unwrap().attention.qkv_bias,
        "a window that is not used"
    );

    for (text, field) in [
        (r#"{"model_type":"mistral"}"#, "sliding_window"),
        (r#"{"model_type":"qwen2","use_sliding_window":true}"#, "sliding_window"),
        (r#"{"model_type":"llama","rope_scaling":{"rope_type":"dynamic","factor":2}}"#, "rope_type"),
        (r#"{"model_type":"llama","rope_scaling":{"rope_type":"linear"}}"#, "factor"),
        (r#"{"model_type":"llama","rope_scaling":7}"#, "rope_scaling"),
        (r#"{"model_type":"llama","partial_rotary_factor":0.5}"#, "partial_rotary_factor"),
        (r#"{"model_type":"llama","num_key_value_heads":5}"#, "num_key_value_heads"),
        (r#"{"model_type":"llama","head_dim":33}"#, "head_dim"),
        (r#"{"model_type":"llama","rope_theta":-1}"#, "rope_theta"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(field), "{text}: {error}");
    }
}

#[test]
fn what_nobody_reads_may_be_infinite_and_what_is_read_is_named() {
    let text = "\u{feff}{\"n_head\": 12, \"some_limit\": Infinity, \"other\": [NaN, 1e999]}";
    assert_eq!(ModelShape::from_config_json(text).unwrap(), ModelShape::from_config_json("{}").unwrap());
    for field in ["n_embd", "layer_norm_epsilon", "tie_word_embeddings", "activation_function", "eos_token_id"] {
        let error = ModelShape::from_config_json(&format!("{{\"{field}\": -Infinity}}")).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")) && error.ends_with("got -Infinity"), "{error}");
    }
}

#[test]
fn ends_that_the_vocabulary_has_not_are_left_out() {
    let ends = |ids: &str| {
        let text = format!(r#"{{"vocab_size": 4096, "eos_token_id": {ids}}}"#);
        let mut shape = ModelShape::from_config_json(&text)?;
        shape.keep_known_ends();
        Ok::<_, ShapeError>(shape.eos_token_ids)
    };
    assert_eq!(ends("50256").unwrap(), [0_u32; 0]);
    assert_eq!(ends("[-1, 7, 4095, 4096, 18446744073709551615]").unwrap(), [7, 4095]);
    for wrong in ["1.5", "\"x\"", "[[1]]", "true", "{}"] {
        assert!(ends(wrong).unwrap_err().to_string().contains("`eos_token_id` should be a token id"), "{wrong}");
    }
}

#[test]
fn null_fields_take_the_default_and_eos_may_be_a_list() {
    let shape =
        ModelShape::from_config_json(r#"{"n_inner":null,"n_embd":40,"n_head":5,"eos_token_id":[1,2]}"#).unwrap();
    assert_eq!(shape.mlp.inner, 160);
    assert_eq!(shape.eos_token_ids, [1, 2]);
}

#[test]
fn a_part_is_columns_of_a_tensor_and_all_parts_cover_all_tensors() {
    let shape =
        ModelShape::from_config_json(r#"{"n_embd":30,"n_head":6,"n_layer":2,"tie_word_embeddings":false}"#).unwrap();
    let key = gpt2::GPT2.namings[0].source(&shape, Part::Layer(1, LayerPart::Key, Term::Weight));
    assert_eq!((key.tensor.as_str(), &key.sizes[..], key.columns), ("h.1.attn.c_attn.weight", &[30, 90][..], 30..60));
    let tensors: Vec<_> = gpt2::GPT2.namings[0].tensors(&shape).collect();
    assert_eq!(tensors.len(), 5 + 2 * 12);
    assert_eq!(tensors.iter().map(|tensor| tensor.sizes.iter().product::<usize>()).sum::<usize>(), shape.parameters());
}

#[test]
fn names_lose_what_programs_put_before_them() {
    for name in
        ["wte.weight", "transformer.wte.weight", "module._orig_mod.transformer.wte.weight", "_orig_mod.wte.weight"]
    {
        assert_eq!(bare(name), "wte.weight");
    }
    assert!(is_buffer("h.3.attn.masked_bias") && !is_buffer("h.3.attn.c_attn.bias"));
}

#[test]
fn a_token_is_multiplied_with_the_matrices_of_blocks_and_not_with_tables() {
    let gpt2 = ModelShape::from_config_json("{}").unwrap();
    assert_eq!(gpt2.multiplied_in_blocks(), 12 * 12 * 768 * 768);
    let nanochat = r#"{"model_type":"nanochat_later","hidden_size":64,"intermediate_size":256,"num_hidden_layers":3,"num_attention_heads":4,
        "vocab_size":100,"residual_lambdas":true,"value_gate_channels":12,"value_gate_factor":3.0}"#;
    let shape = ModelShape::from_config_json(nanochat).unwrap();
    assert_eq!(shape.multiplied_in_blocks(), 3 * 12 * 64 * 64);
    // Embedding and head, two tables with their gates, two numbers a block.
    assert_eq!(shape.parameters(), shape.multiplied_in_blocks() + 2 * 6400 + 2 * (6400 + 12 * 4) + 6);
}
