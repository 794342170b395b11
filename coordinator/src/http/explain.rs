//! `explain` in a reply: of each generated token, the alternatives, what the sampling chain did, and where its step's time went.

use std::time::Duration;

use nanoinfer_shared::protocol::{StepTimes, TokenId};
use serde::{Serialize, Serializer};

use super::logprobs;
use crate::{
    explanation::{self, Processed},
    text::{Tokenizer, generation::GeneratedToken},
};

/// One object for each token that was explained.
pub(super) struct Explained<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) tokens: &'a [GeneratedToken],
}

#[derive(Serialize)]
struct Token<'a> {
    alternatives: Vec<Alternative>,
    chain: Vec<Processor>,
    id: TokenId,
    step: Step<'a>,
    token: String,
}

#[derive(Serialize)]
struct Alternative {
    id: TokenId,
    logprob: f64,
    probability: f64,
    removed_by: Option<&'static str>,
    token: String,
}

#[derive(Serialize)]
struct Processor {
    changed: usize,
    processor: &'static str,
    removed: usize,
    removed_mass: f64,
    value: Option<f64>,
}

#[derive(Serialize)]
struct Step<'a> {
    ms: f64,
    number: u64,
    ranks: Vec<Rank<'a>>,
    sequences: usize,
    tokens: usize,
}

#[derive(Serialize)]
struct Rank<'a> {
    ms: f64,
    rank: usize,
    stages: Vec<Stage<'a>>,
}

#[derive(Serialize)]
struct Stage<'a> {
    kind: &'static str,
    ms: f64,
    stage: &'a str,
}

impl<'a> Explained<'a> {
    fn token(&self, token: &'a GeneratedToken) -> Option<Token<'a>> {
        let explanation::Explanation { narrowing, step } = token.explanation.as_deref()?;
        let alternative = |a: &explanation::Alternative| Alternative {
            id: a.id,
            logprob: logprobs::number(a.logprob),
            probability: a.probability,
            removed_by: a.removed_by,
            token: self.tokenizer.spell(a.id),
        };
        Some(Token {
            alternatives: narrowing.alternatives.iter().map(alternative).collect(),
            chain: narrowing.chain.iter().map(processor).collect(),
            id: token.id,
            step: Step {
                ms: ms(step.elapsed),
                number: step.step,
                ranks: step.ranks.iter().enumerate().map(rank).collect(),
                sequences: step.sequences,
                tokens: step.tokens,
            },
            token: self.tokenizer.spell(token.id),
        })
    }
}

impl Serialize for Explained<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.tokens.iter().filter_map(|token| self.token(token)))
    }
}

fn processor(p: &Processed) -> Processor {
    Processor {
        changed: p.changed,
        processor: p.processor,
        removed: p.removed,
        removed_mass: p.removed_mass,
        value: p.value.map(as_typed),
    }
}

fn rank((rank, times): (usize, &StepTimes)) -> Rank<'_> {
    let stages = times.stages.iter();
    let stages = stages.map(|stage| Stage { kind: stage.category.name(), ms: ms(stage.time), stage: &stage.name });
    Rank { ms: ms(times.whole), rank, stages: stages.collect() }
}

/// A setting as it was typed: 0.8, where the nearest `f32`, which the processor took, is 0.800000011920929.
fn as_typed(value: f64) -> f64 {
    let nearest = value as f32;
    if f64::from(nearest) == value { nearest.to_string().parse().unwrap_or(value) } else { value }
}

/// Milliseconds, to the microsecond.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_as_they_were_typed() {
        for typed in ["0.0", "0.8", "1.1", "100.0", "0.001", "-0.25"] {
            let taken: f32 = typed.parse().unwrap();
            assert_eq!(serde_json::json!(as_typed(taken.into())).to_string(), typed);
        }
        assert_eq!(as_typed(4_000_000_001.0), 4_000_000_001.0, "a count is no f32");
    }
}
