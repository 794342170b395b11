//! Names to files, with a hub of our own on loopback: the routes that the real one answers, and nothing else.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONFIG_TEXT: &str = r#"{"model_type":"gpt2","n_embd":40,"n_head":5}"#;

/// A hub with one repository.
struct FakeHub {
    endpoint: String,
    /// Paths asked for, in order; a mutex because every connection has its thread.
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeHub {
    fn start(id: &'static str, files: BTreeMap<&'static str, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, files) = (asked.clone(), Arc::new(files));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, files) = (log.clone(), files.clone());
                std::thread::spawn(move || converse(stream.unwrap(), id, &files, &log));
            }
        });
        Self { endpoint, asked }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn converse(mut stream: TcpStream, id: &str, files: &BTreeMap<&str, Vec<u8>>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let path = request.split(' ').nth(1).unwrap();
        log.lock().unwrap().push(path.to_string());
        let range = head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let (from, to) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
            name.eq_ignore_ascii_case("range").then(|| (from.parse::<usize>().unwrap(), to.parse::<usize>().ok()))
        });
        let listing = path == format!("/api/models/{id}/revision/main");
        let file = path.strip_prefix(&format!("/{id}/resolve/{COMMIT}/")).and_then(|name| files.get_key_value(name));
        let (status, headers, body) = if listing {
            let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            ("200 OK", String::new(), body.into_bytes())
        } else if let Some((name, content)) = file {
            let (from, to) = range.unwrap_or((0, None));
            let to = to.map_or(content.len(), |to| to + 1).min(content.len());
            let headers = format!(
                "ETag: \"tag-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
                name.replace('.', "-"),
                to.saturating_sub(1),
                content.len()
            );
            ("206 Partial Content", headers, content[from..to].to_vec())
        } else {
            ("404 Not Found", String::new(), Vec::new())
        };
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
            return;
        }
    }
}

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let weights: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    BTreeMap::from([
        ("config.json", CONFIG_TEXT.into()),
        ("merges.txt", b"#version: 0.2\n".to_vec()),
        ("vocab.json", b"{}".to_vec()),
        ("generation_config.json", b"{}".to_vec()),
        ("model.safetensors", weights),
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
    let hub = FakeHub::start("openai-community/gpt2", files());
    let mut caches = caches(root.path(), &hub.endpoint);
    let model = resolve(Some("gpt2"), None, &caches).unwrap();
    assert_eq!((model.name.as_str(), model.geometry.n_head), ("gpt2", 5));
    for (name, content) in files() {
        let path = model.folder.join(name);
        if name == "pytorch_model.bin" {
            assert!(!path.exists());
        } else {
            assert_eq!(fs::read(path).unwrap(), content, "{name}");
        }
    }
    assert!(hub.asked().last().unwrap().ends_with("/model.safetensors"), "weights come last");

    assert_eq!(resolve(Some("openai-community/gpt2"), None, &caches).unwrap().weights, model.weights);
    assert_eq!(resolve(Some("gpt2"), Some(COMMIT), &caches).unwrap().weights, model.weights);
    caches.hub.offline = true;
    assert_eq!(resolve(Some("gpt2"), None, &caches).unwrap(), model);
    assert_eq!(hub.asked(), [""; 0], "a complete snapshot needs no hub");
}

#[test]
fn a_split_checkpoint_comes_with_all_its_parts() {
    let root = tempfile::tempdir().unwrap();
    let mut parts = files();
    parts.remove("model.safetensors");
    let index = r#"{"weight_map":{"a":"model-2.safetensors","b":"model-1.safetensors","c":"model-2.safetensors"}}"#;
    parts.insert("model.safetensors.index.json", index.into());
    parts.insert("model-1.safetensors", b"one".to_vec());
    parts.insert("model-2.safetensors", b"two".to_vec());
    let hub = FakeHub::start("org/split", parts);
    let model = resolve(Some("org/split"), None, &caches(root.path(), &hub.endpoint)).unwrap();
    let names: Vec<_> = model.weights.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["model-1.safetensors", "model-2.safetensors"]);
    let index = model.folder.join(WEIGHTS_INDEX).display().to_string();
    assert_eq!(resolve_weights(&index, None, &caches(root.path(), "")).unwrap(), model.weights);
}

#[test]
fn what_the_hub_does_not_have_is_said_with_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let mut pickled = files();
    pickled.remove("model.safetensors");
    let hub = FakeHub::start("org/pickled", pickled);
    let mut caches = caches(root.path(), &hub.endpoint);
    let say = |name: &str, caches: &Caches| resolve(Some(name), None, caches).unwrap_err().to_string();

    let message = say("org/pickled", &caches);
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
    assert!(say("zebra").contains("hint: "));

    let folder = root.path().join("my-model");
    fs::create_dir(&folder).unwrap();
    let path = folder.display().to_string();
    let message = say(&path.replace("my-model", "my-modle"));
    assert!(message.contains("did you mean") && message.contains("my-model"), "{message}");
    assert!(say(&path).contains("config.json"));
    fs::write(folder.join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    assert!(say(&path).contains("llama"));
    fs::write(folder.join("config.json"), CONFIG_TEXT).unwrap();
    assert!(say(&path).contains("tokenizer.json"));
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    fs::write(folder.join("pytorch_model.bin"), "").unwrap();
    assert!(say(&path).contains("model.safetensors"));
    fs::write(folder.join(WEIGHTS_INDEX), r#"{"weight_map":{"a":"../../etc/passwd"}}"#).unwrap();
    assert!(say(&path).contains("no file name"));
}
