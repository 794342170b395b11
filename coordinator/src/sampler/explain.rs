//! What the chain did to one row, told after the draw: the draw itself takes no other way because of it.
//!
//! Does not know ranks or texts. Invariant: the filters are applied to the same descending order as they would be to decide, so
//! counts and masses are those of the draw.

use nanoinfer_shared::protocol::{RowSlice, TokenId};

use super::{
    Draw, Method,
    filter::{Filter, Known},
    logprobs,
    ranked::Ranked,
};
use crate::explanation::{Alternative, Narrowing, Processed};

/// How many of the most likely tokens are told of.
pub(super) const ALTERNATIVES: usize = 8;

impl Draw {
    /// What happened to the vocabulary until `id`, whose raw logit is `raw`, was drawn. `tokens` are as much of the descending
    /// order as decides, all of it if `complete`.
    pub(super) fn narrowing(
        &self,
        (id, raw): (TokenId, f32),
        (tokens, complete): (&[Ranked], bool),
        slices: &[&RowSlice],
    ) -> Narrowing {
        let mut chain = self.adjustments.told();
        let mut alternatives = self.most_likely(id, raw, slices);
        // A token that was ruled out stays so.
        let rule_out = |alternatives: &mut [Alternative], by, is_left: &dyn Fn(TokenId) -> bool| {
            for alternative in alternatives.iter_mut().filter(|a| a.removed_by.is_none() && !is_left(a.id)) {
                alternative.removed_by = Some(by);
            }
        };
        rule_out(&mut alternatives, "min_tokens", &|id| !self.adjustments.forbids(id));
        let forbidden: usize = chain.iter().map(|processed| processed.removed).sum();
        let mut known = self.known(tokens, complete, self.normaliser(slices));
        // The order may hold tokens that must not come, behind all others.
        let count = |known: &Known| known.tokens.iter().filter(|token| !self.adjustments.forbids(token.id)).count();
        let mut left = self.vocab_size - forbidden;
        let value = f64::from(if self.is_greedy() { 0.0 } else { self.temperature() });
        let mut temperature = neutral("temperature", value);
        match &self.method {
            Method::Greedy => {
                // Where nothing may come, something is drawn all the same, and nothing is left to remove.
                temperature.removed = left.saturating_sub(1);
                let first = known.tokens.first().filter(|_| left > 0);
                temperature.removed_mass = 1.0 - first.map_or(1.0, |token| token.probability);
                chain.push(temperature);
                rule_out(&mut alternatives, "temperature", &|other| other == id);
            }
            Method::Random { filters, .. } => {
                if value != 1.0 {
                    temperature.changed = self.vocab_size;
                    chain.push(temperature);
                }
                for filter in filters {
                    let mass = known.mass;
                    let Some(kept) = filter.apply(known.clone()) else { break };
                    known = kept;
                    let (name, value) = named(*filter);
                    chain.push(Processed {
                        // Ids with no probability may be missing from the order; they count as removed by the first cut.
                        removed: left - count(&known),
                        removed_mass: (1.0 - known.mass / mass).max(0.0),
                        ..neutral(name, value)
                    });
                    left = count(&known);
                    rule_out(&mut alternatives, name, &|id| known.tokens.iter().any(|token| token.id == id));
                }
            }
        }
        for alternative in &mut alternatives {
            alternative.probability = match (alternative.removed_by, &self.method) {
                (Some(_), _) => 0.0,
                (None, Method::Greedy) => 1.0,
                (None, Method::Random { .. }) => (alternative.probability / known.mass).min(1.0),
            };
        }
        Narrowing { chain, alternatives }
    }

    /// The most likely before any processor and the token drawn, with their probabilities over the vocabulary after penalties
    /// and temperature.
    fn most_likely(&self, id: TokenId, raw: f32, slices: &[&RowSlice]) -> Vec<Alternative> {
        let report = logprobs::report(id, raw, ALTERNATIVES as u32, slices);
        let normaliser = self.normaliser(slices);
        let mut tokens = report.top;
        if tokens.iter().all(|&(other, _)| other != id) {
            tokens.push((id, report.logprob));
        }
        let alternative = |(other, logprob)| {
            let raw = if other == id { Some(raw) } else { logprobs::raw_logit(other, slices) };
            let logit = self.adjustments.apply(other, raw.unwrap_or(f32::NEG_INFINITY));
            Alternative { id: other, logprob, probability: self.probability(logit, normaliser), removed_by: None }
        };
        tokens.into_iter().map(alternative).collect()
    }

    fn is_greedy(&self) -> bool {
        matches!(self.method, Method::Greedy)
    }
}

/// A processor that has done nothing yet.
pub(super) fn neutral(processor: &'static str, value: f64) -> Processed {
    Processed { processor, value: Some(value), changed: 0, removed: 0, removed_mass: 0.0 }
}

/// Its name in a request, and its setting.
fn named(filter: Filter) -> (&'static str, f64) {
    match filter {
        Filter::TopK(k) => ("top_k", k as f64),
        Filter::TopP(p) => ("top_p", p),
        Filter::MinP(ratio) => ("min_p", ratio),
        Filter::Typical(p) => ("typical_p", p),
    }
}
