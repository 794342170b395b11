//! Checkpoints of nanochat as they lie in its cache, through HTTP: its own greedy tokens, on ranks and in batches.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::server::{Server, root as repository};

/// `base_checkpoints/d4` with the tokenizer two levels up, and an older step beside the newest.
pub(crate) fn cache(root: &Path, generation: &str) -> String {
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

/// All that golden data stands for.
pub(crate) const GENERATIONS: [&str; 8] = ["A", "A-padded", "B-lambdas", "B", "C", "C-softcap20", "D", "E"];

/// What nanochat itself writes behind some prompts.
pub(crate) fn golden_prompts(generation: &str) -> Vec<Value> {
    let golden = repository().join("tests/golden/nanochat").join(generation).join("golden.json");
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    golden["prompts"].as_array().unwrap().clone()
}

#[test]
fn every_generation_writes_as_nanochat_does() {
    for (i, generation) in GENERATIONS.into_iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        let folder = cache(root.path(), generation);
        let (nproc, comm) = (["1", "2", "3"][i % 3], if i % 2 == 0 { "shm" } else { "tcp" });
        let mut options = vec!["--model", &folder, "--nproc", nproc, "--dtype", "f32", "--max-batched-tokens", "32"];
        if nproc != "1" {
            options.extend(["--comm", comm]);
        }
        let server = Server::start(&options);
        for prompt in &golden_prompts(generation) {
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

#[test]
fn neither_cache_nor_company_changes_a_probability() {
    let root = tempfile::tempdir().unwrap();
    let folder = cache(root.path(), "E");
    let prompt: Vec<u32> = (0..90).map(|i| 1 + i * 37 % 250).collect();
    let ask = |server: &Server, length: usize| {
        let request = json!({
            "prompt": prompt[..length], "max_tokens": 20, "temperature": 1.5, "seed": 7, "ignore_eos": true, "logprobs": 2,
            "calculator": false,
        });
        server.ask("/v1/completions", &request)["choices"][0]["logprobs"].clone()
    };
    let alone = Server::start(&["--model", &folder, "--nproc", "2", "--no-prefix-cache"]);
    let expected: Vec<Value> = [90, 64, 33].map(|length| ask(&alone, length)).to_vec();
    // Prompts that begin alike, one behind the other and at once, in chunks that end anywhere.
    let server = Server::start(&["--model", &folder, "--nproc", "2", "--max-batched-tokens", "35"]);
    for _ in 0..2 {
        for (length, expected) in [90, 64, 33].into_iter().zip(&expected) {
            assert_eq!(&ask(&server, length), expected, "{length} tokens");
        }
    }
    std::thread::scope(|scope| {
        let (ask, server) = (&ask, &server);
        let running = [90, 64, 33, 64].map(|length| scope.spawn(move || ask(server, length)));
        let all = running.map(|thread| thread.join().unwrap());
        assert_eq!(all, [0, 1, 2, 1].map(|i: usize| expected[i].clone()));
    });
}
