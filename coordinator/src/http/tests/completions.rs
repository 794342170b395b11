//! `/v1/completions`, as lm-eval and the OpenAI package use it, and counting tokens.

use serde_json::{Value, json};

use super::Server;
use crate::{
    testing::{Act, demo_text, engine, saying, scripted, speak, speak_tokens},
    text::Specials,
};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn every_form_of_prompt_is_continued() {
    let server = Server::start(saying(" on the mat")).await;
    for (prompt, count) in [
        (json!("The cat"), 1),
        (json!(["The cat", "A dog"]), 2),
        (json!([566, 25]), 1),
        (json!([[566], [25, 1]]), 2),
        (json!(""), 1),
        (json!(null), 1),
    ] {
        let reply = server.ask(PATH, json!({"prompt": prompt, "max_tokens": 20})).await;
        let choices = reply["choices"].as_array().unwrap();
        assert_eq!(choices.len(), count, "{prompt}");
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!((&choice["text"], &choice["index"]), (&json!(" on the mat"), &json!(index)));
            assert!(choice["logprobs"].is_null());
        }
        assert!(reply["id"].as_str().unwrap().starts_with("cmpl-") && reply["object"] == "text_completion");
    }
}

#[tokio::test]
async fn echo_with_logprobs_scores_the_prompt_as_lm_eval_reads_it() {
    let server = Server::start(saying(" on the mat")).await;
    let text = "日本 cat🦀";
    let ids = demo_text().tokenizer.encode(text, Specials::Match).unwrap();
    for max_tokens in [0, 1] {
        let body = json!({"prompt": ids, "echo": true, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0});
        let reply = server.ask(PATH, body).await;
        let choice = &reply["choices"][0];
        let lists = &choice["logprobs"];
        let list = |name: &str| lists[name].as_array().unwrap().clone();
        let (tokens, scores, top, offsets) =
            (list("tokens"), list("token_logprobs"), list("top_logprobs"), list("text_offset"));
        assert_eq!(tokens.len(), ids.len() + max_tokens);
        assert!(scores[0].is_null() && top[0].is_null());
        for i in 1..tokens.len() {
            let token = tokens[i].as_str().unwrap();
            // The same number in both places, bit for bit, and the token always there.
            assert_eq!(top[i][token], scores[i], "{token}");
            assert!(top[i].as_object().unwrap().len() <= 2);
        }
        assert!(tokens.iter().any(|t| t.as_str().unwrap().starts_with("bytes:\\x")), "{tokens:?}");
        let full = choice["text"].as_str().unwrap();
        assert!(full.starts_with(text));
        let chars: Vec<char> = full.chars().collect();
        for (token, offset) in tokens.iter().zip(&offsets) {
            let token = token.as_str().unwrap();
            if !token.starts_with("bytes:") {
                let from = offset.as_u64().unwrap() as usize;
                let there: String = chars[from..].iter().take(token.chars().count()).collect();
                assert_eq!(there, token);
            }
        }
        assert!(offsets.is_sorted_by_key(|offset| offset.as_u64()));
    }
}

#[tokio::test]
async fn logprobs_of_the_continuation_alone() {
    let server = Server::start(saying(" on the mat")).await;
    let reply =
        server.ask(PATH, json!({"prompt": "x", "logprobs": 0, "max_tokens": 20, "return_token_ids": true})).await;
    let choice = &reply["choices"][0];
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.last().unwrap(), "<|endoftext|>");
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), tokens.len());
    assert_eq!(choice["logprobs"]["text_offset"][0], 0);
    assert_eq!(choice["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 1, "the token itself");
    assert_eq!(choice["prompt_token_ids"], json!(demo_text().tokenizer.encode("x", Specials::Match).unwrap()));
}

#[tokio::test]
async fn streams_join_to_what_is_answered_whole() {
    let server = Server::start(saying(" 日本 on the mat")).await;
    let body = json!({"prompt": ["a", "b"], "n": 2, "echo": true, "logprobs": 2, "max_tokens": 30, "seed": 1});
    let whole = server.ask(PATH, body.clone()).await;
    let mut streamed = body;
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let objects = server.post(PATH, streamed).await.objects();
    for index in 0..4 {
        let pieces: Vec<&Value> =
            objects.iter().flat_map(|o| o["choices"].as_array().unwrap()).filter(|c| c["index"] == index).collect();
        let expected = &whole["choices"][index];
        let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
        assert_eq!(text, expected["text"]);
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let joined: Vec<Value> =
                pieces.iter().flat_map(|piece| piece["logprobs"][list].as_array().unwrap().clone()).collect();
            assert_eq!(Value::from(joined), expected["logprobs"][list], "{list}");
        }
        assert_eq!(pieces.last().unwrap()["finish_reason"], "stop");
    }
    assert_eq!(objects.last().unwrap()["usage"], whole["usage"]);
    assert_eq!(whole["usage"]["prompt_tokens"], 2, "a prompt counts once, whatever its choices");
}

