//! The scheduler under load: a crowd, a pool far too small, clients that go; and the same bits whatever the schedule was.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::server::{Server, golden_folder, wait_until};

const CLIENTS: usize = 200;
/// Requests that each client makes, one after the other.
const REQUESTS: usize = 3;
/// With the bytes of an element of the KV cache that goes with each.
const DTYPES: [(&str, usize); 3] = [("f32", 4), ("bf16", 2), ("int8", 2)];

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The value of a metric without labels.
fn metric(server: &Server, name: &str) -> f64 {
    let (_, text) = server.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("nanoinfer_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

fn wait_until_idle(server: &Server) {
    wait_until("nothing runs or waits", || {
        metric(server, "num_requests_running") + metric(server, "num_requests_waiting") == 0.0
    });
    assert_eq!(metric(server, "kv_cache_usage_perc"), 0.0, "every block came back");
    assert_eq!(metric(server, "scheduler_invariants_hold"), 1.0, "{}", server.log());
}

/// One of forty requests of mixed lengths, many of which begin alike. heads7 has 64 positions and 389 tokens.
fn a_body(number: u64) -> Value {
    let dice = &mut Dice(number);
    let (text, length) = (dice.below(4), 1 + dice.below(45));
    let shared = dice.below(length + 1);
    let token = |i: u64| (i * 31 + text * 97 + if i < shared { 0 } else { number }) % 380;
    let prompt: Vec<u64> = (0..length).map(token).collect();
    json!({
        "prompt": prompt, "max_tokens": 1 + dice.below(64 - length), "temperature": dice.below(2), "top_p": 0.9, "seed": number,
        "ignore_eos": true, "return_token_ids": true,
    })
}

/// What a client came back with.
enum Outcome {
    /// Its token ids.
    Finished(Vec<Value>),
    Late,
    HungUp,
}

/// Sends a request and reads its answer, until `hangs_up` has passed without a word.
fn ask(server: &Server, body: &Value, hangs_up: Option<Duration>, gaps: &Mutex<Vec<Duration>>) -> Outcome {
    let mut socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    socket.set_read_timeout(Some(hangs_up.unwrap_or(Duration::from_secs(60)))).unwrap();
    let text = body.to_string();
    // HTTP/1.0, so that the body comes as it is and ends with the connection.
    write!(socket, "POST /v1/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{text}", text.len()).unwrap();
    let mut reader = BufReader::new(socket);
    let (mut head, mut rest, mut ids, mut last) = (String::new(), String::new(), Vec::new(), None);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) if hangs_up.is_some() => return Outcome::HungUp,
            Err(error) => panic!("a request is stuck: {error}: {body}"),
        }
        if head.is_empty() {
            head = line;
        } else if let Some(chunk) = line.strip_prefix("data: {") {
            let chunk: Value = serde_json::from_str(&format!("{{{chunk}")).unwrap();
            if chunk["error"]["code"] == "timeout" {
                return Outcome::Late;
            }
            ids.extend(chunk["choices"][0]["token_ids"].as_array().cloned().unwrap_or_default());
            let now = Instant::now();
            gaps.lock().unwrap().extend(last.replace(now).map(|last| now - last));
        } else {
            rest = line;
        }
    }
    if head.contains(" 504 ") {
        return Outcome::Late;
    }
    assert!(head.contains(" 200 "), "{head}{rest}");
    if body["stream"] == true {
        assert_eq!(rest.trim(), "", "the stream ended: {rest}");
    } else {
        let answer: Value = serde_json::from_str(&rest).unwrap();
        ids = answer["choices"][0]["token_ids"].as_array().unwrap().clone();
    }
    Outcome::Finished(ids)
}

