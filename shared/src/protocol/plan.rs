//! A step plan: everything that a forward pass needs to know.
//!
//! Invariant: a step is a pure function of plan, weights and KV pool.

use serde::{Deserialize, Serialize};

/// Tokens in one KV block. One block is also the tile of attention.
pub const BLOCK_TOKENS: usize = 16;

/// A token of the model's vocabulary.
pub type TokenId = u32;

/// A KV block: the same index on every rank, each holding the heads of its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockId(pub u32);

/// One forward pass over the new tokens of some sequences.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepPlan {
    /// Counts from 0; appears in errors and traces.
    pub step: u64,
    /// Sequences with their new tokens. Order does not change any result.
    pub sequences: Vec<SequenceStep>,
    /// Ranks are to tell where their time went.
    pub timed: bool,
}

/// New tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SequenceStep {
    /// New tokens in order; at least one.
    pub tokens: Vec<TokenId>,
    /// Position of the first of them: tokens before it are in the KV pool.
    pub start: u32,
    /// The token before the first of them, where there is one: some models look at it, and ranks keep no tokens.
    pub before: Option<TokenId>,
    /// Block table: block `i` holds positions `16 i .. 16 i + 16`; covers `start + tokens.len()` positions.
    pub blocks: Vec<BlockId>,
    /// What is wanted after which of the new tokens, by ascending row.
    pub outputs: Vec<RowRequest>,
}

/// What is wanted of the distribution after one token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowRequest {
    /// Index into [`SequenceStep::tokens`].
    pub row: u32,
    /// What of it.
    pub wants: Wants,
}

/// The answers to a row are: nothing (no request), log-probabilities of given tokens, or candidates to draw from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Wants {
    /// Logits of `ids`, and the `top` highest of the row.
    Targets {
        /// Tokens to score.
        ids: Vec<TokenId>,
        /// How many of the highest logits to add.
        top: u32,
    },
    /// The `k` highest logits among the ids that are not `adjusted`, and the raw logits of those that are.
    /// The rank keeps the row for a [`ToRank::FetchRows`](super::ToRank::FetchRows) until the next step.
    Candidates {
        /// How many.
        k: u32,
        /// Divides logits in [`RowSlice::rest`](super::RowSlice::rest); 1 for greedy.
        temperature: f32,
        /// Ids whose logits penalties or biases will change, in any order, without repeats.
        adjusted: Vec<TokenId>,
        /// Only tokens of a mask that follows the plan ([`Masks`](super::Masks)) are candidates, and in
        /// [`RowSlice::rest`](super::RowSlice::rest). So many of the highest logits of the whole row are told beside them.
        masked: Option<u32>,
    },
}

impl StepPlan {
    /// Rows whose masks follow.
    pub fn masked_rows(&self) -> usize {
        let outputs = self.sequences.iter().flat_map(|sequence| &sequence.outputs);
        outputs.filter(|output| output.wants.is_masked()).count()
    }
}

impl Wants {
    /// Whether a mask of the row follows.
    pub fn is_masked(&self) -> bool {
        matches!(self, Self::Candidates { masked: Some(_), .. })
    }
}
