//! `/api/chat` on the demo model: the short form and Ollama's, streamed and not.

use serde_json::{Value, json};

use crate::server::{Server, root};

fn demo_golden() -> Vec<Value> {
    let text = std::fs::read_to_string(root().join("launcher/demo/nano-chat/golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The question inside `User: …\nAssistant:`.
fn question(golden: &Value) -> &str {
    let prompt = golden["prompt"].as_str().unwrap();
    prompt.strip_prefix("User: ").unwrap().strip_suffix("\nAssistant:").unwrap()
}

#[test]
fn two_ranks_answer_the_readmes_question() {
    let server = Server::start(&["--nproc", "2"]);
    let answer = server.ask("/api/chat", &json!({ "prompt": "What is a cat?", "temperature": 0 }));
    assert!(answer["response"].as_str().unwrap().contains("feline mammal"), "{answer}");
    assert!(answer["tokens_generated"].as_u64().unwrap() > 10);
    assert!(answer["generation_time"].as_f64().unwrap() > 0.0 && answer["tokens_per_second"].as_f64().unwrap() > 0.0);

    // Every taught answer whose margins no rounding can turn.
    for golden in demo_golden().iter().filter(|g| g["min_top2_margin"].as_f64().unwrap() > 0.01) {
        let prompt = golden["prompt"].as_str().unwrap();
        if prompt.matches("User: ").count() != 1 || !prompt.starts_with("User: ") {
            continue;
        }
        let answer = server.ask("/api/chat", &json!({ "prompt": question(golden), "temperature": 0 }));
        assert_eq!(answer["response"].as_str().unwrap().trim(), golden["text"].as_str().unwrap().trim());
    }
}

#[test]
fn both_forms_stream_what_they_say_at_once() {
    let server = Server::start(&[]);
    let short = json!({ "prompt": "Hello!", "temperature": 0 });
    let whole = server.ask("/api/chat", &short)["response"].as_str().unwrap().to_owned();
    assert_eq!(whole.trim(), "Hello! How can I help you today?");

    let mut streamed = short.clone();
    streamed["stream"] = true.into();
    let (status, events) = server.post_text("/api/chat", &streamed.to_string());
    assert_eq!(status, 200);
    let data: Vec<_> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"));
    let tokens = data[..data.len() - 1].iter().map(|json| serde_json::from_str::<Value>(json).unwrap());
    let text: String = tokens.map(|event| event["token"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, whole);

    let messages = json!([{ "role": "user", "content": "Hello!" }]);
    // Ollama's default penalty for repetition would change what is most likely.
    let options = json!({ "temperature": 0, "repeat_penalty": 1 });
    let ollama = json!({ "model": "nano-chat", "messages": messages, "options": options });
    let (status, lines) = server.post_text("/api/chat", &ollama.to_string());
    assert_eq!(status, 200);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let content = |line: &Value| line["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(lines.iter().map(content).collect::<String>().trim(), whole.trim());
    let last = lines.last().unwrap();
    assert_eq!((&last["done"], &last["done_reason"]), (&true.into(), &"stop".into()));
    for field in
        ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"]
    {
        assert!(last[field].is_u64(), "{field} in {last}");
    }
    assert!(lines[..lines.len() - 1].iter().all(|line| line["done"] == false));

    let mut at_once = ollama.clone();
    at_once["stream"] = false.into();
    let answer = server.ask("/api/chat", &at_once);
    assert_eq!(content(&answer).trim(), whole.trim());
    assert_eq!(answer["done"], true);
}

#[test]
fn a_conversation_continues_and_seeds_repeat() {
    let server = Server::start(&[]);
    let messages = json!([
        { "role": "user", "content": "Hello!" },
        { "role": "assistant", "content": "Hello! How can I help you today?" },
        { "role": "user", "content": "What is the capital of France?" },
    ]);
    let body = json!({ "messages": messages, "stream": false, "options": { "temperature": 0 } });
    let answer = server.ask("/api/chat", &body);
    assert!(answer["message"]["content"].as_str().unwrap().contains("Paris"), "{answer}");

    let seeded = |seed: u64| {
        let body =
            json!({ "prompt": "Tell me something.", "temperature": 1.5, "top_p": 1.0, "seed": seed, "max_tokens": 24 });
        server.ask("/api/chat", &body)["response"].as_str().unwrap().to_owned()
    };
    assert_eq!(seeded(5), seeded(5));
    assert!((0..4).any(|seed| seeded(seed) != seeded(seed + 100)), "seeds change the draw");
}
