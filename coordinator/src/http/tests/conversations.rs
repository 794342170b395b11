//! Chats in three dialects, and what surrounds them.

use serde_json::{Value, json};

use super::{Server, observed};
use crate::{
    request::{Event, Request},
    testing::{Act, demo_text, engine, saying, scripted, speak},
    text::Specials,
};

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[tokio::test]
async fn short_form_answers_whole_or_as_events() {
    let server = Server::start(saying(" Hello there, 🦀!")).await;
    let reply = server.ask("/api/chat", json!({"prompt": "Hi"})).await;
    assert_eq!(reply["response"], "Hello there, 🦀!");
    assert!(reply["tokens_generated"].as_u64().unwrap() > 3 && reply["generation_time"].as_f64().unwrap() > 0.0);
    assert!(reply["tokens_per_second"].as_f64().unwrap() > 0.0);

    let reply = server.post("/api/chat", json!({"prompt": "Hi", "stream": true})).await;
    let text: String = reply.objects().iter().map(|event| event["token"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, "Hello there, 🦀!");
}

#[tokio::test]
async fn explained_tokens_come_with_every_dialect_that_has_them() {
    let server = Server::start(saying(" Hello there!")).await;
    let messages = user("Hi");
    let check = |list: &Value, tokens: usize| {
        let list = list.as_array().unwrap();
        assert_eq!(list.len(), tokens);
        for token in list {
            assert_eq!(token["token"], token["alternatives"][0]["token"]);
            assert_eq!(
                (&token["chain"][0]["processor"], &token["chain"][0]["removed"]),
                (&json!("temperature"), &json!(4095))
            );
            assert_eq!((&token["step"]["ms"], &token["step"]["ranks"][1]["rank"]), (&json!(1.0), &json!(1)));
            let stage = json!({"stage": "waiting for peers", "kind": "waiting", "ms": 0.3});
            assert_eq!(token["step"]["ranks"][0]["stages"][1], stage);
        }
    };
    let tokens = |reply: &Value| reply["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    let reply = server.ask("/v1/chat/completions", json!({"messages": messages, "explain": true})).await;
    check(&reply["choices"][0]["explain"], tokens(&reply));
    let reply = server.ask("/v1/completions", json!({"prompt": "Hi", "explain": true})).await;
    check(&reply["choices"][0]["explain"], tokens(&reply));
    let count = tokens(&reply);
    let reply = server.ask("/api/chat", json!({"prompt": "Hi", "explain": true})).await;
    check(&reply["explain"], count);
    let reply = server.post("/api/chat", json!({"prompt": "Hi", "explain": true, "stream": true})).await;
    let lists = reply.objects().into_iter().flat_map(|event| event["explain"].as_array().unwrap().clone()).collect();
    check(&lists, count);
    let reply = server.ask("/api/chat", json!({"prompt": "Hi"})).await;
    assert!(reply.get("explain").is_none());
}

#[tokio::test]
async fn a_stream_of_the_short_form_ends_with_what_there_is_to_say_of_the_request() {
    let server = Server::start(saying(" Hello")).await;
    let said = "`reasoning_effort` was left out: this server knows no such setting";
    let body = json!({"prompt": "Hi", "stream": true, "reasoning_effort": "high"});
    let objects = server.post("/api/chat", body).await.objects();
    let (last, pieces) = objects.split_last().unwrap();
    assert_eq!(last, &json!({"token": "", "warnings": [said]}));
    assert!(pieces.iter().all(|piece| piece.get("warnings").is_none()));
    let objects = server.post("/api/chat", json!({"prompt": "Hi", "stream": true})).await.objects();
    assert!(objects.iter().all(|piece| piece.get("warnings").is_none() && piece["token"] != ""));
}

#[tokio::test]
async fn short_form_is_a_single_turn_unless_raw() {
    let (server, requests) = observed().await;
    let tokenizer = &demo_text().tokenizer;
    server.ask("/api/chat", json!({"prompt": "Hi<|endoftext|>"})).await;
    let request = requests.recv().unwrap();
    assert_eq!(request.prompt, tokenizer.encode("User: Hi<|endoftext|>\nAssistant:", Specials::Literal).unwrap());
    // generation_config.json of the demo model wins over the route's 0.8 and 200.
    assert_eq!((request.sampling.temperature, request.sampling.top_p, request.max_tokens), (0.3, 0.9, 96));

    let raw =
        json!({"prompt": "Hi<|endoftext|>", "raw": true, "max_tokens": 5, "temperature": 0, "top_k": 7, "seed": -3});
    let reply = server.ask("/api/chat", raw).await;
    assert_eq!(reply["response"], " ok", "raw text keeps its space");
    let request = requests.recv().unwrap();
    assert_eq!(request.prompt, tokenizer.encode("Hi<|endoftext|>", Specials::Match).unwrap());
    assert_eq!((request.sampling.temperature, request.sampling.top_k, request.max_tokens), (0.0, 7, 5));
    assert_eq!(request.sampling.seed, -3i64 as u64);
}

#[tokio::test]
async fn a_batch_answers_every_prompt() {
    let (server, _requests) = observed().await;
    let reply = server.ask("/api/chat/batch", json!({"prompts": ["a", "b", "c"], "max_tokens": 4})).await;
    let replies: Vec<&str> =
        reply["responses"].as_array().unwrap().iter().map(|r| r["response"].as_str().unwrap()).collect();
    assert_eq!(replies, ["ok", "ok", "ok"]);
    assert_eq!(reply["responses"][0]["tokens_generated"], 3, "with the end of text");
}

#[tokio::test]
async fn ollama_streams_lines_by_default() {
    let server = Server::start(saying(" Hello there!")).await;
    let reply = server.post("/api/chat", json!({"model": "nano-chat", "messages": user("Hi")})).await;
    let lines = reply.lines();
    let (last, pieces) = lines.split_last().unwrap();
    let text: String = pieces.iter().map(|line| line["message"]["content"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, "Hello there!");
    for line in pieces {
        assert_eq!((&line["done"], &line["message"]["role"]), (&json!(false), &json!("assistant")));
        assert!(line["created_at"].as_str().unwrap().ends_with('Z') && line["model"] == "someone/nano-chat");
    }
    assert_eq!(
        (&last["done"], &last["done_reason"], &last["message"]["content"]),
        (&json!(true), &json!("stop"), &json!(""))
    );
    for key in ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
        assert!(last[key].is_u64(), "{key}");
    }
    assert_eq!(last["prompt_eval_count"], 6);
    assert!(last["total_duration"].as_u64() >= last["eval_duration"].as_u64());
}

#[tokio::test]
async fn ollama_answers_whole_and_reads_its_options() {
    let (server, requests) = observed().await;
    let options = json!({"num_predict": 2, "temperature": 1, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.7, "seed": 42,
        "stop": ["x"], "repeat_penalty": 1.5, "repeat_last_n": -1, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "num_ctx": 4096, "num_keep": 3, "mirostat": 1});
    let body = json!({"model": "nano-chat:latest", "messages": user("Hi"), "stream": false, "options": options,
        "keep_alive": "5m", "format": "", "tools": [], "logprobs": true, "top_logprobs": 2});
    let reply = server.ask("/api/chat", body).await;
    assert_eq!(
        (&reply["message"]["content"], &reply["done_reason"], &reply["eval_count"]),
        (&json!("ok"), &json!("length"), &json!(2))
    );
    assert_eq!(reply["logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(reply["logprobs"][0]["top_logprobs"].as_array().unwrap().len(), 2);
    let request = requests.recv().unwrap();
    let sampling = request.sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p), (1.0, 3, 0.5, 0.1));
    assert_eq!((sampling.typical_p, sampling.seed, sampling.repetition_penalty), (0.7, 42, 1.5));
    assert_eq!((sampling.repetition_window, sampling.presence_penalty), (None, 0.5));

    server.ask("/api/chat", json!({"messages": user("Hi"), "stream": false, "options": {"num_predict": -1}})).await;
    let request = requests.recv().unwrap();
    let sampling = request.sampling;
    assert_eq!((sampling.top_k, sampling.repetition_penalty, sampling.repetition_window), (40, 1.1, Some(64)));
    assert_eq!(request.max_tokens, 250, "to the wall");
}

#[tokio::test]
async fn ollama_without_messages_says_it_is_loaded() {
    let server = Server::start(saying("x")).await;
    let reply = server.ask("/api/chat", json!({"model": "nano-chat", "messages": []})).await;
    assert_eq!((&reply["done"], &reply["done_reason"]), (&json!(true), &json!("load")));
}

#[tokio::test]
async fn ollamas_clients_are_told_that_a_model_they_no_longer_need_is_unloaded() {
    let server = Server::start(saying("x")).await;
    for (keep_alive, reason) in [
        (json!(0), "unload"),
        (json!("0"), "unload"),
        (json!("0s"), "unload"),
        (json!("5m"), "load"),
        (json!(-1), "load"),
        (json!(null), "load"),
    ] {
        let reply = server.ask("/api/generate", json!({"model": "nano-chat", "keep_alive": keep_alive})).await;
        assert_eq!((&reply["done"], &reply["done_reason"]), (&json!(true), &json!(reason)), "{keep_alive}");
        let reply = server.ask("/api/chat", json!({"messages": [], "keep_alive": keep_alive})).await;
        assert_eq!(reply["done_reason"], reason, "{keep_alive}");
    }
    let reply = server.ask("/api/generate", json!({"prompt": "Hi", "keep_alive": 0, "stream": false})).await;
    assert_eq!(reply["response"], "x", "what is asked is answered all the same");
}

#[tokio::test]
async fn long_chats_say_what_was_dropped() {
    let server = Server::start(saying(" x")).await;
    let mut messages = Vec::new();
    for _ in 0..60 {
        messages.push(json!({"role": "user", "content": "What is the capital of France?"}));
        messages.push(json!({"role": "assistant", "content": "The capital of France is Paris."}));
    }
    messages.push(json!({"role": "user", "content": "Hi"}));
    let reply = server.post("/api/chat", json!({"messages": messages})).await;
    assert!(reply.head.contains("x-nanoinfer-warning: the "), "{}", reply.head);
    assert!(reply.lines().last().unwrap()["warnings"][0].as_str().unwrap().contains("oldest messages were dropped"));
    let body = json!({"messages": messages, "stream": true});
    let reply = server.post("/v1/chat/completions", body).await;
    assert!(reply.objects()[0]["warnings"][0].as_str().unwrap().contains("dropped"));
    let reply = server.post("/api/chat", json!({"messages": messages, "truncate": false})).await;
    assert_eq!(reply.status, 400);
    assert!(reply.json()["error"].as_str().unwrap().contains("maximum context length is 256"));
}

#[tokio::test]
async fn openai_chat_answers_whole() {
    let (server, requests) = observed().await;
    let body = json!({"model": "someone/nano-chat", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]}],
        "n": 2, "logprobs": true, "top_logprobs": 3, "max_completion_tokens": 50, "max_tokens": 7, "user": "u",
        "response_format": {"type": "text"}, "tool_choice": "none", "return_token_ids": true, "logit_bias": {"5": -100},
        "frequency_penalty": 0.5, "repetition_penalty": 1.2, "min_p": 0.1});
    let reply = server.ask("/v1/chat/completions", body).await;
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-") && reply["object"] == "chat.completion");
    assert_eq!(reply["model"], "someone/nano-chat");
    for (index, choice) in reply["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"], json!({"role": "assistant", "content": "ok", "refusal": null}));
        assert_eq!(choice["finish_reason"], "stop");
        let content = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(content.len(), choice["token_ids"].as_array().unwrap().len());
        assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 3);
        assert!(content[0]["bytes"].as_array().unwrap().iter().all(Value::is_u64));
        assert!(!choice["prompt_token_ids"].as_array().unwrap().is_empty());
    }
    let usage = &reply["usage"];
    assert_eq!(usage["total_tokens"].as_u64(), Some(usage["prompt_tokens"].as_u64().unwrap() + 6));
    let request = requests.recv().unwrap();
    assert_eq!(request.prompt, demo_text().tokenizer.encode("User: Hi\nthere\nAssistant:", Specials::Literal).unwrap());
    assert_eq!((request.max_tokens, request.sampling.logprobs), (50, Some(3)));
    assert_eq!(*request.sampling.logit_bias, [(5, -100.0)]);
    assert_eq!(request.sampling.repetition_penalty, 1.2);
}

