//! Step 4 of chapter 4: the candidates for one token at several temperatures, and what a cut leaves of them.

use nanoinfer_steps::{
    Model,
    cache::Cache,
    decode, encode, likeliest,
    pass::{alone, last, pass, rows_of, unseen},
    sampling::Sampling,
};
use tokenizers::Tokenizer;

use super::svg::Svg;

const QUESTION: &str = "What is a cat?";
/// Tokens of the answer among which the least certain is looked for.
const LOOKED_AT: usize = 24;
const TEMPERATURES: [f32; 3] = [0.5, 1.0, 2.0];
const TOP_P: f32 = 0.9;
/// Candidates that are drawn.
const SHOWN: usize = 10;
const LEFT: f64 = 96.0;
const TOP: f64 = 52.0;
const LANE: f64 = 18.0;
const BAR: f64 = 150.0;
const PITCH: f64 = BAR + 60.0;

pub(super) fn draw(model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let (before, logits) = least_certain(model, &encode(tokenizer, QUESTION)?);
    let of = |temperature, top_p| Sampling { temperature, top_p, ..Sampling::GREEDY }.candidates(&logits);
    let spelled = |id: u32| {
        tokenizer.decode(&[id], false).map(|word| format!("{word:?}")).map_err(|error| anyhow::anyhow!("{error}"))
    };
    let mut svg = Svg::new(LEFT + TEMPERATURES.len() as f64 * PITCH);
    let text = decode(tokenizer, &before)?;
    let answer = text.rsplit("Assistant:").next().unwrap_or_default();
    svg.text("soft", "start", (LEFT, 16.0), &format!("what may come after: {}", answer.trim()));
    for (column, temperature) in TEMPERATURES.into_iter().enumerate() {
        let x = LEFT + column as f64 * PITCH;
        svg.text("", "start", (x, TOP - 12.0), &format!("temperature {temperature}"));
        let kept = of(temperature, TOP_P).len();
        for (row, (id, share)) in of(temperature, 1.0).into_iter().take(SHOWN).enumerate() {
            let y = TOP + row as f64 * LANE;
            if column == 0 {
                svg.text("soft", "end", (LEFT - 8.0, y + LANE - 5.0), &spelled(id)?);
            }
            let length = (f64::from(share) * BAR).max(0.5);
            svg.rect(if row < kept { "a" } else { "empty" }, (x, y), (length, LANE - 3.0), "");
            svg.text("soft", "start", (x + length + 4.0, y + LANE - 5.0), &format!("{:.1} %", share * 100.0));
        }
    }
    let words = format!("the likeliest {SHOWN}; grey: what top_p {TOP_P} cuts off");
    svg.text("soft", "start", (LEFT, TOP + SHOWN as f64 * LANE + 16.0), &words);
    Ok(svg.finish("Candidates for one token at three temperatures"))
}

/// The text before the token of an answer that is the least certain, and the logits for it.
fn least_certain(model: &Model, prompt: &[u32]) -> (Vec<u32>, Vec<f32>) {
    let (mut ids, mut known, mut cache) = (prompt.to_vec(), 0, Cache::default());
    let mut found = (f32::INFINITY, Vec::new(), Vec::new());
    let plain = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    for _ in 0..LOOKED_AT {
        let logits = pass(model, &rows_of(0, &ids, known), &mut cache, &mut alone, &mut unseen);
        let logits = last(&logits, model);
        let certain = plain.candidates(logits)[0].1;
        if certain < found.0 {
            found = (certain, ids.clone(), logits.to_vec());
        }
        known = ids.len();
        ids.push(likeliest(logits));
    }
    (found.1, found.2)
}
