//! Step 3 of chapter 4: which tokens are computed for each token of an answer, with everything again and with a cache.

use nanoinfer_steps::{
    Model, encode, likeliest,
    pass::{alone, last, pass, rows_of, unseen},
};
use tokenizers::Tokenizer;

use super::{noting::Noting, svg::Svg};

const QUESTION: &str = "What is the capital of France?";
/// Tokens of the answer.
const STEPS: usize = 8;
const CELL: f64 = 14.0;
const GAP: f64 = 60.0;
const LEFT: f64 = 16.0;
const TOP: f64 = 30.0;

pub(super) fn draw(model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let prompt = encode(tokenizer, QUESTION)?;
    let width = (prompt.len() + STEPS - 1) as f64 * CELL;
    let mut svg = Svg::new(2.0 * (LEFT + width) + GAP);
    for (panel, (name, is_kept)) in [("everything again", false), ("with a cache", true)].into_iter().enumerate() {
        let left = LEFT + panel as f64 * (width + GAP);
        let steps = run(model, &prompt, is_kept);
        let all: usize = steps.iter().map(Vec::len).sum();
        let words = format!("{name}: {all} tokens are computed for {STEPS}");
        svg.text("", "start", (left, TOP - 12.0), &words);
        for (step, computed) in steps.iter().enumerate() {
            for position in 0..prompt.len() + step {
                let (share, does) = if computed.contains(&position) { (1.0, "computed") } else { (0.22, "kept") };
                let place = (left + position as f64 * CELL, TOP + step as f64 * CELL);
                svg.shade("a", place, (CELL - 1.5, CELL - 1.5), share, &format!("token {position}: {does}"));
            }
        }
    }
    let words = "a row is a step, a column a token of the text; dark: computed in this step, pale: kept from before";
    svg.text("soft", "start", (LEFT, TOP + STEPS as f64 * CELL + 18.0), words);
    Ok(svg.finish("Tokens that are computed for each token of an answer"))
}

/// Positions that each step computed.
fn run(model: &Model, prompt: &[u32], is_kept: bool) -> Vec<Vec<usize>> {
    let (mut ids, mut known) = (prompt.to_vec(), 0);
    let mut memory = Noting::default();
    for _ in 0..STEPS {
        if !is_kept {
            memory.forget();
            known = 0;
        }
        let logits = pass(model, &rows_of(0, &ids, known), &mut memory, &mut alone, &mut unseen);
        known = ids.len();
        ids.push(likeliest(last(&logits, model)));
    }
    memory.steps.iter().map(|rows| rows.iter().map(|row| row.position).collect()).collect()
}
