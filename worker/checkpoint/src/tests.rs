use std::io::Write;

use safetensors::Dtype;

use super::*;

type Tensors = Vec<(String, Dtype, Vec<usize>)>;

fn write(dir: &Path, tensors: &[(String, Dtype, Vec<usize>)]) -> PathBuf {
    write_as(&dir.join("model.safetensors"), tensors, 0)
}

/// With all bytes `byte`.
fn write_as(path: &Path, tensors: &[(String, Dtype, Vec<usize>)], byte: u8) -> PathBuf {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| vec![byte; shape.iter().product::<usize>() * dtype.bitsize() / 8])
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    path.to_owned()
}

fn model_shape() -> ModelShape {
    ModelShape::from_config_json(
        r#"{"n_layer":2,"n_embd":4,"n_head":2,"n_inner":6,"vocab_size":7,"n_positions":5,"tie_word_embeddings":true}"#,
    )
    .unwrap()
}

fn whole() -> Tensors {
    let shape = model_shape();
    let tensors = FAMILIES[0].namings[0].tensors(&shape);
    tensors.map(|tensor| (tensor.tensor, Dtype::F16, tensor.sizes)).collect()
}

/// What opening and checking say of these tensors.
fn verdict(tensors: &[(String, Dtype, Vec<usize>)]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), tensors);
    Checkpoint::open(&[path]).and_then(|c| c.check(&model_shape())).map_err(|e| e.to_string())
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
        (&b"GGML\x03\0\0\0"[..], "before there was GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        (b"GGUF\x03\0\0\0", "it ends within the number of tensors"),
        (b"GGXX", "is not a complete checkpoint"),
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
        ("model.layers.0.post_feedforward_layernorm.weight", "Gemma 2 or 3", "norms"),
        ("_orig_mod.bigram_embed.embed.weight", "nanochat of January 27", "pairs"),
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
fn of_a_generation_of_nanochat_no_tensor_is_too_many_or_too_few() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/nanochat/E/model_000483.pt");
    let original = Checkpoint::open(&[golden]).unwrap();
    let shape = ModelShape::from_config_json(original.config().unwrap()).unwrap();
    original.check(&shape).unwrap();
    let all: Tensors =
        original.tensors().map(|tensor| (tensor.name.to_owned(), Dtype::F32, tensor.shape.to_vec())).collect();
    let verdict = |tensors: &[(String, Dtype, Vec<usize>)]| {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), tensors);
        Checkpoint::open(&[path]).and_then(|checkpoint| checkpoint.check(&shape)).map_err(|error| error.to_string())
    };
    verdict(&all).unwrap();
    for i in 0..all.len() {
        let (mut without, mut wider) = (all.clone(), all.clone());
        let (name, ..) = without.remove(i);
        let error = verdict(&without).unwrap_err();
        // Without its first queries it might as well be a GPT-2, which has not what is lost.
        assert!(error.contains("has no tensor") && (error.contains(&name) || name == "h.0.attn.c_q.weight"), "{error}");
        *wider[i].2.last_mut().unwrap() += 1;
        assert!(verdict(&wider).unwrap_err().contains(&name));
    }
    for name in ["value_embeds.0.weight", "h.0.attn.ve_gate.weight", "ln_f.weight", "h.2.attn.c_q.bias", "odd"] {
        let error = verdict(&[&all[..], &[(name.to_owned(), Dtype::F32, vec![4])]].concat()).unwrap_err();
        assert!(error.contains(name) && error.contains("no place"), "{error}");
    }
}

#[test]
fn a_checkpoint_of_nanochat_without_its_sizes_says_what_to_copy() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/nanochat/A/model_000650.pt");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model_000650.pt");
    std::fs::copy(golden, &path).unwrap();
    let error = Checkpoint::open(std::slice::from_ref(&path)).unwrap_err().to_string();
    assert!(error.contains("meta_000650.json") && error.contains("copy both"), "{error}");
    std::fs::write(dir.path().join("meta_000650.json"), r#"{"model_config":{"n_layer":3}}"#).unwrap();
    let error = Checkpoint::open(&[path]).unwrap_err().to_string();
    assert!(error.contains("meta_000650.json") && error.contains("n_embd"), "{error}");
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
    std::fs::File::create(&path).unwrap().write_all(&[255; 64]).unwrap();
    assert!(Checkpoint::open(&[path]).is_err());
    assert!(Checkpoint::open(&[dir.path().join("absent")]).unwrap_err().to_string().contains("absent"));
}

/// Two files, of zeros and of other numbers, that both have `shared`, and an index that says so much of each tensor.
fn split(dir: &Path, shared: &str, place: impl Fn(&str) -> Option<&'static str>) -> (Vec<PathBuf>, PathBuf) {
    let (ends, begins): (Tensors, Tensors) = whole().into_iter().partition(|(name, ..)| name.starts_with("h.1."));
    let with = |mut tensors: Tensors| {
        tensors.extend(whole().into_iter().filter(|(name, ..)| name == shared));
        tensors.sort();
        tensors.dedup();
        tensors
    };
    let files = vec![write_as(&dir.join("a"), &with(begins), 0), write_as(&dir.join("b"), &with(ends), 0x11)];
    let map: serde_json::Map<_, _> =
        whole().iter().filter_map(|(name, ..)| Some((format!("transformer.{name}"), place(name)?.into()))).collect();
    let index = dir.join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    (files, index)
}

fn own(name: &str) -> &'static str {
    if name.starts_with("h.1.") { "b" } else { "a" }
}

