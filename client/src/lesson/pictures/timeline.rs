//! One decode step on two ranks, from the trace that `--trace` writes.

use std::fs;

use anyhow::Context;
use nanoinfer_launch::ClusterConfig;
use serde::Deserialize;

use super::svg::Svg;
use crate::running::{Length, Running};

const RANKS: usize = 2;
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 70.0;
/// Texts of the step.
const BATCH: u32 = 8;
const LANE: f64 = 34.0;

/// Categories of spans, with their classes in the picture and their words in its legend.
const LEGEND: [(&str, &str, &str); 5] = [
    ("product", "a", "products"),
    ("attention", "c", "attention"),
    ("rows", "d", "rows one by one"),
    ("reduction", "sum", "all-reduce"),
    ("waiting", "wait", "waiting in it"),
];

/// A span of the trace, in microseconds.
#[derive(Deserialize)]
struct Span {
    name: String,
    #[serde(rename = "cat")]
    category: String,
    #[serde(rename = "pid")]
    rank: usize,
    #[serde(rename = "ts")]
    begun: f64,
    #[serde(rename = "dur")]
    length: f64,
    args: Place,
}

#[derive(Deserialize)]
struct Place {
    step: u64,
    layer: Option<u64>,
}

pub(super) fn draw(base: &ClusterConfig) -> anyhow::Result<String> {
    let folder = std::env::temp_dir().join(format!("nanoinfer-lesson-{}", std::process::id()));
    fs::create_dir_all(&folder).context("cannot make a folder for the trace")?;
    let path = folder.join("trace.json");
    let change = |config: &mut ClusterConfig| {
        (config.nproc, config.threads, config.trace) = (RANKS, Some(1), Some(path.clone()));
    };
    Running::during(base, change, |running| running.decode_s(BATCH, Length::within(running.plan.model.shape.context)))?;
    let text = fs::read_to_string(&path).context("cannot read the trace");
    // Nothing depends on its being gone.
    let _ = fs::remove_dir_all(&folder);
    // One event a line. Ranks that are told to end may leave the last one of theirs unfinished.
    let text = text?;
    let spans = text.lines().filter_map(|line| serde_json::from_str(line.trim_end_matches(',')).ok());
    picture(&spans.collect::<Vec<_>>())
}

fn picture(spans: &[Span]) -> anyhow::Result<String> {
    // The step of median length among the last half: all texts are being written by then.
    let mut steps: Vec<&Span> = spans.iter().filter(|span| span.name == "step" && span.rank == 0).collect();
    steps.drain(..steps.len() / 2);
    steps.sort_by(|a, b| a.length.total_cmp(&b.length));
    let chosen = steps.get(steps.len() / 2).context("the trace has no step")?.args.step;
    let of_step = || spans.iter().filter(|span| span.args.step == chosen);
    let begun = of_step().map(|span| span.begun).fold(f64::INFINITY, f64::min);
    let ended = of_step().map(|span| span.begun + span.length).fold(0.0, f64::max);
    let x = |us: f64| LEFT + (us - begun) / (ended - begun) * (WIDTH - LEFT - 14.0);

    let mut svg = Svg::new(WIDTH);
    let mut at = LEFT;
    for (_, class, words) in LEGEND {
        svg.rect(class, (at, 8.0), (14.0, 14.0), "");
        svg.text("soft", "start", (at + 19.0, 20.0), words);
        at += 40.0 + 7.0 * words.len() as f64;
    }
    let top = 56.0;
    for rank in 0..RANKS {
        let y = top + rank as f64 * (LANE + 14.0);
        svg.text("", "start", (8.0, y + LANE / 2.0 + 4.0), &format!("rank {rank}"));
        let parts = of_step().filter(|span| span.rank == rank && span.category != "whole");
        for span in parts {
            let (from, to) = (x(span.begun), x(span.begun + span.length));
            let title = format!("{}, {:.0} µs", span.name, span.length);
            let class =
                LEGEND.iter().find(|(category, ..)| *category == span.category).map_or("d", |(_, class, _)| class);
            svg.rect(class, (from, y), ((to - from).max(0.4), LANE), &title);
        }
    }
    let layers = of_step().filter(|span| span.rank == 0 && span.name == "layer");
    for layer in layers {
        let (from, to) = (x(layer.begun), x(layer.begun + layer.length));
        svg.line((from, top - 6.0), (from, top + RANKS as f64 * (LANE + 14.0) - 8.0));
        let words = format!("layer {}", layer.args.layer.unwrap_or(0));
        svg.text("soft", "middle", ((from + to) / 2.0, top - 10.0), &words);
    }
    let words = format!("{BATCH} texts, one token each: {:.0} µs", ended - begun);
    svg.text("soft", "start", (LEFT, top + RANKS as f64 * (LANE + 14.0) + 12.0), &words);
    Ok(svg.finish("A decode step on two ranks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_of_one_step_with_all_its_parts() {
        let span = |name: &str, category: &str, rank, step, begun, length| Span {
            name: name.into(),
            category: category.into(),
            rank,
            begun,
            length,
            args: Place { step, layer: Some(0) },
        };
        let mut spans = Vec::new();
        for step in 0..8 {
            for rank in 0..2 {
                let begun = 1000.0 * step as f64;
                spans.push(span("step", "whole", rank, step, begun, 100.0 + step as f64));
                spans.push(span("layer", "whole", rank, step, begun + 1.0, 90.0));
                spans.push(span("QKV", "product", rank, step, begun + 1.0, 40.0));
                spans.push(span("projection", "reduction", rank, step, begun + 41.0, 20.0));
            }
        }
        let svg = picture(&spans).unwrap();
        assert!(svg.matches("QKV, 40 µs").count() == 2 && svg.matches("layer 0").count() == 1, "{svg}");
        assert!(svg.contains("prefers-color-scheme:dark") && svg.contains("one token each: 106 µs"), "{svg}");
        assert!(picture(&[]).is_err());
    }
}
