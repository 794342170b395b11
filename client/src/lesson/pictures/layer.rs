//! One layer of gpt2-xl over two ranks, from its `Partition`: which columns and rows of each matrix a rank holds.
//!
//! ```text
//! column-parallel: QKV, FC           a rank holds columns, and makes a part of the output
//! row-parallel:    both projections  a rank holds rows, and makes a summand of the output ─ all-reduce
//! ```

use nanoinfer_launch::{ModelShape, Partition, Share};

use super::svg::{Svg, class};
use crate::lesson::serve::GPT2_XL;

const RANKS: usize = 2;
const WIDTH: f64 = 760.0;
const LEFT: f64 = 128.0;
/// Of a matrix whose side is `n_embd`.
const SIDE: f64 = 112.0;
/// The MLP is four times as wide, drawn at this share of its width.
const WIDE: f64 = 232.0;

pub(super) fn draw() -> anyhow::Result<String> {
    let shape = ModelShape::from_config_json(GPT2_XL)?;
    let partition = Partition::new(&shape, RANKS)?;
    let mut svg = Svg::new(WIDTH);
    let (c, f, heads) = (shape.width, shape.mlp.inner, shape.attention.heads);
    for (rank, share) in partition.shares().iter().enumerate() {
        let x = LEFT + rank as f64 * 200.0;
        svg.rect(class(rank), (x, 8.0), (14.0, 14.0), "");
        let words = format!("rank {rank}: {} of {heads} heads", share.heads.len());
        svg.text("", "start", (x + 20.0, 20.0), &words);
    }
    let of_heads = |share: &Share| (share.heads.start as f64 / heads as f64, share.heads.end as f64 / heads as f64);
    let of_ffn = |share: &Share| (share.ffn.start as f64 / f as f64, share.ffn.end as f64 / f as f64);

    let top = 64.0;
    svg.text("", "end", (LEFT - 14.0, top + SIDE / 2.0), "attention");
    let mut x = LEFT;
    for name in ["Q", "K", "V"] {
        for (rank, share) in partition.shares().iter().enumerate() {
            // A column for each head, so that the odd one can be counted.
            let cell = SIDE / heads as f64;
            for head in share.heads.clone() {
                svg.rect(class(rank), (x + head as f64 * cell, top), (cell - 0.8, SIDE), &format!("head {head}"));
            }
        }
        svg.text("soft", "middle", (x + SIDE / 2.0, top - 8.0), &format!("{name}: columns by head"));
        x += SIDE + 26.0;
    }
    let x = LEFT + 3.0 * (SIDE + 26.0);
    stacked(&mut svg, &partition, of_heads, (x, top), (SIDE, SIDE));
    svg.text("soft", "middle", (x + SIDE / 2.0, top - 8.0), "projection: rows");
    all_reduce(&mut svg, (x + SIDE + 12.0, top), SIDE);
    svg.text(
        "soft",
        "start",
        (LEFT, top + SIDE + 18.0),
        &format!("each matrix {c} × {c}; a head is {} columns, and never split", shape.attention.head_dim),
    );

    let top = top + SIDE + 60.0;
    svg.text("", "end", (LEFT - 14.0, top + SIDE / 2.0), "MLP");
    for (rank, share) in partition.shares().iter().enumerate() {
        let (from, to) = of_ffn(share);
        svg.rect(
            class(rank),
            (LEFT + from * WIDE, top),
            ((to - from) * WIDE - 0.8, SIDE),
            &format!("columns {:?}", share.ffn),
        );
    }
    svg.text("soft", "middle", (LEFT + WIDE / 2.0, top - 8.0), &format!("FC {c} × {f}: columns"));
    let x = LEFT + 3.0 * (SIDE + 26.0);
    stacked(&mut svg, &partition, of_ffn, (x, top), (SIDE, SIDE));
    svg.text("soft", "middle", (x + SIDE / 2.0, top - 8.0), "projection: rows");
    all_reduce(&mut svg, (x + SIDE + 12.0, top), SIDE);
    svg.line((LEFT + WIDE + 8.0, top + SIDE / 2.0), (x - 8.0, top + SIDE / 2.0));
    svg.text("soft", "middle", ((LEFT + WIDE + x) / 2.0, top + SIDE / 2.0 - 8.0), "GELU: no exchange");
    Ok(svg.finish("One layer of gpt2-xl over two ranks"))
}

/// A matrix whose rows are dealt out.
fn stacked(
    svg: &mut Svg,
    partition: &Partition,
    of: impl Fn(&Share) -> (f64, f64),
    (x, y): (f64, f64),
    (width, height): (f64, f64),
) {
    for (rank, share) in partition.shares().iter().enumerate() {
        let (from, to) = of(share);
        svg.rect(class(rank), (x, y + from * height), (width, (to - from) * height - 0.8), "");
    }
}

fn all_reduce(svg: &mut Svg, (x, y): (f64, f64), height: f64) {
    svg.rect("sum", (x, y), (8.0, height), "all-reduce");
    svg.text("soft", "start", (x - 12.0, y + height + 18.0), "+ all-reduce");
}
