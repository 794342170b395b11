//! `nanoinfer lesson`: measures what the chapters of docs/learn explain, and writes their figures.
//!
//! ```text
//! understand, optimise, serve, build ─► figure (results) ─► terminal, JSON
//!                                                  └──────► chapters replaces what stands between marks: docs/learn, a page
//!                            pictures ─► SVG ─────────────► docs/learn
//! ```
//! Every setting that is compared is a switch of the real engine or of the 100-line program, which is compiled in as it is
//! (`worker/reference/examples/conversation.rs`), or a program of the steps (`docs/learn/steps`). Figures of different runs do not compare.

mod figure;
mod words;
mod understand;
mod optimise;
mod serve;
mod build;
mod pictures;
mod chapters;

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::Args;
use nanoinfer_launch::output;

use self::figure::{Language, Results};
use crate::{bars::Bars, failure::Failure, model_options::ModelOptions};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nanoinfer lesson 1                          the built-in demo model, in the terminal\n  \
    nanoinfer lesson 2 --model ./gpt2 --html lesson.html\n  \
    nanoinfer lesson --write docs/learn         all figures of all chapters, in both languages")]
pub(crate) struct LessonOptions {
    /// Chapter whose measurements to run: 1 understand, 2 optimise, 3 serve, 4 build [default: list them].
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4))]
    lesson: Option<u32>,
    #[command(flatten)]
    model: ModelOptions,
    /// The language of what is printed and written.
    #[arg(long, value_enum, default_value_t = Language::English, conflicts_with = "write")]
    lang: Language,
    /// Write the whole chapter as a page, with the figures of this machine.
    #[arg(long, value_name = "FILE", conflicts_with = "write")]
    html: Option<PathBuf>,
    /// How often each setting is measured, all taking turns; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print JSON instead.
    #[arg(long, conflicts_with = "write")]
    json: bool,
    /// Run all lessons, or the one named, and put their figures between the marks of the chapters in this folder.
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
    /// Draw the pictures of the chapters in this folder: a layer over ranks, the KV pool, a step's timeline.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["lesson", "html", "json", "write"])]
    pictures: Option<PathBuf>,
}

/// What there is, where no chapter is named.
const LESSONS: &str = "  nanoinfer lesson 1    understand: from checkpoint to conversation, on the 100-line program
  nanoinfer lesson 2    optimise: from the 100 lines to the server's speed
  nanoinfer lesson 3    serve: a model over several ranks
  nanoinfer lesson 4    build: a batching server in eleven steps

Each measures on this machine for a minute or two. The chapters are in docs/learn; --help says what else there is.
";

pub(crate) fn run(options: &LessonOptions) -> Result<(), Failure> {
    if options.lesson.is_none() && options.write.is_none() && options.pictures.is_none() {
        output::write(LESSONS)?;
        return Ok(());
    }
    // The chapters are about the processor: threads, vectors, int8.
    let model = options.model.or_on_cpu();
    let mut base = model.config()?;
    // Many clusters come and go; only what goes wrong is worth a line.
    base.log.filter = "warn".into();
    if let Some(folder) = &options.pictures {
        return Ok(pictures::draw(&base, folder)?);
    }
    let measured = |lesson: u32| -> Result<Results, Failure> {
        Ok(match lesson {
            1 => understand::run(&base)?,
            2 => optimise::run(&base, options.rounds)?,
            3 => serve::run(&base, &model, options.rounds)?,
            _ => build::run(&base, options.rounds)?,
        })
    };
    let Some(folder) = &options.write else {
        if let Some(path) = &options.html {
            // A page that cannot be written is told before a minute of measuring, and what stands there stays until then.
            let opened = fs::OpenOptions::new().append(true).create(true).open(path);
            opened.with_context(|| format!("cannot write {}", path.display()))?;
        }
        let results = measured(options.lesson.unwrap_or(1))?;
        if let Some(path) = &options.html {
            fs::write(path, chapters::page(&results, options.lang)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let told = if options.json {
            format!("{}\n", results.to_json())
        } else {
            results.terminal(Bars::of_stdout(), options.lang)
        };
        output::write(told)?;
        return Ok(());
    };
    let chapters = chapters::Chapters::read(folder)?;
    let mut all: Vec<Results> = Vec::new();
    for lesson in options.lesson.map_or(1..=4, |lesson| lesson..=lesson) {
        let results = measured(lesson)?;
        output::write(format_args!(
            "{}\n{}\n",
            results.terminal(Bars::of_stdout(), Language::English),
            results.facts_as_lines()
        ))?;
        all.push(results);
    }
    chapters.write(&all)?;
    Ok(pictures::draw(&base, folder)?)
}
