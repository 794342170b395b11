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
