//! What a rank answers to a step: slices of the rows asked for, and where its time went.

use std::{ops::Deref, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::plan::TokenId;

/// One rank's answers, in the order in which the plan lists sequences and rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutput {
    /// Step of the plan.
    pub step: u64,
    /// One entry per [`RowRequest`](super::RowRequest).
    pub rows: Vec<RowSlice>,
    /// Time in all its reductions, waiting for other ranks included.
    pub reducing: Duration,
    /// Where its time went, if the plan asked.
    pub times: Option<StepTimes>,
}

/// Where one rank's time went in one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimes {
    /// From taking up the plan to having the answer.
    pub whole: Duration,
    /// In the order in which they first happened; each is summed over layers. They lie within `whole`, and waiting lies
    /// within reductions.
    pub stages: Vec<Stage>,
}

/// One kind of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What sort of thing it is.
    pub category: Category,
    /// What it is.
    pub name: String,
    /// How long it took in all.
    pub time: Duration,
}

/// Where the time of a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Category {
    /// Holds other spans.
    Whole,
    /// A matrix product with its epilogue.
    Product,
    /// Attention over the KV pool.
    Attention,
    /// Everything done to rows one by one.
    Rows,
    /// Adding up over ranks.
    Reduction,
    /// Part of a reduction: peers had not arrived.
    Waiting,
}

impl Category {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Product => "product",
            Self::Attention => "attention",
            Self::Rows => "rows",
            Self::Reduction => "reduction",
            Self::Waiting => "waiting",
        }
    }
}

/// One rank's view of one row: its slice of the vocabulary only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowSlice {
    /// `ln Σ exp(logit)` over the whole slice.
    pub all: LogSumExp,
    /// `ln Σ exp(logit / temperature)` over the ids of the slice that are not adjusted, nor left out by a mask.
    pub rest: LogSumExp,
    /// Highest logits, descending, the lower id first on ties; without the adjusted ids, and those that a mask leaves out.
    pub top: Vec<(TokenId, f32)>,
    /// Highest logits of the whole slice, where a mask leaves some out.
    pub likeliest: Vec<(TokenId, f32)>,
    /// Raw logits of the targets or adjusted ids that this rank holds.
    pub listed: Vec<(TokenId, f32)>,
}

/// `ln Σ exp(x)` as a maximum and the sum relative to it, so that slices merge without loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogSumExp {
    /// Largest term; −∞ of an empty slice.
    pub max: f32,
    /// `Σ exp(x − max)`; 0 of an empty slice.
    pub sum: f64,
}

impl LogSumExp {
    /// Of no terms.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Of the terms of both.
    pub fn merge(self, other: Self) -> Self {
        let max = self.max.max(other.max);
        if max == f32::NEG_INFINITY {
            return Self::EMPTY;
        }
        let scaled = |part: Self| part.sum * f64::from(part.max - max).exp();
        Self { max, sum: scaled(self) + scaled(other) }
    }

    /// The logarithm itself; −∞ of no terms.
    pub fn value(self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }
}

/// A rank's slice `[V_local]` of a row of raw logits.
///
/// Lent rather than copied where both sides are one process: whole rows are megabytes a step, and fresh memory for them costs
/// as much as the draw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitSlice(Arc<Vec<f32>>);

impl LogitSlice {
    /// Holds `logits` from now on: in the same memory, unless somebody still reads what was there.
    pub fn refill(&mut self, logits: &[f32]) {
        match Arc::get_mut(&mut self.0) {
            Some(memory) => {
                memory.clear();
                memory.extend_from_slice(logits);
            }
            None => self.0 = Arc::new(logits.to_vec()),
        }
    }
}

impl From<Vec<f32>> for LogitSlice {
    fn from(logits: Vec<f32>) -> Self {
        Self(Arc::new(logits))
    }
}

impl Deref for LogitSlice {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl Serialize for LogitSlice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LogitSlice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_merges_and_ignores_empty_slices() {
        let of = |x: f32| LogSumExp { max: x, sum: 1.0 };
        let merged = of(1.0).merge(of(3.0)).merge(LogSumExp::EMPTY);
        assert!((merged.value() - (1f64.exp() + 3f64.exp()).ln()).abs() < 1e-12);
        assert_eq!(LogSumExp::EMPTY.merge(LogSumExp::EMPTY), LogSumExp::EMPTY);
        assert_eq!(LogSumExp::EMPTY.value(), f64::NEG_INFINITY);
    }
}
