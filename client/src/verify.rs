//! `nanoinfer eval verify`: the same text on any number of ranks and by the readable reference, side by side.
//!
//! Scores a text window by window, and continues its beginning greedily. Reports for each number of ranks the perplexity,
//! the largest difference of a log-probability from the reference's, and the first greedy token that differs, with the
//! margin by which the reference chose its own: a margin near 0 is a tie that either may win.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_eval::{documents, server::Server, windows};
use nanoinfer_launch::{output, utf8};
use nanoinfer_reference::Reference;
use serde_json::json;

use crate::{failure::Failure, model_options::ModelOptions, target::Target};

/// Documents that are scored where no text is given.
const DOCUMENTS: &str = include_str!("../../eval/demo/corpus.jsonl");
/// Most tokens of the text that are scored; the reference has no cache and no threads of its own.
const MAX_TOKENS: usize = 2048;
/// Tokens that the greedy continuation follows.
const GREEDY_PROMPT: usize = 16;
/// Largest difference of a log-probability in f32 before this counts as wrong, for logits up to 1 in size; it grows with
/// them.
const TOLERANCE: f64 = 1e-4;

#[derive(Debug, Args)]
pub(crate) struct VerifyOptions {
    #[command(flatten)]
    model: ModelOptions,
    /// Numbers of ranks to compare.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 2])]
    ranks: Vec<u32>,
    /// A text file to score [default: a built-in one].
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens to generate greedily.
    #[arg(long, value_name = "N", default_value_t = 24)]
    tokens: u32,
}

/// What one way of computing made of the text.
#[derive(Debug)]
struct Reading {
    name: String,
    /// Of every scored token.
    logprobs: Vec<f64>,
    greedy: Vec<u32>,
}

impl Reading {
    fn ppl(&self) -> f64 {
        (-self.logprobs.iter().sum::<f64>() / self.logprobs.len() as f64).exp()
    }
}

/// The reference's reading, with what is needed to judge the others.
struct Truth {
    reading: Reading,
    /// By how much, in logits, each greedy token won.
    margins: Vec<f64>,
    largest_logit: f64,
}

pub(crate) fn run(options: &VerifyOptions) -> Result<(), Failure> {
    // What the reference computes in: every other type rounds, and nothing would tell its rounding from a fault.
    let model = options.model.or_in_f32();
    let resolved = model.resolve()?;
    let text = match &options.text {
        Some(path) => {
            utf8::read_file(path).with_context(|| format!("cannot read {}", path.display())).map_err(Failure::usage)?
        }
        None => documents::joined(&documents::from_json_lines("built-in", DOCUMENTS)?).remove(0).scored,
    };
    let checkpoint = Checkpoint::open(&resolved.weights).context("the checkpoint cannot be read")?;
    let reference =
        Reference::load(&checkpoint, resolved.shape.clone()).context("the reference cannot load this model")?;
    let mut truth = None;
    let mut readings = Vec::new();
    let mut dtype = String::new();
    for &ranks in &options.ranks {
        Target::private(&model.with_nproc(ranks))?.ask(|connection| {
            let server = &Server::connect(connection)?;
            let ids = server.tokenize(&text)?;
            let ids = &ids[..ids.len().min(MAX_TOKENS)];
            anyhow::ensure!(ids.len() > GREEDY_PROMPT, "the text has no more than {GREEDY_PROMPT} tokens");
            let tokens = (options.tokens as usize).min(server.n_positions - GREEDY_PROMPT);
            if truth.is_none() {
                truth = Some(read_by_reference(&reference, ids, server.n_positions, tokens)?);
            }
            dtype = server.about["dtype"].as_str().unwrap_or_default().to_owned();
            readings.push(read_by_server(server, format!("nproc {ranks}"), ids, tokens)?);
            Ok(())
        })?;
    }
    let truth = truth.ok_or_else(|| Failure::usage(anyhow!("there is nothing to compare\n  hint: --ranks 1,2")))?;
    report(&truth, &readings, &dtype)
}

fn read_by_server(server: &Server<'_>, name: String, ids: &[u32], tokens: usize) -> anyhow::Result<Reading> {
    let mut logprobs = Vec::new();
    for window in windows::strided(ids.len(), server.n_positions, server.n_positions) {
        let scores = server.score(&[&ids[window.tokens]], 0, false)?.remove(0);
        logprobs.extend(scores.iter().flatten().map(|score| score.logprob));
    }
    let greedy = server.greedy(&ids[..GREEDY_PROMPT], tokens)?;
    Ok(Reading { name, logprobs, greedy })
}

