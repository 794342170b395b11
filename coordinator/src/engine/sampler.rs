//! Draws the next token of a sequence from the ranks' slices of one row.
//!
//! ```text
//! every rank: top k of the tokens left alone, raw logits of the named, log-sum-exps of its slice
//!      │ merge
//!      ▼
//! a prefix of the vocabulary, descending ── filters ── draw ──► token
//!                                             │ undecided         ▲
//!                                             └──► whole row ── masses
//! ```
//! Knows the chain of processors of [`SamplingParams`](crate::engine::request::SamplingParams); does not know ranks' links,
//! blocks or text.
//! Invariant: whether the candidates decide depends on the row alone, so the way a token is drawn does not depend on what
//! else runs. Candidates give the token that the sorted row would give, as both are a prefix for the same [`filter`]s;
//! [`masses`] gives it without sorting, but for the rounding of f32.

mod adjust;
mod explain;
mod filter;
mod masses;
mod row_drawer;
pub(crate) mod logprobs;
mod ranked;

use nanoinfer_shared::{
    ModelShape,
    protocol::{LogSumExp, RowSlice, TokenId, TokenMask, Wants},
};

pub(crate) use self::row_drawer::{RowDraw, RowDrawer};
use self::{
    adjust::Adjustments,
    filter::{Candidate, Filter, Known, Left},
    masses::Masses,
    ranked::{Ranked, orderly},
};
use crate::engine::{
    explanation::Narrowing,
    random,
    request::{Request, SamplingParams, TokenLogprobs},
};

/// Candidates asked of each rank where nothing bounds the choice. Covers most nuclei of a language model; 1 KB a row.
const OPEN_CANDIDATES: usize = 128;
/// Most candidates for a draw: beyond, whole rows are no larger.
const MAX_CANDIDATES: usize = 2048;
/// Below this a temperature is taken for 0: logits divided by it would overflow.
const MIN_TEMPERATURE: f32 = 1e-5;

/// How many of the most likely tokens are told of.
const ALTERNATIVES: usize = 8;

/// The draw of one token, complete in itself: made when the step is planned, carried out when its row is there.
#[derive(Clone, Debug)]
pub(crate) struct Draw {
    adjustments: Adjustments,
    /// The most likely, the lowest id on ties: what comes first of all, at temperature 1 and without filters.
    greedy: bool,
    temperature: f32,
    filters: Vec<Filter>,
    /// Where to take the inverse of the distribution function.
    uniform: f64,
    logprobs: Option<u32>,
    explain: bool,
    /// Why it cannot be, where a mask was to come.
    stuck: Option<String>,
    masked: bool,
}

/// One token of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) id: TokenId,
    pub(crate) logprobs: Option<TokenLogprobs>,
    pub(crate) narrowing: Option<Narrowing>,
}

/// What a draw from a whole row writes to.
#[derive(Debug, Default)]
struct RowScratch {
    /// The row's logits, adjusted.
    logits: Vec<f32>,
    masses: Masses,
}

impl Draw {
    /// The draw of the token that follows `tokens`, which begin with the prompt.
    pub(crate) fn new(request: &Request, tokens: &[TokenId], shape: &ModelShape) -> Self {
        let sampling = &request.sampling;
        let greedy = Self {
            adjustments: Adjustments::new(request, tokens, &shape.eos_token_ids, shape.vocab_size),
            greedy: true,
            temperature: 1.0,
            filters: Vec::new(),
            uniform: 0.0,
            logprobs: sampling.logprobs,
            explain: sampling.explain,
            stuck: None,
            masked: request.next.as_ref().is_some_and(|next| next.is_masking()),
        };
        if sampling.temperature >= MIN_TEMPERATURE {
            let uniform = random::uniform(sampling.seed, request.prompt_index, request.choice, tokens.len() as u32);
            let (temperature, filters) = (sampling.temperature, filters(sampling));
            Self { greedy: false, temperature, filters, uniform, ..greedy }
        } else {
            greedy
        }
    }

    /// What to ask the ranks for.
    pub(crate) fn wants(&self) -> Wants {
        Wants::Candidates {
            k: self.candidates() as u32,
            temperature: self.temperature,
            adjusted: self.adjustments.named(),
            masked: self.masked.then(|| self.told().unwrap_or(0) as u32),
        }
    }

