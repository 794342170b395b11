//! `pull`, `inspect` and `convert` as a user runs them. What a hub may answer is tested in `launcher/src/model/tests.rs`.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    hub::{FakeHub, Manners},
    nanoinfer, text,
};

fn golden(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path).display().to_string()
}

/// Standard output of a command that succeeds.
fn said(arguments: &[&str]) -> String {
    let output = nanoinfer(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    text(&output).to_owned()
}

#[test]
fn inspect_tells_what_a_model_holds_and_how_it_is_split() {
    let text = said(&["inspect", "nano-chat", "--nproc", "3"]);
    for part in [
        "6 layers, width 256, 8 heads of 32, MLP of 1024 with gelu_new, vocabulary of 4096, 256 positions",
        "the head is the embedding",
        "checkpoint: safetensors; BF16",
        "tokenizer: 4096 tokens, a text ends with <|endoftext|> (4095)",
        "chat template:",
        "h.*.attn.c_attn.weight  BF16  [256, 768]  × 6",
        "3 ranks on this host",
        "0..3",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = said(&["inspect", &golden("gguf/qwen3.gguf"), "--nproc", "5"]);
    for part in [
        "qwen3, 1 layers, width 32, 6 heads of 8 on 2 of keys and values, MLP of 64 with silu as a gate",
        "positions: rotations, theta 1000000",
        "checkpoint: GGUF; F16 (1 tensors)",
        "tokenizer: 448 tokens, a text ends with <|endoftext|> (447)",
        "blk.*.attn_k.weight",
        "5 ranks on this host",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = said(&["inspect", &golden("formats/nanogpt/ckpt.pt")]);
    assert!(!said(&["inspect", &golden("formats/nanogpt")]).contains(" in "), "a folder is told once");
    for part in ["torch.save, zip", "nn.Linear", "with gelu,", "vocabulary of 64", "tokenizer: none"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn convert_makes_a_folder_that_is_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("converted");
    let to = to.to_str().unwrap();
    assert_eq!(said(&["convert", &golden("formats/nanogpt/ckpt.pt"), to]), format!("{to}\n"));
    let text = said(&["inspect", to]);
    for part in ["safetensors; F32", "matrices as Conv1D", "with gelu,", "h.*.mlp.c_fc.bias", "vocabulary of 64"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!Path::new(to).join("model.part").exists());
    // Never over what is there.
    let output = nanoinfer(&["convert", &golden("formats/nanogpt/ckpt.pt"), to]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    // The model's own files neither, where the folder is its own.
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::copy(golden("formats/nanogpt/ckpt.pt"), own.join("ckpt.pt")).unwrap();
    for name in ["vocab.json", "merges.txt"] {
        fs::copy(golden(&format!("tiny/{name}")), own.join(name)).unwrap();
    }
    let output = nanoinfer(&["convert", own.to_str().unwrap(), own.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(fs::read(own.join("vocab.json")).unwrap(), fs::read(golden("tiny/vocab.json")).unwrap());
    // A tokenizer and a configuration go along, and what they say that concerns others stays.
    let to = dir.path().join("dialogpt");
    said(&["convert", &golden("formats/dialogpt"), to.to_str().unwrap()]);
    let config: serde_json::Value = serde_json::from_slice(&fs::read(to.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["task_specific_params"]["conversational"]["max_length"], 1000);
    assert_eq!(config["vocab_size"], 61);
    // What JSON has no number for is left out aloud, so that others can read the file.
    let python = fs::read_to_string(to.join("config.json")).unwrap().replacen('{', "{\"some_limit\": Infinity,", 1);
    fs::write(to.join("config.json"), format!("\u{feff}{python}")).unwrap();
    let again = dir.path().join("again");
    let output = nanoinfer(&["convert", to.to_str().unwrap(), again.to_str().unwrap()]).output().unwrap();
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && notes.contains("`some_limit` of config.json is left out"), "{notes}");
    let read: serde_json::Value = serde_json::from_slice(&fs::read(again.join("config.json")).unwrap()).unwrap();
    assert_eq!(read, config);
}

#[test]
fn a_gguf_becomes_a_folder_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (golden("gguf/qwen2.gguf"), dir.path().join("qwen2").display().to_string());
    said(&["convert", &from, &to]);
    let config: Value = serde_json::from_slice(&fs::read(dir.path().join("qwen2/config.json")).unwrap()).unwrap();
    assert_eq!((&config["model_type"], &config["num_key_value_heads"]), (&json!("qwen2"), &json!(2)));
    let of = |model: &str| {
        said(&["generate", "--model", model, "--dtype", "f32", "--prompt", "The name", "--temperature", "0"])
    };
    assert_eq!(of(&to), of(&from));
}

#[test]
fn a_first_generation_of_nanochat_becomes_transformers_and_later_ones_stay_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let convert = |generation: &str, file: &str| {
        let to = dir.path().join(generation);
        said(&["convert", &golden(&format!("nanochat/{generation}/{file}")), to.to_str().unwrap()]);
        let config: Value = serde_json::from_slice(&fs::read(to.join("config.json")).unwrap()).unwrap();
        (config, said(&["inspect", to.to_str().unwrap()]))
    };
    let (config, text) = convert("A-padded", "model_000809.pt");
    assert_eq!(
        (&config["model_type"], &config["architectures"]),
        (&json!("nanochat"), &json!(["NanoChatForCausalLM"]))
    );
    // Rows that pad the vocabulary would be drawn there.
    let epsilon = config["rms_norm_eps"].as_f64().map(|epsilon| epsilon as f32);
    assert_eq!((&config["vocab_size"], epsilon), (&json!(301), Some(f32::EPSILON)));
    for part in ["embed_tokens.weight", "[301, 48]", "layers.*.self_attn.q_proj.weight", "layers.*.mlp.fc1.weight"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let (config, text) = convert("E", "model_000483.pt");
    assert_eq!((&config["model_type"], config.get("architectures")), (&json!("nanochat_later"), None));
    for part in ["value_embeds.3.weight", "[301, 40]", "smear_gate.weight", "layers.*.self_attn.ve_gate.weight"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn pull_follows_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    let pull = |variables: &[(&str, &str)]| {
        let mut command = nanoinfer(&["pull", "gpt2"]);
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", home).envs(variables.iter().copied());
        let output = command.output().unwrap();
        assert_eq!((output.status.code(), text(&output)), (Some(2), ""));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = pull(&[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    assert!(error.contains("http://127.0.0.1:9/api/models/openai-community/gpt2") && error.contains(home), "{error}");
    assert!(pull(&[("HF_HUB_OFFLINE", "1")]).contains("HF_HUB_OFFLINE is set"));
}

#[test]
fn pull_fetches_a_model_that_then_needs_no_hub() {
    let files = ["config.json", "merges.txt", "vocab.json", "model.safetensors"];
    let content = |name: &str| fs::read(golden(&format!("tiny/{name}"))).unwrap();
    let files: BTreeMap<_, _> = files.into_iter().map(|name| (name, content(name))).collect();
    let manners = Manners { token: Some("secret"), breaks: 1, ..Manners::default() };
    let hub = FakeHub::start("org/tiny", files.clone(), manners);
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = nanoinfer(arguments);
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", dir.path()).envs(variables.iter().copied());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        text(&output).to_owned()
    };
    let folder = run(&["pull", "org/tiny"], &[("HF_ENDPOINT", &hub.endpoint), ("HF_TOKEN", "secret")]);
    assert!(folder.starts_with(dir.path().to_str().unwrap()), "{folder}");
    for (name, content) in files {
        assert_eq!(fs::read(Path::new(folder.trim()).join(name)).unwrap(), content, "{name}");
    }
    let asked = hub.asked();
    assert!(asked.iter().any(|(path, from)| path.ends_with("model.safetensors") && *from > 0), "it went on: {asked:?}");
    let answer =
        run(&["generate", "--model", "org/tiny", "--prompt", "a", "--max-tokens", "3"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(!answer.trim().is_empty());
    assert_eq!(hub.asked(), []);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_half_made_under_a_name() {
    let files = ["config.json", "merges.txt", "vocab.json", "model.safetensors"];
    let content = |name: &str| fs::read(golden(&format!("tiny/{name}"))).unwrap();
    let hub = FakeHub::start("org/tiny", files.map(|name| (name, content(name))).into(), Manners::default());
    let dir = tempfile::tempdir().unwrap();
    let pull = |limit: &str| {
        // A limit on what a file may hold stands for the disk: 16 blocks of 512 bytes.
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" pull org/tiny");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_nanoinfer")]).env_remove("HF_HUB_CACHE");
        // No proxy has a hub of loopback.
        command.env("HF_HOME", dir.path()).env("HF_ENDPOINT", &hub.endpoint).env("HTTP_PROXY", "http://127.0.0.1:9");
        command.output().unwrap()
    };
    let output = pull("16");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot write to the cache") && said.contains("hint: make room there"), "{said}");
    let repo = dir.path().join("hub/models--org--tiny");
    let snapshot = fs::read_dir(repo.join("snapshots")).unwrap().next().unwrap().unwrap().path();
    assert!(snapshot.join("vocab.json").exists() && !snapshot.join("model.safetensors").exists());
    hub.asked();
    assert!(pull("unlimited").status.success());
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), content("model.safetensors"));
    assert_eq!(hub.asked().last().unwrap().1, 8192, "what had found room was used");
}

#[test]
fn what_the_cache_may_lack_is_said_where_the_hub_cannot_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("hub/models--org--tiny");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repo.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).and_then(|()| fs::create_dir_all(repo.join("refs"))).unwrap();
    fs::write(repo.join("refs/main"), commit).unwrap();
    for name in ["config.json", "merges.txt", "vocab.json", "model.safetensors"] {
        fs::copy(golden(&format!("tiny/{name}")), snapshot.join(name)).unwrap();
    }
    let mut command = nanoinfer(&["pull", "org/tiny"]);
    command.env_remove("HF_HUB_CACHE").env("HF_HOME", dir.path()).env("TRANSFORMERS_OFFLINE", "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text(&output).trim() == snapshot.to_str().unwrap(), "{said}");
    assert!(said.contains("warning: the cache has no") && said.contains("chat_template.jinja"), "{said}");
}
