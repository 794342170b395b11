//! The attention map of one layer of the built-in model: each head's shares, from every token of a question to those before it.

use anyhow::anyhow;
use nanoinfer_steps::{
    Model,
    cache::Cache,
    encode,
    pass::{alone, pass, rows_of},
};
use tokenizers::Tokenizer;

use super::svg::Svg;

const QUESTION: &str = "What is the capital of France?";
/// Heads side by side.
const HEADS: usize = 4;
const CELL: f64 = 10.0;
/// For the words beside the first map of a row.
const LEFT: f64 = 86.0;
const GAP: f64 = 26.0;
const TOP: f64 = 20.0;

/// The layer whose heads are the most decided.
pub(super) fn draw(model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let ids = encode(tokenizer, QUESTION)?;
    let words: Vec<String> = ids
        .iter()
        .map(|&id| {
            tokenizer.decode(&[id], false).map(|word| word.replace('\n', "↵")).map_err(|error| anyhow!("{error}"))
        })
        .collect::<anyhow::Result<_>>()?;
    // By layer and head, the shares of each row.
    let mut maps = vec![vec![Vec::new(); model.sizes.heads]; model.sizes.layers];
    pass(model, &rows_of(0, &ids, 0), &mut Cache::default(), &mut alone, &mut |layer, head, _, shares| {
        maps[layer][head].push(shares.to_vec());
    });
    let decided = |heads: &[Vec<Vec<f32>>]| -> f32 {
        heads.iter().flatten().map(|shares| shares.iter().copied().fold(0.0, f32::max)).sum()
    };
    let layer = (1..maps.len()).max_by(|&a, &b| decided(&maps[a]).total_cmp(&decided(&maps[b]))).unwrap_or(0);
    let size = ids.len() as f64 * CELL;
    let mut svg = Svg::new(LEFT + HEADS as f64 * (size + GAP));
    for (head, rows) in maps[layer].iter().enumerate() {
        let (x, y) = (LEFT + (head % HEADS) as f64 * (size + GAP), TOP + (head / HEADS) as f64 * (size + TOP + GAP));
        svg.text("soft", "start", (x, y - 5.0), &format!("head {head}"));
        for (r, shares) in rows.iter().enumerate() {
            let row_y = y + r as f64 * CELL;
            if head % HEADS == 0 {
                svg.text("soft", "end", (x - 6.0, row_y + CELL - 1.0), words[r].trim());
            }
            for (c, share) in shares.iter().enumerate() {
                let title = format!("{} looks at {}: {:.0} %", words[r].trim(), words[c].trim(), share * 100.0);
                svg.shade(
                    "a",
                    (x + c as f64 * CELL, row_y),
                    (CELL - 1.0, CELL - 1.0),
                    (0.06 + 0.94 * share).into(),
                    &title,
                );
            }
        }
    }
    let words = format!("layer {layer}: a row looks at the columns before it and itself; the darker, the more");
    svg.text("soft", "start", (LEFT, TOP + maps[layer].len().div_ceil(HEADS) as f64 * (size + TOP + GAP)), &words);
    Ok(svg.finish("Attention of every head of a layer"))
}
