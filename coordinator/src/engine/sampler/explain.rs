//! What the chain did to one row, told after the draw: the draw itself takes no other way because of it.
//!
//! Does not know ranks or texts, nor how filters narrow: it is given what they left. Invariant: that is what the draw was made
//! from, or what the same filters leave of the same candidates, so counts and masses are those of the draw.

use nanoinfer_shared::protocol::{RowSlice, TokenId};

use super::{
    ALTERNATIVES, Draw,
    filter::{Filter, Left},
    logprobs,
    ranked::Ranked,
};
use crate::engine::explanation::{Alternative, Narrowing, Processed};

impl Draw {
    /// What happened to the vocabulary until `id`, whose raw logit is `raw`, was drawn. `left` is what each filter left;
    /// `normaliser` is that of the tokens that may come.
    pub(super) fn narrowing(
        &self,
        (id, raw): (TokenId, f32),
        left: &[Left],
        normaliser: f64,
        slices: &[&RowSlice],
    ) -> Narrowing {
        let mut chain = self.adjustments.report();
        let mut alternatives = self.most_likely(id, raw, normaliser, slices);
        // A token that was ruled out stays so.
        let rule_out = |alternatives: &mut [(Alternative, Ranked)], by, is_left: &dyn Fn(Ranked) -> bool| {
            for (alternative, token) in alternatives.iter_mut().filter(|(a, _)| a.removed_by.is_none()) {
                if !is_left(*token) {
                    alternative.removed_by = Some(by);
                }
            }
        };
        let forbidden: usize = chain.iter().map(|processed| processed.removed).sum();
        let (mut count, mut mass) = (self.adjustments.vocab_size - forbidden, 1.0);
        if self.greedy {
            // Where nothing may come, something is drawn all the same, and nothing is left to remove.
            let left = if count > 0 { self.probability(self.adjustments.apply(id, raw), normaliser) } else { 1.0 };
            chain.push(Processed {
                removed: count.saturating_sub(1),
                removed_mass: 1.0 - left,
                ..Processed::neutral("temperature", 0.0)
            });
            rule_out(&mut alternatives, "temperature", &|token| token.id() == id);
        } else if self.temperature != 1.0 {
            let temperature = Processed::neutral("temperature", self.temperature.into());
            chain.push(Processed { changed: self.adjustments.vocab_size, ..temperature });
        }
        for (filter, left) in self.filters.iter().zip(left) {
            let (name, value) = named(*filter);
            chain.push(Processed {
                // Tokens with no probability at all count as removed by the first cut.
                removed: count - left.count,
                removed_mass: (1.0 - left.mass / mass).max(0.0),
                ..Processed::neutral(name, value)
            });
            (count, mass) = (left.count, left.mass);
            rule_out(&mut alternatives, name, &|token| left.has(token));
        }
        let drawable = |(alternative, _): (Alternative, Ranked)| {
            let probability = match alternative.removed_by {
                Some(_) => 0.0,
                None if self.greedy => 1.0,
                None => (alternative.probability / mass).min(1.0),
            };
            Alternative { probability, ..alternative }
        };
        Narrowing { chain, alternatives: alternatives.into_iter().map(drawable).collect() }
    }

    /// The most likely before any processor and the token drawn, with their probabilities over the vocabulary after penalties
    /// and temperature, what forbade them, and their places in the order then.
    fn most_likely(&self, id: TokenId, raw: f32, normaliser: f64, slices: &[&RowSlice]) -> Vec<(Alternative, Ranked)> {
        let report = logprobs::report(id, raw, ALTERNATIVES as u32, slices);
        let mut tokens = report.top;
        if tokens.iter().all(|&(other, _)| other != id) {
            tokens.push((id, report.logprob));
        }
        let alternative = |(other, logprob)| {
            let raw = if other == id { Some(raw) } else { logprobs::raw_logit(other, slices) };
            let logit = self.adjustments.apply(other, raw.unwrap_or(f32::NEG_INFINITY));
            let probability = self.probability(logit, normaliser);
            let removed_by = self.adjustments.forbidden_by(other);
            (Alternative { id: other, logprob, probability, removed_by }, Ranked::new(other, logit))
        };
        tokens.into_iter().map(alternative).collect()
    }
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
