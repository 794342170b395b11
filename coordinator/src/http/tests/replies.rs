//! How replies are written: in pieces, within what a request may take of memory.

use serde_json::{Value, json};

use super::Server;
use crate::{
    http::HttpOptions,
    request::{Event, PromptLogprobs, SamplingParams},
    testing::{Act, demo_text, engine, saying, scripted, speak_tokens},
    text::{GenerateRequest, MaxTokens, Prompt, Specials, answer_memory::choice_json_bytes, prompt::Room},
};

fn chat() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

#[tokio::test]
async fn a_large_reply_comes_in_pieces_that_are_one_object() {
    let ids = demo_text().tokenizer.encode(" The cat sat on the mat, and 日本 too.", Specials::Match).unwrap();
    let long: Vec<u32> = ids.iter().copied().cycle().take(200).collect();
    let server = Server::start(engine(scripted(8, move |request| Act::Events(speak_tokens(request, &long))))).await;
    let small = server.post("/v1/chat/completions", json!({"messages": chat(), "max_tokens": 3, "n": 2})).await;
    assert!(small.head.contains("content-length: ") && small.head.contains("content-type: application/json"));
    let body = json!({"messages": chat(), "max_tokens": 100, "n": 16, "logprobs": true, "top_logprobs": 20,
        "explain": true, "temperature": 0});
    let reply = server.post("/v1/chat/completions", body).await;
    assert!(!reply.head.contains("content-length"), "{}", reply.head);
    let reply = reply.json();
    assert_eq!(reply["usage"]["completion_tokens"], 1600);
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 16);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        for list in [&choice["logprobs"]["content"], &choice["explain"]] {
            assert_eq!(list.as_array().unwrap().len(), 100);
        }
        assert_eq!(choice["logprobs"]["content"][99]["top_logprobs"].as_array().unwrap().len(), 20);
        assert_eq!(choice["message"], choices[0]["message"]);
    }
}

#[tokio::test]
async fn a_failure_in_the_middle_of_a_large_reply_is_an_error_and_no_half_reply() {
    let server = Server::start(engine(scripted(8, |request| {
        let mut events = speak_tokens(request, &[566; 200]);
        if request.choice == 15 {
            events.truncate(150);
            events.push(Event::Failed("rank 1 is gone".into()));
        }
        Act::Events(events)
    })))
    .await;
    let body = json!({"messages": chat(), "max_tokens": 200, "n": 16, "logprobs": true, "top_logprobs": 20});
    let reply = server.post("/v1/chat/completions", body).await;
    assert_eq!(reply.status, 503);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("rank 1 is gone"));
}

#[tokio::test]
async fn a_request_for_more_memory_than_one_may_take_is_refused_by_name_on_every_route() {
    let options = || HttpOptions { max_request_memory: 1 << 20, ..HttpOptions::default() };
    let server = Server::with(saying("x"), options()).await;
    let many = json!({"messages": chat(), "n": 64, "max_tokens": 200, "logprobs": true, "top_logprobs": 20});
    let reply = server.post("/v1/chat/completions", many).await;
    assert_eq!(reply.status, 400, "{}", reply.body);
    let error = &reply.json()["error"];
    assert_eq!(error["param"], "n");
    let message = error["message"].as_str().unwrap();
    for part in
        ["`n` 64, `max_tokens` 200, `logprobs` with 20 alternatives", "over the limit of 1 MiB", "hint: ask for fewer"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    let streamed = json!({"prompt": vec!["x"; 100], "max_tokens": 200, "explain": true, "stream": true});
    let message =
        server.post("/v1/completions", streamed).await.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("100 prompts, `max_tokens` 200, `explain`"), "{message}");
    let scored = json!({"prompt": vec![vec![7; 250]; 100], "max_tokens": 0, "echo": true, "logprobs": 20});
    let message = server.post("/v1/completions", scored).await.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("log-probabilities of the prompt with 20 alternatives"), "{message}");
    for (path, body) in [
        // As many as fit: found out when the prompt is encoded.
        (
            "/v1/chat/completions",
            json!({"messages": chat(), "n": 32, "logprobs": true, "top_logprobs": 20, "max_tokens": 250}),
        ),
        ("/api/chat/batch", json!({"prompts": vec!["x"; 400], "max_tokens": 200})),
        ("/api/chat", json!({"prompt": "x", "max_tokens": 200, "explain": true})),
        (
            "/api/chat",
            json!({"messages": chat(), "logprobs": true, "top_logprobs": 20, "options": {"num_predict": -1}}),
        ),
    ] {
        let reply = server.post(path, body).await;
        assert!(reply.status == 400 && reply.body.contains("of memory"), "{path}: {}", reply.body);
    }
    for (path, body) in [
        (
            "/v1/chat/completions",
            json!({"messages": chat(), "n": 4, "max_tokens": 20, "logprobs": true, "top_logprobs": 5}),
        ),
        ("/api/chat", json!({"prompt": "x"})),
    ] {
        server.ask(path, body).await;
    }
}

#[tokio::test]
async fn the_largest_replies_stay_below_what_was_told_of_them() {
    let ids: Vec<u32> = (300..550).collect();
    let server = Server::start(engine(scripted(8, move |request| Act::Events(speak_tokens(request, &ids))))).await;
    let of = |sampling, tokens| GenerateRequest::new(Prompt::Tokens(vec![1]), sampling, MaxTokens::Given(tokens));
    let prompt_logprobs = Some(PromptLogprobs { top: 20, from: 0 });
    let tokens = Prompt::Tokens(vec![7; 200]);
    for (path, body, prompt, request) in [
        (
            "/v1/chat/completions",
            json!({"messages": chat(), "max_tokens": 240, "logprobs": true, "top_logprobs": 20, "explain": true}),
            Prompt::single_turn("Hi"),
            of(SamplingParams { logprobs: Some(20), explain: true, ..SamplingParams::greedy() }, 240),
        ),
        (
            "/v1/completions",
            json!({"prompt": vec![7; 200], "max_tokens": 50, "echo": true, "logprobs": 20}),
            tokens.clone(),
            of(SamplingParams { logprobs: Some(20), prompt_logprobs, ..SamplingParams::greedy() }, 50),
        ),
        (
            "/v1/completions",
            json!({"prompt": vec![7; 200], "max_tokens": 50, "explain": true}),
            tokens,
            of(SamplingParams { explain: true, ..SamplingParams::greedy() }, 50),
        ),
    ] {
        let choice = server.ask(path, body).await["choices"][0].to_string().len();
        let prompt =
            prompt.prepare(&demo_text(), Room { wall: 256, max: request.max_tokens, keep_last: None }).unwrap();
        let told = choice_json_bytes(&request, &prompt, 2);
        assert!((told / 16..told).contains(&choice), "{path}: {choice} of {told}");
    }
}
