//! `nanoinfer bench`: how fast a model runs on this machine, beside what the machine can do at most; [`serve`] times any server.
//!
//! Drives the engine by its handle, without HTTP: greedy requests with random prompts of one length, all alike. A decode step is
//! the time between two tokens of one sequence while all are decoding, and no prompt is computed beside them. Every figure is a median of several runs; figures of
//! different runs of this program do not compare, ratios within one do.

mod serve;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use nanoinfer_launch::{ClusterConfig, output, plan::Plan, roofline::Limits};
use serde_json::{Value, json};

use self::serve::ServeBenchOptions;
use crate::{
    failure::Failure,
    model_options::ModelOptions,
    running::{self, Length, Running},
};

#[derive(Debug, Subcommand)]
pub(crate) enum BenchVerb {
    /// Time of a step that adds one token to each sequence, without HTTP.
    Decode(EngineBenchOptions),
    /// Time to the first token of all sequences, without HTTP.
    Prefill(EngineBenchOptions),
    /// Latencies of a server under a load of requests.
    Serve(ServeBenchOptions),
}

#[derive(Debug, Args)]
pub(crate) struct EngineBenchOptions {
    #[command(flatten)]
    model: ModelOptions,
    /// Sequences at a time; several numbers, separated by commas.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 8, 32], value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: Vec<u32>,
    /// Tokens of each prompt.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens that each sequence generates (decode): two at least, to measure the time between.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Runs of each batch, after one to warm up.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Decode,
    Prefill,
}

impl What {
    /// What a second has of what it takes at least: bytes read, or operations.
    fn rate(self, limits: &Limits) -> f64 {
        match self {
            Self::Decode => limits.read_bytes_per_s,
            Self::Prefill => limits.f32_ops_per_s,
        }
    }
}

/// One line of the table.
struct Row {
    batch: u32,
    /// Of a step (decode), or of all prompts (prefill); sorted.
    seconds: Vec<f64>,
    /// That come of it.
    tokens: f64,
    /// What it takes at least: bytes read (decode), or operations (prefill).
    least: f64,
}

impl Row {
    fn tokens_per_s(&self) -> f64 {
        self.tokens / self.seconds[self.seconds.len() / 2]
    }

    /// Reached of what a rate allows, 0 to 1.
    fn of_limit(&self, rate: f64) -> f64 {
        self.least / rate / self.seconds[self.seconds.len() / 2]
    }
}

pub(crate) fn run(verb: BenchVerb) -> Result<(), Failure> {
    match verb {
        BenchVerb::Decode(options) => engine(What::Decode, &options),
        BenchVerb::Prefill(options) => engine(What::Prefill, &options),
        BenchVerb::Serve(options) => serve::run(options),
    }
}

fn engine(what: What, options: &EngineBenchOptions) -> Result<(), Failure> {
    let config = for_batches(options.model.config()?, &options.batch);
    let plan = running::plan(&config)?;
    let shape = plan.model.shape.clone();
    let length = Length { prompt: options.prompt_tokens as usize, generated: options.tokens as usize };
    let (whole, n_positions) = (length.prompt + length.generated, shape.context);
    if whole > n_positions {
        return Err(Failure::usage(anyhow!(
            "{whole} tokens a sequence do not fit the model's {n_positions} positions\n  hint: --prompt-tokens N --tokens M take fewer"
        )));
    }
    let ranks = plan.partition.world();
    let threads = plan.load.on_host.threads;
    // The limits are the processor's.
    let on_gpus = plan.on_gpus();
    let measure = || (!on_gpus).then(|| Limits::measure(ranks * threads));
    let limits = measure();
    let running = Running::carry_out(plan)?;
    let step_bytes = running.step_bytes();
    // Two operations for each weight that a token meets; the head is met by the last token of a prompt only.
    let head = shape.vocab_size * shape.width;
    let body = shape.multiplied_in_blocks();
    let mut rows = Vec::new();
    for &batch in &options.batch {
        let mut seconds = Vec::new();
        for run in 0..=options.runs {
            let measured = match what {
                What::Decode => running.decode(batch, length)?,
                What::Prefill => vec![running.prefill_s(batch, length.prompt)?],
            };
            if run > 0 {
                seconds.extend(measured);
            }
        }
        seconds.sort_by(f64::total_cmp);
        let (tokens, least) = match what {
            What::Decode => (f64::from(batch), step_bytes as f64),
            What::Prefill => {
                let tokens = f64::from(batch) * length.prompt as f64;
                (tokens, 2.0 * (body as f64 * tokens + head as f64 * f64::from(batch)))
            }
        };
        rows.push(Row { batch, seconds, tokens, least });
    }
    let plan = running.shut_down();
    // Once more, as a busy machine may have been slower before.
    let limits = limits.zip(measure()).map(|(before, after)| before.best_of(after));
    output::write(report(what, options, &plan, limits.as_ref(), step_bytes, &rows))?;
    Ok(())
}

