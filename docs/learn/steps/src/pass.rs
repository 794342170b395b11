//! Step 2. From tokens to logits: every layer adds to a vector for each token what the tokens before it say, and what it thinks.
//!
//! Computes any rows of any texts together. Knows neither where keys and values are kept ([`Memory`]) nor how products are computed.
//! `reduce` adds up what several ranks have computed; for one it does nothing.

use crate::model::{Model, dot};

/// A token of a text at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which text.
    pub text: usize,
    /// Tokens before it.
    pub position: usize,
    /// Its id.
    pub token: u32,
}

/// Keys and values of tokens that were seen, `[width]` numbers each (on a rank: of its heads).
pub trait Memory {
    /// Notes those of a row.
    fn keep(&mut self, layer: usize, row: &Row, key: &[f32], value: &[f32]);
    /// Those of a position of a text.
    fn at(&self, layer: usize, text: usize, position: usize) -> (&[f32], &[f32]);
}

/// Sees the shares that a head gives to the positions up to a row's: layer, head, row, shares.
pub type Look<'a> = &'a mut dyn FnMut(usize, usize, &Row, &[f32]);

/// Logits `[rows][vocab]`. Rows of one text come in the order of their positions.
pub fn pass(
    model: &Model,
    rows: &[Row],
    memory: &mut dyn Memory,
    reduce: &mut dyn FnMut(&mut Vec<f32>),
    look: Look<'_>,
) -> Vec<f32> {
    let mut x: Vec<f32> = rows.iter().flat_map(|row| model.embedding(row.token, row.position)).collect();
    for (i, layer) in model.layers.iter().enumerate() {
        let qkv = layer.qkv.apply(&layer.norm_1.apply(&x));
        let mut mixed = layer.out.apply(&attention(model, i, rows, &qkv, memory, look));
        reduce(&mut mixed);
        x.iter_mut().zip(&mixed).for_each(|(x, y)| *x += y);
        let mut thought =
            layer.down.apply(&layer.up.apply(&layer.norm_2.apply(&x)).into_iter().map(gelu).collect::<Vec<_>>());
        reduce(&mut thought);
        x.iter_mut().zip(&thought).for_each(|(x, y)| *x += y);
    }
    model.head.times(&model.norm.apply(&x))
}

/// Every row looks at its text up to itself, once per head: `[rows][3][heads][d]` becomes `[rows][heads][d]`.
fn attention(
    model: &Model,
    layer: usize,
    rows: &[Row],
    qkv: &[f32],
    memory: &mut dyn Memory,
    look: Look<'_>,
) -> Vec<f32> {
    let d = model.sizes.head();
    let width = model.heads * d;
    for (row, qkv) in rows.iter().zip(qkv.chunks_exact(3 * width)) {
        memory.keep(layer, row, &qkv[width..2 * width], &qkv[2 * width..]);
    }
    let mut mixed = vec![0.0; rows.len() * width];
    for (r, row) in rows.iter().enumerate() {
        for head in 0..model.heads {
            let of_head = head * d..(head + 1) * d;
            let query = &qkv[r * 3 * width..][of_head.clone()];
            // How well does each key fit the query? What comes later is not asked.
            let score =
                |position| dot(query, &memory.at(layer, row.text, position).0[of_head.clone()]) / (d as f32).sqrt();
            let mut shares: Vec<f32> = (0..=row.position).map(score).collect();
            softmax(&mut shares);
            look(layer, head, row, &shares);
            let mixed = &mut mixed[r * width..][of_head.clone()];
            for (position, share) in shares.iter().enumerate() {
                let value = &memory.at(layer, row.text, position).1[of_head.clone()];
                mixed.iter_mut().zip(value).for_each(|(sum, value)| *sum += share * value);
            }
        }
    }
    mixed
}

/// Scores become shares that sum to 1. The largest is taken off first, so that no exponential overflows.
pub fn softmax(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - most).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// GPT-2's bend, by the tangent.
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh())
}

/// For who does not want to see.
pub fn unseen(_: usize, _: usize, _: &Row, _: &[f32]) {}

/// For who is alone.
pub fn alone(_: &mut Vec<f32>) {}

/// The rows of a text's tokens from `start` on.
pub fn rows_of(text: usize, tokens: &[u32], start: usize) -> Vec<Row> {
    tokens.iter().enumerate().skip(start).map(|(position, &token)| Row { text, position, token }).collect()
}

/// The logits of the last row.
pub fn last<'a>(logits: &'a [f32], model: &Model) -> &'a [f32] {
    &logits[logits.len() - model.sizes.vocab..]
}
