//! The processors that say which tokens may come and change the logits of a few: a grammar's mask, allowed tokens, bad words, tokens
//! that must not come yet, bias, penalties.
//!
//! Does not know the rest of the vocabulary: what is not listed here keeps its logit, so ranks may rank it. Where only some
//! tokens are allowed, there is no rest: few are asked of the ranks by name and nothing else matters, which costs less than
//! a row; many come as a row.
//! Reference: `transformers/generation/logits_process.py` for the repetition penalty, with the window of llama.cpp;
//! OpenAI's API for presence and frequency, which count generated tokens only.

use nanoinfer_shared::protocol::{TokenId, TokenMask};

use super::ranked::orderly;
use crate::engine::{
    explanation::Processed,
    request::{Request, SamplingParams, TokenSet, merged},
};

/// Most allowed tokens to ask the ranks for by name: each takes 4 bytes to ask for and 8 to answer, and is looked up in lists.
const MAX_NAMED: usize = 1024;

/// What happens to the logits of some tokens before a draw. What is the same for every token of a request is shared with it.
#[derive(Clone, Debug)]
pub(crate) struct Adjustments {
    sampling: SamplingParams,
    /// Tokens that would complete a bad word, ascending without repeats.
    bad: Vec<TokenId>,
    /// Tokens that must not come yet: those that end this request, and those that end the model's texts.
    ends: [TokenSet; 2],
    /// Ascending by id without repeats.
    seen: Vec<(TokenId, Seen)>,
    pub(super) vocab_size: usize,
    /// What a grammar lets come; the ranks know it too.
    pub(super) mask: Option<TokenMask>,
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
        let sampling = &request.sampling;
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
        let seen = merged(seen, |kept, other| {
            kept.repeated |= other.repeated;
            kept.generated += other.generated;
        });
        let mut ends = <[TokenSet; 2]>::default();
        if generated.len() < sampling.min_tokens {
            ends[0] = sampling.stop_token_ids.clone();
            if !sampling.ignore_eos {
                // The few of config.json.
                ends[1] = eos_token_ids.iter().copied().collect();
            }
        }
        Self {
            sampling: sampling.clone(),
            bad: sampling.bad_words.after(generated),
            ends,
            seen,
            vocab_size,
            mask: None,
        }
    }

    /// The tokens to ask the ranks for by name, ascending: those whose logits change, or, where these are few, all that may
    /// come.
    pub(crate) fn named(&self) -> Vec<TokenId> {
        match &self.sampling.allowed_token_ids {
            Some(allowed) if allowed.len() <= MAX_NAMED => allowed.to_vec(),
            Some(_) => Vec::new(),
            None => self.changed(),
        }
    }

    /// Whether only some tokens may come.
    pub(crate) fn is_selective(&self) -> bool {
        self.sampling.allowed_token_ids.is_some()
    }

    /// Whether the tokens that may come are not all among the named, nor ranked by the ranks.
    pub(crate) fn needs_row(&self) -> bool {
        self.sampling.allowed_token_ids.as_ref().is_some_and(|allowed| allowed.len() > MAX_NAMED)
    }

    /// What is drawn where nothing may come.
    pub(crate) fn in_need(&self) -> TokenId {
        self.sampling.allowed_token_ids.as_ref().and_then(|allowed| allowed.first()).copied().unwrap_or(0)
    }

    /// How many tokens a grammar leaves; all, where there is none.
    pub(super) fn unmasked(&self) -> usize {
        self.mask.as_ref().map_or(self.vocab_size, TokenMask::count)
    }

    /// Whether a grammar leaves `id`.
    pub(super) fn is_unmasked(&self, id: TokenId) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask.allows(id as usize))
    }

    /// Changes the raw logits of a whole row.
    pub(crate) fn apply_to(&self, logits: &mut [f32]) {
        for id in self.changed() {
            let logit = &mut logits[id as usize];
            *logit = self.apply(id, *logit);
        }
        if let Some(mask) = &self.mask {
            mask.fill_others(logits, f32::NEG_INFINITY);
        }
        if let Some(allowed) = &self.sampling.allowed_token_ids {
            let mut next = 0;
            for id in allowed.iter().map(|&id| id as usize) {
                logits[next..id].fill(f32::NEG_INFINITY);
                next = id + 1;
            }
            logits[next..].fill(f32::NEG_INFINITY);
        }
    }

    /// The tokens whose logits change, other than those that are not allowed, ascending.
    fn changed(&self) -> Vec<TokenId> {
        let biased = self.sampling.logit_bias.iter().map(|&(id, _)| id);
        let seen = self.seen.iter().map(|&(id, _)| id);
        let mut ids: Vec<TokenId> = biased.chain(self.forbidden()).chain(seen).collect();
        // Ascending lists, one behind the other: the stable sort only merges them.
        ids.sort();
        ids.dedup();
        ids
    }

    /// The tokens that bad words or `min_tokens` rule out, once each.
    fn forbidden(&self) -> impl Iterator<Item = TokenId> {
        let [own, of_model] = &self.ends;
        let others = of_model.iter().filter(|&&id| !own.contains(id));
        let too_early = own.iter().chain(others).filter(|&id| self.bad.binary_search(id).is_err());
        self.bad.iter().chain(too_early).copied().filter(|&id| (id as usize) < self.vocab_size)
    }

    /// What rules `id` out first, as it is called in a request.
    pub(crate) fn forbidden_by(&self, id: TokenId) -> Option<&'static str> {
        if !self.is_unmasked(id) {
            Some("grammar")
        } else if self.sampling.allowed_token_ids.as_ref().is_some_and(|allowed| !allowed.contains(id)) {
            Some("allowed_token_ids")
        } else if self.bad.binary_search(&id).is_ok() {
            Some("bad_words")
        } else {
            self.ends.iter().any(|ends| ends.contains(id)).then_some("min_tokens")
        }
    }

    /// What each processor does, in their order, those left out that change nothing.
    pub(crate) fn report(&self) -> Vec<Processed> {
        let count = |of: fn(&Seen) -> bool| self.seen.iter().filter(|(_, seen)| of(seen)).count();
        let changed = |name, value: f32, changed| Processed { changed, ..Processed::neutral(name, f64::from(value)) };
        let generated = count(|seen| seen.generated > 0);
        let presence = changed("presence_penalty", self.sampling.presence_penalty, generated);
        let frequency = changed("frequency_penalty", self.sampling.frequency_penalty, generated);
        let biased = self.sampling.logit_bias.iter().filter(|&&(_, bias)| bias != 0.0).count();
        let removed = |name, removed| Processed { removed, value: None, ..Processed::neutral(name, 0.0) };
        // Each is counted where it is ruled out first.
        let forbidden = |name| self.forbidden().filter(|&id| self.forbidden_by(id) == Some(name)).count();
        let allowed = self.sampling.allowed_token_ids.as_ref();
        let may_come = |allowed: &TokenSet| allowed.iter().filter(|&&id| self.is_unmasked(id)).count();
        let mut report = vec![
            removed("grammar", self.vocab_size - self.unmasked()),
            removed("allowed_token_ids", allowed.map_or(0, |allowed| self.unmasked() - may_come(allowed))),
            removed("bad_words", forbidden("bad_words")),
            removed("min_tokens", forbidden("min_tokens")),
            Processed { value: None, ..changed("logit_bias", 0.0, biased) },
            changed("repetition_penalty", self.sampling.repetition_penalty, count(|seen| seen.repeated)),
        ];
        report.extend([presence, frequency].into_iter().filter(|processed| processed.value != Some(0.0)));
        report.retain(|processed| processed.changed + processed.removed > 0);
        report
    }

    /// The logit of `id` after bias, repetition, presence and frequency penalty; −∞ where it must not come.
    pub(crate) fn apply(&self, id: TokenId, raw: f32) -> f32 {
        if self.forbidden_by(id).is_some() {
            return f32::NEG_INFINITY;
        }
        let mut logit = raw + self.sampling.logit_bias.of(id);
        if let Ok(at) = self.seen.binary_search_by_key(&id, |&(id, _)| id) {
            let seen = &self.seen[at].1;
            if seen.repeated {
                logit = if logit < 0.0 {
                    logit * self.sampling.repetition_penalty
                } else {
                    logit / self.sampling.repetition_penalty
                };
            }
            if seen.generated > 0 {
                logit -= self.sampling.presence_penalty + self.sampling.frequency_penalty * seen.generated as f32;
            }
        }
        orderly(logit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut Request)) -> Request {
        let mut request = Request::greedy(vec![1, 2, 2], 9);
        (request.sampling.ignore_eos, request.sampling.stop_token_ids) = (false, [6].into_iter().collect());
        change(&mut request);
        request
    }

    fn adjusted(request: &Request, generated: &[TokenId]) -> (Vec<TokenId>, impl Fn(TokenId, f32) -> f32 + use<>) {
        let tokens = [&request.prompt, generated].concat();
        let adjustments = Adjustments::new(request, &tokens, &[7, 99], 50);
        (adjustments.named(), move |id, raw| adjustments.apply(id, raw))
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
        let mut request = request(|r| r.sampling.min_tokens = 2);
        let (ids, apply) = adjusted(&request, &[4]);
        assert_eq!(ids, [6, 7], "an end of text outside the vocabulary is dropped");
        assert_eq!(apply(7, 5.0), f32::NEG_INFINITY);
        assert!(adjusted(&request, &[4, 4]).0.is_empty());
        request.sampling.ignore_eos = true;
        assert_eq!(adjusted(&request, &[4]).0, [6], "an end of text that ends nothing may come");
    }

    #[test]
    fn few_allowed_tokens_are_named_and_many_come_as_a_row() {
        let allowing = |ids: std::ops::Range<TokenId>| {
            let mut request = request(|r| r.sampling.min_tokens = 2);
            request.sampling.allowed_token_ids = Some(ids.collect());
            Adjustments::new(&request, &request.prompt, &[7], 5000)
        };
        let few = allowing(5..9);
        assert_eq!((few.named(), few.needs_row()), (vec![5, 6, 7, 8], false));
        assert_eq!([5, 6, 9].map(|id| few.apply(id, 1.0)), [1.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        let many = allowing(5..3000);
        assert!(many.named().is_empty() && many.needs_row());
        for (adjustments, end) in [(few, 9), (many, 3000)] {
            let mut row = vec![1.0; 5000];
            adjustments.apply_to(&mut row);
            let expected = |id| if id == 5 || (8..end).contains(&id) { 1.0 } else { f32::NEG_INFINITY };
            assert!((0..).zip(row).all(|(id, logit)| logit == expected(id)));
            assert_eq!(adjustments.in_need(), 5);
        }
    }

    #[test]
    fn a_bad_word_is_forbidden_where_it_would_be_completed() {
        let request = request(|r| {
            r.sampling.bad_words = [vec![3], vec![1, 2, 4], vec![2, 5], vec![2, 5], vec![]].into_iter().collect();
        });
        assert_eq!(adjusted(&request, &[]).0, [3], "the prompt is no part of what is written");
        assert_eq!(adjusted(&request, &[2]).0, [3, 5]);
        assert_eq!(adjusted(&request, &[1, 2]).0, [3, 4, 5]);
        assert_eq!(adjusted(&request, &[1, 2, 9]).0, [3]);
    }

    #[test]
    fn what_no_token_changes_is_not_copied_for_any() {
        let request = request(|r| {
            r.sampling.min_tokens = 2;
            r.sampling.logit_bias = [(4, 1.0), (6, 1.0)].into_iter().collect();
        });
        for generated in [&[][..], &[4]] {
            let tokens = [&request.prompt, generated].concat();
            let adjustments = Adjustments::new(&request, &tokens, &[6, 7], 50);
            assert!(std::ptr::eq(&*adjustments.sampling.logit_bias, &*request.sampling.logit_bias));
            assert!(std::ptr::eq(&*adjustments.ends[0], &*request.sampling.stop_token_ids));
            assert_eq!(adjustments.named(), [4, 6, 7], "once each");
            assert_eq!(adjustments.report()[0].removed, 2);
        }
    }
}
