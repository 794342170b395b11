//! A question for each step, whose answer is a number that this machine finds out by itself: `cargo run --release --example exercise`.
//!
//! The number is never written down: it is computed from the model that is asked about.

use anyhow::{Result, bail};
use tokenizers::Tokenizer;

use crate::{
    blocks::{BLOCK, Blocks},
    cache::Cache,
    encode, int8,
    model::{Matrix, Model, Product},
    pass::{alone, last, pass, rows_of, unseen},
    ranks::part,
    sampling::Sampling,
    scheduler::Scheduler,
};

/// What is asked, by the number of its step.
pub const QUESTIONS: [&str; 11] = [
    "How many tokens does \"What is a cat?\" become, with the form of a chat around it?",
    "After the prompt of \"What is the capital of France?\": how many products of a query with a key does one head of one layer do for all of its tokens together?",
    "How many bytes do keys and values of a text of 100 tokens take in the cache, in f32?",
    "With temperature 2 and top_k 3: how many tokens can be drawn after the prompt of \"What is a cat?\"? And with temperature 0? Give the sum of both.",
    "One step for 8 texts in f32: how many bytes of weights are read for each token?",
    "Three texts of 40 tokens begin with the same 32. How many blocks do they hold together, once the first is computed before the others come?",
    "How many times fewer bytes of weights does a step read in int8 than in f32? Round down.",
    "On a machine that reads 20 GB/s: at most how many tokens a second does one text get in f32? Round down.",
    "How many numbers does each rank bring to the sums of one step of one text, all layers together?",
    "Two places, a budget of 16 rows: a prompt of 40 tokens comes first, one of 10 behind it. In which step, counted from 1, is the first token of the second drawn?",
    "The pool of the last program has 512 blocks: how many texts of full length fit into it at once?",
];

/// The answer of a question.
///
/// # Errors
/// When there is no such question.
pub fn answer(step: usize, model: &Model, tokenizer: &Tokenizer) -> Result<u64> {
    let sizes = model.sizes;
    let prompt = |question: &str| encode(tokenizer, question);
    Ok(match step {
        1 => prompt("What is a cat?")?.len() as u64,
        2 => {
            let mut products = 0;
            let rows = rows_of(0, &prompt("What is the capital of France?")?, 0);
            pass(model, &rows, &mut Cache::default(), &mut alone, &mut |layer, head, _, shares| {
                products += if (layer, head) == (0, 0) { shares.len() as u64 } else { 0 };
            });
            products
        }
        3 => {
            let mut cache = Cache::default();
            pass(model, &rows_of(0, &[1; 100], 0), &mut cache, &mut alone, &mut unseen);
            4 * cache.len() as u64
        }
        4 => {
            let logits =
                pass(model, &rows_of(0, &prompt("What is a cat?")?, 0), &mut Cache::default(), &mut alone, &mut unseen);
            let left = |sampling: Sampling| sampling.candidates(last(&logits, model)).len() as u64;
            left(Sampling { temperature: 2.0, top_k: 3, ..Sampling::GREEDY }) + left(Sampling::GREEDY)
        }
        5 => model.bytes() as u64 / 8,
        6 => {
            let mut blocks = Blocks::new(64, 1, 1);
            for text in 0..3u32 {
                let tokens: Vec<u32> = (0..40).map(|i| if i < 32 { i } else { 100 * text + i }).collect();
                blocks.begin(text as usize, &tokens);
                let _ = blocks.grow(text as usize, tokens.len());
                blocks.publish(text as usize, &tokens);
            }
            blocks.held() as u64
        }
        7 => {
            let matrix = Matrix { values: vec![0.5; 16 * sizes.width], inputs: sizes.width };
            (matrix.bytes() / int8::Int8::of(&matrix).bytes()) as u64
        }
        8 => (20e9 / model.bytes() as f64) as u64,
        9 => {
            let mut numbers = 0;
            pass(model, &rows_of(0, &[1], 0), &mut Cache::default(), &mut |x| numbers += x.len() as u64, &mut unseen);
            assert_eq!(
                part(&sizes, 0, 1).heads.len(),
                sizes.heads,
                "a rank brings sums of the whole width, whatever its share"
            );
            numbers
        }
        10 => {
            let pool = Blocks::new(64, sizes.layers, sizes.width);
            let mut scheduler = Scheduler::new(pool, BLOCK, 2);
            scheduler.add(0, vec![1; 40], 100, Sampling::GREEDY);
            scheduler.add(1, vec![2; 10], 100, Sampling::GREEDY);
            let is_first = |scheduler: &mut Scheduler| {
                let plan = scheduler.plan();
                scheduler.step(model, &plan, u32::MAX).iter().any(|drawn| drawn.id == 1)
            };
            1 + (0..20).take_while(|_| !is_first(&mut scheduler)).count() as u64
        }
        11 => {
            let mut blocks = Blocks::new(512, 1, 1);
            (0..).take_while(|&text| blocks.grow(text, sizes.positions)).count() as u64
        }
        other => bail!("there are {} steps, and {other} is none of them", QUESTIONS.len()),
    })
}
