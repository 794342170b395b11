//! A model that has something calculated: told apart in every dialect, and switched off.

use serde_json::{Value, json};

use super::Server;
use crate::testing::{calculating, saying};

const REPLY: &str = "It is <|python_start|>7*12<|python_end|>84, <|python_start|>1/0<|python_end|>or not.";
const MARKED: &str = "It is <|python_start|>7*12<|python_end|><|output_start|>84<|output_end|>84, <|python_start|>1/0<|python_end|>or not.";

fn chat(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": false});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn calculations() -> Value {
    json!([{"expression": "7*12", "result": "84"}, {"expression": "1/0", "result": null}])
}

#[tokio::test]
async fn what_was_calculated_is_told_apart_in_every_dialect() {
    let server = Server::start(calculating(REPLY)).await;
    let reply = server.ask("/v1/chat/completions", chat(json!({}))).await;
    let message = &reply["choices"][0]["message"];
    assert_eq!((&message["content"], &message["calculations"]), (&json!("It is 84, or not."), &calculations()));
    let drawn = calculating_tokens(REPLY);
    let forced = calculating_tokens("<|output_start|>84<|output_end|>") - 1;
    assert_eq!(reply["usage"]["completion_tokens"], drawn + forced, "what is forced counts");
    let reply = server.ask("/api/chat", chat(json!({}))).await;
    let expected = json!({"calculations": calculations(), "content": "It is 84, or not.", "role": "assistant"});
    assert_eq!((&reply["message"], &reply["eval_count"]), (&expected, &json!(drawn + forced)));
    let reply = server.ask("/api/generate", json!({"prompt": "Hi", "stream": false})).await;
    assert_eq!((&reply["response"], &reply["calculations"]), (&json!("It is 84, or not."), &calculations()));
    let reply = server.ask("/api/chat", json!({"prompt": "Hi"})).await;
    assert_eq!((&reply["response"], &reply["calculations"]), (&json!("It is 84, or not."), &calculations()));
    let reply = server.ask("/api/chat/batch", json!({"prompts": ["Hi"]})).await;
    assert_eq!(reply["responses"][0]["calculations"], calculations());
    assert_eq!(server.get("/api/model_info").await.json()["calculator"], true);
}

#[tokio::test]
async fn a_stream_has_each_calculation_where_it_stands() {
    let server = Server::start(calculating(REPLY)).await;
    let told = |text: &Value, calculations: &Value| {
        let one = |it: &Value| format!("[{} = {}]", it["expression"].as_str().unwrap(), it["result"]);
        let calculations: String = calculations.as_array().into_iter().flatten().map(one).collect();
        calculations + text.as_str().unwrap_or_default()
    };
    let expected = "It is [7*12 = \"84\"]84, [1/0 = null]or not.";
    let objects = server.post("/v1/chat/completions", chat(json!({"stream": true}))).await.objects();
    let deltas = objects.iter().map(|object| &object["choices"][0]["delta"]);
    let text: String = deltas.map(|delta| told(&delta["content"], &delta["calculations"])).collect();
    assert_eq!(text, expected);
    let lines = server.post("/api/chat", chat(json!({"stream": true}))).await.lines();
    let messages = lines.iter().map(|line| &line["message"]);
    assert_eq!(messages.map(|it| told(&it["content"], &it["calculations"])).collect::<String>(), expected);
    let events = server.post("/api/chat", json!({"prompt": "Hi", "stream": true})).await.objects();
    assert_eq!(events.iter().map(|it| told(&it["token"], &it["calculations"])).collect::<String>(), expected);
}

#[tokio::test]
async fn an_answer_that_is_cut_in_a_calculation_has_no_result() {
    let server = Server::start(calculating(REPLY)).await;
    let before = calculating_tokens("It is ");
    let whole = calculating_tokens("It is <|python_start|>7*12<|python_end|><|output_start|>84<|output_end|>");
    for (max_tokens, expected) in [
        (before, Value::Null),
        (before + 1, json!([{"expression": "7", "result": null}])),
        (whole - 2, json!([{"expression": "7*12", "result": null}])),
        (whole - 1, json!([{"expression": "7*12", "result": "84"}])),
    ] {
        let reply = server.ask("/v1/chat/completions", chat(json!({"max_tokens": max_tokens}))).await;
        let choice = &reply["choices"][0];
        assert_eq!(choice["message"].get("calculations").unwrap_or(&Value::Null), &expected, "{max_tokens} tokens");
        assert_eq!(
            (&choice["finish_reason"], &reply["usage"]["completion_tokens"]),
            (&json!("length"), &json!(max_tokens))
        );
    }
}

