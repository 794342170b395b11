//! `nanoinfer eval`: how good a model is, by the numbers that others publish.
//!
//! `nanoinfer-eval` measures whatever answers at an address; here is who starts what answers, and what needs more than HTTP:
//! [`crate::verify`] compares ranks with the readable reference, [`crate::speed`] the server with the engine.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use nanoinfer_eval::{
    core_set::CoreSet,
    measure::{Evaluation, MeasureOptions},
    server::Server,
};
use nanoinfer_launch::{build::BUILD_ID, output, say};

use crate::{
    failure::Failure,
    speed::{self, SpeedOptions},
    target::{Target, TargetOptions},
    verify::{self, VerifyOptions},
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EvalOptions {
    #[command(subcommand)]
    verb: Option<EvalVerb>,
    #[command(flatten)]
    target: TargetOptions,
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

pub(crate) fn run(options: EvalOptions) -> Result<(), Failure> {
    match options.verb {
        Some(EvalVerb::ConvertBundle { from, to }) => CoreSet::convert(&from, &to).map_err(Failure::usage),
        Some(EvalVerb::Verify(options)) => verify::run(&options),
        Some(EvalVerb::Speed(options)) => speed::run(&options),
        None => measure(&options.target, options.measure),
    }
}

fn measure(target: &TargetOptions, options: MeasureOptions) -> Result<(), Failure> {
    let evaluation = Evaluation::new(options).map_err(Failure::usage)?;
    Target::open(target)?.ask(|connection| {
        let server = Server::connect(connection)?;
        output::write(evaluation.run(&server, target.model.revision.as_deref(), BUILD_ID)?)?;
        if let Some([report, page]) = evaluation.files() {
            say(format_args!("wrote {} and {}", report.display(), page.display()));
        }
        Ok(())
    })
}
