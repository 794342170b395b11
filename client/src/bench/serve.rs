//! `nanoinfer bench serve`: what a server's users see, over HTTP, at a given load.
//!
//! Replays a trace: requests arrive as a Poisson process, whether or not earlier ones are answered, with lengths from a log-normal
//! distribution; one seed makes one trace, so that servers are compared on the same work. Any server with OpenAI's
//! `/v1/completions` can be asked. Times are those of the client: the wait for the first token counts from the arrival.
//!
//! Does not know what serves.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::Args;
use hdrhistogram::Histogram;
use nanoinfer_eval::connection::Connection;
use nanoinfer_launch::output;
use serde_json::{Value, json};

use crate::{
    events::Events,
    failure::Failure,
    random::Random,
    target::{Target, TargetOptions},
};

/// Ids that prompts are made of: so few that every model knows them, and no special ones among the first.
const PROMPT_IDS: usize = 200;
/// Lengths lie within this factor of their median.
const LONGEST: f64 = 4.0;
/// Most tokens of each kind in a median request: no model takes more.
const MOST_TOKENS: i64 = 1 << 20;
/// Microseconds that can be recorded: an hour.
const MAX_US: u64 = 3_600_000_000;

#[derive(Debug, Args)]
pub(crate) struct ServeBenchOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// Name to call the model by [default: the first of /v1/models].
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Requests in the trace; each has a thread here while it is answered.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    requests: u32,
    /// Arrivals a second, on average.
    #[arg(long, value_name = "R", default_value_t = 4.0)]
    rate: f64,
    /// Median length of a prompt [default: 128, less where the model has few positions].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_TOKENS))]
    prompt_tokens: Option<u32>,
    /// Tokens that all prompts begin with, before those of their own.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=MOST_TOKENS))]
    prefix_tokens: u32,
    /// Median length of an answer [default: 64, less where the model has few positions].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=MOST_TOKENS))]
    tokens: Option<u32>,
    /// Spread of both lengths, as the standard deviation of their logarithm; 0 makes all alike.
    #[arg(long, value_name = "SIGMA", default_value_t = 0.5)]
    spread: f64,
    /// The same seed replays the same trace.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
}

/// One request of the trace.
#[derive(Debug, PartialEq)]
struct Arrival {
    /// After the start.
    at: Duration,
    prompt: Vec<u32>,
    tokens: u32,
}

/// What became of a request.
#[derive(Debug)]
struct Answer {
    first: Duration,
    gaps: Vec<Duration>,
    whole: Duration,
    tokens: u64,
}

pub(crate) fn run(options: ServeBenchOptions) -> Result<(), Failure> {
    if !(options.rate > 0.0 && options.rate.is_finite() && options.spread >= 0.0 && options.spread.is_finite()) {
        return Err(Failure::usage(anyhow!("--rate is more than 0 and --spread not less than 0")));
    }
    Target::open(&options.target)?.ask(|connection| measure(&options, connection))
}

fn measure(options: &ServeBenchOptions, connection: &Connection) -> anyhow::Result<()> {
    let models = connection.get("/v1/models")?;
    let first = models.pointer("/data/0/id").and_then(Value::as_str);
    let model = options.served_model_name.as_deref().or(first);
    let model = model.context("the server names no model\n  hint: --served-model-name NAME")?;
    let listed = models["data"].as_array().and_then(|models| models.iter().find(|listed| listed["id"] == *model));
    let lengths = Lengths::new(options, listed.and_then(|listed| listed["max_model_len"].as_u64()));
    let trace = trace(options, lengths);
    let asked_tokens: u64 = trace.iter().map(|arrival| u64::from(arrival.tokens)).sum();
    let (answers, answered) = mpsc::channel();
    let begun = Instant::now();
    thread::scope(|scope| {
        for arrival in trace {
            thread::sleep(arrival.at.saturating_sub(begun.elapsed()));
            let answers = answers.clone();
            // Whoever counts lives as long as this thread.
            scope.spawn(move || drop(answers.send(ask(connection, model, &arrival))));
        }
    });
    let elapsed = begun.elapsed();
    drop(answers);
    let answers: Vec<_> = answered.iter().collect();
    report(options, lengths, model, &answers, asked_tokens, elapsed)
}

/// Median lengths of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lengths {
    prompt_tokens: u32,
    tokens: u32,
}

