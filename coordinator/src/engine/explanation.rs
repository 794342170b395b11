//! What is told of one generated token where a request asks for it: how the choice narrowed, and where its step's time went.
//!
//! Holds numbers only. The [`sampler`](crate::engine::sampler) makes the first half, the ranks and the engine the second.

use std::{sync::Arc, time::Duration};

use nanoinfer_shared::protocol::{StepOutput, StepPlan, StepTimes, TokenId};

/// One token, explained.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// How it was chosen.
    pub narrowing: Narrowing,
    /// When; one for all tokens of a step.
    pub step: Arc<StepReport>,
}

/// From every token of the vocabulary to one.
#[derive(Clone, Debug, PartialEq)]
pub struct Narrowing {
    /// The processors that were not neutral, in the order in which they are applied.
    pub chain: Vec<Processed>,
    /// The tokens that were the most likely before any of them, descending; last, where it is none of these, the one drawn.
    pub alternatives: Vec<Alternative>,
}

/// What one processor did.
#[derive(Clone, Debug, PartialEq)]
pub struct Processed {
    /// Its name in a request.
    pub processor: &'static str,
    /// Its setting, where that is one number.
    pub value: Option<f64>,
    /// Tokens whose logits it changed.
    pub changed: usize,
    /// Tokens that cannot be drawn any more.
    pub removed: usize,
    /// Their share of the probability that was there before it, 0 to 1.
    pub removed_mass: f64,
}

impl Processed {
    /// A processor that has done nothing yet.
    pub(crate) fn neutral(processor: &'static str, value: f64) -> Self {
        Self { processor, value: Some(value), changed: 0, removed: 0, removed_mass: 0.0 }
    }
}

/// A token that stood there, or could have.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// Its id.
    pub id: TokenId,
    /// The model's log-probability, before any processor.
    pub logprob: f32,
    /// Probability of being drawn, after all of them.
    pub probability: f64,
    /// What ruled it out.
    pub removed_by: Option<&'static str>,
}

/// One step of all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// Its number, from 0.
    pub step: u64,
    /// Sequences that took part.
    pub sequences: usize,
    /// Tokens computed, those of prompts included.
    pub tokens: usize,
    /// From sending the plan to having every rank's answer.
    pub elapsed: Duration,
    /// What each rank says, in rank order.
    pub ranks: Vec<StepTimes>,
}

impl StepReport {
    /// That of a step that was timed.
    pub(crate) fn of(plan: &StepPlan, elapsed: Duration, answers: &[StepOutput]) -> Self {
        Self {
            step: plan.step,
            sequences: plan.sequences.len(),
            tokens: plan.sequences.iter().map(|sequence| sequence.tokens.len()).sum(),
            elapsed,
            ranks: answers.iter().filter_map(|answer| answer.times.clone()).collect(),
        }
    }
}
