//! Who holds what: whole units of a layer, dealt out to ranks.
//!
//! ```text
//! gpt2-xl over 2 ranks     heads (25)              FFN blocks (100)        vocabulary blocks (786)
//!   rank 0                 0 .. 13                 columns 0 .. 3200       rows 0 .. 25152
//!   rank 1                 13 .. 25                columns 3200 .. 6400    rows 25152 .. 50257
//! ```
//! Invariant: the shares of each kind are contiguous, in rank order, disjoint, and cover everything; no unit is
//! ever cut. A share may be empty: its rank still joins every reduction.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{
    parts::{LayerPart, Part, Term},
    shape::ModelShape,
};

/// Columns of the MLP's hidden layer that stay together. The last block of a layer may be shorter.
pub const FFN_BLOCK: usize = 64;
/// Rows of the vocabulary that stay together. The last block may be shorter.
pub const VOCAB_BLOCK: usize = 64;
/// Columns of the residual stream that stay together. The last block may be shorter.
pub const WIDTH_BLOCK: usize = 64;

/// What one rank holds of every layer, as ranges of global indices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Query heads; never empty.
    pub heads: Range<usize>,
    /// Heads of keys and values that those read. Where ranks are more than they, some stand on several.
    pub kv_heads: Range<usize>,
    /// Columns of the MLP's hidden layer.
    pub ffn: Range<usize>,
    /// Rows of the token embedding, which is also the LM head.
    pub vocab: Range<usize>,
}

/// The shares of all ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    shares: Vec<Share>,
}

/// The linear layers of a block, as ranks compute them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linear {
    /// Column-parallel: queries, keys and values side by side.
    Qkv,
    /// Row-parallel.
    AttentionOutput,
    /// Column-parallel: of a gated MLP gate and up side by side.
    Up,
    /// Row-parallel.
    Down,
}

impl Linear {
    /// Those of a block.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::AttentionOutput, Self::Up, Self::Down];
}

/// What a rank holds of a linear layer: outputs of some parts, side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearShare {
    /// Inputs that the rank has, the same of all parts.
    pub inputs: Range<usize>,
    /// Parts with the outputs that the rank makes.
    pub pieces: Vec<(LayerPart, Range<usize>)>,
    /// Inputs that stay together: a head, a block of the FFN, or so many of the residual stream.
    pub unit: usize,
}

impl LinearShare {
    /// Outputs of all parts.
    pub fn outputs(&self) -> usize {
        self.pieces.iter().map(|(_, outputs)| outputs.len()).sum()
    }

    /// The parts of a block that it is made of, matrices or biases, with the outputs of each.
    pub fn of_layer(&self, layer: usize, term: Term) -> impl Iterator<Item = (Part, Range<usize>)> {
        self.pieces.iter().map(move |(part, outputs)| (Part::Layer(layer, *part, term), outputs.clone()))
    }
}

/// Bytes of the weights of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightBytes {
    /// Of all.
    pub all: u64,
    /// Of those of which a step looks up some rows; it reads the others from end to end.
    pub looked_up: u64,
}

impl Share {
    /// Columns of its keys and of its values, among those of all.
    pub fn value_columns(&self, shape: &ModelShape) -> Range<usize> {
        self.kv_heads.start * shape.attention.head_dim..self.kv_heads.end * shape.attention.head_dim
    }

    /// Query heads of its first group that other ranks hold.
    pub fn skipped_heads(&self, shape: &ModelShape) -> usize {
        self.heads.start - self.kv_heads.start * shape.attention.group()
    }

    /// What of a linear layer of each block.
    pub fn linear(&self, shape: &ModelShape, linear: Linear) -> LinearShare {
        let d = shape.attention.head_dim;
        let queries = self.heads.start * d..self.heads.end * d;
        let (kv, all) = (self.value_columns(shape), 0..shape.width);
        let (inputs, pieces, unit) = match linear {
            Linear::Qkv => {
                let pieces = vec![(LayerPart::Query, queries), (LayerPart::Key, kv.clone()), (LayerPart::Value, kv)];
                (all, pieces, WIDTH_BLOCK)
            }
            Linear::AttentionOutput => (queries, vec![(LayerPart::AttentionOutput, all)], d),
            Linear::Up => {
                let parts = if shape.mlp.gated { &[LayerPart::Gate, LayerPart::Up][..] } else { &[LayerPart::Up] };
                (all, parts.iter().map(|&part| (part, self.ffn.clone())).collect(), WIDTH_BLOCK)
            }
            Linear::Down => (self.ffn.clone(), vec![(LayerPart::Down, all)], FFN_BLOCK),
        };
        LinearShare { inputs, pieces, unit }
    }

