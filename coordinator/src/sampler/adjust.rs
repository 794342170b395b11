//! The processors that change logits of a few known tokens: bias, penalties, and tokens that must not come yet.
//!
//! Does not know the rest of the vocabulary: what is not listed here keeps its logit, so ranks may rank it.
//! Reference: `transformers/generation/logits_process.py` for the repetition penalty, with the window of llama.cpp;
//! OpenAI's API for presence and frequency, which count generated tokens only.

use nanoinfer_shared::protocol::TokenId;

use super::explain::neutral;
use crate::{explanation::Processed, request::Request};

/// What happens to the logits of some tokens before a draw, ascending by id without repeats.
#[derive(Clone, Debug)]
pub(crate) struct Adjustments {
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    effects: Vec<(TokenId, Effect)>,
}

/// Why one token's logit changes.
#[derive(Clone, Copy, Debug, Default)]
struct Effect {
    bias: f32,
    repeated: bool,
    /// Times generated, where presence or frequency matter.
    generated: u32,
    forbidden: bool,
}

impl Adjustments {
    /// For the token that follows `tokens`, the first of which are the prompt. Ids at or above `vocab_size` are dropped.
    pub(crate) fn new(request: &Request, tokens: &[TokenId], eos_token_ids: &[TokenId], vocab_size: usize) -> Self {
        let (sampling, limits) = (&request.sampling, &request.limits);
        let generated = &tokens[request.prompt.len()..];
        let mut effects: Vec<(TokenId, Effect)> =
            sampling.logit_bias.iter().map(|&(id, bias)| (id, Effect { bias, ..Effect::default() })).collect();
        if sampling.repetition_penalty != 1.0 {
            let window = sampling.repetition_window.unwrap_or(usize::MAX).min(tokens.len());
            let seen = &tokens[tokens.len() - window..];
            effects.extend(seen.iter().map(|&id| (id, Effect { repeated: true, ..Effect::default() })));
        }
        if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
            effects.extend(generated.iter().map(|&id| (id, Effect { generated: 1, ..Effect::default() })));
        }
        if generated.len() < limits.min_tokens {
            let eos = if limits.ignore_eos { &[] } else { eos_token_ids };
            let ends = eos.iter().chain(&limits.stop_token_ids);
            effects.extend(ends.map(|&id| (id, Effect { forbidden: true, ..Effect::default() })));
        }
        effects.retain(|&(id, _)| (id as usize) < vocab_size);
        // Stable, so that several biases of one token add up in the order in which they were given.
        effects.sort_by_key(|&(id, _)| id);
        effects.dedup_by(|(id, later), (kept_id, kept)| {
            let same = id == kept_id;
            if same {
                kept.bias += later.bias;
                kept.repeated |= later.repeated;
                kept.generated += later.generated;
                kept.forbidden |= later.forbidden;
            }
            same
        });
        Self {
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            effects,
        }
    }

    /// The tokens whose logits change, ascending.
    pub(crate) fn ids(&self) -> impl Iterator<Item = TokenId> {
        self.effects.iter().map(|&(id, _)| id)
    }

    /// Whether `id` must not come.
    pub(crate) fn forbids(&self, id: TokenId) -> bool {
        self.effects.iter().any(|&(other, effect)| other == id && effect.forbidden)
    }

    /// What each processor does, in their order, those left out that change nothing.
    pub(crate) fn told(&self) -> Vec<Processed> {
        let count = |of: fn(&Effect) -> bool| self.effects.iter().filter(|(_, effect)| of(effect)).count();
        let changed = |name, value: f32, of| Processed { changed: count(of), ..neutral(name, f64::from(value)) };
        let generated: fn(&Effect) -> bool = |effect| effect.generated > 0;
        let presence = changed("presence_penalty", self.presence_penalty, generated);
        let frequency = changed("frequency_penalty", self.frequency_penalty, generated);
        let mut told = vec![
            Processed { removed: count(|effect| effect.forbidden), value: None, ..neutral("min_tokens", 0.0) },
            Processed { value: None, ..changed("logit_bias", 0.0, |effect| effect.bias != 0.0) },
            changed("repetition_penalty", self.repetition_penalty, |effect| effect.repeated),
        ];
        told.extend([presence, frequency].into_iter().filter(|processed| processed.value != Some(0.0)));
        told.retain(|processed| processed.changed + processed.removed > 0);
        told
    }

    /// The logit of `id` after bias, repetition, presence and frequency penalty; −∞ where it must not come.
    pub(crate) fn apply(&self, id: TokenId, raw: f32) -> f32 {
        let Ok(at) = self.effects.binary_search_by_key(&id, |&(id, _)| id) else {
            return orderly(raw);
        };
        let effect = &self.effects[at].1;
        if effect.forbidden {
            return f32::NEG_INFINITY;
        }
        let mut logit = raw + effect.bias;
        if effect.repeated {
            logit = if logit < 0.0 { logit * self.repetition_penalty } else { logit / self.repetition_penalty };
        }
        if effect.generated > 0 {
            logit -= self.presence_penalty + self.frequency_penalty * effect.generated as f32;
        }
        orderly(logit)
    }
}