#[test]
fn two_hundred_clients_in_a_pool_for_two_get_what_each_gets_alone() {
    let folder = golden_folder("heads7");
    // Five blocks of 16 tokens on rank 0, which has four heads of 12 in three layers: one text may need four.
    let server = Server::start(&[
        "--model",
        folder.to_str().unwrap(),
        "--nproc",
        "2",
        "--kv-memory",
        "108KiB",
        "--max-batched-tokens",
        "48",
        "--max-queue",
        "1000",
    ]);
    let gaps = Mutex::new(Vec::new());
    let bodies: Vec<Value> = (0..40).map(a_body).collect();
    let solo: Vec<Vec<Value>> = bodies
        .iter()
        .map(|body| match ask(&server, body, None, &gaps) {
            Outcome::Finished(ids) => ids,
            _ => panic!("nothing is in its way"),
        })
        .collect();
    let counts = Mutex::new(HashMap::<&str, usize>::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS as u64 {
            let (server, bodies, solo, gaps, counts) = (&server, &bodies, &solo, &gaps, &counts);
            scope.spawn(move || {
                let dice = &mut Dice(client + 1000);
                for _ in 0..REQUESTS {
                    let number = dice.below(40) as usize;
                    let mut body = bodies[number].clone();
                    body["stream"] = (dice.below(2) == 0).into();
                    let fate = dice.below(4);
                    if fate == 0 {
                        body["timeout_s"] = (0.001 * (1 + dice.below(2000)) as f64).into();
                    }
                    let hangs_up = (fate == 1).then(|| Duration::from_millis(1 + dice.below(300)));
                    let what = match ask(server, &body, hangs_up, gaps) {
                        Outcome::Finished(ids) => {
                            assert_eq!(ids, solo[number], "{body}");
                            "finished"
                        }
                        Outcome::Late => "late",
                        Outcome::HungUp => "hung up",
                    };
                    *counts.lock().unwrap().entry(what).or_default() += 1;
                }
            });
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    wait_until_idle(&server);
    let counts = counts.into_inner().unwrap();
    let (preemptions, hits) = (metric(&server, "num_preemptions_total"), metric(&server, "prefix_cache_hits_total"));
    let mut gaps = gaps.into_inner().unwrap();
    gaps.sort_unstable();
    let at = |percent: usize| gaps[(gaps.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{CLIENTS} clients, {counts:?} in {seconds:.1} s; {preemptions} preemptions, {hits} tokens from the prefix cache; \
         between tokens p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms",
        at(50),
        at(90),
        at(99)
    );
    assert!(counts["finished"] >= CLIENTS && preemptions > 0.0 && hits > 0.0, "{counts:?}");
    for fate in ["late", "hung up"] {
        assert!(counts.contains_key(fate), "nobody was {fate}: {counts:?}");
    }
}

#[test]
fn who_hangs_up_is_cancelled_streamed_or_not() {
    // A hundred texts of some 250 tokens, one after the other.
    let server = Server::start(&["--max-seqs", "1"]);
    let mut body = json!({ "prompt": "Once", "max_tokens": 240, "n": 100, "ignore_eos": true });
    for stream in [false, true] {
        body["stream"] = stream.into();
        let mut socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
        let text = body.to_string();
        write!(
            socket,
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
        .unwrap();
        if stream {
            socket.read_exact(&mut [0]).unwrap();
        }
        wait_until("it runs", || metric(&server, "num_requests_running") == 1.0);
        let before = metric(&server, "generation_tokens_total");
        drop(socket);
        wait_until_idle(&server);
        let after = metric(&server, "generation_tokens_total");
        assert!(after - before < 12_000.0, "{} tokens for nobody, stream {stream}", after - before);
    }
}

/// Every kind of answer, on heads5 with its 64 positions.
fn kinds() -> Vec<Value> {
    let ids = |seed: u64, length: u64| (0..length).map(|i| (i * 17 + seed) % 300).collect::<Vec<_>>();
    let body = |prompt: Vec<u64>, extra: Value| {
        let mut body = json!({ "prompt": prompt, "max_tokens": 20, "temperature": 1, "seed": 5, "logprobs": 3,
                               "ignore_eos": true, "return_token_ids": true });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    vec![
        body(ids(0, 40), json!({ "temperature": 0 })),
        body(ids(0, 37), json!({ "n": 3, "top_p": 0.8 })),
        body(ids(0, 44), json!({ "echo": true, "max_tokens": 4 })),
        body(ids(0, 43), json!({ "echo": true, "max_tokens": 4, "logprob_start_len": 35 })),
        // Grow by more than the block that is kept for each.
        body(ids(1, 5), json!({ "n": 3, "max_tokens": 58, "top_k": 9, "repetition_penalty": 1.2 })),
        body(ids(2, 33), json!({ "frequency_penalty": 0.5, "max_tokens": 31 })),
        body([ids(0, 32), ids(7, 9)].concat(), json!({ "min_p": 0.05 })),
    ]
}

#[test]
fn no_bit_depends_on_batch_chunks_cache_or_preemption() {
    let folder = golden_folder("heads5");
    let choices = |server: &Server, body: &Value| server.ask("/v1/completions", body)["choices"].clone();
    for (dtype, kv_bytes) in DTYPES {
        for nproc in ["1", "2", "3", "4", "5"] {
            let start = |options: &[&str]| {
                let model = ["--model", folder.to_str().unwrap(), "--nproc", nproc, "--dtype", dtype];
                Server::start(&[&model, options].concat())
            };
            let server = start(&["--no-prefix-cache", "--max-seqs", "1"]);
            let alone: Vec<Value> = kinds().iter().map(|body| choices(&server, body)).collect();
            assert_eq!(metric(&server, "prefix_cache_queries_total"), 0.0);
            drop(server);
            // All at once, in pieces, or in a pool of five blocks.
            let heads = 5usize.div_ceil(nproc.parse().unwrap());
            // Two layers; keys of 8 for each head and position, values padded to 16.
            let five_blocks = (5 * 2 * heads * (8 + 16) * 16 * kv_bytes).to_string();
            for options in [&["--max-batched-tokens", "7", "--max-seqs", "7"][..], &["--kv-memory", &five_blocks]] {
                let server = start(options);
                for pass in ["cold", "warm"] {
                    let bodies = kinds();
                    std::thread::scope(|scope| {
                        let asked: Vec<_> = bodies.iter().map(|body| scope.spawn(|| choices(&server, body))).collect();
                        for ((asked, alone), body) in asked.into_iter().zip(&alone).zip(&bodies) {
                            assert_eq!(
                                &asked.join().unwrap(),
                                alone,
                                "{dtype}, nproc {nproc}, {options:?}, {pass}: {body}"
                            );
                        }
                    });
                }
                assert!(metric(&server, "prefix_cache_hits_total") > 0.0, "{options:?}");
                let preempted = metric(&server, "num_preemptions_total") > 0.0;
                // In seven places, choices of one request may have given way to others.
                assert!(preempted || options[0] != "--kv-memory", "{options:?}");
                wait_until_idle(&server);
            }
        }
    }
}
