use super::*;
use crate::model::{
    family::{bare, is_mask},
    parts::{LayerPart, Part, Term},
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
    let error = ModelShape::from_config_json(r#"{"model_type":"llama"}"#).unwrap_err().to_string();
    assert!(error.contains("`llama`"), "{error}");
    let error = ModelShape::from_config_json(r#"{"n_embd":10,"n_head":3}"#).unwrap_err().to_string();
    assert!(error.contains("10") && error.contains('3'), "{error}");
    for bad in [r#"{"n_layer":0}"#, r#"{"n_layer":-1}"#, r#"{"n_layer":"x"}"#, r#"{"vocab_size":1e30}"#, "[]", "x"] {
        assert!(ModelShape::from_config_json(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_shape_survives_being_written() {
    for text in [
        "{}",
        r#"{"n_embd":30,"n_head":6,"n_inner":77,"activation_function":"relu2","layer_norm_epsilon":0.001,
            "scale_attn_by_inverse_layer_idx":true,"tie_word_embeddings":false,"eos_token_id":[1,2]}"#,
        r#"{"eos_token_id":null,"scale_attn_weights":false,"activation_function":"gelu"}"#,
    ] {
        let shape = ModelShape::from_config_json(text).unwrap();
        assert_eq!(ModelShape::from_config_json(&(gpt2::GPT2.write_config)(&shape).to_string()).unwrap(), shape);
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
    let key = gpt2::GPT2.source(&shape, Part::Layer(1, LayerPart::Key, Term::Weight));
    assert_eq!((key.tensor.as_str(), &key.sizes[..], key.columns), ("h.1.attn.c_attn.weight", &[30, 90][..], 30..60));
    let tensors: Vec<_> = gpt2::GPT2.tensors(&shape).collect();
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
    assert!(is_mask("h.3.attn.masked_bias") && !is_mask("h.3.attn.c_attn.bias"));
}
