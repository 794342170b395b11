//! A model whose template marks what it thinks: told apart in every dialect, and sent back.

use std::sync::mpsc;

use serde_json::{Value, json};

use super::Server;
use crate::{
    request::Request,
    testing::{Act, demo_text, saying, scripted, speak, thinking},
    text::TextEngine,
};

const REPLY: &str = "<think>\nTwo < three.\n</think>\n\nFour <b>.";

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// An engine that thinks, or would if its model did, and tells what was asked of it.
fn observed(
    engine: fn(crate::handle::EngineHandle) -> TextEngine,
    reply: &'static str,
) -> (TextEngine, mpsc::Receiver<Request>) {
    let (seen, requests) = mpsc::channel();
    let handle = scripted(64, move |request| {
        let _ = seen.send(request.clone());
        Act::Events(speak(request, reply))
    });
    (engine(handle), requests)
}

fn prompt(requests: &mpsc::Receiver<Request>) -> String {
    demo_text().tokenizer.decode(&requests.recv().unwrap().prompt)
}

#[tokio::test]
async fn openai_has_it_as_reasoning_content() {
    let server = Server::start(observed(thinking, REPLY).0).await;
    let body = |stream: bool| json!({"messages": user("Hi"), "stream": stream, "logprobs": true});
    let message = &server.ask("/v1/chat/completions", body(false)).await["choices"][0]["message"];
    assert_eq!(
        *message,
        json!({"role": "assistant", "content": "Four <b>.", "reasoning_content": "Two < three.", "refusal": null})
    );
    let objects = server.post("/v1/chat/completions", body(true)).await.objects();
    let joined = |field: &str| -> String {
        objects.iter().filter_map(|object| object["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!((joined("reasoning_content").as_str(), joined("content").as_str()), ("Two < three.", "Four <b>."));
    assert!(objects.len() > 6, "it comes in pieces");
    let tokens = objects.iter().filter_map(|object| object["choices"][0]["logprobs"]["content"].as_array());
    let text: String = tokens.flatten().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text, format!("{REPLY}<|endoftext|>"), "no token is left out");
}

#[tokio::test]
async fn an_answer_that_ends_while_it_thinks_is_thinking_only() {
    let server = Server::start(observed(thinking, "<think>\nTwo < three").0).await;
    let reply = server.ask("/v1/chat/completions", json!({"messages": user("Hi")})).await;
    let message = &reply["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("Two < three"), &Value::Null));
    let reply = server.ask("/api/chat", json!({"messages": user("Hi"), "stream": false})).await;
    let message = &reply["message"];
    assert_eq!((&message["thinking"], &message["content"]), (&json!("Two < three"), &json!("")));
}

#[tokio::test]
async fn stop_strings_count_in_thinking_too() {
    let server = Server::start(observed(thinking, REPLY).0).await;
    let reply = server.ask("/v1/chat/completions", json!({"messages": user("Hi"), "stop": ["thr"]})).await;
    assert_eq!(reply["choices"][0]["message"]["reasoning_content"], "Two <");
    let reply = server.ask("/v1/chat/completions", json!({"messages": user("Hi"), "stop": ["our"]})).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "F");
}

#[tokio::test]
async fn a_request_says_whether_the_model_thinks() {
    let (engine, requests) = observed(thinking, REPLY);
    let server = Server::start(engine).await;
    let kwargs = json!({"enable_thinking": false});
    let reply =
        server.ask("/v1/chat/completions", json!({"messages": user("Hi"), "chat_template_kwargs": kwargs})).await;
    assert_eq!(prompt(&requests), "<user>Hi<assistant><think>\n\n</think>\n\n");
    assert_eq!(reply["choices"][0]["message"]["content"], REPLY, "it has ended before the reply");
    for (think, ends) in [(json!(true), "<assistant>"), (json!("high"), "<assistant>"), (json!(false), "</think>\n\n")]
    {
        let body = json!({"messages": user("Hi"), "think": think, "stream": false});
        let reply = server.ask("/api/chat", body).await;
        assert!(prompt(&requests).ends_with(ends), "{think}");
        assert_eq!(reply["message"].get("thinking").is_some(), think != false);
    }
    let body = |raw: bool| json!({"prompt": "Hi", "think": true, "raw": raw});
    let lines = server.post("/api/generate", body(false)).await.lines();
    let joined = |field: &str| -> String { lines.iter().filter_map(|line| line[field].as_str()).collect() };
    assert_eq!((joined("thinking").as_str(), joined("response").as_str()), ("Two < three.", "Four <b>."));
    let reply = server.post("/api/generate", body(true)).await;
    assert!(reply.status == 400 && reply.body.contains("`think`"), "{}", reply.body);
    let reply = server.ask("/api/chat", json!({"prompt": "Hi"})).await;
    assert_eq!((&reply["thinking"], &reply["response"]), (&json!("Two < three."), &json!("Four <b>.")));
    assert_eq!(
        server.ask("/api/show", json!({"model": "nano-chat"})).await["capabilities"],
        json!(["completion", "thinking"])
    );
}

#[tokio::test]
async fn what_was_thought_may_be_sent_back() {
    let (engine, requests) = observed(thinking, "x");
    let server = Server::start(engine).await;
    for name in ["reasoning_content", "reasoning", "thinking"] {
        let messages = |thought: Value| json!([{"role": "assistant", "content": "Hi", name: thought}, {"role": "user", "content": "?"}]);
        server.ask("/v1/chat/completions", json!({"messages": messages(json!("I greet <|endoftext|>"))})).await;
        let asked = requests.recv().unwrap();
        assert!(!asked.prompt.contains(&4095), "what it says is text");
        let expected = "<assistant><think>I greet <|endoftext|></think>Hi<user>?<assistant>";
        assert_eq!(demo_text().tokenizer.decode(&asked.prompt), expected);
        let reply = server.post("/v1/chat/completions", json!({"messages": messages(json!(["x"]))})).await;
        assert!(reply.status == 400 && reply.body.contains(&format!("messages[0].{name}")), "{}", reply.body);
    }
    let messages = json!([{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>\nI"}]);
    let reply = server.ask("/v1/chat/completions", json!({"messages": messages})).await;
    assert_eq!(reply["choices"][0]["message"]["reasoning_content"], "x", "what is continued is thinking");
}

#[tokio::test]
async fn models_that_do_not_think_write_what_they_like() {
    let server = Server::start(saying(REPLY)).await;
    let reply = server.ask("/v1/chat/completions", json!({"messages": user("Hi")})).await;
    let message = &reply["choices"][0]["message"];
    assert_eq!((message.get("reasoning_content"), &message["content"]), (None, &json!(REPLY)));
    let body = |think: bool| json!({"messages": user("Hi"), "think": think, "stream": false});
    assert_eq!(server.ask("/api/chat", body(false)).await["message"], json!({"role": "assistant", "content": REPLY}));
    let reply = server.post("/api/chat", body(true)).await;
    assert!(reply.status == 400 && reply.body.contains("does not support thinking"), "{}", reply.body);
    assert_eq!(server.ask("/api/show", json!({"model": "nano-chat"})).await["capabilities"], json!(["completion"]));
}
