use std::{
    fs,
    path::{Path, PathBuf},
};

use nanoinfer_shared::{
    ModelShape, json,
    model::{
        parts::{LayerPart, Part, Term},
        shape::QkNorm,
    },
};

use super::{
    super::{Checkpoint, TokenizerFiles},
    *,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&[golden(name)]).unwrap()
}

/// Reads of a broken copy.
fn error_of(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(std::slice::from_ref(&path)).unwrap_err().to_string();
    assert!(error.contains("model.gguf"), "{error}");
    error
}

#[test]
fn blocks_are_the_numbers_of_the_gguf_package() {
    let file = fs::read(golden("blocks.gguf")).unwrap();
    let header = Header::read(&file).unwrap();
    let expected = open("blocks.safetensors");
    assert_eq!(header.tensors.len(), 11);
    for (name, stored) in &header.tensors {
        let tensor = stored.view(name, &file[stored.start..]).unwrap();
        let expected = expected.tensor(name).unwrap().read_matrix().unwrap();
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&tensor.read_matrix().unwrap()), bits(&expected), "{name}");
        // Columns that begin and end within blocks, in both orientations.
        let mut tile = Vec::new();
        tensor.read_tile(1..2, 39..203, &mut tile).unwrap();
        assert_eq!(bits(&tile), bits(&expected[256 + 39..256 + 203]), "{name}");
        tensor.transposed().read_tile(39..203, 1..2, &mut tile).unwrap();
        assert_eq!(bits(&tile), bits(&expected[256 + 39..256 + 203]), "{name}");
        tensor.transposed().read_row(70, 0..2, &mut tile).unwrap();
        assert_eq!(bits(&tile), bits(&[expected[70], expected[256 + 70]]), "{name}");
    }
}

/// That all parts of a model are the numbers that the gguf package and transformers make of it.
fn compare(gguf: &str, safetensors: &str) -> ModelShape {
    let (checkpoint, expected) = (open(gguf), open(safetensors));
    let shape = checkpoint.refine(ModelShape::from_config_json(checkpoint.config().unwrap()).unwrap());
    checkpoint.check(&shape).unwrap();
    expected.check(&shape).unwrap();
    for part in Part::all(&shape) {
        let (got, expected) = (checkpoint.part(&shape, part).unwrap(), expected.part(&shape, part).unwrap());
        assert_eq!(got.read_matrix().unwrap(), expected.read_matrix().unwrap(), "{part:?}");
        let (rows, columns) = (got.rows() / 2..got.rows(), 3..got.columns() - 1);
        let (mut tile, mut expected_tile) = (Vec::new(), Vec::new());
        got.read_tile(rows.clone(), columns.clone(), &mut tile).unwrap();
        expected.read_tile(rows, columns, &mut expected_tile).unwrap();
        assert_eq!(tile, expected_tile, "{part:?}");
    }
    // Written, it is a checkpoint of transformers.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    checkpoint.write_safetensors(&shape, &path).unwrap();
    let written = Checkpoint::open(&[path]).unwrap();
    written.check(&shape).unwrap();
    for part in Part::all(&shape) {
        let of = |checkpoint: &Checkpoint| checkpoint.part(&shape, part).unwrap().read_matrix().unwrap();
        assert_eq!(of(&written), of(&expected), "{part:?}");
    }
    shape
}

#[test]
fn all_parts_are_those_that_transformers_has() {
    // Split, named by its second part; queries and keys stand as pairs.
    let shape = compare("llama-00002-of-00002.gguf", "llama.safetensors");
    assert_eq!(open("llama-00001-of-00002.gguf").files().count(), 2);
    assert_eq!(compare("gpt2.gguf", "gpt2.safetensors").model_type(), "gpt2");
    // As they are: with biases of queries, keys and values, or with norms of their heads.
    for (name, bias) in [("qwen2", true), ("qwen3", false)] {
        let shape = compare(&format!("{name}.gguf"), &format!("{name}.safetensors"));
        assert_eq!((shape.model_type(), shape.attention.heads, shape.attention.kv_heads), (name, 6, 2));
        assert_eq!(shape.attention.qk_norm == QkNorm::Gains, !bias);
        let query_bias = Part::Layer(0, LayerPart::Query, Term::Bias);
        assert_eq!(query_bias.is_in(&shape), bias, "{name}");
    }
    let expected = ModelShape::from_config_json(
        r#"{"model_type": "llama", "vocab_size": 448, "max_position_embeddings": 48, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "attention_bias": true,
            "tie_word_embeddings": false, "eos_token_id": [2, 3]}"#,
    );
    assert_eq!(shape, expected.unwrap());
}

