//! Checks what was written for a step in docs/learn/steps/src/yours.rs: `check STEP`. Ends with 0 if it is right, with 1 if not.
use std::process::ExitCode;

use anyhow::Context;
use nanoinfer_steps::{open, tasks::check, yours::Yours};

fn main() -> anyhow::Result<ExitCode> {
    let step = std::env::args().nth(1).context("which step? check STEP")?.parse()?;
    let (model, _) = open(None)?;
    Ok(match check(step, &Yours, &model) {
        Ok(()) => {
            println!("right");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("not yet: {why}");
            ExitCode::FAILURE
        }
    })
}
