//! `nanoinfer`: meets a server over HTTP as any client would; starts a private one when given a model.
//!
//! [`generate`] and [`chat`] ask a [`target`], which may be a [`private_server`], and read its [`events`]; [`bench`] measures
//! a cluster without HTTP; [`lesson`] measures what the chapters of docs/learn explain; [`eval`] measures how good a model is,
//! [`verify`] and [`speed`] whether and how fast servers compute what they should; [`pull`],
//! [`inspect`] and [`convert`] fetch, describe and rewrite checkpoints. Does not know how text is made.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod failure;
mod generate;
mod explain;
mod bars;
mod terminal;
mod random;
mod running;
mod chat;
mod target;
mod events;
mod private_server;
mod model_options;
mod bench;
mod lesson;
/// The 100-line program, which the lessons measure as it is.
#[path = "../../worker/reference/examples/conversation.rs"]
#[allow(dead_code, clippy::print_stdout)]
mod conversation;
mod eval;
mod verify;
mod speed;
mod pull;
mod inspect;
mod convert;

use std::{ffi::OsString, process::ExitCode};

use clap::{
    Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use nanoinfer_launch::{output, say};

use crate::{
    bench::BenchVerb,
    chat::ChatOptions,
    convert::ConvertOptions,
    eval::EvalOptions,
    failure::{Failure, told},
    generate::GenerateOptions,
    inspect::InspectOptions,
    lesson::LessonOptions,
    private_server::SERVE,
    pull::PullOptions,
};

/// Generates text from a server, or from a model.
#[derive(Debug, Parser)]
#[command(name = "nanoinfer", version = concat!(env!("CARGO_PKG_VERSION")), disable_version_flag = true)]
struct CommandLine {
    /// Print name, version and build.
    #[arg(long, short = 'V')]
    version: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Answer a prompt; only the text goes to standard output.
    Generate(GenerateOptions),
    /// Talk in the terminal: history, commands, Ctrl-C stops an answer.
    Chat(ChatOptions),
    /// Measure a model on this machine: a table, then one line of JSON.
    #[command(subcommand)]
    Bench(BenchVerb),
    /// Measure what a chapter of docs/learn explains: tables and plots.
    Lesson(LessonOptions),
    /// Measure how good a model is: perplexity, BLEU, ROUGE, CORE.
    Eval(Box<EvalOptions>),
    /// Download a model, or what is new of it; print its folder.
    Pull(PullOptions),
    /// Say what a model holds.
    Inspect(InspectOptions),
    /// Write a checkpoint of any format as safetensors.
    Convert(ConvertOptions),
}

/// This verb and [`SERVE`] are `nanoinfer-launch` in this program, so that it can start servers and ranks without a second file.
const WORKER: &str = "worker";

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|verb| verb == SERVE) {
        args.remove(1);
        return nanoinfer_launch::cli::main_with(args);
    }
    if args.get(1).is_some_and(|verb| verb == WORKER) {
        return nanoinfer_launch::cli::main_with(args);
    }
    let typed = match CommandLine::try_parse_from(args) {
        Ok(typed) => typed,
        Err(error) => {
            let code = output::parser_said(&error);
            if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg)
                && error.kind() == ErrorKind::UnknownArgument
                && !word.starts_with('-')
            {
                say("  hint: a model is named with --model, a prompt with --prompt");
            }
            return code;
        }
    };
    let result = match typed.verb {
        _ if typed.version => version(),
        Some(Verb::Generate(options)) => generate::run(options),
        Some(Verb::Chat(options)) => chat::run(options),
        Some(Verb::Bench(verb)) => bench::run(verb),
        Some(Verb::Lesson(options)) => lesson::run(&options),
        Some(Verb::Eval(options)) => eval::run(*options),
        Some(Verb::Pull(options)) => pull::run(&options),
        Some(Verb::Inspect(options)) => inspect::run(&options),
        Some(Verb::Convert(options)) => convert::run(&options),
        None => Err(Failure::usage(anyhow::anyhow!(
            "nothing to do\n  hint: nanoinfer chat, nanoinfer generate --prompt TEXT, or --help"
        ))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(format_args!("error: {}", told(&failure.error)));
            ExitCode::from(failure.exit_code)
        }
    }
}

fn version() -> Result<(), Failure> {
    let (version, build) = (env!("CARGO_PKG_VERSION"), nanoinfer_launch::build::BUILD_ID);
    output::write(format_args!("nanoinfer {version} (build {build})\n"))?;
    Ok(())
}