    /// Rows and columns of a part that the rank reads; of a vector, which is one row, elements.
    pub fn of_part(&self, shape: &ModelShape, part: Part) -> [Range<usize>; 2] {
        let whole = || match part.sizes(shape)[..] {
            [rows, columns] => [0..rows, 0..columns],
            [elements] => [0..1, 0..elements],
            _ => unreachable!("a part is a matrix or a vector"),
        };
        match part {
            Part::Embedding | Part::Head => [self.vocab.clone(), 0..shape.width],
            Part::Layer(_, LayerPart::ValueTable, _) => [0..shape.vocab_size, self.value_columns(shape)],
            Part::Layer(_, LayerPart::ValueGate, _) => {
                let [channels, _] = whole();
                [channels, self.kv_heads.clone()]
            }
            Part::Layer(_, wanted, term) if wanted.is_linear() => {
                let of = |LinearShare { inputs, pieces, .. }| {
                    let (_, outputs) = pieces.into_iter().find(|(piece, _)| *piece == wanted)?;
                    Some([if term == Term::Weight { inputs } else { 0..1 }, outputs])
                };
                let mut held = Linear::ALL.into_iter().map(|linear| self.linear(shape, linear));
                held.find_map(of).expect("a layer that a model has is made of its parts")
            }
            _ => whole(),
        }
    }

    /// Bytes of all weights that the rank holds. `matrix` says those of one by its unit, inputs and outputs, vocabularies included; the
    /// rest is f32.
    pub fn bytes(
        &self,
        shape: &ModelShape,
        holds_positions: bool,
        matrix: impl Fn(usize, usize, usize) -> usize,
    ) -> WeightBytes {
        let floats = |count: usize| count * size_of::<f32>();
        let linears = Linear::ALL.map(|linear| {
            let held = self.linear(shape, linear);
            matrix(held.unit, held.inputs.len(), held.outputs()) + floats(held.outputs())
        });
        let other = |part| match part {
            Part::Embedding | Part::Head => matrix(WIDTH_BLOCK, shape.width, self.vocab.len()),
            Part::Positions if !holds_positions => 0,
            Part::Layer(_, LayerPart::ValueTable, _) => {
                matrix(shape.attention.head_dim, self.value_columns(shape).len(), shape.vocab_size)
            }
            Part::Layer(_, part, _) if part.is_linear() => 0,
            _ => floats(part.sizes(shape).iter().product()),
        };
        let is_looked_up = |part| match part {
            Part::Embedding => !shape.tied_head,
            part => matches!(part, Part::Positions | Part::Layer(_, LayerPart::ValueTable, _)),
        };
        let looked_up = shape.sum_of_parts(|part| if is_looked_up(part) { other(part) } else { 0 });
        let all = shape.layers * linears.iter().sum::<usize>() + shape.sum_of_parts(other);
        WeightBytes { all: all as u64, looked_up: looked_up as u64 }
    }
}

/// Why a model cannot be split as asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// A head is the smallest unit of attention.
    #[error(
        "--nproc {world} is more than the model's {heads} attention heads\n  hint: a head is never split; use --nproc 1 to {heads}"
    )]
    MoreRanksThanHeads {
        /// Ranks asked for.
        world: usize,
        /// Heads of the model.
        heads: usize,
    },
    /// Nothing to run on.
    #[error("--nproc must be at least 1")]
    NoRanks,
}

impl Partition {
    /// Deals the units of `shape` to `world` ranks, as evenly as whole units allow: where they do not divide,
    /// the first ranks hold one unit more.
    ///
    /// # Errors
    /// When there are no ranks, or more ranks than heads.
    pub fn new(shape: &ModelShape, world: usize) -> Result<Self, PartitionError> {
        // Before there are as many weights: whoever typed the number may have slipped.
        check_world(shape, world)?;
        Self::weighted(shape, &vec![1.0; world])
    }

