//! Names to files; those of the hub are in `hub/tests.rs`.

use super::*;
use crate::text::{ModelText, tokenizer::Specials};

/// Of no content that has any size.
const CONFIG_TEXT: &str = r#"{"model_type":"gpt2","n_embd":40,"n_head":5}"#;

pub(super) fn golden_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
}

pub(super) fn golden(path: &str) -> Vec<u8> {
    fs::read(golden_path(path)).unwrap()
}

fn caches(root: &Path) -> Caches {
    Caches { demo: vec![root.join("demo")], hub: HubAccess::offline(root.join("hub")) }
}

#[test]
fn every_format_is_found_in_its_folder() {
    let root = tempfile::tempdir().unwrap();
    let caches = caches(root.path());
    for (format, weights) in [
        ("split-safetensors", "model.safetensors.index.json"),
        ("split-bin", "pytorch_model.bin.index.json"),
        ("dialogpt", "pytorch_model.bin"),
        ("legacy", "pytorch_model.bin"),
        ("untied", "model.safetensors"),
        ("nanogpt", "ckpt.pt"),
    ] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/formats").join(format);
        let folder = root.path().join(format);
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        let name = folder.to_str().unwrap();
        let error = resolve(Some(name), None, &caches).unwrap_err().to_string();
        assert!(error.contains("no tokenizer.json") && error.contains("hint: copy the tokenizer"), "{format}: {error}");
        let bare = resolve_checkpoint(Some(name), None, &caches).unwrap();
        for file in ["vocab.json", "merges.txt"] {
            fs::write(folder.join(file), golden(&format!("tiny/{file}"))).unwrap();
        }
        let model = resolve(Some(name), None, &caches).unwrap();
        assert_eq!(model, bare);
        assert_eq!(model.weights, [folder.join(weights)], "{format}");
        assert_eq!(model.shape.tied_head, format != "untied");
        assert_eq!(model.shape.vocab_size, if format == "nanogpt" { 64 } else { 61 });
        // The same by the name of the file, or of the index.
        let file = folder.join(weights);
        assert_eq!(resolve(Some(file.to_str().unwrap()), None, &caches).unwrap().weights, model.weights);
        // An index says nothing that its files do not say, as long as each tensor is in one of them.
        if files::is_index(&file) {
            fs::remove_file(&file).unwrap();
            let without = resolve(Some(name), None, &caches).unwrap();
            assert_eq!((without.weights.len(), without.fingerprint), (2, model.fingerprint));
            fs::remove_file(&without.weights[0]).unwrap();
            let error = resolve(Some(name), None, &caches).unwrap_err().to_string();
            assert!(error.contains("-00001-of-00002") && error.contains("is missing"), "{error}");
        }
    }
}

#[test]
fn folders_files_and_the_demo_model_are_found_without_a_hub() {
    let root = tempfile::tempdir().unwrap();
    let caches = caches(root.path());
    let demo = resolve(None, None, &caches).unwrap();
    assert_eq!((demo.name.as_str(), demo.shape.attention.heads, demo.shape.vocab_size), ("nano-chat", 8, 4096));
    assert_eq!(resolve(Some(DEMO_MODEL), None, &caches).unwrap(), demo);

    let folder = demo.folder.display().to_string();
    let by_folder = resolve(Some(&folder), None, &caches).unwrap();
    assert_eq!((&by_folder.name, &by_folder.weights), (&folder, &demo.weights));
    let file = demo.weights[0].display().to_string();
    assert_eq!(resolve(Some(&file), None, &caches).unwrap().folder, demo.folder);
    assert!(matches!(resolve(Some(&folder), Some("v2"), &caches), Err(ModelError::Revision { .. })));
}

