//! What is refused, with which status, naming what.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{HttpOptions, Server};
use crate::testing::saying;

/// Posts what should be refused, and returns the message.
async fn refused(server: &Server, path: &str, body: Value, status: u16) -> (String, Value) {
    let reply = server.post(path, body.clone()).await;
    assert_eq!(reply.status, status, "{body}: {}", reply.body);
    let error = reply.json()["error"].clone();
    if path.starts_with("/api/") {
        (error.as_str().unwrap().to_owned(), Value::Null)
    } else {
        assert!(error["type"].is_string() && error.get("code").is_some());
        (error["message"].as_str().unwrap().to_owned(), error["param"].clone())
    }
}

fn with(mut base: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

#[tokio::test]
async fn openai_fields_out_of_range_or_type_are_named() {
    let server = Server::start(saying("x")).await;
    let common = [
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "0.5"}), "temperature"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": []}), "frequency_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": 1000000}), "n"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": "5"}), "max_tokens"),
        (json!({"seed": "x"}), "seed"),
        (json!({"stream": 1}), "stream"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": [5]}), "stop"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids"),
        (json!({"stop_token_ids": [4096]}), "stop_token_ids"),
        (json!({"stop_token_ids": vec![5; 65]}), "stop_token_ids"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": 5}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [-1]}), "allowed_token_ids"),
        (json!({"allowed_token_ids": ["a"]}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [4095, 4096]}), "allowed_token_ids"),
        (json!({"bad_words": "a"}), "bad_words"),
        (json!({"bad_words": [5]}), "bad_words"),
        (json!({"bad_words": ["a", " "]}), "bad_words"),
        (json!({"bad_words": vec!["a"; 65]}), "bad_words"),
        (json!({"bad_words": ["a".repeat(16385)]}), "bad_words"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": {"5000": 1}}), "logit_bias"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"stream_options": true}), "stream_options"),
        (json!({"stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"timeout_s": 0}), "timeout_s"),
        (json!({"model": 3}), "model"),
    ];
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    for (more, field) in &common {
        for (path, base) in [("/v1/completions", json!({"prompt": "x"})), ("/v1/chat/completions", chat.clone())] {
            let (message, param) = refused(&server, path, with(base, more), 400).await;
            assert_eq!(param, *field, "{message}");
            assert!(!message.contains("something else"), "{message}");
            assert!(message.contains(field.split('.').next_back().unwrap()) || message.contains("token"), "{message}");
        }
    }
    for (more, field) in [
        (json!({"prompt": 3}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ["a", 1]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [4096]}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": null, "prompts": ["x"]}), "prompt"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"echo": "yes"}), "echo"),
        (json!({"prompt": vec![5; 257], "max_tokens": 0}), "prompt"),
    ] {
        let (message, param) = refused(&server, "/v1/completions", with(json!({"prompt": "x"}), &more), 400).await;
        assert_eq!(param, field, "{message}");
    }
    for (more, field) in [
        (json!({"messages": []}), "messages"),
        (json!({"messages": "x"}), "messages"),
        (json!({"messages": ["x"]}), "messages"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "function", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content"),
        (json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}), "messages[0].tool_calls[0].function.name"),
        (json!({"tools": "x"}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"messages": [{"role": "user", "content": "cat ".repeat(3000)}]}), "messages"),
    ] {
        let (message, param) = refused(&server, "/v1/chat/completions", with(chat.clone(), &more), 400).await;
        assert_eq!(param, field, "{message}");
    }
}

#[tokio::test]
async fn ollamas_and_the_short_forms_fields_are_named() {
    let server = Server::start(saying("x")).await;
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    for (more, field) in [
        (json!({"prompt": "x"}), "`messages` and `prompt`"),
        (json!({"messages": null}), "`messages` or `prompt`"),
        (json!({"options": {"temperature": -1}}), "`options.temperature`"),
        (json!({"options": {"top_k": "x"}}), "`options.top_k`"),
        (json!({"options": {"num_predict": -3}}), "`options.num_predict`"),
        (json!({"options": {"repeat_last_n": -2}}), "`options.repeat_last_n`"),
        (json!({"options": {"stop": 1}}), "`options.stop`"),
        (json!({"options": 5}), "`options`"),
        (json!({"top_logprobs": 21}), "`top_logprobs`"),
        (json!({"shift": true}), "`shift`"),
        (json!({"tools": "x"}), "`tools`"),
        (json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}), "`messages[0].images`"),
        (json!({"stream": "yes"}), "`stream`"),
        (json!({"messages": {}}), "`messages`"),
    ] {
        let (message, _) = refused(&server, "/api/chat", with(chat.clone(), &more), 400).await;
        assert!(message.contains(field), "{message}");
    }
    for (body, field) in [
        (json!({"prompt": 5}), "`prompt`"),
        (json!({"prompt": "x", "temperature": -1}), "`temperature`"),
        (json!({"prompt": "x", "raw": 1}), "`raw`"),
        (json!({"prompt": "x", "max_tokens": 0}), "`max_tokens`"),
        (json!({"prompt": "cat ".repeat(2000)}), "maximum context length is 256"),
    ] {
        let (message, _) = refused(&server, "/api/chat", body, 400).await;
        assert!(message.contains(field), "{message}");
    }
    for body in [json!({}), json!({"prompts": []}), json!({"prompts": [1]}), json!({"prompts": ["x"], "stream": true})]
    {
        refused(&server, "/api/chat/batch", body, 400).await;
    }
    refused(&server, "/tokenize", json!({}), 400).await;
    refused(&server, "/tokenize", json!({"prompt": "x", "messages": []}), 400).await;
    refused(&server, "/detokenize", json!({"tokens": [9999]}), 400).await;
    refused(&server, "/detokenize", json!({}), 400).await;
    let long = "a cat ".repeat(1 << 18);
    for (path, body, field) in [
        ("/tokenize", json!({"prompt": long}), "prompt"),
        ("/tokenize", json!({"messages": [{"role": "user", "content": long}]}), "messages"),
        ("/detokenize", json!({"tokens": vec![1; (1 << 20) + 1]}), "tokens"),
    ] {
        // Not by `refused`, whose complaint would show all of it.
        let reply = server.post(path, body).await;
        assert!(reply.status == 400 && reply.body.len() < 1000, "{path} took {field}");
        let error = &reply.json()["error"];
        assert!(error["param"] == field && error["message"].to_string().contains("over the limit"), "{error}");
    }
}