/// `config` with room for a step of every sequence of the largest batch.
fn for_batches(config: ClusterConfig, batches: &[u32]) -> ClusterConfig {
    let most = batches.iter().copied().max().unwrap_or(1) as usize;
    let max_seqs = config.max_seqs.max(most);
    ClusterConfig { max_seqs, max_batched_tokens: config.max_batched_tokens.max(max_seqs), ..config }
}

/// A table, then one line of JSON.
fn report(
    what: What,
    options: &EngineBenchOptions,
    plan: &Plan,
    limits: Option<&Limits>,
    step_bytes: u64,
    rows: &[Row],
) -> String {
    let percentile = |row: &Row, p: usize| row.seconds[(row.seconds.len() - 1) * p / 100] * 1e3;
    let reached = |row: &Row| limits.map(|limits| row.of_limit(what.rate(limits)));
    let ranks = plan.partition.world();
    let with = limits.map_or("on GPUs".into(), |limits| {
        format!(
            "{} threads a rank; this machine reads {:.1} GB/s and does {:.0} GFLOP/s (f32) with them",
            plan.load.on_host.threads,
            limits.read_bytes_per_s / 1e9,
            limits.f32_ops_per_s / 1e9
        )
    });
    let mut text = format!("{} {}, nproc {ranks}, {with}\n", plan.model.name, plan.load.dtype);
    let (name, column, limit) = match what {
        What::Decode => ("decode", "step", "of reading all weights"),
        What::Prefill => ("prefill", "prompts", "of f32 arithmetic"),
    };
    let (column, spread) = (format!("{column} (ms)"), "10 % … 90 % (ms)");
    text += &format!("{:>6}  {column:>12}  {spread:>19}  {:>10}  {limit}\n", "batch", "tokens/s");
    for row in rows {
        let spread = format!("{:.2} … {:.2}", percentile(row, 10), percentile(row, 90));
        let (median, tokens_per_s) = (percentile(row, 50), row.tokens_per_s());
        let reached = reached(row).map_or("-".into(), |share| format!("{:.0} %", share * 100.0));
        text += &format!("{:>6}  {median:>12.2}  {spread:>19}  {tokens_per_s:>10.1}  {reached}\n", row.batch);
    }
    if let Some(note) = limits.and_then(|limits| beyond_memory(what, rows, limits)) {
        text += &format!("{note}\n");
    }
    let line = |row: &Row| -> Value {
        json!({ "batch": row.batch, "ms": percentile(row, 50), "ms_p10": percentile(row, 10), "ms_p90": percentile(row, 90),
                "tokens_per_s": row.tokens_per_s(), "of_limit": reached(row) })
    };
    let all = json!({
        "bench": name, "model": plan.model.name, "dtype": plan.load.dtype.to_string(), "nproc": ranks,
        "threads": plan.load.on_host.threads, "prompt_tokens": options.prompt_tokens, "tokens": options.tokens, "runs": options.runs,
        "read_gb_per_s": limits.map(|limits| limits.read_bytes_per_s / 1e9),
        "f32_gflop_per_s": limits.map(|limits| limits.f32_ops_per_s / 1e9),
        "step_bytes": step_bytes, "rows": rows.iter().map(line).collect::<Vec<_>>(),
    });
    text + &format!("{all}\n")
}

/// What to say where weights were read faster than memory gives them.
fn beyond_memory(what: What, rows: &[Row], limits: &Limits) -> Option<String> {
    let faster = |row: &&Row| what == What::Decode && row.of_limit(what.rate(limits)) >= 1.005;
    Some(format!(
        "More than 100 %: the rate is that of memory, and these {:.1} MB of weights lie in caches, at least in part.",
        rows.iter().find(faster)?.least / 1e6
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_taken_whatever_the_queue_and_the_budget_of_a_step() {
        let narrow = ClusterConfig { max_queue: 1, max_queue_tokens: 10, ..ClusterConfig::default() };
        let config = for_batches(narrow, &[1, 600]);
        let running = Running::start(&config, |_| {}).unwrap();
        let steps = running.decode(3, Length { prompt: 20, generated: 4 }).unwrap();
        assert!(!steps.is_empty() && steps.iter().all(|&seconds| seconds > 0.0));
        assert!(running.prefill_s(3, 20).unwrap() > 0.0);
        running.shut_down();
    }

    #[test]
    fn weights_in_a_cache_are_told_of_where_they_show() {
        let limits = Limits { read_bytes_per_s: 1e9, f32_ops_per_s: 1e9 };
        let note = |seconds, what| {
            let row = Row { batch: 1, seconds: vec![seconds], tokens: 1.0, least: 5e6 };
            beyond_memory(what, &[row], &limits)
        };
        assert!(note(0.004, What::Decode).unwrap().contains("5.0 MB of weights"));
        // As the table shows it, 100 %.
        assert_eq!(note(0.00499, What::Decode), None);
        assert_eq!(note(0.01, What::Decode), None);
        assert_eq!(note(0.004, What::Prefill), None);
    }
}