    /// Deals them in proportion to `weights`, which are above 0, one a rank; every rank has a head.
    ///
    /// # Errors
    /// As [`Partition::new`].
    pub fn weighted(shape: &ModelShape, weights: &[f64]) -> Result<Self, PartitionError> {
        let world = weights.len();
        check_world(shape, world)?;
        let attention = &shape.attention;
        // Query heads that read the same keys.
        let group = attention.group();
        let share = |((heads, ffn), vocab): ((Range<usize>, _), _)| Share {
            kv_heads: heads.start / group..heads.end.div_ceil(group),
            heads,
            ffn,
            vocab,
        };
        let heads = deal(attention.heads, 1, weights, 1);
        let ffn = deal(shape.mlp.inner, FFN_BLOCK, weights, 0);
        let vocab = deal(shape.vocab_size, VOCAB_BLOCK, weights, 0);
        Ok(Self { shares: heads.into_iter().zip(ffn).zip(vocab).map(share).collect() })
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.shares.len()
    }

    /// The share of `rank`.
    pub fn share(&self, rank: usize) -> &Share {
        &self.shares[rank]
    }

    /// All shares in rank order.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }
}

/// Whether so many ranks can split `shape`.
fn check_world(shape: &ModelShape, world: usize) -> Result<(), PartitionError> {
    match (world, shape.attention.heads) {
        (0, _) => Err(PartitionError::NoRanks),
        (world, heads) if world > heads => Err(PartitionError::MoreRanksThanHeads { world, heads }),
        _ => Ok(()),
    }
}