#[tokio::test]
async fn unknown_fields_and_neutral_ones_are_accepted() {
    let server = Server::start(saying("x")).await;
    let body = json!({"messages": [{"role": "user", "content": "x", "name": "n"}], "flavour": 3, "tools": [], "shift": false,
        "format": null, "options": {"flavour": 1}, "stream": false});
    assert_eq!(server.post("/api/chat", body).await.status, 200);
    let body = json!({"messages": [{"role": "user", "content": "x"}], "flavour": {"a": 1}, "tools": null, "modalities": ["text"]});
    assert_eq!(server.post("/v1/chat/completions", body).await.status, 200);
}

#[tokio::test]
async fn models_that_are_not_served_are_not_found() {
    let server = Server::start(saying("x")).await;
    let (message, param) = refused(&server, "/v1/completions", json!({"model": "gpt-4", "prompt": "x"}), 404).await;
    assert!(message.contains("'gpt-4' not found; hint: this server serves 'someone/nano-chat'"), "{message}");
    assert_eq!(param, "model");
    let reply = server.post("/v1/chat/completions", json!({"model": "gpt-4", "messages": []})).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
    let (message, _) = refused(&server, "/api/chat", json!({"model": "llama3", "messages": []}), 404).await;
    assert_eq!(message, "model 'llama3' not found");
    assert_eq!(server.get("/v1/models/llama3").await.status, 404);
    assert_eq!(server.get("/v1/models/someone/nano-chat").await.json()["id"], "someone/nano-chat");
    assert_eq!(server.get("/v1/models/someone%2Fnano-chat").await.status, 200);
}

#[tokio::test]
async fn long_names_are_not_said_back_whole() {
    let server = Server::start(saying("x")).await;
    let long = "é".repeat(100_000);
    let message = json!({"role": "user", "content": [{"type": long}]});
    for (path, body) in [
        ("/v1/completions", json!({"model": long, "prompt": "x"})),
        ("/api/show", json!({"name": long})),
        ("/v1/completions", json!({"prompt": "x", "logit_bias": {(&long): 1}})),
        ("/v1/chat/completions", json!({"messages": [message]})),
        ("/v1/chat/completions", json!({"messages": [], "tool_choice": long})),
    ] {
        let reply = server.post(path, body).await;
        assert!(reply.status >= 400 && reply.body.len() < 1000, "{path}: {} bytes", reply.body.len());
    }
    let reply = server.get(&format!("/v1/{}", "x".repeat(5000))).await;
    assert!(reply.status == 404 && reply.body.len() < 1000, "{} bytes", reply.body.len());
}

