//! OpenAI's newer form of a chat.

use std::sync::mpsc;

use serde_json::{Value, json};

use super::{Server, observed};
use crate::{
    request::{Event, Request},
    testing::{
        Act, CALLING_POSITIONS, calling, calling_text, demo_text, engine, saying, scripted, scripted_to, speak,
        thinking,
    },
};

/// Events of a stream, with the names that stand before them.
fn events(body: &str) -> Vec<Value> {
    let event = |event: &str| {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    body.trim_end().split("\n\n").map(event).collect()
}

#[tokio::test]
async fn a_text_is_answered_whole_and_as_events_that_say_the_same() {
    let server = Server::start(saying("A cat.")).await;
    let body = json!({"input": "What?", "instructions": "Be brief.", "max_output_tokens": 50, "temperature": 0.3});
    let reply = server.ask("/v1/responses", body.clone()).await;
    let part = json!({"type": "output_text", "text": "A cat.", "annotations": [], "logprobs": []});
    let item = &reply["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    assert_eq!((&item["content"], reply["output"].as_array().unwrap().len()), (&json!([part]), 1));
    assert_eq!(
        (&reply["object"], &reply["status"], &reply["error"]),
        (&json!("response"), &json!("completed"), &Value::Null)
    );
    assert_eq!(
        (&reply["instructions"], &reply["temperature"], &reply["tools"]),
        (&json!("Be brief."), &json!(0.3), &json!([]))
    );
    assert_eq!(reply["text"], json!({"format": {"type": "text"}}));
    let total = reply["usage"]["input_tokens"].as_u64().unwrap() + reply["usage"]["output_tokens"].as_u64().unwrap();
    assert_eq!(reply["usage"]["total_tokens"], total);
    let mut streamed = body;
    streamed["stream"] = true.into();
    let told = server.post("/v1/responses", streamed).await;
    let events = events(&told.body);
    let names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        names[..4],
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    );
    assert_eq!(
        names[names.len() - 4..],
        ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    );
    assert!(events.iter().enumerate().all(|(i, event)| event["sequence_number"] == i));
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(deltas, "A cat.");
    let last = &events.last().unwrap()["response"];
    assert_eq!((&last["output"][0]["content"], &last["usage"]), (&reply["output"][0]["content"], &reply["usage"]));
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_so_in_an_event() {
    let handle = scripted(64, |request| {
        let mut events = speak(request, "A cat.");
        events.pop();
        events.push(Event::Failed("rank 1 is gone".into()));
        Act::Events(events)
    });
    let server = Server::start(engine(handle)).await;
    let told = server.post("/v1/responses", json!({"input": "What?", "stream": true})).await;
    let events = events(&told.body);
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["code"]), (&json!("error"), &Value::Null));
    assert_eq!(last["message"], last["error"]["message"]);
    assert!(last["message"].as_str().unwrap().contains("rank 1 is gone"), "{last}");
    assert_eq!(last["sequence_number"], events.len() - 1);
}

#[tokio::test]
async fn thoughts_and_calls_are_items_of_their_own() {
    let handle = scripted(64, |request| Act::Events(speak(request, "<think>Hm.</think>Two.")));
    let server = Server::start(thinking(handle)).await;
    let reply = server.ask("/v1/responses", json!({"input": [{"role": "user", "content": "x"}]})).await;
    let kinds: Vec<_> = reply["output"].as_array().unwrap().iter().map(|item| item["type"].clone()).collect();
    assert_eq!(kinds, ["reasoning", "message"]);
    assert_eq!(reply["output"][0]["content"][0]["text"], "Hm.");
    assert!(reply["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);

    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let (seen, requests) = mpsc::channel();
    let handle = scripted_to(CALLING_POSITIONS, 64, move |request: &Request| {
        let _ = seen.send(request.clone());
        Act::Events(speak(&Request { next: None, ..request.clone() }, call))
    });
    let server = Server::start(calling(handle)).await;
    let tool =
        json!({"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": true});
    let body = json!({"input": "x", "tools": [tool], "tool_choice": {"type": "function", "name": "f"}});
    let reply = server.ask("/v1/responses", body.clone()).await;
    let item = &reply["output"][0];
    assert_eq!(
        (&item["type"], &item["name"], &item["arguments"]),
        (&json!("function_call"), &json!("f"), &json!("{\"a\": 1}"))
    );
    assert_eq!((&reply["tools"], &reply["tool_choice"]), (&body["tools"], &body["tool_choice"]));
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = events(&server.post("/v1/responses", streamed).await.body);
    let of = |name: &str| events.iter().filter(|event| event["type"] == name).collect::<Vec<_>>();
    let deltas: String =
        of("response.function_call_arguments.delta").iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!((deltas.as_str(), of("response.function_call_arguments.done").len()), ("{\"a\": 1}", 1));

    requests.try_iter().for_each(drop);
    let input = json!([{"role": "user", "content": [{"type": "input_text", "text": "x"}]}, item,
        {"type": "function_call_output", "call_id": item["call_id"], "output": "Rain"}]);
    server.ask("/v1/responses", json!({"input": input, "tools": body["tools"]})).await;
    let prompt = calling_text().tokenizer.decode(&requests.recv().unwrap().prompt);
    assert!(
        prompt.ends_with(
            &format!("<user>:x<assistant>:{call}<tool>f:Rain<assistant>").replace("{\"a\": 1}", "{\"a\": 1}")
        ),
        "{prompt}"
    );
}

#[tokio::test]
async fn what_an_answer_must_be_and_may_cost_reaches_the_engine() {
    let (server, requests) = observed().await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let format = json!({"type": "json_schema", "name": "x", "schema": schema, "strict": true});
    let body = json!({"input": "x", "text": {"format": format}, "max_output_tokens": 1});
    let reply = server.ask("/v1/responses", body).await;
    assert_eq!(
        (&reply["status"], &reply["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(reply["text"]["format"], format);
    let request = requests.recv().unwrap();
    assert!(request.max_tokens == 1 && request.next.is_some_and(|next| next.is_masking()));
    assert!(demo_text().tokenizer.decode(&request.prompt).contains('x'));
}

#[tokio::test]
async fn what_would_have_to_be_remembered_is_refused_by_name() {
    let server = Server::start(saying("x")).await;
    for (more, words) in [
        (json!({"previous_response_id": "resp_1"}), "`previous_response_id` is not supported"),
        (json!({"conversation": "c"}), "`conversation` is not supported"),
        (json!({"background": true}), "`background` is not supported"),
        (json!({"input": []}), "`input` should be"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "`input[0]` of type 'item_reference'"),
        (json!({"input": [{"role": "banana", "content": "x"}]}), "`input[0].role` should be"),
        (json!({"tools": [{"type": "web_search"}]}), "`tools[0]` should be"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "`text.format.schema` is missing"),
    ] {
        let mut body = json!({"input": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = server.post("/v1/responses", body).await;
        assert!(reply.status == 400 && reply.body.contains(words), "{more}: {}", reply.body);
    }
    let reply = server.ask("/v1/responses", json!({"input": "x", "store": true, "background": false})).await;
    assert_eq!((&reply["store"], reply["warnings"].as_array().unwrap().len()), (&json!(false), 1));
}
