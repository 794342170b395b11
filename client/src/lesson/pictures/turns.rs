//! Steps 5 and 10 of chapter 4: whose tokens each step computes, in a batch that waits for its longest text and where texts come and go.

use anyhow::Context;
use nanoinfer_steps::{Model, Row, batch::generate, blocks::Blocks, encode, sampling::Sampling, scheduler::Scheduler};
use tokenizers::Tokenizer;

use super::{
    noting::Noting,
    svg::{Svg, class},
};

/// Their answers are of different lengths.
const QUESTIONS: [&str; 8] = [
    "Hello!",
    "What is a cat?",
    "What is the capital of France?",
    "What is a violin?",
    "What is the capital of Japan?",
    "What is a river?",
    "What is 3 + 4?",
    "What is gold?",
];
/// Texts of a batch, and places of the scheduler.
const PLACES: usize = 4;
/// Rows of a step of the scheduler.
const BUDGET: usize = 16;
const MOST: usize = 40;
const LEFT: f64 = 84.0;
const TOP: f64 = 10.0;
const LANE: f64 = 16.0;
const WIDTH: f64 = 660.0;

/// A batch: who is done keeps a place that nobody uses.
pub(super) fn batch(model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let end = end_of_text(tokenizer)?;
    let mut memory = Noting::default();
    generate(model, &questions(tokenizer, PLACES)?, &mut memory, Sampling::GREEDY, end, MOST);
    let steps = memory.steps;
    let used: usize = steps.iter().map(|rows| texts(rows).count()).sum();
    let words = format!(
        "{} steps of a batch of {PLACES}; {used} of {} places are used; grey: the text is done",
        steps.len(),
        PLACES * steps.len()
    );
    Ok(lanes(&steps, PLACES, true, &words).finish("A batch that lasts as long as its longest text"))
}

/// The scheduler: whoever waits takes the place of who is done.
pub(super) fn schedule(model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let end = end_of_text(tokenizer)?;
    let blocks = Blocks::new(128, model.sizes.layers, model.sizes.width);
    let mut scheduler = Scheduler::new(blocks, BUDGET, PLACES);
    for (id, prompt) in questions(tokenizer, QUESTIONS.len())?.into_iter().enumerate() {
        scheduler.add(id, prompt, MOST, Sampling::GREEDY);
    }
    let mut steps = Vec::new();
    while !scheduler.is_idle() {
        let plan = scheduler.plan();
        scheduler.step(model, &plan, end);
        steps.push(plan.rows);
    }
    let words =
        format!("{} steps on {PLACES} places, at most {BUDGET} tokens each; dark: a prompt is read", steps.len());
    let mut svg = lanes(&steps, QUESTIONS.len(), false, &words);
    // Below the lanes, what a step computes.
    let base = TOP + QUESTIONS.len() as f64 * LANE + 92.0;
    let cell = (WIDTH - LEFT) / steps.len() as f64;
    svg.text("soft", "end", (LEFT - 8.0, base - 4.0), "tokens");
    for (step, rows) in steps.iter().enumerate() {
        let height = 48.0 * rows.len() as f64 / BUDGET as f64;
        let place = (LEFT + step as f64 * cell, base - height);
        svg.rect("empty", place, (cell - 1.0, height), &format!("{} tokens in step {step}", rows.len()));
    }
    Ok(svg.finish("Texts that come and go between steps"))
}

/// A lane for each text, a cell for each step in which something of it is computed.
fn lanes(steps: &[Vec<Row>], count: usize, is_batch: bool, words: &str) -> Svg {
    let mut svg = Svg::new(WIDTH);
    let cell = (WIDTH - LEFT) / steps.len() as f64;
    for text in 0..count {
        let y = TOP + text as f64 * LANE;
        svg.text("soft", "end", (LEFT - 8.0, y + LANE - 4.0), &format!("text {text}"));
        for (step, rows) in steps.iter().enumerate() {
            let tokens = rows.iter().filter(|row| row.text == text).count();
            let place = (LEFT + step as f64 * cell, y);
            let size = (cell - 1.0, LANE - 3.0);
            if tokens > 0 {
                // What reads a prompt is dark, what writes paler.
                let is_prompt = rows.iter().any(|row| row.text == text && row.position == 0) || tokens > 1;
                let share = if is_prompt { 1.0 } else { 0.55 };
                svg.shade(class(text), place, size, share, &format!("text {text}, step {step}: {tokens} tokens"));
            } else if is_batch {
                svg.rect("empty", place, size, "nothing");
            }
        }
    }
    svg.text("soft", "start", (LEFT, TOP + count as f64 * LANE + 18.0), words);
    svg
}

/// Texts of which a step computes something.
fn texts(rows: &[Row]) -> impl Iterator<Item = usize> {
    (0..PLACES).filter(|text| rows.iter().any(|row| row.text == *text))
}

fn questions(tokenizer: &Tokenizer, count: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    QUESTIONS[..count].iter().map(|question| encode(tokenizer, question)).collect()
}

fn end_of_text(tokenizer: &Tokenizer) -> anyhow::Result<u32> {
    tokenizer.token_to_id("<|endoftext|>").context("the tokenizer has no end of text")
}
