//! What some families do to the residual stream beside adding to it; where a model does not, nothing happens here.
//!
//! Does not know whose these terms are. The numbers come with the shard, the rows are those of the step.

use nanoinfer_shared::protocol::TokenId;

use super::{Buffers, Pass, Row, norm};
use crate::{tile::Norm, trace::Category};

/// Of embeddings.
const NO_GAIN: Norm = Norm { gain: Vec::new(), bias: Vec::new() };

impl Pass {
    /// Tokens before rows that are in no row of the step: their embeddings stand behind the others, where the token before counts.
    pub(super) fn tokens_outside<'a>(&self, rows: &'a [Row<'_>]) -> impl Iterator<Item = TokenId> + use<'a> {
        let counts = self.shape.stream.smear.is_some();
        rows.iter().filter_map(move |row| row.before.filter(|_| counts))
    }

    /// Of the step's embeddings, `embeddings` with those outside.
    pub(super) fn norm_embeddings(&mut self, rows: &[Row<'_>], embeddings: usize) {
        if !self.shape.stream.normed_embedding {
            return;
        }
        let (c, Buffers { x, normed, .. }) = (self.shape.width, &mut self.buffers);
        let normed = &mut normed[..embeddings * c];
        norm(&mut self.kernels, &x[..embeddings * c], &NO_GAIN, &self.shape, normed);
        let x = &mut x[..rows.len() * c];
        match &self.shard.stream.smear {
            Some((gate, scale)) => self.kernels.smear(normed, &rows_before(rows), gate, *scale, x),
            None => x.copy_from_slice(normed),
        }
        self.trace.lap(Category::Rows, "norm");
    }

    /// Before a block.
    pub(super) fn mix_origin(&mut self, layer: usize, t: usize) {
        let Some([stream, back]) = &self.shard.stream.lambdas else { return };
        let (c, Buffers { x, origin, .. }) = (self.shape.width, &mut self.buffers);
        let (x, origin) = (&mut x[..t * c], &mut origin[..t * c]);
        if layer == 0 {
            origin.copy_from_slice(x);
        }
        self.kernels.mix(x, stream[layer], origin, back[layer], c);
        self.trace.lap(Category::Rows, "mix");
    }

    /// Behind a block.
    pub(super) fn keep_middle(&mut self, layer: usize, t: usize) {
        if layer == self.shape.layers / 2 && self.shape.stream.backout {
            let len = t * self.shape.width;
            self.buffers.middle[..len].copy_from_slice(&self.buffers.x[..len]);
        }
    }

    /// Behind the last one.
    pub(super) fn take_middle_away(&mut self, t: usize) {
        let Some(scale) = self.shard.stream.backout else { return };
        let (c, Buffers { x, middle, .. }) = (self.shape.width, &mut self.buffers);
        self.kernels.mix(&mut x[..t * c], 1.0, &middle[..t * c], -scale, c);
        self.trace.lap(Category::Rows, "backout");
    }
}

/// Where the embedding of the token before each row stands; none before the first of a text.
fn rows_before(rows: &[Row<'_>]) -> Vec<Option<usize>> {
    let mut outside = rows.len()..;
    let before = |(index, row): (usize, &Row<'_>)| match row {
        Row { position: 0, .. } => None,
        Row { before: Some(_), .. } => outside.next(),
        _ => Some(index - 1),
    };
    rows.iter().enumerate().map(before).collect()
}
