//! Step 7: the same with a byte for each weight.
use std::path::Path;

use anyhow::{Context, ensure};
use nanoinfer_steps::{
    DEMO, Model, batch::generate, blocks::Blocks, decode, encode, int8, model::Part, open, sampling::Sampling,
};

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1);
    let (plain, tokenizer) = open(folder.as_deref())?;
    let model = Model::load_part(Path::new(folder.as_deref().unwrap_or(DEMO)), Part::whole, &int8::packed)?;
    let end = tokenizer.token_to_id("<|endoftext|>").context("the tokenizer has no end of text")?;
    let sampling = Sampling::GREEDY;
    let questions =
        std::io::stdin().lines().map(|line| encode(&tokenizer, &line?)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut blocks = Blocks::new(512, model.sizes.layers, model.sizes.width);
    for (text, question) in questions.iter().enumerate() {
        blocks.begin(text, question);
        ensure!(blocks.grow(text, question.len() + 200), "the pool is too small");
    }
    let (answers, _) = generate(&model, &questions, &mut blocks, sampling, end, 200);
    for answer in &answers {
        println!("{}", decode(&tokenizer, answer)?);
    }
    eprintln!("{} bytes of weights instead of {}", model.bytes(), plain.bytes());
    Ok(())
}