/// A file of these keys, each with its value as it is written, and of tensors [3, 2] in f32, all at one place, the last of them
/// `token_embd.weight`.
fn with_keys(keys: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = [&MAGIC[..], &3u32.to_le_bytes(), &2u64.to_le_bytes(), &(keys.len() as u64).to_le_bytes()].concat();
    keys.iter().for_each(|(key, value)| file.extend([text(key), value.clone()].concat()));
    for name in ["blk.0.attn_q.weight", "token_embd.weight"] {
        file.extend(text(name));
        file.extend([&2u32.to_le_bytes()[..], &2u64.to_le_bytes(), &3u64.to_le_bytes(), &[0; 4], &[0; 8]].concat());
    }
    file.resize(file.len().next_multiple_of(32) + 24, 0);
    file
}

fn number(number: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), number.to_le_bytes()].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Sizes that a llama has at least, with others.
fn llama_with(others: &[(&'static str, Vec<u8>)]) -> Vec<u8> {
    let mut keys = vec![
        ("general.architecture", text("llama")),
        ("llama.context_length", number(64)),
        ("llama.embedding_length", number(2)),
        ("llama.block_count", number(1)),
        ("llama.feed_forward_length", number(2)),
        ("llama.attention.head_count", number(1)),
        ("llama.attention.layer_norm_rms_epsilon", [6u32.to_le_bytes(), 1e-6f32.to_le_bytes()].concat()),
    ];
    for (key, value) in others {
        keys.retain(|(other, _)| other != key);
        keys.push((key, value.clone()));
    }
    with_keys(&keys)
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    let linear = [("llama.rope.scaling.type", text("linear")), ("llama.rope.scaling.factor", number(4))];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, llama_with(&linear)).unwrap();
    let config = Checkpoint::open(&[path]).unwrap().config().unwrap().to_owned();
    assert!(config.contains(r#""rope_scaling":{"rope_type":"linear","factor":4.0}"#), "{config}");
    assert!(config.contains(r#""eos_token_id":[]"#) && config.contains(r#""rms_norm_eps":1e-6"#), "{config}");
    for (key, value, part) in [
        ("general.architecture", text("mamba"), "architecture mamba; llama, qwen2, qwen3, gpt2 are read"),
        ("llama.expert_count", number(8), "a mixture of experts (key `llama.expert_count`)"),
        ("llama.attention.sliding_window", number(16), "attend to 16 others only, of 64"),
        ("llama.rope.dimension_count", number(1), "heads are 2 wide, and `llama.rope.dimension_count` is 1"),
        ("llama.attention.value_length", number(4), "`llama.attention.value_length` is 4"),
        ("llama.rope.scaling.type", text("longrope"), "scaled by `longrope`"),
        ("llama.attention.head_count", number(0), "head_count` is 0"),
        ("llama.attention.head_count", text("x"), "head_count` is no whole number"),
        ("llama.attention.key_length", number(3), "3 wide"),
        ("llama.context_length", [5u32.to_le_bytes(), (-1i32).to_le_bytes()].concat(), "context_length` is -1"),
        ("general.alignment", number(48), "48, which is no alignment"),
        ("general.alignment", number(1 << 31), "which is no alignment"),
        ("split.count", number(2), "part 1 of 2, but it was opened as part 1 of 1"),
        ("a.flag", [&7u32.to_le_bytes()[..], &[2]].concat(), "key `a.flag`: 2 is neither true nor false"),
        ("a.value", 13u32.to_le_bytes().to_vec(), "no type of values 13"),
    ] {
        let error = error_of(&llama_with(&[(key, value)]));
        assert!(error.contains(part), "{part}: {error}");
    }
    let twice = with_keys(&[("a.key", number(1)), ("a.key", number(1))]);
    assert!(error_of(&twice).contains("key `a.key` twice"));
    assert!(error_of(&with_keys(&[])).contains("does not say `general.architecture`"));
}

fn texts(texts: &[&str]) -> Vec<u8> {
    let all = texts.iter().flat_map(|one| text(one)[4..].to_vec());
    [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &(texts.len() as u64).to_le_bytes()]
        .concat()
        .into_iter()
        .chain(all)
        .collect()
}

/// An array of numbers of type `kind`, each four bytes.
fn words<const N: usize>(kind: u32, words: [[u8; 4]; N]) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(N as u64).to_le_bytes(), words.as_flattened()].concat()
}

/// The tokenizer in a file of these keys.
fn tokenizer_of(keys: &[(&str, Vec<u8>)]) -> Result<TokenizerFiles, String> {
    let file = with_keys(keys);
    let header = Header::read(&file).map_err(|error| error.to_string())?;
    TokenizerFiles::read(&header).map_err(|error| error.to_string())?.ok_or("there is none".into())
}

#[test]
fn tokenizers_leave_out_what_is_not_used_and_begin_as_they_say() {
    let types = words(5, [1, 1, 1, 5, 3, 4].map(i32::to_le_bytes));
    let mut keys = vec![
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("llama-bpe")),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "[PAD3]", "<end>", "<tool>"])),
        ("tokenizer.ggml.token_type", types),
        ("tokenizer.ggml.merges", texts(&["a b"])),
        ("tokenizer.ggml.bos_token_id", number(4)),
        ("tokenizer.ggml.eos_token_id", number(3)),
        ("tokenizer.chat_template", text("{{ x }}")),
        ("tokenizer.chat_template.tool_use", text("{{ y }}")),
    ];
    let files = tokenizer_of(&keys).unwrap();
    let [tokenizer, config] = [&files.tokenizer, &files.config].map(|text| json::parse(text.as_bytes()).unwrap());
    let expected = serde_json::json!({"a": 0, "b": 1, "ab": 2, "<end>": 4, "<tool>": 5});
    assert_eq!((&tokenizer["model"]["vocab"], &tokenizer["model"]["ignore_merges"]), (&expected, &true.into()));
    assert_eq!(tokenizer["model"]["merges"], serde_json::json!([["a", "b"]]));
    let special =
        |i: usize| (tokenizer["added_tokens"][i]["id"].clone(), tokenizer["added_tokens"][i]["special"].clone());
    assert_eq!([special(0), special(1)], [(4.into(), true.into()), (5.into(), false.into())]);
    // Llama 3's begins a text where the file does not say.
    assert_eq!(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<end>");
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&"<end>".into(), &serde_json::Value::Null));
    assert_eq!(config["chat_template"][1], serde_json::json!({"name": "tool_use", "template": "{{ y }}"}));
    keys.push(("tokenizer.ggml.add_bos_token", [&7u32.to_le_bytes()[..], &[0]].concat()));
    assert!(tokenizer_of(&keys).unwrap().tokenizer.contains(r#""post_processor":null"#));
}

#[test]
fn a_tokenizer_of_another_kind_or_a_broken_one_is_refused() {
    let scores = |scores| words(6, scores);
    let whole = [
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", texts(&["a", "b"])),
        ("tokenizer.ggml.scores", scores([0f32, -1.0].map(f32::to_le_bytes))),
        ("tokenizer.ggml.merges", texts(&["a b"])),
    ];
    tokenizer_of(&whole).unwrap();
    let bpe = ("tokenizer.ggml.model", text("gpt2"));
    for (changes, part) in [
        (vec![("tokenizer.ggml.model", text("bert"))], "model `bert`; gpt2 and llama are read"),
        (vec![("tokenizer.ggml.pre", text("tekken")), bpe.clone()], "`tekken`; gpt-2, default"),
        (vec![("tokenizer.ggml.merges", texts(&["ab"])), bpe], "merge 0 is no pair"),
        (vec![("tokenizer.ggml.tokens", texts(&["a"]))], "1 tokens, and scores of 2"),
        (vec![("tokenizer.ggml.tokens", texts(&["a", "a"]))], "tokens 0 and 1 are both `a`"),
        (vec![("tokenizer.ggml.tokens", texts(&["a", &"b".repeat(1000)]))], "token 1 is longer than"),
        (vec![("tokenizer.ggml.tokens", words(4, [[0; 4]; 2]))], "token 0 is no text"),
        (vec![("tokenizer.ggml.token_type", words(5, [[1, 0, 0, 0]]))], "2 tokens, and types of 1"),
        (vec![("tokenizer.ggml.token_type", words(5, [[9, 0, 0, 0]; 2]))], "token 0 is of a type that is none"),
        (vec![("tokenizer.ggml.scores", scores([f32::NAN; 2].map(f32::to_le_bytes)))], "score of token 0"),
        (vec![("tokenizer.ggml.scores", text("x"))], "is no array"),
    ] {
        let mut keys = whole.to_vec();
        for (key, value) in changes {
            keys.retain(|(other, _)| *other != key);
            keys.push((key, value));
        }
        let error = tokenizer_of(&keys).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_header_that_claims_more_than_there_is_costs_nothing() {
    let whole = llama_with(&[]);
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        error_of(&file)
    };
    assert!(patched(4, &3u32.to_be_bytes()).contains("big-endian"));
    assert!(patched(4, &1u32.to_le_bytes()).contains("version 1; 2 and 3 are read"));
    for at in [8, 16] {
        assert!(patched(at, &u64::MAX.to_le_bytes()).contains("more than any model has"));
    }
    assert!(patched(24, &u64::MAX.to_le_bytes()).contains("it ends within the name of a key, at byte 32 of"));
    // The tensor's line, from the end of its name: dimensions, sizes, type, offset.
    let line = whole.windows(17).position(|window| window == b"token_embd.weight").unwrap() + 17;
    assert!(patched(line, &5u32.to_le_bytes()).contains("`token_embd.weight` has 5 dimensions"));
    for size in [u64::MAX, 1 << 62, 13] {
        assert!(patched(line + 4, &size.to_le_bytes()).contains("lies past the end of the file"));
    }
    for (kind, part) in [(20, "of type IQ4_NL; F32"), (5, "of type 5, which is unknown"), (2, "rows of 2, but Q4_0")] {
        let error = patched(line + 20, &u32::to_le_bytes(kind));
        assert!(error.contains(part), "{error}");
    }
    assert!(patched(line + 24, &16u64.to_le_bytes()).contains("no multiple of the alignment of 32"));
    assert!(patched(line + 24, &(u64::MAX - 31).to_le_bytes()).contains("lies past the end"));
    for len in 0..whole.len() {
        error_of(&whole[..len]);
    }
    // Arrays: of as many texts as fit no file, and of arrays without an end.
    let array = |kind: u32, count: u64| [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes()].concat();
    for kind in [0, 7, 8, 9, 10, 12] {
        let error = error_of(&with_keys(&[("an.array", array(kind, u64::MAX))]));
        assert!(error.contains("key `an.array`"), "{error}");
    }
    let nested: Vec<u8> = (0..1000).flat_map(|_| array(9, 1)[4..].to_vec()).collect();
    let error = error_of(&with_keys(&[("an.array", [&9u32.to_le_bytes()[..], &nested].concat())]));
    assert!(error.contains("arrays lie in arrays"), "{error}");
}

#[test]
fn the_scaling_of_llama_3_is_known_by_what_it_divides() {
    let divisors = |factor: f64, original: f64| -> Vec<f32> {
        let divisor = |i: i32| {
            let wave = std::f64::consts::TAU * 500_000f64.powf(f64::from(2 * i) / 64.0);
            let smooth = (original / wave - 1.0) / 3.0;
            match wave {
                wave if wave < original / 4.0 => 1.0,
                wave if wave > original => factor,
                _ => 1.0 / ((1.0 - smooth) / factor + smooth),
            }
        };
        (0..32).map(|i| divisor(i) as f32).collect()
    };
    let scaling = |divisors: &[f32]| config::llama3_scaling(divisors, 64, 500_000.0);
    let expected = serde_json::json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    assert_eq!(scaling(&divisors(32.0, 8192.0)), Some(expected));
    assert_eq!(scaling(&divisors(32.0, 4096.0)), None);
    assert_eq!(scaling(&divisors(32.0, 8192.0)[1..]), None);
    assert_eq!(scaling(&[]), None);
}

#[test]
fn parts_are_known_by_their_names() {
    let names = |name: &'static str| split::gguf_parts(name).map(|parts| parts.collect::<Vec<_>>());
    let two = vec!["a-b-00001-of-00002.gguf".to_owned(), "a-b-00002-of-00002.gguf".to_owned()];
    assert_eq!(names("a-b-00002-of-00002.gguf"), Some(two));
    for name in ["a.gguf", "a-00003-of-00002.gguf", "a-00000-of-00002.gguf", "a-1-of-2.gguf", "a-00001-of-00001.bin"] {
        assert_eq!(names(name), None, "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("llama-00001-of-00002.gguf");
    fs::copy(golden("llama-00001-of-00002.gguf"), &first).unwrap();
    let error = Checkpoint::open(std::slice::from_ref(&first)).unwrap_err().to_string();
    assert!(error.contains("llama-00002-of-00002.gguf is missing"), "{error}");
    fs::copy(&first, dir.path().join("llama-00002-of-00002.gguf")).unwrap();
    let error = Checkpoint::open(&[first]).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}
