//! Fields of OpenAI's routes that vLLM has added: what of the text is shown, of the prompt kept, and of the chat continued.

use serde_json::{Value, json};

use super::{Server, observed};
use crate::{
    testing::{Act, demo_text, engine, saying, scripted, speak_tokens},
    text::Specials,
};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn literal(text: &str) -> Vec<u32> {
    demo_text().tokenizer.encode(text, Specials::Literal).unwrap()
}

#[tokio::test]
async fn a_stop_string_is_part_of_the_text_where_that_is_asked_for() {
    let server = Server::start(saying(" one two three four")).await;
    for (asked, expected) in [(false, "one two"), (true, "one two th")] {
        let messages = json!([{"role": "user", "content": "x"}]);
        let body = json!({"messages": messages, "stop": " th", "include_stop_str_in_output": asked});
        let whole = server.ask(CHAT, body.clone()).await;
        assert_eq!(whole["choices"][0]["message"]["content"], expected);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let mut streamed = body;
        streamed["stream"] = true.into();
        let objects = server.post(CHAT, streamed).await.objects();
        let text: String = objects.iter().filter_map(|o| o["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, expected);
    }
}

#[tokio::test]
async fn stop_strings_before_the_fewest_tokens_end_nothing() {
    let ids = [literal(" a b"), literal(" a b"), literal(" c")].concat();
    let first = literal(" a b").len();
    let handle = scripted(8, move |request| Act::Events(speak_tokens(request, &ids)));
    let server = Server::start(engine(handle)).await;
    let text = async |min_tokens: usize| {
        let body = json!({"prompt": "x", "max_tokens": 20, "stop": " b", "min_tokens": min_tokens});
        server.ask(COMPLETIONS, body).await["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(0).await, " a");
    assert_eq!(text(first).await, " a b a");
    assert_eq!(text(2 * first).await, " a b a b c");
}

#[tokio::test]
async fn special_tokens_are_part_of_the_text_where_that_is_asked_for() {
    let ids = [literal(" a"), vec![4095], literal(" b"), vec![4095]].concat();
    let (whole, shown) = (" a b", " a<|endoftext|> b<|endoftext|>");
    let handle = scripted(8, move |request| Act::Events(speak_tokens(request, &ids)));
    let server = Server::start(engine(handle)).await;
    let body = |skip: bool| json!({"prompt": "x", "max_tokens": 20, "ignore_eos": true, "skip_special_tokens": skip, "logprobs": 0});
    assert_eq!(server.ask(COMPLETIONS, body(true)).await["choices"][0]["text"], whole);
    let choice = &server.ask(COMPLETIONS, body(false)).await["choices"][0];
    assert_eq!(choice["text"], shown);
    let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
    assert_eq!(offsets.last().unwrap(), " a<|endoftext|> b".len(), "they count where they are shown");
    // The one that ends the text is shown as a stop string is.
    let server = Server::start(saying(" a")).await;
    for (include, expected) in [(false, " a"), (true, " a<|endoftext|>")] {
        let body = json!({"prompt": "x", "skip_special_tokens": false, "include_stop_str_in_output": include});
        assert_eq!(server.ask(COMPLETIONS, body).await["choices"][0]["text"], expected);
    }
}

#[tokio::test]
async fn the_end_of_a_prompt_is_kept_where_that_is_asked_for() {
    let (server, requests) = observed().await;
    let kept = |body: Value| {
        let server = &server;
        let requests = &requests;
        async move {
            let path = if body.get("messages").is_some() { CHAT } else { COMPLETIONS };
            let reply = server.ask(path, body).await;
            assert!(reply.get("warnings").is_none(), "it was asked for: {reply}");
            (requests.recv().unwrap(), reply)
        }
    };
    let ids: Vec<u32> = (0..400).collect();
    let (request, _) = kept(json!({"prompt": ids, "truncate_prompt_tokens": 3, "max_tokens": 5})).await;
    assert_eq!(request.prompt, [397, 398, 399]);
    let (request, _) = kept(json!({"prompt": ids, "truncate_prompt_tokens": -1, "max_tokens": 20})).await;
    assert_eq!((request.prompt.len(), request.prompt.last(), request.max_tokens), (236, Some(&399), 20));
    let (request, _) = kept(json!({"prompt": [1, 2], "truncate_prompt_tokens": 3, "max_tokens": 5})).await;
    assert_eq!(request.prompt, [1, 2], "nothing to leave out");
    let text = "The cat sat on the mat. ".repeat(200);
    let body = json!({"prompt": text, "truncate_prompt_tokens": 4, "echo": true, "max_tokens": 2});
    let (request, reply) = kept(body).await;
    let end = demo_text().tokenizer.decode(&request.prompt);
    assert_eq!(request.prompt.len(), 4);
    assert!(reply["choices"][0]["text"].as_str().unwrap().starts_with(&end), "what is echoed is what was continued");
    let chat = json!({"messages": [{"role": "user", "content": text}], "truncate_prompt_tokens": 30, "max_tokens": 5});
    let (request, _) = kept(chat).await;
    assert!(request.prompt.len() == 30 && demo_text().tokenizer.decode(&request.prompt).ends_with("\nAssistant:"));
    for (wrong, part) in [(json!(0), "-1 or at least 1"), (json!(-2), "at least -1"), (json!("x"), "at least -1")] {
        let reply = server.post(COMPLETIONS, json!({"prompt": "x", "truncate_prompt_tokens": wrong})).await;
        assert!(reply.status == 400 && reply.body.contains(part), "{}", reply.body);
    }
}

#[tokio::test]
async fn prompts_are_scored_as_vllm_writes_it() {
    let server = Server::start(saying(" ok")).await;
    let ids = literal("日本 cat");
    let body = json!({"prompt": [ids.clone(), [566, 1]], "prompt_logprobs": 2, "max_tokens": 2, "n": 2});
    let reply = server.ask(COMPLETIONS, body).await;
    for choice in reply["choices"].as_array().unwrap() {
        assert!(choice["logprobs"].is_null());
        let scores = choice["prompt_logprobs"].as_array().unwrap();
        assert!(scores[0].is_null());
    }
    let scores = reply["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!(scores.len(), ids.len());
    for (id, place) in ids.iter().zip(scores).skip(1) {
        let place = place.as_object().unwrap();
        let itself = &place[&id.to_string()];
        assert_eq!(itself["decoded_token"], demo_text().tokenizer.spell(*id));
        // The made-up scores have 0 and 1 at the top.
        assert!(place["0"]["rank"] == 1 && place["1"]["rank"] == 2 && place.len() == 3, "{place:?}");
        assert!(itself["rank"].is_null() && itself["logprob"].as_f64() < place["1"]["logprob"].as_f64());
    }
    let of_short = reply["choices"][2]["prompt_logprobs"][1].as_object().unwrap();
    assert_eq!((of_short.len(), &of_short["1"]["rank"]), (2, &json!(2)), "itself is counted once");

    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "prompt_logprobs": 0, "n": 2});
    let reply = server.ask(CHAT, chat).await;
    let scores = reply["prompt_logprobs"].as_array().unwrap();
    assert_eq!(scores.len() as u64, reply["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(scores[1..].iter().all(|place| place.as_object().unwrap().len() == 1));
    assert!(reply["choices"][0].get("prompt_logprobs").is_none());

    let both = json!({"prompt": [566, 25, 7], "prompt_logprobs": 3, "logprobs": 1, "echo": true, "max_tokens": 0});
    let choice = &server.ask(COMPLETIONS, both).await["choices"][0];
    assert_eq!(choice["prompt_logprobs"][1].as_object().unwrap().len(), 4);
    assert_eq!(choice["logprobs"]["top_logprobs"][1].as_object().unwrap().len(), 2, "each as many as were asked for");
    for wrong in
        [json!({"prompt": "x", "prompt_logprobs": 21}), json!({"prompt": "x", "prompt_logprobs": 1, "stream": true})]
    {
        let reply = server.post(COMPLETIONS, wrong).await;
        assert!(reply.status == 400 && reply.json()["error"]["param"] == "prompt_logprobs", "{}", reply.body);
    }
}

#[tokio::test]
async fn every_chunk_counts_what_was_used_where_that_is_asked_for() {
    let server = Server::start(saying(" Hello there!")).await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    for (path, mut body) in [
        (CHAT, json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true})),
        (COMPLETIONS, json!({"prompt": "Hi", "stream": true})),
    ] {
        body["stream_options"] = options.clone();
        let objects = server.post(path, body).await.objects();
        let counts: Vec<u64> = objects.iter().map(|o| o["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(counts.is_sorted() && counts.len() > 3 && counts.last() > counts.first(), "{counts:?}");
        assert!(objects.iter().all(|o| o["usage"]["prompt_tokens"] == objects[0]["usage"]["prompt_tokens"]));
        let [.., before, last] = &counts[..] else { panic!("{counts:?}") };
        assert_eq!(before, last, "the last chunk has the same again, without a choice");
    }
}

#[tokio::test]
async fn a_chat_that_ends_with_the_assistants_turn_is_continued() {
    let (server, requests) = observed().await;
    let turns = |last: &str| json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": last}]);
    let prompt = |ids: &[u32]| demo_text().tokenizer.decode(ids);
    let open = "User: Hi\nAssistant: The cat";
    for (path, extra, expected, answer) in [
        (CHAT, json!({}), open, " ok"),
        (CHAT, json!({"continue_final_message": true}), open, " ok"),
        (CHAT, json!({"continue_final_message": true, "add_generation_prompt": false}), open, " ok"),
        (CHAT, json!({"add_generation_prompt": true}), "User: Hi\nAssistant: The cat<|endoftext|>Assistant:", "ok"),
        (CHAT, json!({"continue_final_message": false}), "User: Hi\nAssistant: The cat<|endoftext|>Assistant:", "ok"),
        (CHAT, json!({"add_generation_prompt": false}), "User: Hi\nAssistant: The cat<|endoftext|>", " ok"),
        ("/api/chat", json!({"stream": false}), open, " ok"),
    ] {
        let mut body = extra.clone();
        body["messages"] = turns("The cat");
        let reply = server.ask(path, body).await;
        assert_eq!(prompt(&requests.recv().unwrap().prompt), expected, "{extra}");
        let said = if path == CHAT { &reply["choices"][0]["message"]["content"] } else { &reply["message"]["content"] };
        assert_eq!(said, answer, "only what is new: {extra}");
    }
    for path in [CHAT, "/api/chat"] {
        server.ask(path, json!({"messages": turns(""), "stream": false})).await;
        assert_eq!(prompt(&requests.recv().unwrap().prompt), "User: Hi\nAssistant:", "nothing was said yet");
    }
    let asked = json!([{"role": "user", "content": "Hi"}]);
    for wrong in [
        json!({"messages": asked, "continue_final_message": true}),
        json!({"messages": turns("x"), "continue_final_message": true, "add_generation_prompt": true}),
    ] {
        let reply = server.post(CHAT, wrong).await;
        assert!(reply.status == 400 && reply.json()["error"]["param"] == "continue_final_message", "{}", reply.body);
    }
    let count = async |body: Value| {
        prompt(&serde_json::from_value::<Vec<u32>>(server.ask("/tokenize", body).await["tokens"].take()).unwrap())
    };
    assert_eq!(count(json!({"messages": asked, "add_generation_prompt": false})).await, "User: Hi\n");
    assert_eq!(count(json!({"messages": asked})).await, "User: Hi\nAssistant:");
    assert_eq!(count(json!({"messages": turns("The cat"), "continue_final_message": true})).await, open);
}

#[tokio::test]
async fn templates_get_variables_but_not_in_the_place_of_the_servers_own() {
    let server = Server::start(saying(" ok")).await;
    let body = |kwargs: Value| json!({"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": kwargs});
    for path in [CHAT, "/tokenize"] {
        server.ask(path, body(json!({"enable_thinking": false, "note": {"a": [1, null]}}))).await;
        for (wrong, param) in [
            (json!({"messages": []}), "chat_template_kwargs.messages"),
            (json!({"add_generation_prompt": false}), "chat_template_kwargs.add_generation_prompt"),
            (json!(["x"]), "chat_template_kwargs"),
        ] {
            let reply = server.post(path, body(wrong)).await;
            assert!(reply.status == 400 && reply.json()["error"]["param"] == param, "{}", reply.body);
        }
    }
}

#[tokio::test]
async fn a_salt_goes_with_the_request_and_is_neither_empty_nor_long() {
    let (server, requests) = observed().await;
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    for (path, base) in [(COMPLETIONS, json!({"prompt": "x"})), (CHAT, chat)] {
        let with = |salt: Value| {
            let mut body = base.clone();
            body["cache_salt"] = salt;
            body
        };
        server.ask(path, with(json!("mine"))).await;
        assert_eq!(requests.recv().unwrap().cache_salt.as_deref(), Some("mine"));
        server.ask(path, base.clone()).await;
        assert_eq!(requests.recv().unwrap().cache_salt, None);
        for wrong in [json!(""), json!("x".repeat(1024)), json!(7)] {
            let reply = server.post(path, with(wrong)).await;
            assert!(reply.status == 400 && reply.body.contains("`cache_salt` should"), "{}", reply.body);
        }
    }
}