impl Lengths {
    /// What was asked for; what was not is such that the longest prompt and answer together fit `positions`.
    fn new(options: &ServeBenchOptions, positions: Option<u64>) -> Self {
        let at_most = |share: f64, most: u32| positions.map_or(most, |n| most.min((n as f64 * share / LONGEST) as u32));
        Self {
            prompt_tokens: options.prompt_tokens.unwrap_or_else(|| at_most(2.0 / 3.0, 128).max(1)),
            tokens: options.tokens.unwrap_or_else(|| at_most(1.0 / 3.0, 64).max(2)),
        }
    }
}

/// The requests in order of arrival.
fn trace(options: &ServeBenchOptions, lengths: Lengths) -> Vec<Arrival> {
    let mut random = Random::new(options.seed);
    let mut at = 0.0;
    // From a seed of its own, so that the rest of the trace does not depend on it.
    let prefix = Random::new(!options.seed).ids(options.prefix_tokens as usize, PROMPT_IDS);
    let requests = 0..options.requests;
    requests
        .map(|_| {
            // The time between two arrivals of a Poisson process is exponential.
            at += -(1.0 - random.unit()).ln() / options.rate;
            let prompt_tokens = length(&mut random, lengths.prompt_tokens, options.spread);
            let tokens = length(&mut random, lengths.tokens, options.spread);
            let prompt = [prefix.clone(), random.ids(prompt_tokens as usize, PROMPT_IDS)].concat();
            // A rate may be so low that no clock has its time.
            Arrival { at: Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX), prompt, tokens }
        })
        .collect()
}

/// Log-normal around a median, by Box and Muller's method.
fn length(random: &mut Random, median: u32, spread: f64) -> u32 {
    let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * random.unit()).cos();
    let factor = (spread * normal).exp().clamp(LONGEST.recip(), LONGEST);
    ((f64::from(median) * factor).round() as u32).max(2)
}

fn ask(connection: &Connection, model: &str, arrival: &Arrival) -> anyhow::Result<Answer> {
    let arrived = Instant::now();
    let body = json!({
        "model": model, "prompt": arrival.prompt, "max_tokens": arrival.tokens, "temperature": 0, "ignore_eos": true,
        "stream": true, "stream_options": { "include_usage": true },
    });
    let (is_stream, answer) = connection.post("/v1/completions", &body)?;
    if !is_stream {
        return Err(anyhow!("the server does not stream"));
    }
    let (mut times, mut counted) = (Vec::new(), None);
    for event in Events::new(answer) {
        let event = event?;
        let has_text = event.pointer("/choices/0/text").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        if has_text {
            times.push(Instant::now());
        }
        counted = event.pointer("/usage/completion_tokens").and_then(Value::as_u64).or(counted);
    }
    let (Some(first), Some(last)) = (times.first(), times.last()) else { return Err(anyhow!("the answer is empty")) };
    Ok(Answer {
        first: *first - arrived,
        whole: *last - arrived,
        gaps: times.windows(2).map(|pair| pair[1] - pair[0]).collect(),
        tokens: counted.unwrap_or(times.len() as u64),
    })
}

fn report(
    options: &ServeBenchOptions,
    lengths: Lengths,
    model: &str,
    answers: &[anyhow::Result<Answer>],
    asked_tokens: u64,
    elapsed: Duration,
) -> anyhow::Result<()> {
    let good: Vec<&Answer> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
    let failed = answers.iter().filter_map(|answer| answer.as_ref().err());
    let seconds = elapsed.as_secs_f64();
    let tokens: u64 = good.iter().map(|answer| answer.tokens).sum();
    let rows = [
        ("time to first token", "ttft_ms", percentiles(good.iter().map(|answer| answer.first))),
        ("between tokens", "inter_token_ms", percentiles(good.iter().flat_map(|answer| answer.gaps.iter().copied()))),
        ("whole answer", "answer_ms", percentiles(good.iter().map(|answer| answer.whole))),
    ];
    let mut text =
        format!("{model}: {} requests at {} a second, {} answered\n", options.requests, options.rate, good.len());
    text += &format!("{:<22}{:>10}{:>10}{:>10}\n", "ms", "p50", "p90", "p99");
    for (name, _, [p50, p90, p99]) in &rows {
        text += &format!("{name:<22}{p50:>10.1}{p90:>10.1}{p99:>10.1}\n");
    }
    text += &format!(
        "{:.1} tokens/s and {:.2} answers/s over {seconds:.1} s\n",
        tokens as f64 / seconds,
        good.len() as f64 / seconds
    );
    let mut line = json!({
        "bench": "serve", "model": model, "requests": options.requests, "rate": options.rate, "answered": good.len(),
        "prompt_tokens": lengths.prompt_tokens, "prefix_tokens": options.prefix_tokens, "tokens": lengths.tokens, "spread": options.spread, "seed": options.seed,
        "asked_tokens": asked_tokens, "answered_tokens": tokens, "seconds": seconds, "tokens_per_s": tokens as f64 / seconds,
    });
    for (_, key, [p50, p90, p99]) in rows {
        line[key] = json!({ "p50": p50, "p90": p90, "p99": p99 });
    }
    output::write(format_args!("{text}{line}\n"))?;
    match failed.clone().next() {
        None => Ok(()),
        Some(first) => Err(anyhow!("{} of {} requests failed, the first: {first:#}", failed.count(), answers.len())),
    }
}

