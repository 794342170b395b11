//! Step 1 of chapter 4: how nearly the vectors of words point the same way, of words that are used alike and of others.

use anyhow::Context;
use nanoinfer_steps::Model;
use tokenizers::Tokenizer;

use super::svg::Svg;

/// Each is one token of the built-in model; side by side those that are used alike.
const WORDS: [&str; 20] = [
    " two", " three", " four", " six", " seven", " France", " Japan", " Spain", " China", " India", " gold", " silver",
    " carbon", " oxygen", " metal", " red", " green", " blue", " white", " black",
];
const CELL: f64 = 18.0;
const LEFT: f64 = 76.0;
const TOP: f64 = 14.0;

pub(super) fn draw(model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let id = |word: &str| {
        let encoding = tokenizer.encode(word, false).map_err(|error| anyhow::anyhow!("{error}"))?;
        let &[id] = encoding.get_ids() else { anyhow::bail!("{word:?} is more than one token") };
        anyhow::Ok(id)
    };
    let ids = WORDS.map(id).into_iter().collect::<anyhow::Result<Vec<_>>>().context("the words of the picture")?;
    let mut svg = Svg::new(LEFT + WORDS.len() as f64 * CELL + 8.0);
    for (row, &one) in ids.iter().enumerate() {
        let cosines = model.neighbours(one, model.sizes.vocab);
        let y = TOP + row as f64 * CELL;
        svg.text("soft", "end", (LEFT - 6.0, y + CELL - 5.0), WORDS[row].trim());
        for (column, other) in ids.iter().enumerate() {
            let cosine = cosines.iter().find(|(id, _)| id == other).map_or(0.0, |&(_, cosine)| cosine);
            let title = format!("{} and {}: {cosine:.2}", WORDS[row].trim(), WORDS[column].trim());
            let place = (LEFT + column as f64 * CELL, y);
            // The word itself is nothing to see; half of the same direction is as dark as can be.
            let share = if row == column { 0.0 } else { (2.0 * cosine).clamp(0.04, 1.0) };
            svg.shade(if row == column { "empty" } else { "a" }, place, (CELL - 1.0, CELL - 1.0), share.into(), &title);
        }
    }
    let y = TOP + WORDS.len() as f64 * CELL + 16.0;
    svg.text("soft", "start", (LEFT, y), "the darker, the more nearly two words point the same way");
    Ok(svg.finish("Cosines between the vectors of words"))
}
