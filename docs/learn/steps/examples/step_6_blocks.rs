//! Step 6: the same with keys and values in blocks: questions that begin alike share them.
use anyhow::{Context, ensure};
use nanoinfer_steps::{batch::generate, blocks::Blocks, decode, encode, open, sampling::Sampling};

fn main() -> anyhow::Result<()> {
    let (model, tokenizer) = open(std::env::args().nth(1).as_deref())?;
    let end = tokenizer.token_to_id("<|endoftext|>").context("the tokenizer has no end of text")?;
    let sampling = Sampling::GREEDY;
    let questions =
        std::io::stdin().lines().map(|line| encode(&tokenizer, &line?)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut blocks = Blocks::new(512, model.sizes.layers, model.sizes.width);
    for (text, question) in questions.iter().enumerate() {
        blocks.begin(text, question);
        ensure!(blocks.grow(text, question.len() + 200), "the pool is too small");
    }
    let (answers, steps) = generate(&model, &questions, &mut blocks, sampling, end, 200);
    for answer in &answers {
        println!("{}", decode(&tokenizer, answer)?);
    }
    eprintln!("{} tokens in {steps} steps, {} blocks", answers.concat().len(), blocks.held());
    Ok(())
}
