//! Many streams at once: every one gets all of its tokens, in order, and nobody else's.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    sync::{Arc, Barrier},
    thread,
};

use serde_json::{Value, json};

use crate::server::{Server, golden_folder};

const STREAMS: u64 = 200;
const TOKENS: usize = 24;

/// Request `i`: a prompt and a seed of its own.
fn request(i: u64) -> Value {
    json!({ "prompt": [i % 90 + 1, i / 90 + 5, 7], "seed": i, "max_tokens": TOKENS, "ignore_eos": true, "return_token_ids": true })
}

/// Token ids and text of the rest of a stream, from the line that was read last.
fn read_to_end(stream: &mut BufReader<TcpStream>, first: String) -> (Vec<Value>, String) {
    let (mut ids, mut text, mut line) = (Vec::new(), String::new(), first);
    loop {
        let data = line.trim_end().strip_prefix("data: ").unwrap_or_default();
        if data == "[DONE]" {
            return (ids, text);
        }
        if !data.is_empty() {
            let chunk: Value = serde_json::from_str(data).unwrap();
            let choice = &chunk["choices"][0];
            ids.extend(choice["token_ids"].as_array().unwrap().iter().cloned());
            text += choice["text"].as_str().unwrap();
        }
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "the stream broke off after {} tokens", ids.len());
    }
}

#[test]
fn two_hundred_open_streams_miss_and_mix_no_token() {
    let model = golden_folder("heads5");
    let server = Server::start(&["--model", model.to_str().unwrap(), "--nproc", "2", "--max-seqs", "200"]);
    let alone: Vec<Value> =
        (0..STREAMS).map(|i| server.ask("/v1/completions", &request(i))["choices"][0].clone()).collect();
    assert!(alone.iter().all(|choice| choice["token_ids"].as_array().unwrap().len() == TOKENS));

    let server = Arc::new(server);
    let all_open = Arc::new(Barrier::new(STREAMS as usize));
    let readers: Vec<_> = (0..STREAMS)
        .map(|i| {
            let (server, all_open) = (server.clone(), all_open.clone());
            thread::spawn(move || {
                let mut body = request(i);
                body["stream"] = true.into();
                let (mut stream, first) = server.open_stream("/v1/completions", &body);
                // Nobody reads on before everybody has begun.
                all_open.wait();
                read_to_end(&mut stream, first)
            })
        })
        .collect();
    for (i, (reader, alone)) in readers.into_iter().zip(&alone).enumerate() {
        let (ids, text) = reader.join().unwrap();
        assert_eq!(json!(ids), alone["token_ids"], "stream {i}");
        assert_eq!(text, alone["text"].as_str().unwrap(), "stream {i}");
    }
}
