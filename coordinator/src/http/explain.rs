//! `explain` in a reply: of each generated token, the alternatives, what the sampling chain did, and where its step's time went.

use std::time::Duration;

use nanoinfer_shared::protocol::StepTimes;
use serde_json::{Value, json};

use super::logprobs;
use crate::{
    explanation::{Alternative, Explanation, Processed},
    text::{Tokenizer, generation::GeneratedToken},
};

/// One object for each token that was explained.
pub(super) fn tokens(tokenizer: &Tokenizer, tokens: &[GeneratedToken]) -> Vec<Value> {
    let explained = |token: &GeneratedToken| {
        let Explanation { narrowing, step } = token.explanation.as_deref()?;
        let alternative = |a: &Alternative| {
            json!({
                "token": tokenizer.spell(a.id),
                "id": a.id,
                "logprob": logprobs::number(a.logprob),
                "probability": a.probability,
                "removed_by": a.removed_by,
            })
        };
        Some(json!({
            "token": tokenizer.spell(token.id),
            "id": token.id,
            "alternatives": narrowing.alternatives.iter().map(alternative).collect::<Vec<_>>(),
            "chain": narrowing.chain.iter().map(processed).collect::<Vec<_>>(),
            "step": {
                "number": step.step,
                "sequences": step.sequences,
                "tokens": step.tokens,
                "ms": ms(step.elapsed),
                "ranks": step.ranks.iter().enumerate().map(rank).collect::<Vec<_>>(),
            },
        }))
    };
    tokens.iter().filter_map(explained).collect()
}

fn processed(p: &Processed) -> Value {
    json!({
        "processor": p.processor,
        "value": p.value.map(as_typed),
        "changed": p.changed,
        "removed": p.removed,
        "removed_mass": p.removed_mass,
    })
}

fn rank((rank, times): (usize, &StepTimes)) -> Value {
    let stages: Vec<Value> = times
        .stages
        .iter()
        .map(|stage| json!({"stage": stage.name, "kind": stage.category.name(), "ms": ms(stage.time)}))
        .collect();
    json!({"rank": rank, "ms": ms(times.whole), "stages": stages})
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
            assert_eq!(json!(as_typed(taken.into())).to_string(), typed);
        }
        assert_eq!(as_typed(4_000_000_001.0), 4_000_000_001.0, "a count is no f32");
    }
}
