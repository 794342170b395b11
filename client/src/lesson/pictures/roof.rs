//! Step 8 of chapter 4: the roofline of this machine with one thread, and steps of the large model below it.
//!
//! Both axes are by the logarithm. Measured anew for the picture, so it names no speed that the chapter's table names.

use nanoinfer_steps::{Model, Sizes, model::plain, threads::Roofline};

use super::svg::Svg;
use crate::lesson::build::subject::decode_s;

const TEXTS: [usize; 4] = [1, 2, 4, 8];
const ROUNDS: u32 = 3;
/// Where the axes end: texts, and the share of what the processor can do at most.
const MOST_TEXTS: f64 = 16.0;
const LEAST_SHARE: f64 = 1.0 / 16.0;
const LEFT: f64 = 84.0;
const TOP: f64 = 26.0;
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 220.0;

pub(super) fn draw() -> anyhow::Result<String> {
    let limit = Roofline::measure(1);
    let model = Model::random(Sizes::GPT2, &plain)?;
    // Four bytes of a weight are two operations for each text.
    let operations = |texts: f64| texts * model.bytes() as f64 / 2.0;
    let roof =
        |texts: f64| operations(texts) / limit.least_s(model.bytes() as f64, operations(texts)) / limit.ops_per_s;
    let place = |texts: f64, share: f64| {
        let x = LEFT + texts.log2() / MOST_TEXTS.log2() * WIDTH;
        (x, TOP + share.max(LEAST_SHARE).log2() / LEAST_SHARE.log2() * HEIGHT)
    };
    let mut svg = Svg::new(LEFT + WIDTH + 24.0);
    for share in [1.0, 0.5, 0.25, 0.125, LEAST_SHARE] {
        let (x, y) = place(1.0, share);
        svg.line((x, y), (LEFT + WIDTH, y));
        svg.text("soft", "end", (x - 8.0, y + 4.0), &format!("{} %", share * 100.0));
    }
    for texts in (0..=60).map(|i| MOST_TEXTS.powf(f64::from(i) / 60.0)) {
        let (x, y) = place(texts, roof(texts));
        svg.rect("a", (x - 2.0, y - 2.0), (4.0, 4.0), "");
    }
    for texts in TEXTS {
        let share = operations(texts as f64) / decode_s(&model, texts, ROUNDS) / limit.ops_per_s;
        let (x, y) = place(texts as f64, share);
        let of_roof = share / roof(texts as f64) * 100.0;
        svg.rect("sum", (x - 5.0, y - 5.0), (10.0, 10.0), &format!("{texts} texts: {of_roof:.0} % of the roof"));
        svg.text("", "start", (x + 9.0, y + 15.0), &format!("{of_roof:.0} %"));
        svg.text("soft", "middle", (x, TOP + HEIGHT + 18.0), &texts.to_string());
    }
    svg.text("soft", "start", (LEFT, TOP - 12.0), "of the operations a second that one thread can do");
    svg.text("soft", "end", (LEFT + WIDTH, TOP + HEIGHT + 36.0), "texts in a step");
    let words = "blue: the roof, reading and then computing; red: steps, and how near they come";
    svg.text("soft", "start", (LEFT, TOP + HEIGHT + 58.0), words);
    Ok(svg.finish("Roofline of one thread, and steps of the large model below it"))
}
