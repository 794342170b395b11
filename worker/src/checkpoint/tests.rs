use std::io::Write;

use super::*;

type Tensors = Vec<(String, Dtype, Vec<usize>)>;

fn write(dir: &Path, tensors: &[(String, Dtype, Vec<usize>)]) -> PathBuf {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8])
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let path = dir.join("model.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

fn geometry() -> Geometry {
    Geometry::from_config_json(
        r#"{"n_layer":2,"n_embd":4,"n_head":2,"n_inner":6,"vocab_size":7,"n_positions":5,"tie_word_embeddings":true}"#,
    )
    .unwrap()
}

fn whole() -> Tensors {
    names::expected(&geometry()).map(|(name, shape)| (name, Dtype::F16, shape)).collect()
}

/// What opening and checking say of these tensors.
fn verdict(tensors: &[(String, Dtype, Vec<usize>)]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), tensors);
    Checkpoint::open(&[path]).and_then(|c| c.check(&geometry())).map_err(|e| e.to_string())
}

#[test]
fn what_does_not_fit_the_configuration_is_named() {
    let all = whole();
    verdict(&all).unwrap();
    let error = verdict(&all[1..]).unwrap_err();
    assert!(error.contains(&all[0].0), "{error}");
    let mut misshapen = all.clone();
    misshapen[6].2[1] += 1;
    let error = verdict(&misshapen).unwrap_err();
    assert!(error.contains(&misshapen[6].0) && error.contains("13") && error.contains("12"), "{error}");
    let mut integers = all.clone();
    integers[3].1 = Dtype::I64;
    assert!(verdict(&integers).unwrap_err().contains("I64"));
    let with = |name: &str| [&all[..], &[(name.to_owned(), Dtype::F32, vec![4])]].concat();
    assert!(verdict(&with("h.2.ln_1.weight")).unwrap_err().contains("n_layer 2"));
    assert!(verdict(&with("h.1.crossattention.q_attn.bias")).unwrap_err().contains("no place"));
    assert!(verdict(&with("transformer.wte.weight")).unwrap_err().contains("twice"));
    verdict(&with("multiple_choice_head.summary.bias")).unwrap();
    verdict(&with("transformer.h.0.attn.bias")).unwrap();
}

#[test]
fn a_file_of_another_kind_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (text, part) in [
        (&b"GGUF\x03\0\0\0"[..], "a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        (b"GGML", "is not a complete checkpoint"),
    ] {
        let path = dir.path().join("model.bin");
        std::fs::write(&path, text).unwrap();
        let error = Checkpoint::open(&[path]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_bias_may_be_left_out_in_all_layers_only() {
    let without = |part: &str| -> Tensors { whole().into_iter().filter(|(name, ..)| !name.ends_with(part)).collect() };
    verdict(&without(".bias")).unwrap();
    verdict(&without("mlp.c_fc.bias")).unwrap();
    assert!(verdict(&without("h.1.mlp.c_fc.bias")).unwrap_err().contains("h.1.mlp.c_fc.bias"));
    assert!(verdict(&without("ln_1.weight")).unwrap_err().contains("h.0.ln_1.weight"));
}

#[test]
fn other_architectures_are_refused_by_name_with_the_reason() {
    let one = |name: &str, shape: &[usize]| {
        let tensors = [("wte.weight", vec![7, 4]), (name, shape.to_vec())];
        verdict(&tensors.map(|(name, shape)| (name.to_owned(), Dtype::F32, shape))).unwrap_err()
    };
    for (tensor, family, why) in [
        ("transformer.h.0.attn.attention.q_proj.weight", "GPT-Neo", "256"),
        ("model.layers.0.self_attn.q_proj.weight", "Llama", "rotations"),
        ("_orig_mod.transformer.h.0.attn.c_q.weight", "nanochat", "rotations"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", "GPT-NeoX", "positions"),
        ("transformer.h.0.attn.q_proj.weight", "GPT-J", "side by side"),
    ] {
        let error = one(tensor, &[4, 4]);
        assert!(error.contains(family) && error.contains(why), "{error}");
    }
    // n_embd 4, one pair of keys and values of width 2: 4 + 2 · 2 rows.
    let error = one("transformer.h.0.attn.c_attn.weight", &[8, 4]);
    assert!(error.contains("gpt_bigcode"), "{error}");
}

#[test]
fn names_lose_what_programs_put_before_them() {
    for name in
        ["wte.weight", "transformer.wte.weight", "module._orig_mod.transformer.wte.weight", "_orig_mod.wte.weight"]
    {
        assert_eq!(names::bare(name), "wte.weight");
    }
    assert!(names::is_mask("h.3.attn.masked_bias") && !names::is_mask("h.3.attn.c_attn.bias"));
}

#[test]
fn a_file_cut_short_or_foreign_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &[("wte.weight".into(), Dtype::F32, vec![10, 4])]);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 4, 8, 20, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = Checkpoint::open(std::slice::from_ref(&path)).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
    File::create(&path).unwrap().write_all(&[255; 64]).unwrap();
    assert!(Checkpoint::open(&[path]).is_err());
    assert!(Checkpoint::open(&[dir.path().join("absent")]).unwrap_err().to_string().contains("absent"));
}
