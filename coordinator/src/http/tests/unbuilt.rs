//! What is known and not built: refused by name, or left out and said.

use serde_json::{Value, json};

use super::Server;
use crate::testing::saying;

fn with(mut base: Value, name: &str, value: &Value) -> Value {
    base[name] = value.clone();
    base
}

fn chat() -> Value {
    json!({"messages": [{"role": "user", "content": "x"}], "stream": false})
}

#[tokio::test]
async fn what_would_change_the_answer_is_refused_by_name_on_every_route() {
    let server = Server::start(saying("x")).await;
    let routes = [
        ("/v1/completions", json!({"prompt": "x"})),
        ("/v1/chat/completions", chat()),
        ("/api/chat", chat()),
        ("/api/chat", json!({"prompt": "x"})),
        ("/api/chat/batch", json!({"prompts": ["x"]})),
        ("/api/generate", json!({"prompt": "x", "stream": false})),
        ("/tokenize", json!({"prompt": "x"})),
        ("/tokenize", chat()),
    ];
    for (name, value) in [
        ("guided_of_tomorrow", json!(1)),
        ("grammar", json!("root ::= x")),
        ("use_beam_search", json!(true)),
        ("best_of", json!(3)),
        ("chat_template", json!("{{ x }}")),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
        ("modalities", json!(["text", "audio"])),
        ("web_search_options", json!({})),
    ] {
        for (path, base) in &routes {
            let body = with(base.clone(), name, &value);
            if name == "tool_choice" && base.get("messages").is_none() {
                continue;
            }
            let reply = server.post(path, body.clone()).await;
            assert_eq!(reply.status, 400, "{path} took {body}: {}", reply.body);
            assert!(reply.body.contains(&format!("`{name}`")), "{path}, {name}: {}", reply.body);
        }
    }
    // What OpenAI's two routes know, or chats alone.
    for (name, value) in [
        ("bad_words", json!(["a"])),
        ("prompt_logprobs", json!(0)),
        ("truncate_prompt_tokens", json!(5)),
        ("include_stop_str_in_output", json!(true)),
        ("skip_special_tokens", json!(false)),
        ("add_generation_prompt", json!(false)),
        ("continue_final_message", json!(true)),
        ("chat_template_kwargs", json!({"a": 1})),
    ] {
        for (path, base) in routes.iter().filter(|(path, _)| path.starts_with("/api/")) {
            let reply = server.post(path, with(base.clone(), name, &value)).await;
            assert!(reply.status == 400 && reply.body.contains(&format!("`{name}`")), "{path}: {}", reply.body);
        }
    }
    for (path, base, name) in [
        ("/v1/completions", json!({"prompt": "x"}), "continue_final_message"),
        ("/v1/completions", json!({"prompt": "x"}), "chat_template_kwargs"),
        ("/tokenize", chat(), "prompt_logprobs"),
        ("/v1/completions", json!({"prompt": "x"}), "tools"),
        ("/v1/completions", json!({"prompt": "x"}), "messages"),
        ("/v1/chat/completions", chat(), "prompt"),
        ("/v1/chat/completions", chat(), "echo"),
        ("/api/chat", json!({"prompt": "x"}), "system"),
        ("/api/generate", json!({"prompt": "x", "raw": true, "stream": false}), "system"),
        ("/api/generate", json!({"prompt": "x", "stream": false}), "allowed_token_ids"),
        ("/api/generate", json!({"prompt": "x", "stream": false}), "bad_words"),
        ("/api/chat", chat(), "allowed_token_ids"),
        ("/api/chat", chat(), "bad_words"),
        ("/api/chat", json!({"prompt": "x"}), "bad_words"),
        ("/tokenize", json!({"prompt": "x"}), "allowed_token_ids"),
        ("/tokenize", chat(), "response_format"),
        ("/v1/completions", json!({"prompt": "x"}), "format"),
        ("/api/generate", json!({"prompt": "x", "stream": false}), "guided_json"),
        ("/api/chat", chat(), "response_format"),
    ] {
        let reply = server.post(path, with(base, name, &json!("x"))).await;
        assert!(reply.status == 400 && reply.body.contains(&format!("`{name}`")), "{path}, {name}: {}", reply.body);
    }
}

