//! Step 10: questions enter as others leave; long ones are read in pieces.
use std::collections::BTreeMap;

use anyhow::Context;
use nanoinfer_steps::{blocks::Blocks, decode, encode, open, sampling::Sampling, scheduler::Scheduler};

fn main() -> anyhow::Result<()> {
    let (model, tokenizer) = open(std::env::args().nth(1).as_deref())?;
    let end = tokenizer.token_to_id("<|endoftext|>").context("the tokenizer has no end of text")?;
    let blocks = Blocks::new(512, model.sizes.layers, model.sizes.width);
    let mut scheduler = Scheduler::new(blocks, 64, 4);
    for (id, line) in std::io::stdin().lines().enumerate() {
        scheduler.add(id, encode(&tokenizer, &line?)?, 200, Sampling::GREEDY);
    }
    let mut answers: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    let mut steps = 0;
    while !scheduler.is_idle() {
        let plan = scheduler.plan();
        for drawn in scheduler.step(&model, &plan, end) {
            answers.entry(drawn.id).or_default().push(drawn.token);
        }
        steps += 1;
    }
    for answer in answers.values() {
        println!("{}", decode(&tokenizer, answer)?);
    }
    eprintln!("{} tokens in {steps} steps", answers.values().map(Vec::len).sum::<usize>());
    Ok(())
}
