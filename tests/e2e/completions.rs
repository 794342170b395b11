//! `/v1/completions`, the names a model answers to, tokenization: on a golden model, whose log-probabilities are known.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::server::{Server, golden_folder};

fn start() -> Server {
    Server::start(&["--model", golden_folder("heads5").to_str().unwrap(), "--nproc", "2"])
}

/// `len17` of heads5: prompt ids and, by position, the log-probabilities of the whole vocabulary.
fn golden() -> (Vec<u64>, Vec<Vec<f64>>) {
    let folder = golden_folder("heads5");
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let case = json["cases"].as_array().unwrap().iter().find(|case| case["name"] == "len17").unwrap();
    let file = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let header_bytes = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + header_bytes]).unwrap();
    let entry = &header["len17.logits"];
    let offset = |i: usize| 8 + header_bytes + entry["data_offsets"][i].as_u64().unwrap() as usize;
    let vocabulary = entry["shape"][1].as_u64().unwrap() as usize;
    let (words, _) = file[offset(0)..offset(1)].as_chunks::<4>();
    let logits: Vec<f64> = words.iter().map(|&word| f64::from(f32::from_le_bytes(word))).collect();
    let log_softmax = |row: &[f64]| {
        let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        row.iter().map(|x| x - sum).collect()
    };
    let ids = case["prompt_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    (ids, logits.chunks(vocabulary).map(log_softmax).collect())
}

#[test]
fn echoed_log_probabilities_are_transformers() {
    let server = start();
    let (ids, expected) = golden();
    for max_tokens in [0, 1] {
        let body = json!({ "prompt": ids, "echo": true, "logprobs": 5, "max_tokens": max_tokens, "temperature": 0 });
        let answer = server.ask("/v1/completions", &body);
        let logprobs = &answer["choices"][0]["logprobs"];
        let got = logprobs["token_logprobs"].as_array().unwrap();
        assert_eq!(got.len(), ids.len() + max_tokens);
        assert!(got[0].is_null() && logprobs["top_logprobs"][0].is_null());
        for (position, &id) in ids.iter().enumerate().skip(1) {
            let exact = expected[position - 1][id as usize];
            assert!((got[position].as_f64().unwrap() - exact).abs() < 1e-4, "position {position}");
            // The token itself is among the top entries, with the same number.
            let token = logprobs["tokens"][position].as_str().unwrap();
            assert_eq!(logprobs["top_logprobs"][position][token], got[position], "position {position}");
        }
        let best = |row: &[f64]| row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max_tokens == 1 {
            assert!((got[ids.len()].as_f64().unwrap() - best(&expected[ids.len() - 1])).abs() < 1e-4);
        }
        assert_eq!(logprobs["text_offset"].as_array().unwrap().len(), got.len());
    }
}

