//! Checkpoints of nanochat as they lie in its cache, through HTTP: its own greedy tokens, on ranks and in batches.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::server::{Server, root as repository};

/// `base_checkpoints/d4` with the tokenizer two levels up, and an older step beside the newest.
fn cache(root: &Path, generation: &str) -> String {
    let golden = repository().join("tests/golden/nanochat");
    let (model, tokenizer) = (root.join("base_checkpoints/d4"), root.join("tokenizer"));
    fs::create_dir_all(&model).unwrap();
    fs::create_dir_all(&tokenizer).unwrap();
    for entry in fs::read_dir(golden.join(generation)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model_") || name.starts_with("meta_") {
            fs::copy(&path, model.join(name)).unwrap();
        }
    }
    fs::copy(golden.join("tokenizer/tokenizer.pkl"), tokenizer.join("tokenizer.pkl")).unwrap();
    fs::write(model.join("model_000001.pt"), "an older step, which nobody asks for").unwrap();
    fs::write(model.join("optim_000483_rank0.pt"), "what a trainer keeps").unwrap();
    model.display().to_string()
}

#[test]
fn every_generation_writes_as_nanochat_does() {
    for (i, generation) in ["A", "A-padded", "B-lambdas", "B", "C", "C-softcap20", "D", "E"].into_iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        let folder = cache(root.path(), generation);
        let golden = repository().join("tests/golden/nanochat").join(generation).join("golden.json");
        let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
        let (nproc, comm) = (["1", "2", "3"][i % 3], if i % 2 == 0 { "shm" } else { "tcp" });
        let mut options = vec!["--model", &folder, "--nproc", nproc, "--dtype", "f32", "--max-batched-tokens", "32"];
        if nproc != "1" {
            options.extend(["--comm", comm]);
        }
        let server = Server::start(&options);
        for prompt in golden["prompts"].as_array().unwrap() {
            let greedy = prompt["greedy"].as_array().unwrap();
            let request = json!({
                "prompt": prompt["ids"], "max_tokens": greedy.len(), "temperature": 0, "ignore_eos": true,
                "return_token_ids": true, "calculator": false,
            });
            let answer = server.ask("/v1/completions", &request);
            let what = format!("{generation} nproc {nproc} {}: {answer}", prompt["name"]);
            assert_eq!(answer["choices"][0]["token_ids"], prompt["greedy"], "{what}");
        }
    }
}
