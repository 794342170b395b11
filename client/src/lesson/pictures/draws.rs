//! Step 4 of chapter 4: the candidates for one token at several temperatures, and what a cut leaves of them.

use nanoinfer_steps::{
    Model,
    cache::Cache,
    encode,
    pass::{alone, last, pass, rows_of, unseen},
    sampling::Sampling,
};
use tokenizers::Tokenizer;

use super::svg::Svg;

const QUESTION: &str = "Hello!";
const TEMPERATURES: [f32; 3] = [1.0, 2.0, 3.0];
const TOP_P: f32 = 0.9;
/// Candidates that are drawn.
const SHOWN: usize = 6;
const LEFT: f64 = 96.0;
const TOP: f64 = 52.0;
const LANE: f64 = 18.0;
const BAR: f64 = 150.0;
const PITCH: f64 = BAR + 60.0;

pub(super) fn draw(model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let ids = encode(tokenizer, QUESTION)?;
    let logits = pass(model, &rows_of(0, &ids, 0), &mut Cache::default(), &mut alone, &mut unseen);
    let logits = last(&logits, model);
    let of = |temperature, top_p| Sampling { temperature, top_p, ..Sampling::GREEDY }.candidates(logits);
    let spelled = |id: u32| {
        tokenizer.decode(&[id], false).map(|word| format!("{word:?}")).map_err(|error| anyhow::anyhow!("{error}"))
    };
    let mut svg = Svg::new(LEFT + TEMPERATURES.len() as f64 * PITCH);
    svg.text("soft", "start", (LEFT, 16.0), &format!("how the answer to {QUESTION:?} may begin"));
    // The order is the same at any temperature; the highest leaves the most to name.
    for (row, (id, _)) in of(TEMPERATURES[2], 1.0).into_iter().take(SHOWN).enumerate() {
        svg.text("soft", "end", (LEFT - 8.0, TOP + row as f64 * LANE + LANE - 5.0), &spelled(id)?);
    }
    for (column, temperature) in TEMPERATURES.into_iter().enumerate() {
        let x = LEFT + column as f64 * PITCH;
        svg.text("", "start", (x, TOP - 12.0), &format!("temperature {temperature}"));
        let kept = of(temperature, TOP_P).len();
        for (row, (_, share)) in of(temperature, 1.0).into_iter().take(SHOWN).enumerate() {
            let y = TOP + row as f64 * LANE;
            let length = (f64::from(share) * BAR).max(0.5);
            svg.rect(if row < kept { "a" } else { "empty" }, (x, y), (length, LANE - 3.0), "");
            svg.text("soft", "start", (x + length + 4.0, y + LANE - 5.0), &format!("{:.1} %", share * 100.0));
        }
    }
    let words = format!("the likeliest {SHOWN}; grey: what top_p {TOP_P} cuts off");
    svg.text("soft", "start", (LEFT, TOP + SHOWN as f64 * LANE + 16.0), &words);
    Ok(svg.finish("Candidates for one token at three temperatures"))
}
