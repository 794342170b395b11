//! What each kind of sampling costs beside greedy: the time of a step, the coordinator's part of it, and the bytes that cross
//! the control links.
//!
//! ```sh
//! cargo run --release --example sampling -- MODEL [SEQUENCES]
//! ```
//! Kinds take turns in one run, so that a noisy machine treats them alike; medians. One rank on all cores.

use std::time::{Duration, Instant};

use nanoinfer_launch::{
    Cluster, ClusterConfig,
    request::{Event, Request, SamplingParams},
    status::Status,
};

const ROUNDS: usize = 3;
const PROMPT_TOKENS: usize = 32;
const TOKENS: usize = 12;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next();
    let sequences = arguments.next().map_or(Ok(32), |typed| typed.parse())?;
    // Equal prompts compute their steps alike only without the cache.
    let config = ClusterConfig { model, max_seqs: sequences, prefix_cache: false, ..ClusterConfig::default() };
    let cluster = Cluster::start(config)?;
    let vocabulary = cluster.text_engine().card().shape.vocab_size as u32;
    let neutral = |change: fn(&mut SamplingParams)| {
        let mut sampling = SamplingParams::neutral(7);
        change(&mut sampling);
        sampling
    };
    let kinds = [
        ("greedy", SamplingParams::greedy(), false),
        ("top-k 40", neutral(|s| s.top_k = 40), false),
        ("top-k 3000", neutral(|s| s.top_k = 3000), false),
        ("top-p 0.9", neutral(|s| s.top_p = 0.9), false),
        ("temperature 1", neutral(|_| ()), false),
        ("temperature 0.1", neutral(|s| s.temperature = 0.1), false),
        ("typical-p 0.9", neutral(|s| s.typical_p = 0.9), false),
        (
            "penalties, top-k 40",
            neutral(|s| (s.repetition_penalty, s.presence_penalty, s.top_k) = (1.1, 0.5, 40)),
            false,
        ),
        (
            "penalties, top-p 0.9",
            neutral(|s| (s.repetition_penalty, s.presence_penalty, s.top_p) = (1.1, 0.5, 0.9)),
            false,
        ),
        ("temperature 1, explain", neutral(|_| ()), true),
        ("typical-p 0.9, explain", neutral(|s| s.typical_p = 0.9), true),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut costs: Vec<Vec<Cost>> = kinds.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        for ((_, sampling, explain), costs) in kinds.iter().zip(&mut costs) {
            let cost = runtime.block_on(measure(&cluster, sampling, *explain, sequences, vocabulary))?;
            // The first round warms up.
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    cluster.shutdown();
    println!("{sequences} sequences, vocabulary of {vocabulary}, medians of {ROUNDS} rounds");
    println!(
        "{:23} {:>9} {:>12} {:>9} {:>12} {:>10}",
        "", "step ms", "drawing ms", "of step", "KB a step", "whole rows"
    );
    for ((name, ..), costs) in kinds.iter().zip(&costs) {
        let median = |of: fn(&Cost) -> f64| {
            let mut values: Vec<f64> = costs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (step, draw) = (median(|c| c.step_ms), median(|c| c.draw_ms));
        let (bytes, rows) = (median(|c| c.kilobytes), median(|c| c.rows));
        println!("{name:23} {step:9.2} {draw:12.3} {:7.1} % {bytes:12.1} {rows:10.1}", draw / step * 100.0);
    }
    Ok(())
}

/// Of one step, on average over one batch.
struct Cost {
    /// From one step's end to the next's.
    step_ms: f64,
    /// The coordinator's part: merging, filters, the draw, whole rows fetched.
    draw_ms: f64,
    kilobytes: f64,
    rows: f64,
}

async fn measure(
    cluster: &Cluster,
    sampling: &SamplingParams,
    explain: bool,
    sequences: usize,
    vocabulary: u32,
) -> Result<Cost, Failure> {
    let request = |choice: u32| {
        let prompt = (0..PROMPT_TOKENS as u32).map(|i| (i * 7919 + choice * 104_729) % vocabulary).collect();
        let sampling = SamplingParams { ignore_eos: true, explain, ..sampling.clone() };
        Request { sampling, choice, ..Request::greedy(prompt, TOKENS) }
    };
    let mut events = cluster.handle().submit_all((0..sequences as u32).map(request).collect())?;
    // The youngest begins last: from its first token on, all decode.
    let last = events.last_mut().ok_or("there is at least one sequence")?;
    let mut begun = None;
    let status = cluster.handle().status();
    let mut tokens = 0;
    while let Some(event) = last.next().await {
        match event {
            Event::Token { .. } if begun.is_none() => begun = Some((Instant::now(), Counted::of(status))),
            Event::Token { .. } => tokens += 1,
            Event::Stuck(reason) | Event::Failed(reason) => return Err(reason.into()),
            _ => {}
        }
    }
    let (since, before) = begun.ok_or("no token came")?;
    let (elapsed, after) = (since.elapsed(), Counted::of(status));
    let a_step = |total: f64| total / f64::from(tokens);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(Cost {
        step_ms: a_step(ms(elapsed)),
        draw_ms: a_step((after.draw_s - before.draw_s) * 1e3),
        kilobytes: a_step((after.bytes - before.bytes) as f64 / 1e3),
        rows: a_step((after.rows - before.rows) as f64),
    })
}

struct Counted {
    draw_s: f64,
    bytes: u64,
    rows: u64,
}

impl Counted {
    fn of(status: &Status) -> Self {
        let metrics = status.metrics();
        Self {
            draw_s: metrics.sampling_seconds.get(),
            bytes: metrics.rank_answer_bytes.get(),
            rows: metrics.rows_fetched.get(),
        }
    }
}