/// p50, p90 and p99 in milliseconds.
fn percentiles(times: impl Iterator<Item = Duration>) -> [f64; 3] {
    let mut histogram = Histogram::<u64>::new_with_max(MAX_US, 3).expect("three digits of an hour fit");
    for time in times {
        histogram.saturating_record(time.as_micros() as u64);
    }
    [0.5, 0.9, 0.99].map(|quantile| histogram.value_at_quantile(quantile) as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        options: ServeBenchOptions,
    }

    fn options(args: &[&str]) -> ServeBenchOptions {
        Typed::try_parse_from(["x"].iter().chain(args)).map(|typed| typed.options).unwrap()
    }

    #[test]
    fn a_seed_makes_one_trace_with_the_rate_and_lengths_asked_for() {
        let asked = options(&["--requests", "1000", "--rate", "20"]);
        let lengths = Lengths::new(&asked, Some(1024));
        let made = trace(&asked, lengths);
        assert_eq!(made, trace(&asked, lengths));
        assert_ne!(made, trace(&options(&["--requests", "1000", "--rate", "20", "--seed", "2"]), lengths));
        assert!(made.windows(2).all(|pair| pair[0].at <= pair[1].at));
        // 1000 arrivals at 20 a second: 50 s, with a standard deviation of 1.6 s.
        let seconds = made[999].at.as_secs_f64();
        assert!((45.0..55.0).contains(&seconds), "{seconds}");
        let mut lengths: Vec<_> = made.iter().map(|arrival| arrival.prompt.len()).collect();
        lengths.sort_unstable();
        assert!((118..139).contains(&lengths[500]), "{}", lengths[500]);
        assert!(lengths[0] >= 32 && lengths[999] <= 512 && lengths[100] < 90 && lengths[900] > 180);
        assert!(made.iter().flat_map(|arrival| &arrival.prompt).all(|&id| (id as usize) < PROMPT_IDS));
    }

    #[test]
    fn what_no_clock_has_time_for_comes_at_its_end() {
        let options = options(&["--rate", "1e-300"]);
        let made = trace(&options, Lengths::new(&options, None));
        assert_eq!(made[63].at, Duration::MAX);
    }

    #[test]
    fn without_spread_all_are_alike() {
        let options = options(&["--spread", "0", "--prompt-tokens", "7", "--tokens", "3"]);
        let made = trace(&options, Lengths::new(&options, None));
        assert!(made.iter().all(|arrival| arrival.prompt.len() == 7 && arrival.tokens == 3));
    }

    #[test]
    fn a_prefix_is_the_same_in_all_prompts_and_changes_nothing_else() {
        let lengths = Lengths { prompt_tokens: 20, tokens: 9 };
        let (plain, longer) = (trace(&options(&[]), lengths), trace(&options(&["--prefix-tokens", "33"]), lengths));
        let prefix = &longer[0].prompt[..33];
        for (plain, longer) in plain.iter().zip(&longer) {
            assert!(longer.prompt == [prefix, &plain.prompt].concat());
            assert_eq!((plain.at, plain.tokens), (longer.at, longer.tokens));
        }
    }

    #[test]
    fn the_longest_request_fits_a_model_with_few_positions() {
        let asked = options(&["--requests", "1000", "--spread", "3"]);
        for positions in [64, 256, 1024] {
            let made = trace(&asked, Lengths::new(&asked, Some(positions)));
            let longest = made.iter().map(|arrival| arrival.prompt.len() as u64 + u64::from(arrival.tokens)).max();
            assert!(longest.is_some_and(|longest| longest <= positions && longest > positions / 2), "{longest:?}");
        }
    }

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let [p50, p90, p99] = percentiles((1..=100).map(Duration::from_millis));
        assert!((p50 - 50.0).abs() < 0.1 && (p90 - 90.0).abs() < 0.1 && (p99 - 99.0).abs() < 0.1);
    }
}
