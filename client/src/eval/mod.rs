//! `nanoinfer eval`: how good a model is, by the numbers that others publish.
//!
//! ```text
//! --eval_set ─► eval_set ─┬─ documents ─► windows ─► perplexity ─┐
//!                         ├─ pairs ─► generation ─► bleu, rouge ─┼─► report ─► table, JSON, html
//!                         └─ core_set ─► core_prompt ─► core ────┘
//!                            requests go through work (many at a time, resumable) to server (HTTP)
//! ```
//! Reading order: as the picture, left to right. The formulas are in `bleu`, `rouge`, `perplexity` and `core`, and know no
//! server; [`server`] knows no formula.

mod eval_set;
mod documents;
mod core_set;
mod yaml;
mod server;
mod work;
mod windows;
mod perplexity;
mod generation;
mod bleu;
mod rouge;
mod porter;
mod core;
mod core_prompt;
mod python_random;
mod python_text;
mod report;
mod html;
mod published;
mod verify;
mod speed;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Instant, UNIX_EPOCH},
};

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use nanoinfer_launch::{build::BUILD_ID, output, say};
use serde_json::{Value, json};

use self::{
    bleu::BleuOptions,
    core_set::{CoreSet, TaskSpec},
    eval_set::EvalSet,
    generation::Sampling,
    perplexity::{PerplexityMethod, PerplexityMode},
    report::Report,
    server::Server,
    speed::SpeedOptions,
    verify::VerifyOptions,
    work::Work,
};
use crate::{
    Failure,
    target::{Target, TargetOptions},
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EvalOptions {
    #[command(subcommand)]
    verb: Option<EvalVerb>,
    #[command(flatten)]
    measure: MeasureOptions,
}

#[derive(Debug, Subcommand)]
enum EvalVerb {
    /// Turn CORE's bundle folder into one JSON file, or such a file into a folder.
    ConvertBundle {
        /// The folder or file there is.
        from: PathBuf,
        /// What to write; must not be there yet.
        to: PathBuf,
    },
    /// Compare a model on several numbers of ranks with the readable reference.
    Verify(VerifyOptions),
    /// Measure scoring through a server beside the engine's own speed.
    Speed(SpeedOptions),
}

#[derive(Debug, Args)]
struct MeasureOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// What to evaluate: a corpus (.txt, .jsonl), a JSON list of {prompt, reference}, or CORE (bundle folder or JSON file)
    /// [default: built-in questions].
    #[arg(long, alias = "eval_set", value_name = "PATH")]
    eval_set: Option<PathBuf>,
    /// What to compute [default: all that the set allows].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METRIC,…")]
    metrics: Vec<Metric>,
    /// Requests at a time.
    #[arg(long, alias = "batch_size", value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=512))]
    batch_size: u32,
    /// Most tokens of a generated answer.
    #[arg(long, alias = "max_tokens", value_name = "N", default_value_t = 128)]
    max_tokens: u32,
    /// Of generated answers; 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Of generated answers.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Prompts are turns of a chat, or text to continue [default: chat if the model has a template].
    #[arg(long, value_name = "FORM", value_enum)]
    prompt_as: Option<PromptForm>,
    /// Most documents, pairs, or items of each CORE task.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// CORE tasks to run, by label [default: all].
    #[arg(long, value_delimiter = ',', value_name = "LABEL,…")]
    tasks: Vec<String>,
    /// List every item of every CORE task in the report, with its log-probabilities.
    #[arg(long, requires = "output")]
    log_items: bool,
    /// How to lay windows over a text, and what to average.
    #[arg(long, alias = "ppl_mode", value_enum, value_name = "MODE", default_value_t = PerplexityMode::Exact)]
    ppl_mode: PerplexityMode,
    /// Tokens from one window to the next [default: half of the model's context].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    stride: Option<u32>,
    /// Score WikiText as its sources had it; words and bytes still count as published.
    #[arg(long)]
    detokenize_wikitext: bool,
    /// ROUGE without its stemmer.
    #[arg(long)]
    rouge_no_stemmer: bool,
    #[command(flatten)]
    bleu: BleuOptions,
    /// Write a report here, and a page beside it (.html). If interrupted, the same command goes on where it was.
    #[arg(long, value_name = "REPORT.json")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Metric {
    /// Perplexity of the corpus, or of the references.
    Ppl,
    /// BLEU of generated answers.
    Bleu,
    /// ROUGE-1, -2, -L and -Lsum of generated answers.
    Rouge,
    /// Centered accuracy over CORE's tasks.
    Core,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PromptForm {
    Chat,
    Text,
}

pub(crate) fn run(options: EvalOptions) -> Result<(), Failure> {
    match options.verb {
        Some(EvalVerb::ConvertBundle { from, to }) => CoreSet::convert(&from, &to).map_err(Failure::usage),
        Some(EvalVerb::Verify(options)) => verify::run(&options),
        Some(EvalVerb::Speed(options)) => speed::run(&options),
        None => measure(&options.measure),
    }
}

fn measure(options: &MeasureOptions) -> Result<(), Failure> {
    let mut set = EvalSet::read(options.eval_set.as_deref()).map_err(Failure::usage)?;
    set.limit(options.limit.map_or(usize::MAX, |limit| limit as usize));
    let metrics = metrics(&options.metrics, &set).map_err(Failure::usage)?;
    let tasks = match &set {
        EvalSet::Core(core) => chosen(core, &options.tasks).map_err(Failure::usage)?,
        _ => Vec::new(),
    };
    with_server(Target::open(&options.target)?, |server| {
        let begun = Instant::now();
        let report = evaluate(options, server, &set, &metrics, &tasks, begun)?;
        output::write(report.to_table())?;
        if let Some(path) = &options.output {
            say(format_args!("wrote {} and {}", path.display(), path.with_extension("html").display()));
        }
        Ok(())
    })
}

/// Runs `body` with what a target serves.
fn with_server(mut target: Target, body: impl FnOnce(&Server) -> anyhow::Result<()>) -> Result<(), Failure> {
    let done = Server::connect(&target).and_then(|server| body(&server));
    if done.is_err() {
        target.tell_its_end();
    }
    Ok(done?)
}

fn evaluate(
    options: &MeasureOptions,
    server: &Server,
    set: &EvalSet,
    metrics: &[Metric],
    tasks: &[&TaskSpec],
    begun: Instant,
) -> anyhow::Result<Report> {
    let wants = |metric| metrics.contains(&metric);
    let stride = options.stride.map_or(server.n_positions / 2, |stride| stride as usize).clamp(1, server.n_positions);
    let method = PerplexityMethod { mode: options.ppl_mode, stride, length: server.n_positions };
    let has_template = server.about["chat_template"].as_bool().unwrap_or(false);
    let sampling = Sampling {
        as_chat: options.prompt_as.map_or(has_template, |form| form == PromptForm::Chat),
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        seed: options.seed,
    };
    let conditions = conditions(options, server, set, &method, &sampling, tasks);
    let journal = options.output.as_ref().map(|path| path.with_extension("json.partial"));
    let mut work = Work::new(options.batch_size as usize, journal.as_deref(), &conditions)?;

    let mut report = Report {
        conditions,
        perplexity: None,
        comparison: None,
        bleu: wants(Metric::Bleu),
        rouge: wants(Metric::Rouge),
        tasks: None,
        log_items: options.log_items,
        elapsed_s: 0.0,
    };
    if wants(Metric::Ppl) {
        let mut texts = match set {
            EvalSet::Corpus(documents) => documents.clone(),
            EvalSet::Pairs(pairs) => {
                let reference = |(i, pair): (usize, &generation::Pair)| {
                    documents::Document::plain(format!("reference {}", i + 1), pair.reference.as_str())
                };
                pairs.iter().enumerate().map(reference).collect()
            }
            EvalSet::Core(_) => Vec::new(),
        };
        if options.detokenize_wikitext {
            for text in &mut texts {
                text.scored = documents::detokenize_wikitext(&text.original);
            }
        }
        if matches!(set, EvalSet::Corpus(_)) && method.mode != PerplexityMode::Rolling {
            texts = documents::joined(&texts);
        }
        report.perplexity = Some((method, perplexity::measure(server, &mut work, &texts, method)?));
    }
    if let EvalSet::Pairs(pairs) = set
        && (report.bleu || report.rouge)
    {
        let stemmer = !options.rouge_no_stemmer;
        let comparison = generation::measure(server, &mut work, pairs, sampling, &options.bleu, stemmer)?;
        report.comparison = Some((pairs.clone(), comparison));
    }
    if let EvalSet::Core(core) = set {
        let limit = options.limit.map(|limit| limit as usize);
        report.tasks = Some(core::measure(server, &mut work, core, tasks, limit)?);
    }
    report.elapsed_s = begun.elapsed().as_secs_f64();
    if let Some(path) = &options.output {
        report.write(path)?;
    }
    work.finish()?;
    Ok(report)
}

/// What to compute: what was asked for, if the set allows it.
fn metrics(asked: &[Metric], set: &EvalSet) -> anyhow::Result<Vec<Metric>> {
    let (what, possible) = match set {
        EvalSet::Core(_) => ("CORE", &[Metric::Core][..]),
        EvalSet::Pairs(_) => ("a list of prompts and references", &[Metric::Ppl, Metric::Bleu, Metric::Rouge][..]),
        EvalSet::Corpus(_) => ("a corpus", &[Metric::Ppl][..]),
    };
    if let Some(other) = asked.iter().find(|metric| !possible.contains(metric)) {
        let name = |metric: &Metric| metric.to_possible_value().map(|value| value.get_name().to_owned());
        let names: Vec<String> = possible.iter().filter_map(name).collect();
        let other = name(other).unwrap_or_default();
        return Err(anyhow!("{what} gives no {other}\n  hint: --metrics {}", names.join(",")));
    }
    Ok(if asked.is_empty() { possible.to_vec() } else { asked.to_vec() })
}

/// The tasks by their labels, in the set's order.
fn chosen<'a>(core: &'a CoreSet, labels: &[String]) -> anyhow::Result<Vec<&'a TaskSpec>> {
    if let Some(unknown) = labels.iter().find(|label| !core.tasks.iter().any(|task| task.label == **label)) {
        let known: Vec<&str> = core.tasks.iter().map(|task| task.label.as_str()).collect();
        return Err(anyhow!("there is no task {unknown:?}\n  hint: --tasks {}", known.join(",")));
    }
    let wanted = |task: &&TaskSpec| labels.is_empty() || labels.contains(&task.label);
    let tasks: Vec<&TaskSpec> = core.tasks.iter().filter(wanted).collect();
    anyhow::ensure!(!tasks.is_empty(), "there are no tasks");
    Ok(tasks)
}

