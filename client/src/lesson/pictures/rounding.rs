//! Step 7 of chapter 4: weights of one output, and what is left over when each becomes a byte.

use std::path::Path;

use nanoinfer_steps::{Model, int8, model::Part};

use super::svg::Svg;

const LAYER: usize = 0;
const OUTPUT: usize = 0;
/// Of the largest weight, up and down.
const HEIGHT: f64 = 56.0;
const LEFT: f64 = 90.0;
const TOP: f64 = 10.0;
const PITCH: f64 = 2.4;

pub(super) fn draw(model: &Model, folder: &Path) -> anyhow::Result<String> {
    let rounded = Model::load_part(folder, Part::whole, &int8::packed)?;
    let (plain, rounded) = (weights(model), weights(&rounded));
    let most = plain.iter().fold(0f32, |most, weight| most.max(weight.abs()));
    // What rounds to the nearest of 255 bytes is off by half of their distance at most.
    let half = most / 254.0;
    let enlarged = most / half;
    let mut svg = Svg::new(LEFT + plain.len() as f64 * PITCH + 8.0);
    let middles = [TOP + HEIGHT, TOP + 3.0 * HEIGHT + 24.0];
    for (i, (plain, rounded)) in plain.iter().zip(&rounded).enumerate() {
        for ((value, unit), (middle, class)) in
            [(*plain, most), (rounded - plain, half)].into_iter().zip(middles.into_iter().zip(["a", "sum"]))
        {
            let height = f64::from((value / unit).abs().min(1.0)) * HEIGHT;
            let y = if value > 0.0 { middle - height } else { middle };
            svg.rect(class, (LEFT + i as f64 * PITCH, y), (PITCH - 0.6, height), &format!("{value:.6}"));
        }
    }
    for (middle, words) in middles.into_iter().zip(["weights", "errors"]) {
        svg.text("", "end", (LEFT - 12.0, middle + 4.0), words);
        let end = LEFT + plain.len() as f64 * PITCH;
        [-HEIGHT, HEIGHT].iter().for_each(|edge| svg.line((LEFT, middle + edge), (end, middle + edge)));
    }
    let words = format!("below enlarged {enlarged:.0} times; its lines are half the distance of two bytes");
    svg.text("soft", "start", (LEFT, middles[1] + HEIGHT + 20.0), &words);
    Ok(svg.finish("Weights of one output, and the errors of rounding them to bytes"))
}

/// The weights of one output of a layer's MLP, found by asking for the product with each unit vector.
fn weights(model: &Model) -> Vec<f32> {
    let inputs = model.sizes.width;
    let unit: Vec<f32> = (0..inputs * inputs).map(|i| if i % (inputs + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let products = model.layers[LAYER].up.matrix.times(&unit);
    products.chunks_exact(products.len() / inputs).map(|outputs| outputs[OUTPUT]).collect()
}
