//! What is refused, how it is said, and that nothing else is disturbed.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::server::{Server, golden_folder, launcher, run_to_end};

/// Runs the launcher to its end; it must fail with `code` and say all of `words`.
#[track_caller]
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let (status, log) = run_to_end(launcher(arguments));
    assert_eq!(status.code(), Some(code), "{arguments:?}: {log}");
    for word in words {
        assert!(log.contains(word), "{arguments:?} should say {word:?}: {log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

/// A copy of heads5 to spoil.
pub(crate) fn copy_of_heads5(to: &Path) {
    for entry in fs::read_dir(golden_folder("heads5")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Sets the first element of a tensor in f32.
pub(crate) fn spoil(weights: &Path, name: &str, value: f32) {
    let mut bytes = fs::read(weights).unwrap();
    let end = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let at = end + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(weights, bytes).unwrap();
}

#[test]
fn a_bad_model_is_named_with_what_is_wrong() {
    refused(&["--model", "./no/such/folder"], 2, &["no/such/folder"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    refused(&["--model", path], 2, &["config.json"]);

    copy_of_heads5(dir.path());
    let weights = dir.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for (spoiled, word) in [
        (whole[..whole.len() - 1000].to_vec(), "not a complete checkpoint"),
        (whole[..100].to_vec(), "not a complete checkpoint"),
        (vec![0xff; 5000], "not a complete checkpoint"),
    ] {
        fs::write(&weights, spoiled).unwrap();
        refused(&["--model", path], 2, &["model.safetensors", word]);
    }
    fs::write(&weights, &whole).unwrap();

    let config = dir.path().join("config.json");
    let original: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    for (field, value, words) in [
        ("n_embd", json!(45), &["wte.weight", "45"][..]),
        ("n_layer", json!(3), &["h.2."]),
        ("n_layer", json!(1), &["h.1.", "n_layer 1"]),
        ("n_head", json!(7), &["n_head 7"]),
        ("model_type", json!("llama"), &["llama"]),
    ] {
        let mut changed = original.clone();
        changed[field] = value;
        fs::write(&config, changed.to_string()).unwrap();
        refused(&["--model", path], 2, words);
    }
    fs::write(&config, "{").unwrap();
    refused(&["--model", path], 2, &["config.json"]);
}

#[test]
fn a_weight_that_is_no_number_is_named_by_the_rank_that_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    copy_of_heads5(dir.path());
    spoil(&dir.path().join("model.safetensors"), "transformer.ln_f.weight", f32::NAN);
    let model = ["--model", dir.path().to_str().unwrap(), "--port", "0"];
    for dtype in ["f32", "bf16", "int8"] {
        for nproc in ["1", "2"] {
            let arguments = [&model[..], &["--dtype", dtype, "--nproc", nproc]].concat();
            refused(&arguments, 1, &["`ln_f.weight` holds NaN (element 0)", "hint: the training diverged"]);
        }
    }
}

#[test]
fn a_bad_command_line_is_explained() {
    let heads5 = golden_folder("heads5");
    let heads5 = heads5.to_str().unwrap();
    refused(&["--model", heads5, "--nproc", "6"], 2, &["5 attention heads", "1 to 5"]);
    refused(&["--nproc", "0"], 2, &["nproc"]);
    refused(&["--nproc", "two"], 2, &["two"]);
    refused(&["--no-such-flag"], 2, &["--no-such-flag"]);
    refused(&["--modle", heads5], 2, &["--model"]);
    refused(&["--kv-memory", "1KiB", "--port", "0"], 2, &["--kv-memory"]);
    refused(&["--config", "/no/such/file.toml"], 2, &["/no/such/file.toml"]);
    refused(&["--isa", "sse9"], 2, &["--isa", "avx512-bf16"]);
    refused(&["gpt2"], 2, &["--model gpt2"]);
}

#[test]
fn memory_that_is_not_there_is_told_once() {
    let much = ["--kv-memory", "512TiB"];
    let (status, log) = run_to_end(launcher(&[&much[..], &["--port", "0"]].concat()));
    assert_eq!((status.code(), log.matches("the ranks need").count()), (Some(2), 1), "{log}");
    let plan = launcher(&[&much[..], &["--plan"]].concat()).output().unwrap();
    let text = String::from_utf8_lossy(&plan.stdout);
    assert!(plan.status.success() && text.contains("warning: the ranks need"), "{text}");
}

#[test]
fn a_bad_value_of_the_environment_is_named_by_its_variable() {
    for (typed, is_named) in [(&["--plan"][..], true), (&["--plan", "--port=y"], false)] {
        let mut command = launcher(typed);
        command.env("NANOINFER_PORT", "x").env("NANOINFER_NPROCS", "2");
        let (status, log) = run_to_end(command);
        assert_eq!((status.code(), log.contains("NANOINFER_PORT")), (Some(2), is_named), "{log}");
    }
    let mut command = launcher(&["--plan"]);
    command.env("NANOINFER_NPROCS", "2");
    let (status, log) = run_to_end(command);
    assert!(status.success() && log.contains("did you mean NANOINFER_NPROC?"), "{log}");
    // A key and a file with one exclude one another, unless only one was typed.
    let mut command = launcher(&["--plan", "--api-key", "typed"]);
    command.env("NANOINFER_API_KEY_FILE", "/nowhere");
    let (status, log) = run_to_end(command);
    assert!(status.success(), "{log}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(&["--port", &port], 1, &[&port, "in use"]);
}

#[test]
fn a_bad_request_gets_a_clear_answer_and_disturbs_nobody() {
    let server = Server::start(&["--nproc", "2"]);
    let healthy = json!({ "prompt": "What is the capital of France?", "temperature": 0 });
    let expected = server.ask("/api/chat", &healthy)["response"].clone();
    std::thread::scope(|scope| {
        let beside =
            scope.spawn(|| (0..20).map(|_| server.ask("/api/chat", &healthy)["response"].clone()).collect::<Vec<_>>());
        for (path, body, status, word) in [
            ("/api/chat", "{", 400, "JSON"),
            ("/api/chat", "[]", 400, ""),
            ("/api/chat", "{}", 400, "prompt"),
            ("/api/chat", r#"{"prompt":"a","messages":[]}"#, 400, "messages"),
            ("/api/chat", r#"{"prompt":"a","temperature":-1}"#, 400, "temperature"),
            ("/api/chat", r#"{"prompt":"a","temperature":"hot"}"#, 400, "temperature"),
            ("/api/chat", r#"{"model":"llama","messages":[{"role":"user","content":"a"}]}"#, 404, "llama"),
            ("/v1/completions", "{", 400, "JSON"),
            ("/v1/completions", r#"{"prompt":"a","top_p":2}"#, 400, "top_p"),
            ("/v1/completions", r#"{"prompt":"a","n":0}"#, 400, "n"),
            ("/v1/completions", r#"{"prompt":"a","max_tokens":"many"}"#, 400, "max_tokens"),
            ("/v1/completions", r#"{"prompt":[99999]}"#, 400, "99999"),
            ("/v1/completions", r#"{"prompt":[]}"#, 400, "prompt"),
            ("/v1/completions", r#"{"prompt":"a","suffix":"b"}"#, 400, "suffix"),
            ("/v1/completions", r#"{"model":"nope","prompt":"a"}"#, 404, "nope"),
            ("/v1/nothing", "{}", 404, "/v1/nothing"),
            ("/api/nothing", "{}", 404, "/api/nothing"),
        ] {
            let (got, text) = server.post_text(path, body);
            let error = serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{path} {body}: {e}: {text}"));
            assert_eq!(got, status, "{path} {body}: {text}");
            let message = if path.starts_with("/v1") { &error["error"]["message"] } else { &error["error"] };
            assert!(message.as_str().is_some_and(|m| m.contains(word)), "{path} {body}: {text}");
        }
        let many = (0..65).map(|i| format!("\"{i}\"")).collect::<Vec<_>>().join(",");
        let (status, text) = server.post_text("/v1/completions", &format!(r#"{{"prompt":"a","stop":[{many}]}}"#));
        assert!(status == 400 && text.contains("at most 64"), "{text}");
        let long = format!(r#"{{"prompt":"{}"}}"#, "word ".repeat(400));
        let (status, text) = server.post_text("/v1/completions", &long);
        assert!(status == 400 && text.contains("256"), "{text}");
        assert_eq!(server.get("/v1/completions").0, 405);
        assert!(beside.join().unwrap().iter().all(|response| *response == expected));
    });
}
