//! Functions that a model calls.

use std::sync::mpsc;

use serde_json::{Value, json};

use super::Server;
use crate::{
    request::Request,
    testing::{Act, CALLING_POSITIONS, calling, calling_text, saying, scripted_to, speak},
    text::Specials,
};

/// A server whose model says `reply`, and what was asked of its engine.
async fn answering(reply: &'static str) -> (Server, mpsc::Receiver<Request>) {
    let (seen, requests) = mpsc::channel();
    let handle = scripted_to(CALLING_POSITIONS, 64, move |request| {
        let _ = seen.send(request.clone());
        Act::Events(speak(&Request { next: None, ..request.clone() }, reply))
    });
    (Server::start(calling(handle)).await, requests)
}

fn tool(name: &str) -> Value {
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!({"type": "function", "function": {"name": name, "description": "Weather", "parameters": city}})
}

fn chat(more: &Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "x"}], "tools": [tool("weather"), tool("f")], "stream": false});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

const TWO: &str = "Well.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";

#[tokio::test]
async fn calls_are_told_apart_in_both_dialects() {
    let (server, _requests) = answering(TWO).await;
    let reply = server.ask("/v1/chat/completions", chat(&json!({"n": 2}))).await;
    for choice in reply["choices"].as_array().unwrap() {
        assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &json!("Well.")));
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        let called = |call: &Value| (call["function"].clone(), call["type"].clone());
        let f = |name: &str, arguments: &str| (json!({"name": name, "arguments": arguments}), json!("function"));
        assert_eq!(calls.iter().map(called).collect::<Vec<_>>(), [f("weather", "{\"city\": \"Rome\"}"), f("f", "{}")]);
        assert!(calls[0]["id"].as_str().unwrap().starts_with("call_") && calls[0]["id"] != calls[1]["id"]);
    }
    let reply = server.ask("/api/chat", chat(&json!({}))).await;
    let functions: Vec<_> =
        reply["message"]["tool_calls"].as_array().unwrap().iter().map(|call| call["function"].clone()).collect();
    assert_eq!(functions[0], json!({"name": "weather", "arguments": {"city": "Rome"}, "index": 0}));
    assert_eq!(
        (functions.len(), &reply["message"]["content"], &reply["done_reason"]),
        (2, &json!("Well."), &json!("stop"))
    );
}

#[tokio::test]
async fn calls_are_streamed() {
    let (server, _requests) = answering(TWO).await;
    let objects = server.post("/v1/chat/completions", chat(&json!({"stream": true}))).await.objects();
    let mut calls = [const { (String::new(), String::new(), String::new()) }; 2];
    let mut pieces = 0;
    for delta in objects.iter().map(|object| &object["choices"][0]["delta"]) {
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let (id, name, arguments) = &mut calls[call["index"].as_u64().unwrap() as usize];
            *id += call["id"].as_str().unwrap_or_default();
            *name += call["function"]["name"].as_str().unwrap_or_default();
            *arguments += call["function"]["arguments"].as_str().unwrap();
            pieces += 1;
        }
    }
    assert!(pieces > 4, "arguments come in pieces");
    let [(first, name, arguments), (second, ..)] = &calls;
    assert!(
        first != second
            && first.len() == 21
            && (name.as_str(), arguments.as_str()) == ("weather", "{\"city\": \"Rome\"}")
    );
    assert_eq!(objects.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    let lines = server.post("/api/chat", chat(&json!({"stream": true}))).await.lines();
    let called: Vec<_> = lines.iter().flat_map(|line| line["message"]["tool_calls"].as_array()).flatten().collect();
    assert_eq!((called.len(), &called[0]["function"]["arguments"]), (2, &json!({"city": "Rome"})));
}

#[tokio::test]
async fn text_of_calls_is_text_where_nothing_may_be_called() {
    let (server, requests) = answering(TWO).await;
    for more in [json!({"tools": []}), json!({"tool_choice": "none"})] {
        let reply = server.ask("/v1/chat/completions", chat(&more)).await;
        assert_eq!((&reply["choices"][0]["message"]["content"], reply.get("warnings")), (&json!(TWO), None));
        assert!(requests.recv().unwrap().next.is_none());
    }
}