#[tokio::test]
async fn openai_chat_streams_roles_then_text_then_usage() {
    let server = Server::start(saying(" Hello there!")).await;
    let body = json!({"messages": user("Hi"), "stream": true, "n": 2, "stream_options": {"include_usage": true}});
    let objects = server.post("/v1/chat/completions", body).await.objects();
    for (index, object) in objects[..2].iter().enumerate() {
        assert_eq!(object["choices"][0]["index"], index);
        assert_eq!(object["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert!(object["usage"].is_null() && object["object"] == "chat.completion.chunk");
    }
    for index in 0..2 {
        let of = |object: &&Value| object["choices"][0]["index"] == index;
        let text: String =
            objects[2..].iter().filter(of).filter_map(|o| o["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "Hello there!");
        let reasons = objects.iter().filter(of).filter(|o| o["choices"][0]["finish_reason"] == "stop").count();
        assert_eq!(reasons, 1);
    }
    let last = objects.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["completion_tokens"].as_u64().unwrap() >= 6);
    assert!(objects.iter().all(|o| o["id"] == objects[0]["id"]));
}

#[tokio::test]
async fn what_python_takes_for_the_end_of_a_line_is_escaped_in_streams() {
    let said = " a\u{85}b\u{2028}c\u{2029}d";
    let server = Server::start(saying(said)).await;
    let is_break = |c: char| matches!(c, '\u{b}'..='\u{d}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let reply = server.post("/v1/chat/completions", json!({"messages": user("x"), "stream": true})).await;
    assert!(!reply.body.contains(is_break), "{}", reply.body);
    let objects = reply.objects();
    let text: String = objects.iter().filter_map(|o| o["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, said.trim_start());
    let reply = server.post("/api/chat", json!({"messages": user("x")})).await;
    assert!(!reply.body.contains(is_break), "{}", reply.body);
    let text: String =
        reply.lines().iter().map(|line| line["message"]["content"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, said.trim_start());
}

#[tokio::test]
async fn stop_strings_end_a_reply() {
    let server = Server::start(saying(" one two three four")).await;
    for stop in [json!(" th"), json!(["zzz", " th"])] {
        let reply = server.ask("/v1/chat/completions", json!({"messages": user("x"), "stop": stop})).await;
        assert_eq!(reply["choices"][0]["message"]["content"], "one two");
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_failure_in_the_middle_is_said_in_the_streams_own_words() {
    let failing = || {
        engine(scripted(8, |request: &Request| {
            let mut events = speak(request, " Hello there");
            events.truncate(2);
            events.push(Event::Failed("rank 1 is gone".into()));
            Act::Events(events)
        }))
    };
    let server = Server::start(failing()).await;
    let reply = server.post("/api/chat", json!({"messages": user("x")})).await;
    let last = reply.lines().pop().unwrap();
    assert_eq!(last, json!({"error": "generation failed: rank 1 is gone"}));
    let reply = server.post("/v1/chat/completions", json!({"messages": user("x"), "stream": true})).await;
    let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
    assert!(!reply.body.contains("[DONE]"));
    let reply = server.post("/api/chat", json!({"prompt": "x", "stream": true})).await;
    assert!(reply.events().last().unwrap().contains("rank 1 is gone"));
    for path in ["/v1/chat/completions", "/api/chat"] {
        let reply = server.post(path, json!({"messages": user("x"), "stream": false})).await;
        assert_eq!(reply.status, 503, "{}", reply.body);
    }
}