#[tokio::test]
async fn limits_and_stops_reach_the_engine() {
    let (seen, requests) = std::sync::mpsc::channel();
    let handle = scripted(8, move |request| {
        let _ = seen.send(request.clone());
        Act::Events(speak(request, "ok"))
    });
    let server = Server::start(engine(handle)).await;
    let body = json!({"prompt": "x", "max_tokens": 9, "min_tokens": 2, "ignore_eos": true, "stop_token_ids": [7], "top_k": -1,
        "best_of": 1, "suffix": null, "seed": 18446744073709551615u64, "typical_p": 0.5});
    server.ask(PATH, body).await;
    let request = requests.recv().unwrap();
    assert_eq!((request.max_tokens, request.sampling.min_tokens, request.sampling.ignore_eos), (9, 2, true));
    assert_eq!((&*request.sampling.stop_token_ids, request.sampling.top_k), (&[7][..], 0));
    assert_eq!((request.sampling.temperature, request.sampling.typical_p), (0.3, 0.5));
    assert_eq!(request.sampling.seed, u64::MAX);
}

#[tokio::test]
async fn max_tokens_beyond_the_wall_are_cut_and_the_reply_says_so() {
    let server = Server::start(saying(" on the mat")).await;
    let said = "max_tokens 1024 was cut to 255: the model's context ends at 256 tokens";
    for prompt in [json!([7]), json!([[7], [8]]), json!("x")] {
        let reply = server.post(PATH, json!({"prompt": prompt, "max_tokens": 1024})).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(reply.json()["warnings"], json!([said]), "once");
        assert!(reply.head.contains(&format!("x-nanoinfer-warning: {said}")), "{}", reply.head);
    }
    let objects = server.post(PATH, json!({"prompt": "x", "max_tokens": 1024, "stream": true})).await.objects();
    assert_eq!((&objects[0]["warnings"], objects[1].get("warnings")), (&json!([said]), None));
    let reply = server.ask("/api/chat", json!({"prompt": "x", "raw": true, "max_tokens": 1024})).await;
    assert_eq!(reply["warnings"], json!([said]));
    // As many different warnings as prompts: the header stays what clients take, the body has them all.
    let prompts: Vec<Vec<u32>> = (1..=200).map(|n| vec![7; n]).collect();
    let reply = server.post(PATH, json!({"prompt": prompts, "max_tokens": 1024})).await;
    assert_eq!(reply.json()["warnings"].as_array().unwrap().len(), 200);
    assert!(reply.head.len() < 4096 && reply.head.contains(" more\r\n"), "{}", reply.head);
    let full = json!({"prompt": vec![7; 256], "max_tokens": 1, "echo": true, "logprobs": 1});
    let refused = server.post(PATH, full).await;
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("prompt")), "nothing is left to cut");
}

#[tokio::test]
async fn half_a_character_is_never_streamed() {
    let ids = demo_text().tokenizer.encode("🦀日本", Specials::Literal).unwrap();
    assert!(ids.len() > 3, "the demo vocabulary has none of these whole");
    let handle = scripted(8, move |request| Act::Events(speak_tokens(request, &ids)));
    let server = Server::start(engine(handle)).await;
    let objects = server.post(PATH, json!({"prompt": "x", "max_tokens": 50, "stream": true})).await.objects();
    let texts: Vec<&str> = objects.iter().map(|o| o["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts.concat(), "🦀日本");
    assert!(texts.iter().all(|text| !text.contains('\u{fffd}')));
}

#[tokio::test]
async fn text_is_counted_and_read_back() {
    let server = Server::start(saying("x")).await;
    let reply = server.ask("/tokenize", json!({"prompt": "a cat<|endoftext|>", "return_token_strs": true})).await;
    assert_eq!(reply["tokens"].as_array().unwrap().last().unwrap(), 4095);
    assert_eq!(
        (reply["count"].as_u64().unwrap() as usize, &reply["max_model_len"]),
        (reply["tokens"].as_array().unwrap().len(), &json!(256))
    );
    assert_eq!(reply["token_strs"].as_array().unwrap().last().unwrap(), "<|endoftext|>");
    let back = server.ask("/detokenize", json!({"tokens": reply["tokens"]})).await;
    assert_eq!(back, json!({"prompt": "a cat<|endoftext|>"}));
    let chat = server.ask("/tokenize", json!({"messages": [{"role": "user", "content": "Hi"}]})).await;
    assert_eq!(chat["tokens"], json!(demo_text().tokenizer.encode("User: Hi\nAssistant:", Specials::Literal).unwrap()));
    let info = server.get("/tokenizer_info").await.json();
    assert_eq!((&info["eos_token"], &info["eos_token_id"]), (&json!("<|endoftext|>"), &json!(4095)));
}