    /// Whether only some tokens may come, which are said later.
    pub(crate) fn is_masked(&self) -> bool {
        self.masked
    }

    /// Says which, or why there are none.
    pub(crate) fn set_mask(&mut self, mask: Result<TokenMask, String>) {
        match mask {
            Ok(mask) => self.adjustments.mask = Some(mask),
            Err(reason) => self.stuck = Some(reason),
        }
    }

    /// Whether it was not said which: nothing can be drawn in this step.
    pub(crate) fn is_late(&self) -> bool {
        self.masked && self.stuck.is_none() && self.adjustments.mask.is_none()
    }

    /// Why nothing can be drawn, where that is known before the ranks answer.
    pub(crate) fn stuck(&self) -> Option<&str> {
        self.stuck.as_deref()
    }

    /// What is said where nothing is left to draw.
    pub(crate) fn nothing_left(&self) -> String {
        let left = self.adjustments.unmasked();
        format!("the grammar leaves {left} tokens to come next, and the request's other fields leave none of them")
    }

    /// The token, if the ranks' candidates decide it. `slices` are in rank order.
    pub(crate) fn by_candidates(&self, slices: &[&RowSlice]) -> Option<Drawn> {
        if self.adjustments.needs_row() {
            return None;
        }
        let ranked = |pick: fn(&RowSlice) -> &Vec<(TokenId, f32)>| -> Vec<Ranked> {
            let tokens = slices.iter().flat_map(|slice| pick(slice));
            tokens.map(|&(id, raw)| Ranked::new(id, self.adjustments.apply(id, raw))).collect()
        };
        let (mut known, mut adjusted) = (ranked(|slice| &slice.top), ranked(|slice| &slice.listed));
        let selective = self.adjustments.is_selective();
        if selective {
            // All that may come was named.
            known.clear();
        }
        adjusted.retain(|token| self.adjustments.is_unmasked(token.id()));
        let complete = selective || known.len() + adjusted.len() == self.adjustments.unmasked();
        if !complete {
            // Only what comes before the last candidate has a known place: anything may stand between that and what
            // follows.
            known.sort_unstable();
            known.truncate(self.candidates());
            let last = *known.last()?;
            adjusted.retain(|token| *token < last);
        }
        known.extend(adjusted);
        known.sort_unstable();
        let normaliser = self.normaliser(slices);
        let id = self.decide(&known, complete, normaliser)?;
        let raw = logprobs::raw_logit(id, slices)?;
        Some(self.drawn(id, raw, slices, || (self.left(self.known(&known, complete, normaliser)), normaliser)))
    }

    /// The token, from the raw logits of the whole vocabulary, in slices of ranks; `None` where a grammar and the request's other
    /// fields leave none.
    fn by_row(&self, slices: &[&RowSlice], row: &[&[f32]], scratch: &mut RowScratch) -> Option<Drawn> {
        let RowScratch { logits, masses } = scratch;
        self.adjust(row, logits);
        let drawn = masses.draw(logits, self.temperature, &self.filters, self.uniform);
        if drawn.is_none() && self.masked {
            return None;
        }
        // Where nothing may come, something is drawn all the same.
        let id = drawn.unwrap_or_else(|| self.adjustments.in_need());
        let raw = row.iter().flat_map(|slice| slice.iter()).nth(id as usize);
        let raw = *raw.expect("the token is one of the row's");
        Some(self.drawn(id, raw, slices, || match drawn {
            Some(_) => (masses.left(logits), masses.normaliser),
            None => (vec![Left::NOTHING; self.filters.len()], f64::NEG_INFINITY),
        }))
    }

    /// Gathers `row` in `logits`, after penalties and biases.
    fn adjust(&self, row: &[&[f32]], logits: &mut Vec<f32>) {
        logits.clear();
        row.iter().for_each(|slice| logits.extend(slice.iter().map(|&raw| orderly(raw))));
        self.adjustments.apply_to(logits);
    }

    /// How many candidates of each rank decide most draws, and answer for the log-probabilities beside it.
    fn candidates(&self) -> usize {
        let for_draw = match self.filters.first() {
            // The selected are decided by the named, or by a row.
            _ if self.greedy || self.adjustments.is_selective() => 1,
            // One more shows whether the last of them ties with the next.
            Some(&Filter::TopK(k)) if k < MAX_CANDIDATES => k + 1,
            // Never decided by candidates: they would come beside the whole row.
            Some(Filter::TopK(_) | Filter::Typical(_)) => 1,
            _ => OPEN_CANDIDATES,
        };
        for_draw.max(self.told().unwrap_or(0))
    }