#[test]
fn the_index_decides_which_file_a_tensor_is_taken_from() {
    let dir = tempfile::tempdir().unwrap();
    let first = |path: &Path| {
        let checkpoint = Checkpoint::open(&[path.to_owned()]).unwrap();
        checkpoint.check(&model_shape()).unwrap();
        assert_eq!(checkpoint.files().count(), 2);
        (checkpoint.tensor("ln_f.weight").unwrap().read_vector(0..1).unwrap()[0], checkpoint.overruled)
    };
    let (files, index) = split(dir.path(), "ln_f.weight", |name| Some(own(name)));
    assert_eq!(first(&index), (0.0, 1));
    // Without one nobody knows; both are named.
    let error = Checkpoint::open(&files).unwrap_err().to_string();
    for part in ["`ln_f.weight` twice", files[0].to_str().unwrap(), files[1].to_str().unwrap(), "hint: an index"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let (_, index) = split(dir.path(), "ln_f.weight", |name| Some(if name == "ln_f.weight" { "b" } else { own(name) }));
    let (value, overruled) = first(&index);
    assert!(value > 0.0 && overruled == 1);
    // One that it does not list is taken where it is, unless it is in both.
    let (_, index) = split(dir.path(), "none", |name| (name != "ln_f.weight").then(|| own(name)));
    assert_eq!(first(&index), (0.0, 0));
    let (_, index) = split(dir.path(), "ln_f.weight", |name| (name != "ln_f.weight").then(|| own(name)));
    assert!(Checkpoint::open(&[index]).unwrap_err().to_string().contains("`ln_f.weight` twice"));
}

#[test]
fn an_index_that_is_wrong_is_told_with_the_tensor_and_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (_, index) = split(dir.path(), "none", |name| Some(if name == "ln_f.bias" { "b" } else { own(name) }));
    let error = Checkpoint::open(std::slice::from_ref(&index)).unwrap_err().to_string();
    for part in ["/b has no tensor `ln_f.bias`", "model.safetensors.index.json says so", "hint: "] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let with = |map: &str| {
        std::fs::write(&index, format!(r#"{{"weight_map":{map}}}"#)).unwrap();
        Checkpoint::open(std::slice::from_ref(&index)).unwrap_err().to_string()
    };
    let error = with(r#"{"wte.weight":"a","transformer.wte.weight":"b"}"#);
    assert!(error.contains("`wte.weight` twice, in b and in a"), "{error}");
    assert!(with(r#"{"wte.weight":"c"}"#).contains("/c is missing"));
    let error = with(&format!(r#"{{"wte.weight":"{}\u001b[2J/"}}"#, "c".repeat(100)));
    assert!(error.contains("no file name") && !error.contains('\u{1b}'), "{error}");
    assert!(with(&format!(r#"{{"wte.weight":"{}"}}"#, "/".repeat(100_000))).len() < 1000);
    // Masks are left out wherever they are said to be.
    let map: Vec<_> = whole().iter().map(|(name, ..)| format!(r#""{name}":"{}""#, own(name))).collect();
    std::fs::write(&index, format!(r#"{{"weight_map":{{{},"h.0.attn.bias":"b"}}}}"#, map.join(","))).unwrap();
    Checkpoint::open(&[index]).unwrap().check(&model_shape()).unwrap();
}

#[test]
fn the_head_may_be_a_copy_and_the_vocabulary_must_be_one() {
    let dir = tempfile::tempdir().unwrap();
    let refined = |head: &[usize], wte: &[usize]| {
        let mut tensors = whole();
        tensors.push(("lm_head.weight".into(), Dtype::F16, head.to_vec()));
        tensors[0].2 = wte.to_vec();
        let checkpoint = Checkpoint::open(&[write(dir.path(), &tensors)]).unwrap();
        let model_shape = checkpoint.refine(model_shape());
        checkpoint.check(&model_shape).map(|()| model_shape.tied_head).map_err(|e| e.to_string())
    };
    assert_eq!(refined(&[7, 4], &[7, 4]), Ok(true));
    assert!(refined(&[4, 7], &[7, 4]).unwrap_err().contains("lm_head.weight"));
    assert!(refined(&[0, 4], &[0, 4]).unwrap_err().contains("`wte.weight` is [0, 4]"));
}

#[test]
fn types_have_the_largest_number_that_they_have() {
    let bytes: Vec<u8> = [65519.0f32, 65520.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let strides = vec![1];
    let dtype = ElementType::Plain(Dtype::F32);
    let stored = Stored { file: 0, start: 0, dtype, shape: vec![2], strides, paired: None };
    let read = |range, dtype| stored.view("name", &bytes).unwrap().narrowed_to(dtype).read_vector(range);
    read(0..1, Dtype::F16).unwrap();
    let error = read(0..2, Dtype::F16).unwrap_err().to_string();
    assert!(error.contains("6.552e4 (element 1)") && error.contains("beyond f16"), "{error}");
    read(0..2, Dtype::BF16).unwrap();
}

#[test]
fn text_of_files_is_cut_and_moves_no_cursor() {
    assert_eq!(shown("h.0.ln_1.weight"), "h.0.ln_1.weight");
    assert_eq!(shown("a\nb\u{1b}[2J\u{202e}\"c\\"), "a\\nb\\u{1b}[2J\\u{202e}\"c\\");
    assert_eq!(shown(&"é".repeat(300)).chars().count(), 201);
}
