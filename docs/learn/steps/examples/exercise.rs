//! Asks a question, or checks an answer: `exercise STEP [ANSWER]`. Ends with 0 if it is right, with 1 if not.
use std::process::ExitCode;

use anyhow::Context;
use nanoinfer_steps::{exercises, open};

fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let step: usize = words.first().context("which step? exercise STEP [ANSWER]")?.parse()?;
    let Some(given) = words.get(1) else {
        println!("{}", exercises::QUESTIONS.get(step.wrapping_sub(1)).context("there is no such step")?);
        return Ok(ExitCode::SUCCESS);
    };
    let (model, tokenizer) = open(None)?;
    let is_right = given.parse() == Ok(exercises::answer(step, &model, &tokenizer)?);
    println!("{}", if is_right { "right" } else { "not that" });
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
