//! The calculator on a real model: one that was never taught to use it, and may write nothing but its marks, sevens and stars.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::server::{Server, golden_folder};

const MARKS: [&str; 4] = ["<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"];

/// A model of nanochat's last generation, which mixes each token with the one before it, in a folder; and the ids of the marks.
fn make(folder: &Path) -> [Value; 4] {
    let of = |part: &str| golden_folder("nanochat").join(part);
    for file in ["E/meta_000483.json", "E/model_000483.pt", "tokenizer/tokenizer.pkl"] {
        fs::copy(of(file), folder.join(of(file).file_name().unwrap())).unwrap();
    }
    let vectors: Value = serde_json::from_slice(&fs::read(of("tokenizer/vectors.json")).unwrap()).unwrap();
    MARKS.map(|mark| vectors["special_tokens"][mark].clone())
}

#[test]
fn results_are_forced_whatever_the_ranks_chunks_and_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let marks = make(folder.path());
    let mut first: Option<Vec<Value>> = None;
    for options in [
        &["--nproc", "1"][..],
        &["--nproc", "3", "--max-batched-tokens", "3", "--max-seqs", "2"],
        &["--nproc", "2", "--comm", "tcp", "--no-prefix-cache"],
    ] {
        let server = Server::start(&[&["--model", folder.path().to_str().unwrap()][..], options].concat());
        let mut body = json!({"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 200, "seed": 5, "temperature": 100,
            "return_token_ids": true, "skip_special_tokens": false,
            "allowed_token_ids": [marks[0], marks[1], b'7', b'*']});
        let choices = server.ask("/v1/completions", &body)["choices"].as_array().unwrap().clone();
        let results: usize = choices.iter().map(|choice| results_of(choice["text"].as_str().unwrap())).sum();
        assert!(results > 10, "{results} results");
        let ids: Vec<Value> = choices.iter().map(|choice| choice["token_ids"].clone()).collect();
        assert!(ids.iter().all(|ids| ids.as_array().unwrap().len() == 200), "what is forced counts");
        assert_eq!(first.get_or_insert_with(|| ids.clone()), &ids, "{options:?}");

        // What follows a result is what follows it in a prompt.
        let of = |name: &str| choices[0][name].as_array().unwrap().clone();
        let (mut prompt, answer) = (of("prompt_token_ids"), of("token_ids"));
        let cut = 1 + answer.iter().position(|id| *id == marks[3]).expect("the first has a result");
        prompt.extend_from_slice(&answer[..cut]);
        (body["prompt"], body["n"], body["max_tokens"]) = (prompt.into(), json!(1), json!(200 - cut));
        assert_eq!(server.ask("/v1/completions", &body)["choices"][0]["token_ids"], json!(answer[cut..]));
    }
    // In a chat they are told apart, unless the server has none.
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 100, "seed": 5, "temperature": 100,
        "allowed_token_ids": [marks[0], marks[1], b'7']});
    for options in [&[][..], &["--no-calculator"]] {
        let server = Server::start(&[&["--model", folder.path().to_str().unwrap()][..], options].concat());
        let message = &server.ask("/v1/chat/completions", &chat)["choices"][0]["message"];
        let calculations = message["calculations"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(calculations.is_empty(), !options.is_empty(), "{message}");
        let is_right = |it: &Value| it["result"].is_null() || it["result"] == it["expression"];
        assert!(calculations.iter().all(is_right), "{message}");
        let info: Value = serde_json::from_str(&server.get("/api/model_info").1).unwrap();
        assert_eq!(info["calculator"], options.is_empty());
    }
}

/// How many products of sevens have a result behind them: all must, and nothing else, but for an end that is cut off.
fn results_of(text: &str) -> usize {
    let [start, end, result_start, result_end] = MARKS;
    let mut results = 0;
    let mut pieces = text.split(end);
    let mut expression = pieces.next().and_then(|piece| piece.rsplit_once(start));
    for piece in pieces {
        let factor = |text: &str| text.parse::<u128>().ok();
        let product = expression
            .and_then(|(_, text)| text.split('*').try_fold(1, |product, text| factor(text)?.checked_mul(product)));
        let found = piece.strip_prefix(result_start).and_then(|rest| rest.split_once(result_end));
        match (product, found) {
            (Some(product), Some((result, _))) => {
                assert_eq!(result, product.to_string(), "{expression:?}");
                results += 1;
            }
            (None, None) => {}
            (product, _) => assert!(text.ends_with(piece), "{expression:?} is {product:?}, then {piece:?}"),
        }
        expression = piece.rsplit_once(start);
    }
    results
}
