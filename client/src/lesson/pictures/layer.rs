//! One layer of gpt2-xl over two ranks, from its `Partition`: which columns and rows of each matrix a rank holds.
//!
//! ```text
//! column-parallel: QKV, FC           a rank holds columns, and makes a part of the output
//! row-parallel:    both projections  a rank holds rows, and makes a summand of the output ─ all-reduce
//! ```

use std::ops::Range;

use nanoinfer_launch::{ModelShape, Partition};

use super::svg::{Svg, class};
use crate::lesson::serve::GPT2_XL;

const RANKS: usize = 2;
const WIDTH: f64 = 760.0;
const LEFT: f64 = 128.0;
/// Of a matrix whose side is `n_embd`.
const SIDE: f64 = 112.0;
/// From one such matrix to the next.
const PITCH: f64 = SIDE + 26.0;
/// Where both projections stand, behind three others.
const PROJECTION: f64 = LEFT + 3.0 * PITCH;
/// The MLP is four times as wide, drawn at this share of its width.
const WIDE: f64 = 232.0;

pub(super) fn draw() -> anyhow::Result<String> {
    let shape = ModelShape::from_config_json(GPT2_XL)?;
    let partition = Partition::new(&shape, RANKS)?;
    let shares = || partition.shares().iter().enumerate().map(|(rank, share)| (class(rank), rank, share));
    let mut svg = Svg::new(WIDTH);
    let (c, f, heads) = (shape.width, shape.mlp.inner, shape.attention.heads);
    for (class, rank, share) in shares() {
        let x = LEFT + rank as f64 * 200.0;
        svg.rect(class, (x, 8.0), (14.0, 14.0), "");
        svg.text("", "start", (x + 20.0, 20.0), &format!("rank {rank}: {} of {heads} heads", share.heads.len()));
    }

    let top = 64.0;
    svg.text("", "end", (LEFT - 14.0, top + SIDE / 2.0), "attention");
    for (i, name) in ["Q", "K", "V"].into_iter().enumerate() {
        let x = LEFT + i as f64 * PITCH;
        // A column for each head, so that the odd one can be counted.
        let cell = SIDE / heads as f64;
        for (class, _, share) in shares() {
            for head in share.heads.clone() {
                svg.rect(class, (x + head as f64 * cell, top), (cell - 0.8, SIDE), &format!("head {head}"));
            }
        }
        svg.text("soft", "middle", (x + SIDE / 2.0, top - 8.0), &format!("{name}: columns by head"));
    }
    projection(&mut svg, top, shares().map(|(class, _, share)| (class, parts(&share.heads, heads))));
    let words = format!("each matrix {c} × {c}; a head is {} columns, and never split", shape.attention.head_dim);
    svg.text("soft", "start", (LEFT, top + SIDE + 18.0), &words);

    let top = top + SIDE + 60.0;
    svg.text("", "end", (LEFT - 14.0, top + SIDE / 2.0), "MLP");
    for (class, _, share) in shares() {
        let (from, to) = parts(&share.ffn, f);
        let size = ((to - from) * WIDE - 0.8, SIDE);
        svg.rect(class, (LEFT + from * WIDE, top), size, &format!("columns {:?}", share.ffn));
    }
    svg.text("soft", "middle", (LEFT + WIDE / 2.0, top - 8.0), &format!("FC {c} × {f}: columns"));
    projection(&mut svg, top, shares().map(|(class, _, share)| (class, parts(&share.ffn, f))));
    let (from, to, y) = (LEFT + WIDE, PROJECTION, top + SIDE / 2.0);
    svg.line((from + 8.0, y), (to - 8.0, y));
    svg.text("soft", "middle", ((from + to) / 2.0, y - 8.0), "GELU: no exchange");
    Ok(svg.finish("One layer of gpt2-xl over two ranks"))
}

/// Where a range of `all` begins and ends, 0 to 1.
fn parts(range: &Range<usize>, all: usize) -> (f64, f64) {
    (range.start as f64 / all as f64, range.end as f64 / all as f64)
}

/// A matrix whose rows are dealt out, and the sum of what becomes of them.
fn projection(svg: &mut Svg, top: f64, rows: impl Iterator<Item = (&'static str, (f64, f64))>) {
    for (class, (from, to)) in rows {
        svg.rect(class, (PROJECTION, top + from * SIDE), (SIDE, (to - from) * SIDE - 0.8), "");
    }
    svg.text("soft", "middle", (PROJECTION + SIDE / 2.0, top - 8.0), "projection: rows");
    svg.rect("sum", (PROJECTION + SIDE + 12.0, top), (8.0, SIDE), "all-reduce");
    svg.text("soft", "start", (PROJECTION + SIDE, top + SIDE + 18.0), "+ all-reduce");
}
