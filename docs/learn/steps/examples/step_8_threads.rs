//! Step 8: the same on several threads; the second argument says how many. And how near that comes to what the machine can do.
use std::{path::Path, time::Instant};

use anyhow::{Context, ensure};
use nanoinfer_steps::{
    DEMO, Model,
    batch::generate,
    blocks::Blocks,
    decode, encode, int8,
    model::Part,
    open,
    sampling::Sampling,
    threads::{Roofline, cut},
};

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1);
    let threads = std::env::args().nth(2).map_or(Ok(2), |word| word.parse())?;
    let (_, tokenizer) = open(folder.as_deref())?;
    let model = Model::load_part(Path::new(folder.as_deref().unwrap_or(DEMO)), Part::whole, &|matrix| {
        cut(matrix, threads, &int8::packed)
    })?;
    let end = tokenizer.token_to_id("<|endoftext|>").context("the tokenizer has no end of text")?;
    let sampling = Sampling::GREEDY;
    let questions =
        std::io::stdin().lines().map(|line| encode(&tokenizer, &line?)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut blocks = Blocks::new(512, model.sizes.layers, model.sizes.width);
    for (text, question) in questions.iter().enumerate() {
        blocks.begin(text, question);
        ensure!(blocks.grow(text, question.len() + 200), "the pool is too small");
    }
    let begun = Instant::now();
    let (answers, steps) = generate(&model, &questions, &mut blocks, sampling, end, 200);
    for answer in &answers {
        println!("{}", decode(&tokenizer, answer)?);
    }
    let (each, least) =
        (begun.elapsed().as_secs_f64() / steps as f64, Roofline::measure(threads).least_s(model.bytes() as f64, 0.0));
    eprintln!("{:.3} ms a step; reading the weights alone takes {:.3} ms", each * 1e3, least * 1e3);
    Ok(())
}