#[test]
fn choices_prompts_and_streams_agree() {
    let server = start();
    let body = json!({ "prompt": [[9, 8, 7, 6], [5, 6, 7]], "n": 2, "max_tokens": 6, "seed": 11, "ignore_eos": true,
                       "return_token_ids": true });
    let answer = server.ask("/v1/completions", &body);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_ne!(choices[2]["token_ids"], choices[3]["token_ids"], "choices are drawn apart");
    assert_eq!(answer["usage"]["completion_tokens"], 24);
    assert_eq!(answer, {
        let mut again = server.ask("/v1/completions", &body);
        again["id"] = answer["id"].clone();
        again["created"] = answer["created"].clone();
        again
    });

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (_, events) = server.post_text("/v1/completions", &streamed.to_string());
    let data: Vec<_> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"));
    let mut texts = vec![String::new(); 4];
    for chunk in &data[..data.len() - 1] {
        let chunk: Value = serde_json::from_str(chunk).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
        }
    }
    let whole: Vec<_> = choices.iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts, whole);
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let server = start();
    let free = json!({ "prompt": [5, 6, 7], "max_tokens": 20, "temperature": 0, "ignore_eos": true });
    let text = server.ask("/v1/completions", &free)["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(4).take(3).collect();
    let mut stopped = free.clone();
    stopped["stop"] = json!([stop]);
    let choice = server.ask("/v1/completions", &stopped)["choices"][0].clone();
    assert_eq!(choice["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
    assert_eq!(choice["finish_reason"], "stop");
}

#[test]
fn a_model_answers_to_its_names_only() {
    let folder = golden_folder("heads5");
    let path = folder.to_str().unwrap();
    let server = Server::start(&["--model", path, "--served-model-name", "house"]);
    let (_, models) = server.get("/v1/models");
    assert!(models.contains("house") && !models.contains("heads5"), "clients see the given name only: {models}");
    let latest = format!("{path}:latest");
    for name in [path, "heads5", "heads5:latest", &latest, "house"] {
        server.ask("/v1/completions", &json!({ "model": name, "prompt": [1], "max_tokens": 1 }));
    }
    server.ask("/v1/completions", &json!({ "prompt": [1], "max_tokens": 1 }));
    let (status, error) = server.post("/v1/completions", &json!({ "model": "heads6", "prompt": [1], "max_tokens": 1 }));
    assert_eq!((status, &error["error"]["code"]), (404, &"model_not_found".into()), "{error}");
}

#[test]
fn tokens_come_and_go() {
    let server = start();
    let text = "Hello, wörld! 🌍";
    let answer = server.ask("/tokenize", &json!({ "prompt": text }));
    assert_eq!(answer["count"].as_u64().unwrap() as usize, answer["tokens"].as_array().unwrap().len());
    assert_eq!(answer["max_model_len"], 64);
    let back = server.ask("/detokenize", &json!({ "tokens": answer["tokens"] }));
    assert_eq!(back["prompt"], text);
}

#[test]
fn rows_behind_the_last_token_are_no_part_of_the_model() {
    const TOKENS: usize = 15;
    let folder = tempfile::tempdir().unwrap();
    let tiny = golden_folder("tiny");
    for file in ["config.json", "model.safetensors", "merges.txt"] {
        std::fs::copy(tiny.join(file), folder.path().join(file)).unwrap();
    }
    let vocabulary = std::fs::read_to_string(tiny.join("vocab.json")).unwrap();
    let mut vocabulary: BTreeMap<String, usize> = serde_json::from_str(&vocabulary).unwrap();
    vocabulary.retain(|_, id| *id < TOKENS);
    std::fs::write(folder.path().join("vocab.json"), serde_json::to_string(&vocabulary).unwrap()).unwrap();
    // Of another class than GPT-2's, which adds an end of text.
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "Plain"}"#).unwrap();
    for nproc in ["1", "2"] {
        let server = Server::start(&["--model", folder.path().to_str().unwrap(), "--nproc", nproc]);
        let body =
            json!({"prompt": [3, 4, 9], "max_tokens": 40, "temperature": 9, "logprobs": 20, "echo": true, "seed": 1});
        let logprobs = &server.ask("/v1/completions", &body)["choices"][0]["logprobs"];
        let of_tokens = logprobs["top_logprobs"].as_array().unwrap().iter().filter_map(Value::as_object);
        let probabilities: Vec<Vec<f64>> =
            of_tokens.map(|top| top.values().map(|logprob| logprob.as_f64().unwrap().exp()).collect()).collect();
        assert_eq!(probabilities.len(), 42, "all but the first token");
        for top in probabilities {
            let sum: f64 = top.iter().sum();
            assert!(top.len() == TOKENS && (sum - 1.0).abs() < 1e-5, "nproc {nproc}: {} make {sum}", top.len());
        }
        for (field, value) in
            [("prompt", json!([15])), ("logit_bias", json!({"15": 100})), ("allowed_token_ids", json!([60]))]
        {
            let mut body = json!({"prompt": [3], "max_tokens": 1});
            body[field] = value;
            let (status, error) = server.post("/v1/completions", &body);
            assert!(status == 400 && error.to_string().contains("does not exist"), "{field}: {status} {error}");
        }
    }
}