    /// How many of the most likely are told of beside the one drawn.
    fn told(&self) -> Option<usize> {
        let for_explanation = self.explain.then_some(ALTERNATIVES);
        for_explanation.max(self.logprobs.map(|top| top as usize))
    }

    /// `ln Σ exp(logit / temperature)` over all that may come, as the ranks named it and summed up the rest.
    fn normaliser(&self, slices: &[&RowSlice]) -> f64 {
        let rest = if self.adjustments.is_selective() {
            f64::NEG_INFINITY
        } else {
            slices.iter().fold(LogSumExp::EMPTY, |sum, slice| sum.merge(slice.rest)).value()
        };
        let temperature = f64::from(self.temperature);
        let listed = slices.iter().flat_map(|slice| &slice.listed);
        let terms: Vec<f64> =
            listed.map(|&(id, raw)| f64::from(self.adjustments.apply(id, raw)) / temperature).chain([rest]).collect();
        let max = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            return max;
        }
        max + terms.iter().map(|term| (term - max).exp()).sum::<f64>().ln()
    }

    /// The token, if `tokens`, the most likely in descending order, decide it.
    fn decide(&self, tokens: &[Ranked], complete: bool, normaliser: f64) -> Option<TokenId> {
        let first = tokens.first()?;
        if self.greedy {
            return Some(first.id());
        }
        // Where not even as many as likely as the first would do, the others need not be looked at.
        let enough = match self.filters.first() {
            None => self.uniform,
            Some(&Filter::TopP(p)) => p,
            Some(_) => 0.0,
        };
        if !complete && tokens.len() as f64 * self.probability(first.logit(), normaliser) < enough {
            return None;
        }
        let known = self.known(tokens, complete, normaliser);
        self.filters.iter().try_fold(known, |known, filter| filter.apply(known))?.draw(self.uniform)
    }

    /// What each filter leaves of what decides.
    fn left(&self, known: Known) -> Vec<Left> {
        let narrowed = self.filters.iter().scan(known, |known, filter| {
            *known = filter.apply(known.clone())?;
            Some(known.left())
        });
        narrowed.collect()
    }

    /// The most likely tokens with their probabilities, before any filter.
    fn known(&self, tokens: &[Ranked], complete: bool, normaliser: f64) -> Known {
        let candidate = |&token: &Ranked| Candidate { token, probability: self.probability(token.logit(), normaliser) };
        Known { tokens: tokens.iter().map(candidate).collect(), mass: 1.0, complete }
    }

    /// Probability over the whole vocabulary, after temperature.
    fn probability(&self, logit: f32, normaliser: f64) -> f64 {
        let probability = (f64::from(logit) / f64::from(self.temperature) - normaliser).exp();
        // Where every logit is −∞.
        if probability.is_nan() { 0.0 } else { probability }
    }

    /// The token `id`, with what is told of it. `left` is what each filter left, and the normaliser before them.
    fn drawn(&self, id: TokenId, raw: f32, slices: &[&RowSlice], left: impl FnOnce() -> (Vec<Left>, f64)) -> Drawn {
        Drawn {
            id,
            logprobs: self.logprobs.map(|top| logprobs::report(id, raw, top, slices)),
            narrowing: self.explain.then(|| {
                let (left, normaliser) = left();
                self.narrowing((id, raw), &left, normaliser, slices)
            }),
        }
    }
}

/// The filters that are not neutral, in their order.
fn filters(sampling: &SamplingParams) -> Vec<Filter> {
    let top_k = (sampling.top_k > 0).then_some(Filter::TopK(sampling.top_k as usize));
    let top_p = (sampling.top_p < 1.0).then_some(Filter::TopP(sampling.top_p.into()));
    let min_p = (sampling.min_p > 0.0).then_some(Filter::MinP(sampling.min_p.into()));
    let typical_p = (sampling.typical_p < 1.0).then_some(Filter::Typical(sampling.typical_p.into()));
    [top_k, top_p, min_p, typical_p].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
