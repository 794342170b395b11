//! Greedy ids of transformers, through the real cluster and HTTP.

use serde_json::{Value, json};

use crate::server::{Server, golden_folder};

fn cases(model: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(golden_folder(model).join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

fn body(case: &Value) -> Value {
    json!({ "prompt": case["prompt_ids"], "max_tokens": case["greedy_ids"].as_array().unwrap().len(), "temperature": 0,
            "return_token_ids": true, "ignore_eos": true })
}

fn start(model: &str, nproc: &str, comm: &str) -> Server {
    let folder = golden_folder(model);
    Server::start(&["--model", folder.to_str().unwrap(), "--nproc", nproc, "--comm", comm])
}

#[test]
fn every_split_and_link_generates_transformers_ids() {
    let gpt2 = [("heads5", 5), ("heads7", 5), ("inner", 5), ("tiny", 3)];
    // Padding rows of qwen2-14-2 would often be drawn.
    let llama = [
        ("llama-9-3", 5),
        ("llama3-15-5", 5),
        ("qwen2-14-2", 5),
        ("qwen3-5-1", 5),
        ("mistral-8-2", 5),
        ("llama-yarn", 3),
    ];
    for (model, most) in gpt2.into_iter().chain(llama) {
        for nproc in ["1", "2", "3", "5"].into_iter().filter(|n| n.parse::<usize>().unwrap() <= most) {
            for comm in if nproc == "1" { &["auto"][..] } else { &["shm", "tcp"] } {
                let server = start(model, nproc, comm);
                for case in cases(model) {
                    if case["greedy_ids"].as_array().unwrap().is_empty() {
                        continue;
                    }
                    let answer = server.ask("/v1/completions", &body(&case));
                    let choice = &answer["choices"][0];
                    assert_eq!(
                        choice["token_ids"], case["greedy_ids"],
                        "{model} {} nproc {nproc} {comm}",
                        case["name"]
                    );
                    assert_eq!(choice["prompt_token_ids"], case["prompt_ids"]);
                }
            }
        }
    }
}

#[test]
fn a_crowd_of_mixed_lengths_gets_what_each_gets_alone() {
    for dtype in ["f32", "bf16"] {
        crowd_equals_alone(dtype);
    }
}

fn crowd_equals_alone(dtype: &str) {
    let folder = golden_folder("heads7");
    let server = Server::start(&["--model", folder.to_str().unwrap(), "--nproc", "2", "--dtype", dtype]);
    let bodies: Vec<Value> = cases("heads7")
        .iter()
        .filter(|case| !case["greedy_ids"].as_array().unwrap().is_empty())
        .flat_map(|case| {
            (0..4).map(|seed| {
                let mut body = body(case);
                body["temperature"] = 1.0.into();
                body["seed"] = seed.into();
                body["logprobs"] = 3.into();
                body
            })
        })
        .collect();
    let choices = |answer: Value| answer["choices"].clone();
    let alone: Vec<Value> = bodies.iter().map(|body| choices(server.ask("/v1/completions", body))).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            bodies.iter().map(|body| scope.spawn(|| choices(server.ask("/v1/completions", body)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Equal JSON, log-probabilities to the last digit.
    assert_eq!(together, alone, "{dtype}");
}
