//! The calculator on a real model: one that was never taught to use it, and may write nothing but its marks and two digits.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::server::{Server, root};

const MARKS: [&str; 4] = ["<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"];
/// Their ids: the last words of the demo's vocabulary give way to them.
const FIRST: usize = 4091;

/// The demo model with the marks among its tokens.
fn make(folder: &Path) {
    let demo = root().join("launcher/demo/nano-chat");
    for entry in fs::read_dir(&demo).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let mut json: Value = serde_json::from_slice(&fs::read(demo.join("tokenizer.json")).unwrap()).unwrap();
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < FIRST as u64);
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    merges.truncate(merges.len() - MARKS.len());
    let end = json["added_tokens"][0].clone();
    let mark = |(at, content): (usize, &&str)| {
        let mut mark = end.clone();
        (mark["id"], mark["content"]) = ((FIRST + at).into(), (*content).into());
        mark
    };
    json["added_tokens"] = MARKS.iter().enumerate().map(mark).chain([end.clone()]).collect();
    fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
}

#[test]
fn results_are_forced_whatever_the_ranks_chunks_and_blocks() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let mut first: Option<Vec<Value>> = None;
    for options in [
        &["--nproc", "1"][..],
        &["--nproc", "3", "--max-batched-tokens", "3", "--max-seqs", "2"],
        &["--no-prefix-cache"],
    ] {
        let model = folder.path().to_str().unwrap();
        let server = Server::start(&[&["--model", model][..], options].concat());
        let digits = server.ask("/tokenize", &json!({"prompt": "7*"}))["tokens"].clone();
        let allowed = [json!(FIRST), json!(FIRST + 1), digits[0].clone(), digits[1].clone()];
        let body = json!({"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 200, "seed": 5, "temperature": 100, "return_token_ids": true,
            "allowed_token_ids": allowed, "skip_special_tokens": false});
        let choices = server.ask("/v1/completions", &body)["choices"].as_array().unwrap().clone();
        let mut forced = 0;
        for choice in &choices {
            let text = choice["text"].as_str().unwrap();
            assert_eq!(choice["token_ids"].as_array().unwrap().len(), 200);
            forced += results_of(text);
        }
        assert!(forced > 20, "{forced} results");
        let ids: Vec<Value> = choices.iter().map(|choice| choice["token_ids"].clone()).collect();
        assert_eq!(first.get_or_insert_with(|| ids.clone()), &ids, "{options:?}");
    }
}

/// How many products of sevens have a result behind them; all must, and nothing else, but for an end that is cut off.
fn results_of(text: &str) -> usize {
    let [start, end, result_start, result_end] = MARKS;
    let mut results = 0;
    let mut pieces = text.split(end);
    let mut expression = pieces.next().unwrap().rsplit_once(start).map(|(_, expression)| expression);
    for piece in pieces {
        let factor = |text: &str| text.parse::<u128>().ok();
        let product =
            expression.and_then(|text| text.split('*').try_fold(1, |product, text| factor(text)?.checked_mul(product)));
        let found = piece.strip_prefix(result_start).and_then(|rest| rest.split_once(result_end));
        match (product, found) {
            (Some(product), Some((result, _))) => {
                assert_eq!(result, product.to_string(), "{expression:?}");
                results += 1;
            }
            (None, None) => {}
            (product, _) => assert!(text.ends_with(piece), "{expression:?} is {product:?}, then {piece:?}"),
        }
        expression = piece.rsplit_once(start).map(|(_, expression)| expression);
    }
    results
}
