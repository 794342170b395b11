//! Names to files, with a hub of our own on loopback.

use std::collections::BTreeMap;

use super::*;

#[path = "../../../tests/hub.rs"]
mod hub;

use hub::{COMMIT, FakeHub};

/// Of no content that has any size.
const CONFIG_TEXT: &str = r#"{"model_type":"gpt2","n_embd":40,"n_head":5}"#;

fn golden(path: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)).unwrap()
}

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("config.json", golden("tiny/config.json")),
        ("merges.txt", golden("tiny/merges.txt")),
        ("vocab.json", golden("tiny/vocab.json")),
        ("generation_config.json", b"{}".to_vec()),
        ("model.safetensors", golden("tiny/model.safetensors")),
        ("pytorch_model.bin", b"never asked for".to_vec()),
    ])
}

fn caches(root: &Path, endpoint: &str) -> Caches {
    let hub = HubAccess { cache: root.join("hub"), endpoint: endpoint.into(), token: None, offline: false };
    Caches { demo: vec![root.join("demo")], hub }
}

#[test]
fn a_hub_id_is_downloaded_whole_once_and_then_taken_from_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let hub = FakeHub::start("openai-community/gpt2", files(), None);
    let mut caches = caches(root.path(), &hub.endpoint);
    let model = resolve(Some("gpt2"), None, &caches).unwrap();
    assert_eq!((model.name.as_str(), model.geometry.n_head), ("gpt2", 3));
    for (name, content) in files() {
        let path = model.folder.join(name);
        if name == "pytorch_model.bin" {
            assert!(!path.exists());
        } else {
            assert_eq!(fs::read(path).unwrap(), content, "{name}");
        }
    }
    assert!(hub.asked().last().unwrap().0.ends_with("/model.safetensors"), "weights come last");

    assert_eq!(resolve(Some("openai-community/gpt2"), None, &caches).unwrap().weights, model.weights);
    assert_eq!(resolve(Some("gpt2"), Some(COMMIT), &caches).unwrap().weights, model.weights);
    caches.hub.offline = true;
    assert_eq!(resolve(Some("gpt2"), None, &caches).unwrap(), model);
    assert_eq!(hub.asked(), [], "a complete snapshot needs no hub");
}

