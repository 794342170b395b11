//! What a text may be made of.

use serde_json::{Value, json};

use super::observed;
use crate::{request::Request, testing::demo_text, text::Specials};

#[tokio::test]
async fn allowed_tokens_and_bad_words_reach_the_engine_once_for_all_sequences() {
    let (server, requests) = observed().await;
    let constraints = json!({"n": 2, "allowed_token_ids": [9, 4, 9, 4095], "bad_words": ["mat", "sat on"]});
    for (path, mut body) in [
        ("/v1/completions", json!({"prompt": ["x", "y"]})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "x"}]})),
    ] {
        body.as_object_mut().unwrap().extend(constraints.as_object().unwrap().clone());
        let reply = server.ask(path, body).await;
        assert_eq!(reply.get("warnings"), None);
        let seen: Vec<Request> = requests.try_iter().collect();
        assert_eq!(seen.len(), 2 * if path == "/v1/completions" { 2 } else { 1 });
        let tokens = |text: &str| demo_text().tokenizer.encode(text, Specials::Match).unwrap();
        let allowed = |request: &Request| request.sampling.allowed_token_ids.clone().unwrap();
        assert_eq!(*allowed(&seen[0]), [4, 9, 4095]);
        let words = &seen[0].sampling.bad_words;
        assert_eq!(words.len(), 4);
        assert!([" mat", "mat", "sat on", " sat on"].iter().all(|text| words.contains(&tokens(text))), "{words:?}");
        for other in &seen {
            assert!(std::ptr::eq(&*allowed(&seen[0]), &*allowed(other)), "copied");
            assert!(std::ptr::eq(&**words, &*other.sampling.bad_words), "copied");
        }
    }
}

#[tokio::test]
async fn nothing_asked_for_constrains_nothing() {
    let (server, requests) = observed().await;
    for body in [json!({"prompt": "x"}), json!({"prompt": "x", "allowed_token_ids": null, "bad_words": []})] {
        server.ask("/v1/completions", body).await;
        let sampling = requests.recv().unwrap().sampling;
        assert!(sampling.allowed_token_ids.is_none() && sampling.bad_words.is_empty());
    }
    let whole: Value = (0..4096).collect();
    server.ask("/v1/completions", json!({"prompt": "x", "allowed_token_ids": whole})).await;
    assert_eq!(requests.recv().unwrap().sampling.allowed_token_ids.unwrap().len(), 4096, "a vocabulary may be listed");
}

#[tokio::test]
async fn what_an_answer_must_be_reaches_the_engine_from_every_dialect() {
    let (server, requests) = observed().await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let named = |schema: &Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let messages = json!([{"role": "user", "content": "x"}]);
    for (path, mut body, fields) in [
        ("/v1/completions", json!({"prompt": "x"}), named(&schema)),
        ("/v1/completions", json!({"prompt": "x"}), json!({"guided_json": schema.to_string()})),
        ("/v1/completions", json!({"prompt": "x"}), json!({"structured_outputs": {"regex": "\\{[0-9]"}})),
        ("/v1/chat/completions", json!({"messages": messages}), json!({"response_format": {"type": "json_object"}})),
        ("/v1/chat/completions", json!({"messages": messages}), json!({"guided_choice": ["{", "{x"]})),
        (
            "/v1/chat/completions",
            json!({"messages": messages}),
            json!({"structured_outputs": {"grammar": "start: \"{\""}}),
        ),
        ("/api/chat", json!({"messages": messages, "stream": false}), json!({"format": "json"})),
        ("/api/generate", json!({"prompt": "x", "stream": false}), json!({"format": schema})),
        ("/api/chat", json!({"prompt": "x"}), json!({"format": schema})),
        ("/api/chat/batch", json!({"prompts": ["x"]}), json!({"structured_outputs": {"json": schema}})),
    ] {
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.ask(path, body).await;
        let mut next = requests.recv().unwrap().next.unwrap_or_else(|| panic!("{path}: {fields}"));
        let brace = demo_text().tokenizer.encode("{", Specials::Literal).unwrap()[0] as usize;
        let mask = next.mask().unwrap();
        assert!(next.is_masking() && mask.allows(brace) && mask.count() < 40, "{path}: {fields}");
    }
    for fields in
        [json!({"response_format": {"type": "text"}}), json!({"structured_outputs": {}}), json!({"guided_json": null})]
    {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.ask("/v1/completions", body).await;
        assert!(requests.recv().unwrap().next.is_none(), "{fields}");
    }
}

#[tokio::test]
async fn what_no_answer_can_be_is_refused_by_name() {
    let (server, _requests) = observed().await;
    for (fields, words) in [
        (json!({"response_format": {"type": "xml"}}), "`response_format.type` should be 'text'"),
        (json!({"response_format": {"type": "json_schema"}}), "`response_format.json_schema.schema` is missing"),
        (json!({"response_format": "json_object"}), "`response_format` should be an object"),
        (
            json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
            "`guided_regex` and `response_format` exclude",
        ),
        (json!({"structured_outputs": {"json": {}, "regex": "a"}}), "exclude one another"),
        (json!({"structured_outputs": {"structural_tag": {}}}), "`structured_outputs.structural_tag` is not supported"),
        (json!({"guided_grammar": "root ::= x"}), "`guided_grammar` is a grammar of the form"),
        (json!({"guided_choice": []}), "`guided_choice` should be a list"),
        (json!({"guided_json": "{"}), "`guided_json` should be a JSON schema"),
        (json!({"guided_json": false}), "`guided_json` allows nothing"),
        (json!({"guided_json": {"not": {}}}), "`guided_json` cannot be used: `not` at its root"),
        (json!({"guided_regex": "("}), "`guided_regex` cannot be used"),
    ] {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let reply = server.post("/v1/completions", body).await;
        assert!(reply.status == 400 && reply.body.contains(words), "{fields}: {}", reply.body);
    }
    let reply = server.post("/api/generate", json!({"prompt": "x", "format": "xml"})).await;
    assert!(reply.status == 400 && reply.body.contains("`format` should be"), "{}", reply.body);
}
