//! `explain` in a reply: of each generated token, the alternatives, what the sampling chain did, and where its step's time went.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::logprobs;
use crate::{
    explanation::{Alternative, Explanation, Processed},
    text::{GeneratedToken, Tokenizer},
};

/// One object for each token that was explained or forced, made when it is written.
pub(super) struct Explained<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) tokens: &'a [GeneratedToken],
}

impl Serialize for Explained<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let explained = |token: &GeneratedToken| match token.explanation.as_deref() {
            Some(explanation) => Some(self.token(token, explanation)),
            // There was no choice and nothing to wait for.
            None => {
                token.forced.then(|| json!({"forced": true, "id": token.id, "token": self.tokenizer.spell(token.id)}))
            }
        };
        serializer.collect_seq(self.tokens.iter().filter_map(explained))
    }
}

impl Explained<'_> {
    fn token(&self, token: &GeneratedToken, Explanation { narrowing, step }: &Explanation) -> Value {
        let alternative = |a: &Alternative| {
            json!({
                "id": a.id,
                "logprob": logprobs::number(a.logprob),
                "probability": a.probability,
                "removed_by": a.removed_by,
                "token": self.tokenizer.spell(a.id),
            })
        };
        let processor = |p: &Processed| {
            json!({
                "changed": p.changed,
                "processor": p.processor,
                "removed": p.removed,
                "removed_mass": p.removed_mass,
                "value": p.value.map(as_typed),
            })
        };
        let ranks = step.ranks.iter().enumerate().map(|(rank, times)| {
            let stages = times.stages.iter();
            let stages = stages.map(|it| json!({"kind": it.category.name(), "ms": ms(it.time), "stage": it.name}));
            json!({"ms": ms(times.whole), "rank": rank, "stages": stages.collect::<Value>()})
        });
        json!({
            "alternatives": narrowing.alternatives.iter().map(alternative).collect::<Value>(),
            "chain": narrowing.chain.iter().map(processor).collect::<Value>(),
            "id": token.id,
            "step": {
                "ms": ms(step.elapsed),
                "number": step.step,
                "ranks": ranks.collect::<Value>(),
                "sequences": step.sequences,
                "tokens": step.tokens,
            },
            "token": self.tokenizer.spell(token.id),
        })
    }
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