#[test]
fn incomplete_folders_and_slips_are_named() {
    let root = tempfile::tempdir().unwrap();
    let caches = caches(root.path());
    let say = |name: &str| resolve(Some(name), None, &caches).unwrap_err().to_string();
    assert!(say("nano-caht").contains("did you mean `nano-chat`?"));
    assert!(say("gtp2").contains("did you mean `gpt2`?"));
    assert!(say("gpt2:latest").contains("did you mean `gpt2`?"));
    assert!(say("zebra").contains("hint: "));
    for address in ["https://huggingface.co/org/name", "hf.co/org/name/"] {
        assert!(say(address).contains("did you mean `org/name`?"));
    }

    let message = say("/dev/null");
    assert!(message.starts_with("there is no file or folder /dev/null") && !message.contains("`/dev/null`"));

    let folder = root.path().join("my-model");
    fs::create_dir(&folder).unwrap();
    let path = folder.display().to_string();
    let message = say(&path.replace("my-model", "my-modle"));
    assert!(message.contains("did you mean") && message.contains("my-model"), "{message}");
    assert!(say(&path).contains("config.json"));
    fs::write(folder.join("adapter_config.json"), "{}").unwrap();
    assert!(say(&path).contains("hint: it holds an adapter of PEFT"));
    fs::write(folder.join("config.json"), r#"{"model_type":"gemma2"}"#).unwrap();
    assert!(say(&path).contains("gemma2"));
    for wrong in ["x", "[]", r#"{"model_type":"gemma2"}"#, r#"{"n_layer":0}"#, r#"{"n_embd":10,"n_head":3}"#] {
        fs::write(folder.join("config.json"), wrong).unwrap();
        assert_eq!(say(&path).matches("config.json").count(), 1, "{}", say(&path));
    }
    fs::write(folder.join("config.json"), CONFIG_TEXT).unwrap();
    assert!(say(&path).contains("model.safetensors"));
    // What is wrong with a file comes before what is missing beside it.
    fs::write(folder.join("pytorch_model.bin"), "PK").unwrap();
    assert!(say(&path).contains("pytorch_model.bin is not a complete checkpoint"));
    let index = folder.join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map":{"a":"../../etc/passwd"}}"#).unwrap();
    assert!(say(&path).contains("no file name"));
    fs::write(&index, r#"{"weight_map":{"a":"absent.safetensors"}}"#).unwrap();
    assert!(say(&path).contains("absent.safetensors is missing"));
}

#[test]
fn configurations_as_windows_and_python_write_them_are_read() {
    let root = tempfile::tempdir().unwrap();
    let caches = caches(root.path());
    let folder = root.path().join("marked");
    fs::create_dir(&folder).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/formats/split-safetensors");
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let name = folder.to_str().unwrap();
    let plain = resolve_checkpoint(Some(name), None, &caches).unwrap();
    for file in ["config.json", "model.safetensors.index.json"] {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let text = text.trim_start().replacen('{', "{\"some_limit\": Infinity, \"other\": [-Infinity, NaN],", 1);
        fs::write(folder.join(file), format!("\u{feff}{text}")).unwrap();
    }
    assert_eq!(resolve_checkpoint(Some(name), None, &caches).unwrap(), plain);
    // Ends of text that the embedding has no row for, whatever the configuration says of its size.
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let mut twice = config.trim_start_matches('\u{feff}').trim_end().trim_end_matches('}').to_owned();
    twice += ", \"eos_token_id\": [-1, 3, 50256], \"vocab_size\": 60000}";
    fs::write(folder.join("config.json"), twice).unwrap();
    assert_eq!(resolve_checkpoint(Some(name), None, &caches).unwrap().shape.eos_token_ids, [3]);
    fs::write(folder.join("config.json"), "{\"n_embd\": Infinity}").unwrap();
    let error = resolve_checkpoint(Some(name), None, &caches).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("`n_embd`") && error.ends_with("got Infinity"), "{error}");
    // As `>` writes it in PowerShell.
    let wide: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(folder.join("config.json"), wide).unwrap();
    let error = resolve_checkpoint(Some(name), None, &caches).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("UTF-16") && error.contains("hint: iconv"), "{error}");
}

#[test]
fn a_gguf_is_a_model_by_itself_with_its_tokenizer() {
    let root = tempfile::tempdir().unwrap();
    let caches = caches(root.path());
    let folder = root.path().join("models");
    fs::create_dir(&folder).unwrap();
    let put = |name: &str| fs::write(folder.join(name), golden(&format!("gguf/{name}"))).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden("gguf/ids.json")).unwrap();
    let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
    let parts = ["llama-00001-of-00002.gguf", "llama-00002-of-00002.gguf"];
    for (names, family, end) in [
        (&["gpt2.gguf"][..], "gpt2", "<|endoftext|>"),
        (&["qwen2.gguf"], "qwen2", "<|endoftext|>"),
        (&["qwen3.gguf"], "qwen3", "<|endoftext|>"),
        (&parts, "llama", "</s>"),
    ] {
        names.iter().for_each(|name| put(name));
        // Of another model.
        fs::write(folder.join("config.json"), r#"{"model_type":"none"}"#).unwrap();
        let model = resolve(Some(folder.to_str().unwrap()), None, &caches).unwrap();
        assert_eq!((model.shape.model_type(), &model.weights[..]), (family, &[folder.join(names[0])][..]));
        let text = ModelText::load(&model.folder, &model.shape).unwrap();
        let ids: Vec<Vec<u32>> = serde_json::from_value(golden[family].clone()).unwrap();
        for (written, ids) in texts.iter().zip(ids) {
            assert_eq!(text.tokenizer.encode(written, Specials::Literal).unwrap(), ids, "{family}: {written:?}");
            // Qwen's is normalised first.
            let read = if family.starts_with("qwen") { written.replace("e\u{301}", "é") } else { written.clone() };
            assert_eq!(text.tokenizer.decode(&ids), read, "{family}: {ids:?}");
        }
        assert_eq!(text.tokenizer.eos().unwrap().0, end);
        let begun = text.tokenizer.encode_document("a").unwrap();
        assert_eq!(begun[0] == 1, family == "llama", "only SentencePiece's begins: {begun:?}");
        assert_eq!(text.chat.template().is_some(), family == "llama");
        // By the name of each part.
        for name in names {
            let named = resolve(Some(folder.join(name).to_str().unwrap()), None, &caches).unwrap();
            assert_eq!((named.fingerprint, named.folder), (model.fingerprint, model.folder.clone()), "{name}");
        }
        if family == "llama" {
            put("gpt2.gguf");
            let error = resolve(Some(folder.to_str().unwrap()), None, &caches).unwrap_err().to_string();
            let list = "has several GGUF models: gpt2.gguf, llama-00001-of-00002.gguf\n  hint: name one";
            assert!(error.contains(list), "{error}");
        }
        names.iter().for_each(|name| fs::remove_file(folder.join(name)).unwrap());
    }
}