#[tokio::test]
async fn bodies_that_are_encoded_name_the_encoding() {
    let server = Server::start(saying("x")).await;
    for path in ["/v1/completions", "/api/chat"] {
        for encoding in ["gzip", "identity\r\nContent-Encoding: br", "identity, zstd"] {
            let reply = server.send("POST", path, &format!("Content-Encoding: {encoding}\r\n"), "\u{1f}").await;
            assert_eq!(reply.status, 415, "{}", reply.body);
            let named = encoding.rsplit([' ', ',']).next().unwrap();
            assert!(reply.json()["error"].to_string().contains(named), "{}", reply.body);
        }
        let reply = server.send("POST", path, "Content-Encoding: identity\r\n", "{\"prompt\": \"x\"}").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

#[tokio::test]
async fn bodies_that_are_no_json_say_where() {
    let server = Server::start(saying("x")).await;
    for path in ["/api/chat", "/v1/completions"] {
        let reply = server.send("POST", path, "", "{\"prompt\": \"x\",}").await;
        assert_eq!(reply.status, 400);
        assert!(reply.body.contains("line 1 column 16"), "{}", reply.body);
        assert_eq!(server.send("POST", path, "", "").await.status, 400);
        assert_eq!(server.send("POST", path, "", "[]").await.status, 400);
        assert_eq!(server.send("POST", path, "", &"[".repeat(5000)).await.status, 400, "nested too deeply");
        let form = "Content-Type: application/x-www-form-urlencoded\r\n";
        let reply = server.send("POST", path, form, "{\"prompt\": \"x\"}").await;
        assert_eq!(reply.status, 200, "curl -d sends forms");
    }
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = Server::with(saying("x"), HttpOptions { max_body_bytes: 1000, ..HttpOptions::default() }).await;
    let (message, _) = refused(&server, "/v1/completions", json!({"prompt": "x".repeat(2000)}), 413).await;
    assert!(message.contains("larger than 1000 bytes"));
    refused(&server, "/api/chat", json!({"prompt": "x".repeat(2000)}), 413).await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_said_in_the_right_form() {
    let server = Server::start(saying("x")).await;
    let reply = server.get("/v1/nothing").await;
    assert_eq!(reply.status, 404);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("there is no GET /v1/nothing; hint: "));
    for path in ["/v1/models/%ff", "/assets/%ff"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, &reply.json()["error"]["type"]), (400, &json!("invalid_request_error")), "{path}");
    }
    let reply = server.get("/api/nothing").await;
    assert!(reply.status == 404 && reply.json()["error"].as_str().unwrap().contains("GET /api/nothing"));
    let reply = server.get("/api/chat").await;
    assert_eq!(reply.status, 405);
    assert!(reply.head.contains("allow: post"), "{}", reply.head);
    assert!(reply.json()["error"].as_str().unwrap().contains("does not answer GET; hint: it answers POST"));
    for (path, methods) in [("/v1/models/some/one", "GET"), ("/openapi.json", "GET"), ("/tokenize", "POST")] {
        let reply = server.send("PATCH", path, "", "").await;
        let hint = format!("{path} does not answer PATCH; hint: it answers {methods}");
        assert!(reply.json()["error"]["message"].as_str().unwrap().ends_with(&hint), "{}", reply.body);
    }
    let reply = server.send("DELETE", "/v1/models", "", "").await;
    assert!(reply.status == 405 && reply.json()["error"]["type"] == "invalid_request_error");
}

#[tokio::test]
async fn a_panic_in_a_handler_is_an_answer_and_the_server_goes_on() {
    async fn broken() -> &'static str {
        panic!("a bug")
    }
    let router = axum::Router::new().route("/api/broken", axum::routing::get(broken));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = HttpOptions { allowed_hosts: vec!["x".into()], ..HttpOptions::default() };
    let router = crate::http::dress(router, options, address.ip(), Arc::default());
    let task = tokio::spawn(async { axum::serve(listener, router).await });
    let server = Server { address, stop: None, task };
    for _ in 0..2 {
        let reply = server.get("/api/broken").await;
        assert_eq!(reply.status, 500);
        assert!(reply.json()["error"].as_str().unwrap().contains("the server failed on this request"));
    }
}