#[tokio::test]
async fn completions_and_shown_marks_have_the_text_as_it_stands() {
    let server = Server::start(calculating(REPLY)).await;
    let shown = json!({"skip_special_tokens": false});
    let reply = server.ask("/v1/chat/completions", chat(shown)).await;
    let message = &reply["choices"][0]["message"];
    assert_eq!((&message["content"], message.get("calculations")), (&json!(MARKED), None));
    let body = |more: Value| {
        let mut body = json!({"prompt": "x", "max_tokens": 100});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let reply = server.ask("/v1/completions", body(json!({"skip_special_tokens": false}))).await;
    assert_eq!(reply["choices"][0]["text"], MARKED);
    let reply = server.ask("/v1/completions", body(json!({"logprobs": 0}))).await;
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], "It is 7*128484, 1/0or not.");
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap().iter();
    let scored = tokens.zip(choice["logprobs"]["token_logprobs"].as_array().unwrap());
    let unscored: String =
        scored.filter(|(_, score)| score.is_null()).map(|(token, _)| token.as_str().unwrap()).collect();
    assert_eq!(unscored, "<|output_start|>84<|output_end|>", "there was no choice");
}

#[tokio::test]
async fn forced_tokens_have_no_log_probability_and_are_explained_as_forced() {
    let server = Server::start(calculating(REPLY)).await;
    let reply = server.ask("/v1/chat/completions", chat(json!({"logprobs": true, "explain": true}))).await;
    let choice = &reply["choices"][0];
    let text = |list: &Value| -> String {
        list.as_array().unwrap().iter().map(|entry| entry["token"].as_str().unwrap()).collect()
    };
    assert_eq!(text(&choice["logprobs"]["content"]), format!("{REPLY}<|endoftext|>"));
    assert_eq!(text(&choice["explain"]), format!("{MARKED}<|endoftext|>"));
    let forced: Vec<_> = choice["explain"].as_array().unwrap().iter().filter(|entry| entry["forced"] == true).collect();
    assert_eq!(
        forced.iter().map(|entry| entry["token"].as_str().unwrap()).collect::<String>(),
        "<|output_start|>84<|output_end|>"
    );
    assert!(forced.iter().all(|entry| entry.as_object().unwrap().len() == 3));
}

#[tokio::test]
async fn a_request_says_whether_there_is_a_calculator() {
    let server = Server::start(calculating(REPLY)).await;
    let off = json!({"calculator": false});
    let reply = server.ask("/v1/chat/completions", chat(off.clone())).await;
    let message = &reply["choices"][0]["message"];
    assert_eq!((&message["content"], message.get("calculations")), (&json!("It is 7*1284, 1/0or not."), None));
    assert_eq!(server.ask("/api/chat", chat(off.clone())).await["message"]["content"], "It is 7*1284, 1/0or not.");
    for on in [json!({"calculator": true}), json!({"calculator": null})] {
        let reply = server.ask("/v1/chat/completions", chat(on)).await;
        assert_eq!(reply["choices"][0]["message"]["calculations"], calculations());
    }
    let without = Server::start(saying("x")).await;
    without.ask("/v1/chat/completions", chat(off)).await;
    for path in ["/v1/chat/completions", "/api/chat"] {
        let reply = without.post(path, chat(json!({"calculator": true}))).await;
        assert!(reply.status == 400 && reply.body.contains("`calculator` is not supported"), "{}", reply.body);
        assert_eq!(without.post(path, chat(json!({"calculator": "off"}))).await.status, 400);
    }
    let reply = without.post("/tokenize", chat(json!({"calculator": true}))).await;
    assert_eq!(reply.status, 200, "it changes no prompt: {}", reply.body);
    assert_eq!(without.get("/api/model_info").await.json()["calculator"], false);
}

/// Tokens of a reply, with the one that ends it.
fn calculating_tokens(reply: &str) -> usize {
    let tokenizer = &crate::testing::calculating_text().tokenizer;
    tokenizer.encode(reply, crate::text::Specials::Match).unwrap().len() + 1
}