#[tokio::test]
async fn what_must_be_a_call_is_held_to_its_schema_from_the_start_and_what_may_be_from_its_mark() {
    let (server, requests) = answering("").await;
    let text = calling_text();
    // How far an answer may be written, and whether it may end there.
    let write = |request: Request, answer: &str| {
        let mut next = request.next.unwrap();
        let mut written = String::new();
        for id in text.tokenizer.encode(answer, Specials::Literal).unwrap() {
            if next.is_over() || (next.is_masking() && !next.mask().unwrap().allows(id as usize)) {
                break;
            }
            next.after(id);
            written += &text.tokenizer.decode(&[id]);
        }
        (written.len() == answer.len(), next.is_over())
    };
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let rome = call("weather", "{\"city\": \"Rome\"}");
    for (more, answer, expected) in [
        (json!({"tool_choice": "required"}), rome.clone(), (true, false)),
        (json!({"tool_choice": "required", "parallel_tool_calls": false}), rome.clone(), (true, true)),
        (json!({"tool_choice": "required"}), "Well, ".into(), (false, false)),
        (json!({"tool_choice": "required"}), call("weather", "{\"town\": 1, \"city\": 2}"), (false, false)),
        (json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), rome.clone(), (false, false)),
        (json!({"tool_choice": {"type": "function", "function": {"name": "weather"}}}), rome.clone(), (true, true)),
        (json!({"tool_choice": "auto", "parallel_tool_calls": false}), format!("Well. {rome}"), (true, true)),
        (json!({}), format!("{rome}\n{rome}"), (true, false)),
        (json!({}), call("weather", "{\"anything\": [1]}"), (true, false)),
        (json!({}), call("nothing", "{}"), (false, false)),
        (json!({"response_format": {"type": "json_object"}}), "{\"a\": 1}".into(), (true, true)),
        (json!({"response_format": {"type": "json_object"}}), rome.clone(), (true, false)),
        (json!({"response_format": {"type": "json_object"}}), "Well".into(), (false, false)),
    ] {
        server.ask("/v1/chat/completions", chat(&more)).await;
        assert_eq!(write(requests.recv().unwrap(), &answer), expected, "{more}: {answer}");
    }
}

#[tokio::test]
async fn what_was_called_and_answered_reaches_the_template() {
    let (server, requests) = answering("ok").await;
    let messages = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Rome\"}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
    ]);
    server.ask("/v1/chat/completions", chat(&json!({"messages": messages}))).await;
    let prompt = calling_text().tokenizer.decode(&requests.recv().unwrap().prompt);
    let told = tool("weather").to_string().replace("\":", "\": ").replace(",\"", ", \"");
    assert!(prompt.starts_with(&told), "{prompt}");
    let said = "<assistant>:<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call><tool>weather:Rain<assistant>";
    assert!(prompt.ends_with(said), "{prompt}");
}

#[tokio::test]
async fn what_cannot_be_called_is_refused_by_name() {
    let (server, _requests) = answering("").await;
    for (more, words) in [
        (json!({"tools": [{"type": "web_search"}]}), "`tools[0]` should be"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "`tools[0].function.name` should be"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}),
            "`tools[0].function.parameters.type`",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a", "strict": true, "parameters": {"properties": {"x": {"not": {}}}}}}]}),
            "`tools[0].function.parameters` cannot be used: `not` at #/properties/x",
        ),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "names 'g', which is none of `tools`",
        ),
        (json!({"tool_choice": "perhaps"}), "`tool_choice` should be"),
        (json!({"tool_choice": "required", "tools": []}), "`tool_choice` asks for a call"),
        (json!({"guided_regex": "a"}), "`guided_regex` and `tools` exclude one another"),
    ] {
        let reply = server.post("/v1/chat/completions", chat(&more)).await;
        assert!(reply.status == 400 && reply.body.contains(words), "{more}: {}", reply.body);
    }
    let none = Server::start(saying("x")).await;
    let reply = none.post("/v1/chat/completions", chat(&json!({"tool_choice": "required"}))).await;
    assert!(reply.status == 400 && reply.body.contains("template knows of no tools"), "{}", reply.body);
}
