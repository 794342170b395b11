//! Step 5: all questions of standard input are answered together, a token of each in every step.
use anyhow::Context;
use nanoinfer_steps::{batch::generate, cache::Cache, decode, encode, open, sampling::Sampling};

fn main() -> anyhow::Result<()> {
    let (model, tokenizer) = open(std::env::args().nth(1).as_deref())?;
    let end = tokenizer.token_to_id("<|endoftext|>").context("the tokenizer has no end of text")?;
    let sampling = Sampling::GREEDY;
    let questions =
        std::io::stdin().lines().map(|line| encode(&tokenizer, &line?)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut cache = Cache::default();
    let (answers, steps) = generate(&model, &questions, &mut cache, sampling, end, 200);
    for answer in &answers {
        println!("{}", decode(&tokenizer, answer)?);
    }
    eprintln!("{} tokens in {steps} steps", answers.concat().len());
    Ok(())
}
