//! `--trace`: a file that Perfetto opens, in which every rank's steps nest.

use serde_json::{Value, json};

use crate::server::{Server, golden_folder};

/// A complete span.
struct Span<'a> {
    name: &'a str,
    category: &'a str,
    /// Nanoseconds, as fractions of microseconds are not exact.
    begun: i64,
    ended: i64,
    args: &'a Value,
}

fn spans(events: &[Value], rank: usize) -> Vec<Span<'_>> {
    let of_rank = events.iter().filter(|event| event["ph"] == "X" && event["pid"] == rank);
    let span = |event: &'_ Value| -> (i64, i64) {
        let ns = |key: &str| (event[key].as_f64().unwrap() * 1000.0).round() as i64;
        (ns("ts"), ns("ts") + ns("dur"))
    };
    of_rank
        .map(|event| {
            let (begun, ended) = span(event);
            let text = |key: &str| event[key].as_str().unwrap();
            Span { name: text("name"), category: text("cat"), begun, ended, args: &event["args"] }
        })
        .collect()
}

#[test]
fn a_trace_shows_every_ranks_steps_layer_by_layer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let model = golden_folder("heads5");
    let layers = serde_json::from_slice::<Value>(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    let layers = layers["n_layer"].as_u64().unwrap() as usize;
    let (model, file) = (model.to_str().unwrap(), path.to_str().unwrap());
    let mut server = Server::start(&["--model", model, "--nproc", "2", "--trace", file]);
    server.ask("/v1/completions", &json!({ "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": true }));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());

    let events: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for rank in 0..2 {
        let spans = spans(&events, rank);
        let named = |name: &'static str| spans.iter().filter(move |span| span.name == name);
        // The prompt's step brings the first of four tokens.
        assert_eq!(named("step").count(), 4);
        for step in named("step") {
            let within = |outer: &Span<'_>| -> Vec<&Span<'_>> {
                spans
                    .iter()
                    .filter(|s| s.args["step"] == step.args["step"] && outer.begun <= s.begun && s.ended <= outer.ended)
                    .collect()
            };
            let all = spans.iter().filter(|span| span.args["step"] == step.args["step"]).count();
            assert_eq!(within(step).len(), all, "whatever a step does lies within it");
            let in_layers: Vec<_> = within(step).into_iter().filter(|span| span.name == "layer").collect();
            assert_eq!(in_layers.len(), layers);
            for (i, layer) in in_layers.into_iter().enumerate() {
                assert_eq!(layer.args["layer"], i);
                let parts = within(layer);
                assert!(parts.iter().all(|part| part.args["layer"] == i));
                let count = |category: &str| parts.iter().filter(|part| part.category == category).count();
                assert_eq!((count("product"), count("attention"), count("reduction")), (4, 1, 2));
                // Waiting is part of a reduction.
                for waiting in parts.iter().filter(|part| part.category == "waiting") {
                    let holds = |r: &&&Span<'_>| {
                        r.category == "reduction" && r.begun <= waiting.begun && waiting.ended <= r.ended
                    };
                    assert_eq!(parts.iter().filter(holds).count(), 1);
                }
            }
            assert_eq!(within(step).iter().filter(|span| span.name == "LM head").count(), 1);
        }
    }
    let names: Vec<_> = events.iter().filter(|event| event["ph"] == "M").map(|event| &event["args"]["name"]).collect();
    assert!(names.contains(&&json!("rank 0")) && names.contains(&&json!("rank 1")), "{names:?}");
}