#[test]
fn a_pull_asks_for_what_is_new_and_fetches_nothing_twice() {
    let root = tempfile::tempdir().unwrap();
    let hub = FakeHub::start("openai-community/gpt2", files(), None);
    let mut caches = caches(root.path(), &hub.endpoint);
    let model = pull("gpt2", None, &caches).unwrap();
    hub.asked();
    assert_eq!(pull("gpt2", None, &caches).unwrap(), model);
    assert_eq!(hub.asked(), [("/api/models/openai-community/gpt2/revision/main".into(), 0)]);
    caches.hub.offline = true;
    assert_eq!(pull("gpt2", None, &caches).unwrap(), model, "offline, what is there will do");
    assert_eq!(hub.asked(), []);
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_did() {
    let weights = files()["model.safetensors"].clone();
    // In the middle of a pull.
    let root = tempfile::tempdir().unwrap();
    let hub = FakeHub::start("openai-community/gpt2", files(), None);
    hub.break_off(1);
    let model = pull("gpt2", None, &caches(root.path(), &hub.endpoint)).unwrap();
    assert_eq!(fs::read(&model.weights[0]).unwrap(), weights);
    let asked = |hub: &FakeHub| {
        hub.asked()
            .into_iter()
            .filter(|(path, _)| path.ends_with("model.safetensors"))
            .map(|(_, from)| from)
            .collect::<Vec<_>>()
    };
    assert_eq!(asked(&hub), [0, 0, weights.len() / 2], "its size, the first half, the second half");

    // Between two pulls: the first one was killed.
    let root = tempfile::tempdir().unwrap();
    let blobs = root.path().join("hub/models--openai-community--gpt2/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("tag-model-safetensors.part"), &weights[..5000]).unwrap();
    let model = pull("gpt2", None, &caches(root.path(), &hub.endpoint)).unwrap();
    assert_eq!(fs::read(&model.weights[0]).unwrap(), weights);
    assert_eq!(asked(&hub), [0, 5000]);

    // What does not have the announced length is not taken, nor kept.
    let root = tempfile::tempdir().unwrap();
    let mut shorter = files();
    shorter.insert("model.safetensors", weights[..weights.len() - 8].to_vec());
    let blobs = root.path().join("hub/models--org--changed/blobs");
    let hub = FakeHub::start("org/changed", shorter, None);
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("tag-model-safetensors.part"), &weights).unwrap();
    pull("org/changed", None, &caches(root.path(), &hub.endpoint)).unwrap_err();
}

#[test]
fn a_token_opens_what_is_closed() {
    let root = tempfile::tempdir().unwrap();
    let hub = FakeHub::start("org/gated", files(), Some("secret"));
    let mut caches = caches(root.path(), &hub.endpoint);
    let error = pull("org/gated", None, &caches).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
    caches.hub.token = Some("other".into());
    let error = pull("org/gated", None, &caches).unwrap_err().to_string();
    assert!(error.contains("the token in use") && !error.contains("other"), "{error}");
    caches.hub.token = Some("secret".into());
    pull("org/gated", None, &caches).unwrap();
}

#[test]
fn weights_of_torch_are_taken_where_there_are_no_others() {
    let root = tempfile::tempdir().unwrap();
    let mut torch = files();
    torch.remove("model.safetensors");
    torch.insert("config.json", golden("formats/legacy/config.json"));
    torch.insert("pytorch_model.bin", golden("formats/legacy/pytorch_model.bin"));
    let hub = FakeHub::start("org/old", torch, None);
    let model = resolve(Some("org/old"), None, &caches(root.path(), &hub.endpoint)).unwrap();
    assert_eq!(model.weights, [model.folder.join("pytorch_model.bin")]);
}

#[test]
fn every_format_is_found_in_its_folder() {
    let root = tempfile::tempdir().unwrap();
    let caches = caches(root.path(), "http://127.0.0.1:9");
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
        assert_eq!(model.geometry.tie_word_embeddings, format != "untied");
        assert_eq!(model.geometry.vocab_size, if format == "nanogpt" { 64 } else { 61 });
        // The same by the name of the file, or of the index.
        let file = folder.join(weights);
        assert_eq!(resolve(Some(file.to_str().unwrap()), None, &caches).unwrap().weights, model.weights);
        // An index says nothing that its files do not say, as long as each tensor is in one of them.
        if weights::is_index(&file) {
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
fn a_split_checkpoint_comes_with_all_its_parts() {
    let root = tempfile::tempdir().unwrap();
    let mut parts = files();
    parts.remove("model.safetensors");
    for file in ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    {
        parts.insert(file, golden(&format!("formats/split-safetensors/{file}")));
    }
    parts.insert("config.json", golden("formats/split-safetensors/config.json"));
    let hub = FakeHub::start("org/split", parts, None);
    let model = resolve(Some("org/split"), None, &caches(root.path(), &hub.endpoint)).unwrap();
    let checkpoint = Checkpoint::open(&model.weights).unwrap();
    let names: Vec<_> = checkpoint.files().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
    let index = model.folder.join("model.safetensors.index.json").display().to_string();
    assert_eq!(resolve_weights(&index, None, &caches(root.path(), "")).unwrap(), model.weights);
}

#[test]
fn what_the_hub_does_not_have_is_said_with_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let mut empty = files();
    empty.remove("model.safetensors");
    empty.remove("pytorch_model.bin");
    let hub = FakeHub::start("org/empty", empty, None);
    let mut caches = caches(root.path(), &hub.endpoint);
    let say = |name: &str, caches: &Caches| resolve(Some(name), None, caches).unwrap_err().to_string();

    let message = say("org/empty", &caches);
    assert!(message.contains("model.safetensors") && message.contains("hint: "), "{message}");
    let message = say("org/other", &caches);
    assert!(message.contains("404") && message.contains("HF_TOKEN"), "{message}");

    caches.hub.offline = true;
    let message = say("gpt2", &caches);
    assert!(message.contains("HF_HUB_OFFLINE") && message.contains("hub"), "{message}");

    // Port 9 of loopback: nobody listens.
    caches.hub = HubAccess { offline: false, endpoint: "http://127.0.0.1:9".into(), ..caches.hub };
    let message = say("gpt2-xl", &caches);
    for part in ["http://127.0.0.1:9/api/models/openai-community/gpt2-xl", "--model /path", "/hub"] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn folders_files_and_the_demo_model_are_found_without_a_hub() {
    let root = tempfile::tempdir().unwrap();
    let caches = caches(root.path(), "http://127.0.0.1:9");
    let demo = resolve(None, None, &caches).unwrap();
    assert_eq!((demo.name.as_str(), demo.geometry.n_head, demo.geometry.vocab_size), ("nano-chat", 8, 4096));
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
    let caches = caches(root.path(), "http://127.0.0.1:9");
    let say = |name: &str| resolve(Some(name), None, &caches).unwrap_err().to_string();
    assert!(say("nano-caht").contains("did you mean `nano-chat`?"));
    assert!(say("gtp2").contains("did you mean `gpt2`?"));
    assert!(say("gpt2:latest").contains("did you mean `gpt2`?"));
    assert!(say("zebra").contains("hint: "));
    for address in ["https://huggingface.co/org/name", "hf.co/org/name/"] {
        assert!(say(address).contains("did you mean `org/name`?"));
    }

    let folder = root.path().join("my-model");
    fs::create_dir(&folder).unwrap();
    let path = folder.display().to_string();
    let message = say(&path.replace("my-model", "my-modle"));
    assert!(message.contains("did you mean") && message.contains("my-model"), "{message}");
    assert!(say(&path).contains("config.json"));
    fs::write(folder.join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    assert!(say(&path).contains("llama"));
    for wrong in ["x", "[]", r#"{"model_type":"llama"}"#, r#"{"n_layer":0}"#, r#"{"n_embd":10,"n_head":3}"#] {
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
    let caches = caches(root.path(), "http://127.0.0.1:9");
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
    assert_eq!(resolve_checkpoint(Some(name), None, &caches).unwrap().geometry.eos_token_ids, [3]);
    fs::write(folder.join("config.json"), "{\"n_embd\": Infinity}").unwrap();
    let error = resolve_checkpoint(Some(name), None, &caches).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("`n_embd`") && error.ends_with("got Infinity"), "{error}");
}