#[tokio::test]
async fn values_that_ask_for_nothing_are_accepted_without_a_word() {
    let server = Server::start(saying("x")).await;
    let nothing = json!({"response_format": {"type": "text"}, "modalities": ["text"], "guided_json": null, "bad_words": [],
        "allowed_token_ids": null, "prompt_logprobs": null, "use_beam_search": false, "include_stop_str_in_output": false,
        "skip_special_tokens": true, "spaces_between_special_tokens": true, "add_generation_prompt": true,
        "continue_final_message": false, "chat_template": null, "chat_template_kwargs": {}, "best_of": 1, "tools": [],
        "suffix": "", "think": false, "parallel_tool_calls": true, "store": false, "metadata": {"a": "b"}, "user": "u",
        "service_tier": "auto", "reasoning_effort": "none", "verbosity": "medium", "stream_options": null});
    for (path, mut body) in [
        ("/v1/completions", json!({"prompt": "x"})),
        ("/v1/chat/completions", chat()),
        ("/api/chat", chat()),
        ("/api/chat", json!({"prompt": "x"})),
        ("/api/generate", json!({"prompt": "x", "stream": false})),
        ("/tokenize", chat()),
    ] {
        body.as_object_mut().unwrap().extend(nothing.as_object().unwrap().clone());
        let reply = server.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        assert!(!reply.head.contains("x-nanoinfer-warning") && reply.json().get("warnings").is_none(), "{path}");
    }
}

#[tokio::test]
async fn tools_that_the_model_may_leave_alone_are_left_out_and_the_reply_says_so() {
    let server = Server::start(saying("x")).await;
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let said = "`tools` were left out: this model's chat template knows of none";
    for choice in [json!(null), json!("auto")] {
        for path in ["/v1/chat/completions", "/api/chat", "/tokenize"] {
            let body = with(with(chat(), "tools", &json!([tool])), "tool_choice", &choice);
            let reply = server.post(path, body).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            assert_eq!(reply.json()["warnings"], json!([said]), "{path}");
            assert!(reply.head.contains(&format!("x-nanoinfer-warning: {said}")), "{}", reply.head);
        }
    }
    let streamed = with(with(chat(), "tools", &json!([tool])), "stream", &json!(true));
    let objects = server.post("/v1/chat/completions", streamed.clone()).await.objects();
    assert_eq!((&objects[0]["warnings"], objects[1].get("warnings")), (&json!([said]), None));
    let lines = server.post("/api/chat", streamed).await.lines();
    assert_eq!((lines[0].get("warnings"), &lines.last().unwrap()["warnings"]), (None, &json!([said])));
    let body = with(with(chat(), "functions", &json!([tool])), "function_call", &json!("auto"));
    let reply = server.ask("/v1/chat/completions", body).await;
    assert!(reply["warnings"][0].as_str().unwrap().starts_with("`functions` were left out"));
    for choice in [json!("banana"), json!(5), json!({"type": "allowed_tools", "allowed_tools": {"mode": "required"}})] {
        let body = with(with(chat(), "tools", &json!([tool])), "tool_choice", &choice);
        assert_eq!(server.post("/v1/chat/completions", body).await.status, 400, "{choice}");
    }
}

#[tokio::test]
async fn wishes_that_any_answer_may_meet_are_left_out_and_the_reply_says_so() {
    let server = Server::start(saying("x")).await;
    for (path, body, name) in [
        ("/v1/chat/completions", with(chat(), "reasoning_effort", &json!("high")), "reasoning_effort"),
        ("/v1/completions", json!({"prompt": "x", "dry_multiplier": 0.8}), "dry_multiplier"),
        ("/api/chat", with(chat(), "options", &json!({"mirostat": 2})), "options.mirostat"),
    ] {
        let reply = server.ask(path, body).await;
        assert_eq!(reply["warnings"], json!([format!("`{name}` was left out: this server knows no such setting")]));
    }
    let body = json!({"prompt": "x", "verbosity": "low", "stream": true});
    let objects = server.post("/v1/completions", body).await.objects();
    assert!(
        objects[0]["warnings"][0].as_str().unwrap().contains("`verbosity`") && objects[1].get("warnings").is_none()
    );
}
