//! One evaluation: what to measure, from what was typed; the measures one after the other; a report.

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Instant, UNIX_EPOCH},
};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    bleu::BleuOptions,
    core, core_prompt,
    core_set::{CoreSet, TaskSpec},
    documents::{self, Document},
    eval_set::{self, EvalSet},
    generation::{self, Pair},
    html,
    perplexity::{self, PerplexityMethod, PerplexityMode},
    report::Report,
    server::{Sampling, Server},
    work::Work,
};

/// What to evaluate, and how.
#[derive(Debug, Args)]
pub struct MeasureOptions {
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
    #[arg(long, alias = "max_tokens", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Of generated answers; 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true, value_parser = |typed: &str| number_within(0.0..=100.0, typed))]
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

/// A number in the range that servers take, so that a slip shows before a model is loaded.
///
/// # Errors
/// Says the range.
pub fn number_within(range: RangeInclusive<f64>, typed: &str) -> Result<f64, String> {
    let number = typed.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("it should be a number from {} to {}", range.start(), range.end()))
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

/// An evaluation whose set has been read and allows what was asked for.
#[derive(Debug)]
pub struct Evaluation {
    options: MeasureOptions,
    set: EvalSet,
    metrics: Vec<Metric>,
    /// Of CORE.
    tasks: Vec<TaskSpec>,
}

impl Evaluation {
    /// Reads the set.
    ///
    /// # Errors
    /// When it cannot be read, or gives not what was asked for.
    pub fn new(options: MeasureOptions) -> anyhow::Result<Self> {
        if let Some(output) = options.output.as_deref().filter(|path| path.with_extension("html") == *path) {
            let problem = format!("{} is where the page goes, beside the report", output.display());
            return Err(anyhow!("{problem}\n  hint: --output {}", output.with_extension("json").display()));
        }
        let mut set = EvalSet::read(options.eval_set.as_deref())?;
        set.limit(options.limit.map_or(usize::MAX, |limit| limit as usize));
        let metrics = metrics(&options.metrics, &set)?;
        let tasks = match &set {
            EvalSet::Core(core) => chosen(core, &options.tasks)?,
            _ => Vec::new(),
        };
        Ok(Self { options, set, metrics, tasks })
    }

    /// Measures what `server` serves, writes the report where it was asked for, and returns it as a table. The report names
    /// the `revision` of the model that was asked for, and the `build` that evaluates.
    ///
    /// # Errors
    /// When the server fails, or the report cannot be written.
    pub fn run(&self, server: &Server<'_>, revision: Option<&str>, build: &str) -> anyhow::Result<String> {
        let begun = Instant::now();
        let Self { options, set, metrics, tasks } = self;
        let wants = |metric| metrics.contains(&metric);
        let stride =
            options.stride.map_or(server.n_positions / 2, |stride| stride as usize).clamp(1, server.n_positions);
        let method = PerplexityMethod { mode: options.ppl_mode, stride, length: server.n_positions };
        let has_template = server.about["chat_template"].as_bool().unwrap_or(false);
        let sampling = Sampling {
            as_chat: options.prompt_as.map_or(has_template, |form| form == PromptForm::Chat),
            max_tokens: options.max_tokens,
            temperature: options.temperature,
            seed: options.seed,
        };
        let mut conditions = self.conditions(server, &method, &sampling);
        (conditions["revision"], conditions["nanoinfer"]) = (revision.into(), build.into());
        let journal = options.output.as_ref().map(|path| path.with_extension("json.partial"));
        let mut work = Work::new(options.batch_size as usize, journal.as_deref(), &conditions)?;

        let mut report = Report {
            conditions,
            bleu: wants(Metric::Bleu),
            rouge: wants(Metric::Rouge),
            log_items: options.log_items,
            ..Report::default()
        };
        if wants(Metric::Ppl) {
            let mut texts = match set {
                EvalSet::Corpus(documents) => documents.clone(),
                EvalSet::Pairs(pairs) => {
                    let reference = |pair: &Pair| Document::plain(&pair.reference, pair.reference.as_str());
                    pairs.iter().map(reference).collect()
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
            let comparison = generation::measure(server, &mut work, pairs, &sampling, &options.bleu, stemmer)?;
            report.comparison = Some((pairs.clone(), comparison));
        }
        if let EvalSet::Core(core) = set {
            let limit = options.limit.map(|limit| limit as usize);
            report.tasks = Some(core::measure(server, &mut work, core, tasks, limit)?);
        }
        report.elapsed_s = begun.elapsed().as_secs_f64();
        if let Some([json, page]) = self.files() {
            for (path, text) in [(json, format!("{:#}\n", report.to_json())), (page, html::page(&report))] {
                fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        work.finish()?;
        Ok(report.to_table())
    }

    /// The files that [`Evaluation::run`] writes, if any: the report, and the page beside it.
    pub fn files(&self) -> Option<[PathBuf; 2]> {
        self.options.output.as_ref().map(|path| [path.clone(), path.with_extension("html")])
    }

    /// Everything that decides the numbers: for the report, and to know an interrupted evaluation again.
    fn conditions(&self, server: &Server<'_>, method: &PerplexityMethod, sampling: &Sampling) -> Value {
        let Self { options, set, tasks, .. } = self;
        let size = match set {
            EvalSet::Core(_) => json!({"tasks": tasks.iter().map(|task| &task.label).collect::<Vec<_>>()}),
            EvalSet::Pairs(pairs) => json!({"pairs": pairs.len()}),
            EvalSet::Corpus(documents) => json!({"documents": documents.len()}),
        };
        json!({
            "model": server.model,
            "server": server.about,
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
fn chosen(core: &CoreSet, labels: &[String]) -> anyhow::Result<Vec<TaskSpec>> {
    if let Some(unknown) = labels.iter().find(|label| !core.tasks.iter().any(|task| task.label == **label)) {
        let known: Vec<&str> = core.tasks.iter().map(|task| task.label.as_str()).collect();
        return Err(anyhow!("there is no task {unknown:?}\n  hint: --tasks {}", known.join(",")));
    }
    let wanted = |task: &&TaskSpec| labels.is_empty() || labels.contains(&task.label);
    let tasks: Vec<TaskSpec> = core.tasks.iter().filter(wanted).cloned().collect();
    anyhow::ensure!(!tasks.is_empty(), "there are no tasks");
    Ok(tasks)
}

/// Seconds since 1970.
fn modified(path: &Path) -> Option<u64> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
}