/// The range of `total` items that each rank holds when whole blocks of `block` items are dealt out by weight, `least` or more to each.
fn deal(total: usize, block: usize, weights: &[f64], least: usize) -> Vec<Range<usize>> {
    let (blocks, sum) = (total.div_ceil(block), weights.iter().sum::<f64>());
    let due: Vec<f64> = weights.iter().map(|weight| blocks as f64 * weight / sum).collect();
    let mut dealt: Vec<usize> = due.iter().map(|&due| (due as usize).max(least)).collect();
    // What is left goes one by one to whoever is furthest below its due, of several to the first; where the least of each was too much,
    // it comes from whoever is furthest above.
    let short = |dealt: &[usize], rank: usize| due[rank] - dealt[rank] as f64;
    let ranks = || 0..weights.len();
    while dealt.iter().sum::<usize>() < blocks {
        let of_all = ranks().rev().max_by(|&a, &b| short(&dealt, a).total_cmp(&short(&dealt, b)));
        dealt[of_all.expect("there are ranks")] += 1;
    }
    while dealt.iter().sum::<usize>() > blocks {
        let above = ranks().filter(|&rank| dealt[rank] > least);
        let of_all = above.min_by(|&a, &b| short(&dealt, a).total_cmp(&short(&dealt, b)));
        dealt[of_all.expect("there are as many blocks as ranks need")] -= 1;
    }
    let ends = dealt.iter().scan(0, |end, blocks| {
        *end += blocks;
        Some((*end - blocks, *end))
    });
    ends.map(|(start, end)| (start * block).min(total)..(end * block).min(total)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(heads: usize, inner: usize, vocab_size: usize) -> ModelShape {
        let json =
            format!(r#"{{"n_embd":{},"n_head":{heads},"n_inner":{inner},"vocab_size":{vocab_size}}}"#, heads * 8);
        ModelShape::from_config_json(&json).unwrap()
    }

    #[test]
    fn shares_follow_weights_and_every_rank_has_a_head() {
        let shape = shape(12, 3072, 50257);
        let dealt = |weights: &[f64]| {
            let partition = Partition::weighted(&shape, weights).unwrap();
            let shares = partition.shares();
            assert_eq!((shares[0].heads.start, shares[weights.len() - 1].vocab.end), (0, 50257));
            assert!(
                shares
                    .windows(2)
                    .all(|two| two[0].heads.end == two[1].heads.start && two[0].ffn.end == two[1].ffn.start)
            );
            shares.iter().map(|share| share.heads.len()).collect::<Vec<_>>()
        };
        assert_eq!(dealt(&[3.0, 1.0]), [9, 3]);
        assert_eq!(dealt(&[2.0, 1.0, 1.0]), [6, 3, 3]);
        assert_eq!(dealt(&[1000.0, 1.0, 1.0]), [10, 1, 1]);
        assert_eq!(dealt(&[7.0; 5]), [3, 3, 2, 2, 2]);
        let two = Partition::weighted(&shape, &[3.0, 1.0]).unwrap();
        assert_eq!((two.share(0).ffn.clone(), two.share(1).vocab.clone()), (0..2304, 590 * 64..50257));
    }

    #[test]
    fn twenty_five_heads_over_two_ranks() {
        let partition = Partition::new(&shape(25, 6400, 50257), 2).unwrap();
        assert_eq!(partition.share(0), &Share { heads: 0..13, kv_heads: 0..13, ffn: 0..3200, vocab: 0..25152 });
        assert_eq!(
            partition.share(1),
            &Share { heads: 13..25, kv_heads: 13..25, ffn: 3200..6400, vocab: 25152..50257 }
        );
    }

    #[test]
    fn every_split_covers_everything_once() {
        for (heads, inner, vocab) in [(5, 160, 307), (7, 77, 389), (3, 48, 61), (25, 6400, 50257), (1, 1, 1)] {
            let shape = shape(heads, inner, vocab);
            for world in 1..=heads {
                let partition = Partition::new(&shape, world).unwrap();
                let check = |total: usize, unit: usize, ranges: Vec<Range<usize>>| {
                    let mut end = 0;
                    for range in &ranges {
                        assert_eq!(range.start, end, "contiguous in rank order");
                        assert!(range.is_empty() || range.start % unit == 0, "no unit is cut");
                        end = range.end;
                    }
                    assert_eq!(end, total);
                    let units = ranges.iter().map(|r| r.len().div_ceil(unit));
                    assert!(units.clone().max().unwrap() - units.min().unwrap() <= 1, "as even as units allow");
                };
                check(heads, 1, partition.shares().iter().map(|s| s.heads.clone()).collect());
                check(inner, FFN_BLOCK, partition.shares().iter().map(|s| s.ffn.clone()).collect());
                check(vocab, VOCAB_BLOCK, partition.shares().iter().map(|s| s.vocab.clone()).collect());
            }
        }
    }

    #[test]
    fn a_rank_holds_every_kv_head_that_its_query_heads_read() {
        let mut shape = shape(9, 1536, 49152);
        shape.attention.kv_heads = 3;
        let held = |world| {
            let partition = Partition::new(&shape, world).unwrap();
            partition.shares().iter().map(|s| (s.heads.len(), s.kv_heads.clone())).collect::<Vec<_>>()
        };
        assert_eq!(held(1), [(9, 0..3)]);
        assert_eq!(held(2), [(5, 0..2), (4, 1..3)]);
        assert_eq!(held(5), [(2, 0..1), (2, 0..2), (2, 1..2), (2, 2..3), (1, 2..3)]);
        assert!(held(9).iter().all(|(heads, kv_heads)| (*heads, kv_heads.len()) == (1, 1)), "more ranks than KV heads");
        let qkv = Partition::new(&shape, 2).unwrap().share(1).linear(&shape, Linear::Qkv);
        assert_eq!((qkv.outputs(), &qkv.pieces[1]), ((4 + 2 + 2) * 8, &(LayerPart::Key, 8..24)));
    }

    #[test]
    fn more_ranks_than_heads_is_refused_with_the_limit() {
        let error = Partition::new(&shape(5, 160, 307), 6).unwrap_err();
        assert_eq!(error, PartitionError::MoreRanksThanHeads { world: 6, heads: 5 });
        assert!(error.to_string().contains("1 to 5"));
        let slip = Partition::new(&shape(5, 160, 307), usize::MAX).unwrap_err();
        assert_eq!(slip, PartitionError::MoreRanksThanHeads { world: usize::MAX, heads: 5 });
        assert_eq!(Partition::new(&shape(5, 160, 307), 0), Err(PartitionError::NoRanks));
    }
}
