use std::{
    sync::{Mutex, mpsc as blocking},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::*;
use crate::{
    engine::{
        handle::SubmitError,
        request::{Event, FinishReason, SamplingParams},
    },
    testing::{Act, demo_card, demo_text, engine, saying, scripted, silent, speak, speak_tokens},
    text::{Chunk, MaxTokens, Specials},
};

fn raw(text: &str) -> GenerateRequest {
    let prompt = Prompt::Text { text: text.into(), add_special_tokens: true };
    GenerateRequest::new(prompt, SamplingParams::greedy(), MaxTokens::Wall)
}

fn chat(text: &str) -> GenerateRequest {
    GenerateRequest::new(Prompt::single_turn(text), SamplingParams::greedy(), MaxTokens::Wall)
}

async fn chunks(engine: &TextEngine, request: GenerateRequest) -> Vec<Chunk> {
    let generation = engine.generate(request).await.unwrap();
    generation.map(|chunk| chunk.unwrap()).collect().await
}

fn text_of(chunks: &[Chunk], index: usize) -> String {
    chunks.iter().filter(|c| c.index == index).map(|c| c.text.as_str()).collect()
}

#[tokio::test]
async fn text_comes_in_pieces_and_the_end_is_not_part_of_it() {
    let engine = saying(" Hello! How can I help 🦀 you today?");
    let chunks = chunks(&engine, raw("Hi")).await;
    assert_eq!(text_of(&chunks, 0), " Hello! How can I help 🦀 you today?");
    assert!(chunks.iter().all(|c| !c.text.contains('\u{fffd}')), "no half characters");
    let last = chunks.last().unwrap();
    assert_eq!(last.finish, Some(FinishReason::Stop));
    assert_eq!(last.tokens.last().unwrap().id, 4095, "the token that ends the text is reported");
    assert_eq!(chunks.iter().filter(|c| c.finish.is_some()).count(), 1);
    let ids: Vec<TokenId> = chunks.iter().flat_map(|c| &c.tokens).map(|t| t.id).collect();
    assert_eq!(demo_text().tokenizer.decode(&ids), " Hello! How can I help 🦀 you today?<|endoftext|>");
}

#[tokio::test]
async fn replies_in_chats_lose_the_space_of_the_format() {
    let chunks = chunks(&saying(" Hello!"), chat("Hi")).await;
    assert_eq!(text_of(&chunks, 0), "Hello!");
}

#[tokio::test]
async fn a_stop_string_ends_the_text_and_cancels_the_sequence() {
    let (dropped, mut cancelled) = mpsc::unbounded_channel();
    let handle = scripted(4, move |request| {
        let mut events = speak(request, "one two three");
        events.truncate(events.len() - 2);
        Act::Hang(events, dropped.clone())
    });
    let request = GenerateRequest { stop: vec!["o th".into()], ..raw("x") };
    let chunks = chunks(&engine(handle), request).await;
    assert_eq!(text_of(&chunks, 0), "one tw");
    assert_eq!(chunks.last().unwrap().finish, Some(FinishReason::Stop));
    assert_eq!(cancelled.recv().await, Some(0));
}

#[tokio::test]
async fn dropping_a_generation_cancels_every_choice() {
    let (dropped, mut cancelled) = mpsc::unbounded_channel();
    let handle = scripted(8, move |_| Act::Hang(vec![], dropped.clone()));
    let generation = engine(handle).generate(GenerateRequest { n: 3, ..raw("x") }).await.unwrap();
    drop(generation);
    let mut choices = vec![cancelled.recv().await, cancelled.recv().await, cancelled.recv().await];
    choices.sort();
    assert_eq!(choices, [Some(0), Some(1), Some(2)]);
}

#[tokio::test]
async fn choices_and_prompts_are_told_apart() {
    let handle = scripted(16, |request| {
        let name = format!("p{}c{}", request.prompt_index, request.choice);
        Act::Events(speak(request, &name))
    });
    let mut request = GenerateRequest { n: 2, ..raw("a") };
    request.prompts.push(Prompt::Tokens(vec![5]));
    let chunks = chunks(&engine(handle), request).await;
    let texts: Vec<String> = (0..4).map(|index| text_of(&chunks, index)).collect();
    assert_eq!(texts, ["p0c0", "p0c1", "p1c0", "p1c1"]);
}

#[tokio::test]
async fn a_request_of_many_sequences_takes_one_place() {
    let handle = scripted(1, |request| Act::Events(speak(request, "x")));
    let chunks = chunks(&engine(handle), GenerateRequest { n: 30, ..raw("a") }).await;
    assert!((0..30).all(|index| text_of(&chunks, index) == "x"));
}

#[tokio::test]
async fn who_never_reads_keeps_nobody_out() {
    let engine = engine(scripted(8, |request| Act::Events(speak(request, "x"))));
    let mut large = GenerateRequest { n: 128, ..raw("a") };
    large.prompts = vec![large.prompts[0].clone(); 8];
    // Read once, as a server does before the client's socket is full, and never again.
    let mut unread = engine.generate(large).await.unwrap();
    unread.next().await.unwrap().unwrap();
    for _ in 0..30 {
        assert_eq!(text_of(&chunks(&engine, raw("b")).await, 0), "x");
    }
}

#[tokio::test]
async fn a_full_queue_a_stop_and_an_end_are_told_apart() {
    let (handle, receiver) = silent(1);
    let engine = engine(handle);
    let held = engine.generate(raw("x")).await.unwrap();
    let error = engine.generate(raw("x")).await.unwrap_err();
    assert_eq!(error, GenerateError::Submit(SubmitError::QueueFull { limit: 1 }));
    // Before its prompt is looked at, which would be work in vain.
    let empty = GenerateRequest { prompts: vec![Prompt::Tokens(Vec::new())], ..raw("x") };
    assert_eq!(engine.generate(empty.clone()).await.unwrap_err(), error);
    drop((receiver, held));
    assert!(matches!(engine.generate(raw("x")).await, Err(GenerateError::Submit(SubmitError::Ended(_)))));
    engine.handle.stop();
    assert_eq!(engine.generate(raw("x")).await.unwrap_err(), GenerateError::Submit(SubmitError::Stopping));
}

#[tokio::test]
async fn failures_end_the_stream() {
    let failing = |events: Vec<Event>| engine(scripted(4, move |_| Act::Events(events.clone())));
    for events in [vec![], vec![Event::Failed("rank 1 is gone".into())]] {
        let mut generation = failing(events).generate(raw("x")).await.unwrap();
        assert!(matches!(generation.next().await, Some(Err(GenerateError::Failed { .. }))));
        assert!(generation.next().await.is_none());
    }
}

#[tokio::test]
async fn a_deadline_ends_the_stream_and_cancels() {
    let (dropped, mut cancelled) = mpsc::unbounded_channel();
    let handle = scripted(4, move |_| Act::Hang(vec![], dropped.clone()));
    let timeout = Some(Duration::from_millis(30));
    let start = Instant::now();
    let mut generation = engine(handle).generate(GenerateRequest { timeout, ..raw("x") }).await.unwrap();
    assert!(matches!(generation.next().await, Some(Err(GenerateError::Deadline { .. }))));
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert!(generation.next().await.is_none());
    assert_eq!(cancelled.recv().await, Some(0));
}

#[tokio::test]
async fn special_tokens_are_reported_but_never_shown() {
    let handle = scripted(4, |request| Act::Events(speak_tokens(request, &[4095, 566, 4095, 25, 4095])));
    let mut request = raw("x");
    request.sampling.ignore_eos = true;
    let chunks = chunks(&engine(handle), request).await;
    assert_eq!(text_of(&chunks, 0), "User:");
    assert_eq!(chunks.iter().map(|c| c.tokens.len()).sum::<usize>(), 5);
}

/// An engine whose tokenizer is not the demo's; it says these tokens, whatever it is asked.
fn engine_of(files: &[(&str, serde_json::Value)], rows: usize, says: &'static [TokenId]) -> TextEngine {
    let folder = tempfile::tempdir().unwrap();
    for (file, content) in files {
        std::fs::write(folder.path().join(file), content.to_string()).unwrap();
    }
    let mut card = demo_card();
    card.shape.vocab_size = rows;
    card.shape.eos_token_ids.clear();
    let text = Arc::new(ModelText::load(folder.path(), &card.shape).unwrap());
    let handle = scripted(4, move |request| Act::Events(speak_tokens(request, says)));
    TextEngine::new(handle, text, Arc::new(card))
}

#[tokio::test]
async fn text_of_other_decoders_continues_its_prompt_and_meets_stop_strings() {
    let metaspace = serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
    let file = serde_json::json!({
        "version": "1.0", "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": metaspace.clone(), "decoder": metaspace,
        "model": {"type": "BPE", "merges": [], "vocab": {"</s>": 0, "▁": 1, "a": 2, "b": 3, "▁the": 4, "▁cat": 5}},
    });
    let config = serde_json::json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"});
    let files = [("tokenizer.json", file), ("tokenizer_config.json", config)];
    let says = |says| engine_of(&files, 6, says);
    let say = async |says_ids, prompt: Vec<TokenId>, stop: &[&str]| {
        let prompts = vec![Prompt::Tokens(prompt)];
        let stop = stop.iter().map(|&stop| stop.to_owned()).collect();
        let chunks = chunks(&says(says_ids), GenerateRequest { prompts, stop, ..raw("") }).await;
        (text_of(&chunks, 0), chunks.last().unwrap().finish)
    };
    let ended = Some(FinishReason::Stop);
    assert_eq!(say(&[4, 5, 0], vec![0], &[]).await, ("the cat".into(), ended), "the start of a text");
    assert_eq!(say(&[4, 5, 1, 0], vec![2], &[]).await, (" the cat ".into(), ended), "behind a prompt");
    assert_eq!(say(&[4, 5, 2, 0], vec![2], &["e c"]).await, (" th".into(), ended));
}

#[tokio::test]
async fn the_end_that_the_tokenizer_names_ends_a_reply_too() {
    let request = Mutex::new(None);
    let request = Arc::new(request);
    let seen = request.clone();
    let handle = scripted(4, move |request| {
        *seen.lock().unwrap() = Some(request.sampling.clone());
        Act::Events(speak_tokens(request, &[566, 7]))
    });
    let mut card = demo_card();
    card.shape.eos_token_ids = vec![7];
    let engine = TextEngine::new(handle, demo_text(), Arc::new(card));
    chunks(&engine, chat("x")).await;
    assert!(request.lock().unwrap().as_ref().unwrap().stop_token_ids.contains(4095));
    let mut endless = chat("x");
    endless.sampling.ignore_eos = true;
    chunks(&engine, endless).await;
    assert!(request.lock().unwrap().as_ref().unwrap().stop_token_ids.is_empty());
}

#[tokio::test]
async fn the_sequences_of_a_request_share_its_lists_of_tokens() {
    let (seen, requests) = blocking::channel();
    let handle = scripted(9, move |request| {
        seen.send(request.clone()).unwrap();
        Act::Events(speak_tokens(request, &[566]))
    });
    let mut request = GenerateRequest { n: 3, ..raw("x") };
    request.sampling.stop_token_ids = [9, 4].into_iter().collect();
    request.sampling.logit_bias = [(7, 1.0)].into_iter().collect();
    request.prompts.push(Prompt::Tokens(vec![5]));
    chunks(&engine(handle), request).await;
    let requests: Vec<_> = requests.try_iter().collect();
    assert_eq!(requests.len(), 6);
    let first = &requests[0];
    assert!(first.sampling.stop_token_ids.starts_with(&[4, 9]) && first.sampling.logit_bias.of(7) == 1.0);
    for other in &requests {
        assert!(std::ptr::eq(&*first.sampling.stop_token_ids, &*other.sampling.stop_token_ids));
        assert!(std::ptr::eq(&*first.sampling.logit_bias, &*other.sampling.logit_bias));
    }
}

#[tokio::test]
async fn a_character_cut_off_at_the_end_is_shown_as_cut_off() {
    let half = demo_text().tokenizer.encode("🦀", Specials::Literal).unwrap()[0];
    let handle = scripted(4, move |request| Act::Events(speak_tokens(request, &[half])));
    let chunks = chunks(&engine(handle), raw("x")).await;
    assert_eq!(text_of(&chunks, 0), "\u{fffd}");
}

#[tokio::test]
async fn ids_outside_the_vocabulary_are_named() {
    let engine = saying("x");
    let mut request = raw("x");
    request.sampling.stop_token_ids = [4096].into_iter().collect();
    let error = engine.generate(request).await.unwrap_err();
    assert_eq!(error, GenerateError::UnknownToken { field: "stop_token_ids", id: 4096, vocab_size: 4096 });
    let error = engine.generate(GenerateRequest { n: 2000, ..raw("x") }).await.unwrap_err();
    assert_eq!(error, GenerateError::TooManySequences { sequences: 2000 });
}

#[tokio::test]
async fn no_more_texts_are_encoded_at_a_time_than_there_are_cores() {
    let engine = saying(" ok");
    let cores = off_runtime::cores();
    let (release, held) = blocking::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let (begun, mut begins) = mpsc::unbounded_channel();
    for _ in 0..cores {
        let (engine, held, begun) = (engine.clone(), held.clone(), begun.clone());
        tokio::spawn(async move {
            let long = move |_: &ModelText| {
                begun.send(()).unwrap();
                let _ = held.lock().unwrap().recv();
            };
            engine.encode(long).await
        });
    }
    for _ in 0..cores {
        begins.recv().await.unwrap();
    }
    let hurried = GenerateRequest { timeout: Some(Duration::from_millis(50)), ..raw("x") };
    let late = engine.generate(hurried).await.unwrap_err();
    assert!(matches!(late, GenerateError::Deadline { .. }), "it waits, as long as it was told to: {late}");
    drop(release);
    engine.generate(raw("x")).await.unwrap();
}

/// How many sequences ended in this way.
fn ended(engine: &TextEngine, how: &str) -> u64 {
    let text = engine.status().metrics().render();
    let name = format!("nanoinfer_request_success_total{{finished_reason=\"{how}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_sequences_of_who_does_not_read() {
    let (dropped, mut cancelled) = mpsc::unbounded_channel();
    let handle = scripted(8, move |request| Act::Hang(speak(request, " Hello")[..1].to_vec(), dropped.clone()));
    let engine = engine(handle);
    let timeout = Duration::from_secs(3600);
    let begun = tokio::time::Instant::now();
    let request = GenerateRequest { n: 3, timeout: Some(timeout), ..raw("x") };
    let mut generation = engine.generate(request).await.unwrap();
    generation.next().await.unwrap().unwrap();
    for _ in 0..3 {
        tokio::time::timeout(2 * timeout, cancelled.recv()).await.expect("ended without being read").unwrap();
    }
    assert_eq!(begun.elapsed(), timeout);
    assert_eq!((ended(&engine, "timeout"), ended(&engine, "abort")), (3, 0));
    assert_eq!(generation.next().await, Some(Err(GenerateError::Deadline { timeout })));
    assert_eq!(generation.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_wakes_who_reads_and_is_forgotten_after_the_end() {
    let (dropped, mut cancelled) = mpsc::unbounded_channel();
    let timeout = Duration::from_secs(5);
    let request = || GenerateRequest { timeout: Some(timeout), ..raw("x") };
    let mut generation = saying(" ok").generate(request()).await.unwrap();
    while let Some(chunk) = generation.next().await {
        chunk.unwrap();
    }
    tokio::time::sleep(2 * timeout).await;
    assert_eq!(generation.next().await, None);
    let handle = scripted(8, move |_| Act::Hang(vec![], dropped.clone()));
    let error = engine(handle).generate(request()).await.unwrap().whole(|_| ()).await.unwrap_err();
    assert_eq!(error, GenerateError::Deadline { timeout });
    assert_eq!(cancelled.recv().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn every_way_to_end_is_counted_once() {
    let (dropped, mut cancelled) = mpsc::unbounded_channel();
    let handle = scripted(64, move |request| match request.max_tokens {
        7 => Act::Hang(vec![], dropped.clone()),
        8 => Act::Events(vec![Event::Failed("a rank died".into())]),
        _ => Act::Events(speak(request, "one two three")),
    });
    let engine = engine(handle.clone());
    let counts = || ["stop", "length", "abort", "timeout", "error"].map(|how| ended(&engine, how));
    let with = |tokens| GenerateRequest { max_tokens: MaxTokens::Given(tokens), ..raw("x") };
    let whole = async |request| engine.generate(request).await.unwrap().whole(|_| ()).await;
    whole(raw("x")).await.unwrap();
    assert_eq!(counts(), [1, 0, 0, 0, 0]);
    whole(GenerateRequest { stop: vec!["o th".into()], n: 2, ..raw("x") }).await.unwrap();
    assert_eq!(counts(), [3, 0, 0, 0, 0], "by a stop string");
    whole(with(1)).await.unwrap();
    assert_eq!(counts(), [3, 1, 0, 0, 0]);
    drop(engine.generate(with(7)).await.unwrap());
    cancelled.recv().await.unwrap();
    assert_eq!(counts(), [3, 1, 1, 0, 0]);
    whole(GenerateRequest { timeout: Some(Duration::from_secs(1)), ..with(7) }).await.unwrap_err();
    assert_eq!(counts(), [3, 1, 1, 1, 0]);
    whole(with(8)).await.unwrap_err();
    assert_eq!(counts(), [3, 1, 1, 1, 1]);
    handle.stop();
    engine.generate(raw("x")).await.unwrap_err();
    assert_eq!(counts(), [3, 1, 1, 1, 1], "what was not taken is no sequence");
    let text = engine.status().metrics().render();
    assert!(text.contains("nanoinfer_e2e_request_latency_seconds_count 7\n"), "{text}");
}

#[tokio::test]
async fn a_stop_string_may_lie_within_a_run_of_tokens_that_stand_for_bytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/family_tokenizers.json");
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let kind = golden["kinds"].as_array().unwrap().iter().find(|kind| kind["kind"] == "TinyLlama").unwrap();
    let files = ["tokenizer.json", "tokenizer_config.json"].map(|file| (file, kind["files"][file].clone()));
    let rows = kind["rows"].as_u64().unwrap() as usize;
    let text = kind["texts"].as_array().unwrap().iter().find(|text| text["text"] == "日本語は 🦀 です").unwrap();
    let says: Vec<TokenId> = serde_json::from_value(text["ids"].clone()).unwrap();
    let engine = engine_of(&files, rows, says.leak());
    let answer = |stop: &str| GenerateRequest { stop: vec![stop.into()], ..raw("the cat") };
    for (stop, expected) in [
        ("語", " 日本"),
        ("は ", " 日本語"),
        ("🦀 で", " 日本語は "),
        ("す", " 日本語は 🦀 で"),
        ("x", " 日本語は 🦀 です"),
    ] {
        let chunks = chunks(&engine, answer(stop)).await;
        assert_eq!(text_of(&chunks, 0), expected, "{stop}");
        assert!(chunks.iter().all(|chunk| !chunk.text.contains('\u{fffd}')), "no half characters");
    }
}