fn read_by_reference(model: &Reference, ids: &[u32], length: usize, tokens: usize) -> anyhow::Result<Truth> {
    let mut logprobs = Vec::new();
    let mut largest_logit = 0.0_f64;
    for window in windows::strided(ids.len(), length, length) {
        let window = &ids[window.tokens];
        let rows = model.logits(window)?.to_vec2::<f32>()?;
        for (row, &target) in rows.iter().zip(&window[1..]) {
            logprobs.push(f64::from(row[target as usize]) - log_sum_exp(row));
            largest_logit = row.iter().fold(largest_logit, |most, x| most.max(f64::from(x.abs())));
        }
    }
    let mut sequence = ids[..GREEDY_PROMPT].to_vec();
    let mut margins = Vec::new();
    for _ in 0..tokens {
        let rows = model.logits(&sequence)?.to_vec2::<f32>()?;
        let row = rows.last().ok_or_else(|| anyhow!("the reference gave no logits"))?;
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap_or(0);
        let second = row.iter().enumerate().filter(|(i, _)| *i != best).map(|(_, x)| *x).fold(f32::MIN, f32::max);
        margins.push(f64::from(row[best] - second));
        sequence.push(best as u32);
    }
    let greedy = sequence[GREEDY_PROMPT..].to_vec();
    Ok(Truth { reading: Reading { name: "reference".into(), logprobs, greedy }, margins, largest_logit })
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let most = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
    most + row.iter().map(|&x| (f64::from(x) - most).exp()).sum::<f64>().ln()
}

fn report(truth: &Truth, readings: &[Reading], dtype: &str) -> Result<(), Failure> {
    let expected = &truth.reading;
    let tolerance = TOLERANCE * truth.largest_logit.max(1.0);
    let mut text = format!("{} tokens scored, {} generated; {dtype}\n", expected.logprobs.len(), expected.greedy.len());
    text += &format!("{:<12} {:>14}  {:>22}  first differing greedy token\n", "", "ppl", "largest Δ log-prob");
    text += &format!("{:<12} {:>14.6}\n", expected.name, expected.ppl());
    let (mut wrong, mut rows) = (Vec::new(), Vec::new());
    for reading in readings {
        let differences = reading.logprobs.iter().zip(&expected.logprobs).map(|(a, b)| (a - b).abs());
        let largest = differences.fold(0.0, f64::max);
        let first = (0..expected.greedy.len()).find(|&i| reading.greedy.get(i) != Some(&expected.greedy[i]));
        let said = first.map_or("none".into(), |i| format!("{i}, chosen by a margin of {:.1e}", truth.margins[i]));
        text += &format!("{:<12} {:>14.6}  {largest:>22.1e}  {said}\n", reading.name, reading.ppl());
        // A greedy token may differ where the reference itself hardly chose.
        if largest > tolerance || first.is_some_and(|i| truth.margins[i] > 2.0 * tolerance) {
            wrong.push(reading.name.as_str());
        }
        rows.push(json!({
            "name": reading.name, "ppl": reading.ppl(), "largest_difference": largest, "first_difference": first,
            "margin": first.map(|i| truth.margins[i]),
        }));
    }
    if dtype != "f32" {
        text += &format!(
            "{dtype} rounds: that is how much; in f32, the default here, there is a tolerance, and a verdict\n"
        );
    } else if wrong.is_empty() {
        text += &format!("all agree with the reference: no log-probability is off by more than {tolerance:.1e}\n");
    }
    let line = json!({"reference_ppl": expected.ppl(), "dtype": dtype, "tolerance": tolerance, "rows": rows});
    output::write(format_args!("{text}{line}\n"))?;
    match wrong.first() {
        Some(_) if dtype == "f32" => {
            Err(anyhow!("{} differ from the reference by more than {tolerance:.1e}", wrong.join(" and ")).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(logprobs: &[f64], greedy: &[u32]) -> Reading {
        Reading { name: "nproc 1".into(), logprobs: logprobs.to_vec(), greedy: greedy.to_vec() }
    }

    #[test]
    fn a_difference_beyond_the_tolerance_is_an_error() {
        let truth = Truth { reading: reading(&[-1.0, -2.0], &[5, 6]), margins: vec![0.5, 1e-6], largest_logit: 10.0 };
        let judged =
            |logprobs: &[f64], greedy: &[u32], dtype| report(&truth, &[reading(logprobs, greedy)], dtype).is_ok();
        assert!(judged(&[-1.0005, -2.0], &[5, 6], "f32"));
        assert!(!judged(&[-1.01, -2.0], &[5, 6], "f32"));
        assert!(judged(&[-1.01, -2.0], &[5, 6], "bf16"), "it only measures what is not f32");
        assert!(judged(&[-1.0, -2.0], &[5, 7], "f32"), "a tie");
        assert!(!judged(&[-1.0, -2.0], &[4, 6], "f32"));
    }

    #[test]
    fn log_sum_exp_does_not_overflow() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1000.0 - 2.0_f64.ln()).abs() < 1e-9);
    }
}