/// Everything that decides the numbers: for the report, and to know an interrupted evaluation again.
fn conditions(
    options: &MeasureOptions,
    server: &Server,
    set: &EvalSet,
    method: &PerplexityMethod,
    sampling: &Sampling,
    tasks: &[&TaskSpec],
) -> Value {
    let size = match set {
        EvalSet::Core(_) => json!({"tasks": tasks.iter().map(|task| &task.label).collect::<Vec<_>>()}),
        EvalSet::Pairs(pairs) => json!({"pairs": pairs.len()}),
        EvalSet::Corpus(documents) => json!({"documents": documents.len()}),
    };
    json!({
        "model": server.model,
        "revision": options.target.model.revision,
        "server": server.about,
        "nanoinfer": BUILD_ID,
        "eval_set": options.eval_set.as_deref().map_or(eval_set::BUILT_IN_NAME.into(), |path| path.display().to_string()),
        "eval_set_modified": options.eval_set.as_deref().and_then(modified),
        "size": size,
        "limit": options.limit,
        "perplexity": method,
        "detokenize_wikitext": options.detokenize_wikitext,
        "generation": sampling,
        "core_seeds": {"shuffle": core::SHUFFLE_SEED, "examples": core_prompt::FEW_SHOT_SEED},
    })
}

/// Seconds since 1970.
fn modified(path: &Path) -> Option<u64> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
}
