//! The processors that change logits of a few known tokens: bias, penalties, and tokens that must not come yet.
//!
//! Does not know the rest of the vocabulary: what is not listed here keeps its logit, so ranks may rank it.
//! Reference: `transformers/generation/logits_process.py` for the repetition penalty, with the window of llama.cpp;
//! OpenAI's API for presence and frequency, which count generated tokens only.

use nanoinfer_shared::protocol::TokenId;

use super::explain::neutral;
use crate::{
    explanation::Processed,
    request::{LogitBias, Request, TokenSet},
};

/// What happens to the logits of some tokens before a draw. What is the same for every token of a request is shared with it.
#[derive(Clone, Debug)]
pub(crate) struct Adjustments {
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    bias: LogitBias,
    /// Tokens that must not come yet: those that end this request, and those that end the model's texts.
    ends: [TokenSet; 2],
    /// Ascending by id without repeats.
    seen: Vec<(TokenId, Seen)>,
    vocab_size: usize,
}

/// How a token came before.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    repeated: bool,
    /// Times generated, where presence or frequency matter.
    generated: u32,
}

impl Adjustments {
    /// For the token that follows `tokens`, the first of which are the prompt. Ends at or above `vocab_size` are dropped.
    pub(crate) fn new(request: &Request, tokens: &[TokenId], eos_token_ids: &[TokenId], vocab_size: usize) -> Self {
        let (sampling, limits) = (&request.sampling, &request.limits);
        let generated = &tokens[request.prompt.len()..];
        let mut seen: Vec<(TokenId, Seen)> = Vec::new();
        if sampling.repetition_penalty != 1.0 {
            let window = sampling.repetition_window.unwrap_or(usize::MAX).min(tokens.len());
            let last = &tokens[tokens.len() - window..];
            seen.extend(last.iter().map(|&id| (id, Seen { repeated: true, generated: 0 })));
        }
        if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
            seen.extend(generated.iter().map(|&id| (id, Seen { repeated: false, generated: 1 })));
        }
        seen.sort_unstable_by_key(|&(id, _)| id);
        seen.dedup_by(|(id, other), (kept_id, kept)| {
            let same = id == kept_id;
            if same {
                kept.repeated |= other.repeated;
                kept.generated += other.generated;
            }
            same
        });
        let mut ends = <[TokenSet; 2]>::default();
        if generated.len() < limits.min_tokens {
            ends[0] = limits.stop_token_ids.clone();
            if !limits.ignore_eos {
                // The few of config.json.
                ends[1] = eos_token_ids.iter().copied().collect();
            }
        }
        Self {
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            bias: sampling.logit_bias.clone(),
            ends,
            seen,
            vocab_size,
        }
    }

    /// The tokens whose logits change, ascending.
    pub(crate) fn ids(&self) -> Vec<TokenId> {
        let biased = self.bias.iter().map(|&(id, _)| id);
        let seen = self.seen.iter().map(|&(id, _)| id);
        let mut ids: Vec<TokenId> = biased.chain(self.forbidden()).chain(seen).collect();
        // Ascending lists, one behind the other: the stable sort only merges them.
        ids.sort();
        ids.dedup();
        ids
    }

    /// The tokens that must not come, once each.
    fn forbidden(&self) -> impl Iterator<Item = TokenId> {
        let [own, of_model] = &self.ends;
        let others = of_model.iter().filter(|&&id| !own.contains(id));
        own.iter().chain(others).copied().filter(|&id| (id as usize) < self.vocab_size)
    }

    /// Whether `id` must not come.
    fn forbids(&self, id: TokenId) -> bool {
        self.ends.iter().any(|ends| ends.contains(id))
    }

    /// What rules `id` out, as it is called in a request.
    pub(crate) fn forbidden_by(&self, id: TokenId) -> Option<&'static str> {
        self.forbids(id).then_some("min_tokens")
    }

    /// What each processor does, in their order, those left out that change nothing.
    pub(crate) fn told(&self) -> Vec<Processed> {
        let count = |of: fn(&Seen) -> bool| self.seen.iter().filter(|(_, seen)| of(seen)).count();
        let changed = |name, value: f32, changed| Processed { changed, ..neutral(name, f64::from(value)) };
        let generated = count(|seen| seen.generated > 0);
        let presence = changed("presence_penalty", self.presence_penalty, generated);
        let frequency = changed("frequency_penalty", self.frequency_penalty, generated);
        let biased = self.bias.iter().filter(|&&(_, bias)| bias != 0.0).count();
        let mut told = vec![
            Processed { removed: self.forbidden().count(), value: None, ..neutral("min_tokens", 0.0) },
            Processed { value: None, ..changed("logit_bias", 0.0, biased) },
            changed("repetition_penalty", self.repetition_penalty, count(|seen| seen.repeated)),
        ];
        told.extend([presence, frequency].into_iter().filter(|processed| processed.value != Some(0.0)));
        told.retain(|processed| processed.changed + processed.removed > 0);
        told
    }

    /// The logit of `id` after bias, repetition, presence and frequency penalty; −∞ where it must not come.
    pub(crate) fn apply(&self, id: TokenId, raw: f32) -> f32 {
        if self.forbids(id) {
            return f32::NEG_INFINITY;
        }
        let mut logit = raw + self.bias.of(id);
        if let Ok(at) = self.seen.binary_search_by_key(&id, |&(id, _)| id) {
            let seen = &self.seen[at].1;
            if seen.repeated {
                logit = if logit < 0.0 { logit * self.repetition_penalty } else { logit / self.repetition_penalty };
            }
            if seen.generated > 0 {
                logit -= self.presence_penalty + self.frequency_penalty * seen.generated as f32;
            }
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
        let limits =
            Limits { max_tokens: 9, min_tokens: 0, ignore_eos: false, stop_token_ids: [6].into_iter().collect() };
        let mut request = Request { limits, ..Request::greedy(vec![1, 2, 2], 9) };
        change(&mut request);
        request
    }

    fn adjusted(request: &Request, generated: &[TokenId]) -> (Vec<TokenId>, impl Fn(TokenId, f32) -> f32 + use<>) {
        let tokens = [&request.prompt, generated].concat();
        let adjustments = Adjustments::new(request, &tokens, &[7, 99], 50);
        (adjustments.ids(), move |id, raw| adjustments.apply(id, raw))
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
            r.sampling.logit_bias = [(4, 1.0), (4, 1.0)].into_iter().collect();
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

    #[test]
    fn what_no_token_changes_is_not_copied_for_any() {
        let request = request(|r| {
            r.limits.min_tokens = 2;
            r.sampling.logit_bias = [(4, 1.0), (6, 1.0)].into_iter().collect();
        });
        for generated in [&[][..], &[4]] {
            let tokens = [&request.prompt, generated].concat();
            let adjustments = Adjustments::new(&request, &tokens, &[6, 7], 50);
            assert!(std::ptr::eq(&*adjustments.bias, &*request.sampling.logit_bias));
            assert!(std::ptr::eq(&*adjustments.ends[0], &*request.limits.stop_token_ids));
            assert_eq!(adjustments.ids(), [4, 6, 7], "once each");
            assert_eq!(adjustments.told()[0].removed, 2);
        }
    }
}