/// `logit` with a place in a total order: not a number is never drawn, −0 equals 0, +∞ is a very large number.
pub(crate) fn orderly(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) + 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Limits;

    fn request(change: impl FnOnce(&mut Request)) -> Request {
        let limits = Limits { max_tokens: 9, min_tokens: 0, ignore_eos: false, stop_token_ids: vec![6] };
        let mut request = Request { limits, ..Request::greedy(vec![1, 2, 2], 9) };
        change(&mut request);
        request
    }

    fn adjusted(request: &Request, generated: &[TokenId]) -> (Vec<TokenId>, impl Fn(TokenId, f32) -> f32 + use<>) {
        let tokens = [&request.prompt, generated].concat();
        let adjustments = Adjustments::new(request, &tokens, &[7, 99], 50);
        (adjustments.ids().collect(), move |id, raw| adjustments.apply(id, raw))
    }

    #[test]
    fn neutral_values_touch_nothing() {
        assert!(adjusted(&request(|_| ()), &[4, 4]).0.is_empty());
    }

    #[test]
    fn repetition_divides_and_multiplies_once_within_the_window() {
        let all = request(|r| r.sampling.repetition_penalty = 2.0);
        let (ids, apply) = adjusted(&all, &[4]);
        assert_eq!(ids, [1, 2, 4]);
        assert_eq!((apply(2, 3.0), apply(4, -3.0), apply(5, 3.0)), (1.5, -6.0, 3.0));
        let window = request(|r| {
            r.sampling.repetition_penalty = 2.0;
            r.sampling.repetition_window = Some(2);
        });
        assert_eq!(adjusted(&window, &[4]).0, [2, 4]);
        let none = request(|r| {
            r.sampling.repetition_penalty = 2.0;
            r.sampling.repetition_window = Some(0);
        });
        assert!(adjusted(&none, &[4]).0.is_empty());
    }

    #[test]
    fn presence_and_frequency_count_generated_tokens_after_bias_and_repetition() {
        let request = request(|r| {
            r.sampling.logit_bias = vec![(4, 1.0), (4, 1.0)];
            r.sampling.repetition_penalty = 2.0;
            r.sampling.presence_penalty = 0.5;
            r.sampling.frequency_penalty = 0.25;
        });
        let (ids, apply) = adjusted(&request, &[4, 4, 5]);
        assert_eq!(ids, [1, 2, 4, 5]);
        assert_eq!(apply(4, 2.0), (2.0 + 2.0) / 2.0 - (0.5 + 2.0 * 0.25));
        assert_eq!(apply(1, 2.0), 1.0, "a token of the prompt was not generated");
    }

    #[test]
    fn the_end_is_forbidden_before_min_tokens() {
        let mut request = request(|r| r.limits.min_tokens = 2);
        let (ids, apply) = adjusted(&request, &[4]);
        assert_eq!(ids, [6, 7], "an end of text outside the vocabulary is dropped");
        assert_eq!(apply(7, 5.0), f32::NEG_INFINITY);
        assert!(adjusted(&request, &[4, 4]).0.is_empty());
        request.limits.ignore_eos = true;
        assert_eq!(adjusted(&request, &[4]).0, [6], "an end of text that ends nothing may come");
    }
}
