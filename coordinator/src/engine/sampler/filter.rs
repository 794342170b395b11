//! The processors that narrow the choice, and the draw: all look at tokens in descending order of probability only.
//!
//! ```text
//! all tokens, descending   | known: a prefix          | not known, none of it more likely |
//! a filter                 | kept      | dropped      :   decided: the cut lies in what is known
//!                          | kept                     : ? undecided: more of the prefix is needed
//! ```
//! Does not know logits of ranks, penalties or requests; nor whole rows, which [`Masses`](super::masses::Masses) narrows alike.
//! Invariant: what is decided from a prefix is what would be decided from everything, as both use the same
//! normaliser and add probabilities in the same order.
//! Reference: `transformers/generation/logits_process.py`.

use nanoinfer_shared::protocol::TokenId;

use super::ranked::Ranked;

/// One token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// With its logit after penalties and bias, before temperature: the key of the order.
    pub(crate) token: Ranked,
    /// Probability over the whole vocabulary after temperature.
    pub(crate) probability: f64,
}

/// The most likely tokens in descending order, the lower id first on ties.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Never empty.
    pub(crate) tokens: Vec<Candidate>,
    /// Probability of all tokens that may still be drawn, those not known included.
    pub(crate) mass: f64,
    /// Nothing outside of `tokens` may still be drawn.
    pub(crate) complete: bool,
}

/// What a filter left: all of it stands together in the descending order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Left {
    /// Nothing before this is left.
    pub(crate) first: Ranked,
    /// Nothing behind this is left.
    pub(crate) last: Ranked,
    /// Tokens between these that may come.
    pub(crate) count: usize,
    /// Their probability, where that of all tokens before any filter is 1.
    pub(crate) mass: f64,
}

/// One step of narrowing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Filter {
    /// Keep the k most likely, and what ties with the last of them.
    TopK(usize),
    /// Keep the fewest whose share of the mass reaches this.
    TopP(f64),
    /// Keep what is at least this times as likely as the most likely.
    MinP(f64),
    /// Keep the fewest, by distance of surprise from the entropy, whose share of the mass reaches this, and ties.
    Typical(f64),
}

impl Filter {
    /// Narrows `known`; `None` where the cut lies beyond it.
    pub(crate) fn apply(self, known: Known) -> Option<Known> {
        match self {
            Self::TopK(k) => top_k(known, k),
            Self::TopP(p) => top_p(known, p),
            Self::MinP(ratio) => min_p(known, ratio),
            Self::Typical(p) => typical_p(known, p),
        }
    }
}

impl Left {
    /// What is told where nothing may come.
    pub(crate) const NOTHING: Self = Self { first: Ranked::LAST, last: Ranked::FIRST, count: 0, mass: 0.0 };

    /// Counts the tokens of `logits`, all of the row, that it holds.
    pub(crate) fn counted(self, logits: &[f32]) -> Self {
        let (first, first_id) = (self.first.logit(), self.first.id());
        let (last, last_id) = (self.last.logit(), self.last.id());
        let here = |(id, &logit): (TokenId, &f32)| {
            let begun = (logit < first) | ((logit == first) & (id >= first_id));
            let not_over = (logit > last) | ((logit == last) & (id <= last_id));
            u32::from(begun & not_over & (logit > f32::NEG_INFINITY))
        };
        Self { count: (0..).zip(logits).map(here).sum::<u32>() as usize, ..self }
    }

    /// Whether `token` is left.
    pub(crate) fn has(&self, token: Ranked) -> bool {
        (self.first..=self.last).contains(&token)
    }
}

impl Known {
    /// What is left, if the cut was known.
    pub(crate) fn left(&self) -> Left {
        Left {
            first: self.tokens.first().map_or(Ranked::LAST, |first| first.token),
            last: self.tokens.last().map_or(Ranked::FIRST, |last| last.token),
            count: self.tokens.iter().filter(|it| it.token.logit() > f32::NEG_INFINITY).count(),
            mass: self.mass,
        }
    }

    /// The token at `uniform` of the mass; `None` where that lies beyond what is known.
    pub(crate) fn draw(&self, uniform: f64) -> Option<TokenId> {
        self.at(uniform * self.mass).or_else(|| {
            // Normaliser and terms differ in the last bits, so that all of them may fall a little short of the mass.
            let sum: f64 = self.probabilities().sum();
            self.complete.then(|| self.at(uniform * sum).unwrap_or(self.tokens[0].token.id()))
        })
    }

    /// The first token at which the sum of probabilities passes `target`.
    fn at(&self, target: f64) -> Option<TokenId> {
        first_sum(0.0, self.probabilities(), |sum| sum > target).map(|at| self.tokens[at].token.id())
    }

    fn probabilities(&self) -> impl Iterator<Item = f64> {
        self.tokens.iter().map(|it| it.probability)
    }

    /// Keeps the first `count`, at least one, and nothing else.
    fn cut(mut self, count: usize) -> Self {
        self.tokens.truncate(count.max(1));
        self.mass = self.probabilities().sum();
        self.complete = true;
        self
    }

    /// Keeps the first `count` if the cut is known to lie there.
    fn cut_if_known(self, count: usize) -> Option<Self> {
        (count < self.tokens.len() || self.complete).then(|| self.cut(count))
    }
}

/// The place of the term with which the sum of `terms`, begun at `start`, is first such.
pub(super) fn first_sum(
    start: f64,
    terms: impl IntoIterator<Item = f64>,
    is_such: impl Fn(f64) -> bool,
) -> Option<usize> {
    let mut sum = start;
    terms.into_iter().position(|term| {
        sum += term;
        is_such(sum)
    })
}

fn top_k(known: Known, k: usize) -> Option<Known> {
    let Some(last) = known.tokens.get(k.max(1) - 1) else {
        return known.complete.then_some(known);
    };
    let threshold = last.token.logit();
    let count = known.tokens.partition_point(|it| it.token.logit() >= threshold);
    known.cut_if_known(count)
}

fn top_p(known: Known, p: f64) -> Option<Known> {
    let target = p * known.mass;
    match first_sum(0.0, known.probabilities(), |sum| sum >= target) {
        Some(last) => Some(known.cut(last + 1)),
        None => known.complete.then_some(known),
    }
}

fn min_p(known: Known, ratio: f64) -> Option<Known> {
    let threshold = ratio * known.tokens[0].probability;
    let count = known.tokens.partition_point(|it| it.probability >= threshold);
    known.cut_if_known(count)
}

fn typical_p(mut known: Known, p: f64) -> Option<Known> {
    if !known.complete {
        return None;
    }
    let share = |token: &Candidate| token.probability / known.mass;
    let entropy: f64 = known.tokens.iter().map(share).filter(|&s| s > 0.0).map(|s| -s * s.ln()).sum();
    let distance = |token: &Candidate| (-share(token).ln() - entropy).abs();
    let mut by_distance: Vec<(f64, f64)> = known.tokens.iter().map(|t| (distance(t), share(t))).collect();
    by_distance.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let Some(last) = first_sum(0.0, by_distance.iter().map(|&(_, share)| share), |sum| sum >= p) {
        let threshold = by_distance[last].0;
        let keep: Vec<Candidate> = known.tokens.iter().copied().filter(|t| distance(t) <= threshold).collect();
        known = Known { tokens: keep, ..known };
    }
    let count = known.tokens.len();
    Some(known.cut(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens 0, 1, 2 … of these probabilities, the rest of the mass unknown.
    fn known(probabilities: &[f64], complete: bool) -> Known {
        let tokens = (0..).zip(probabilities);
        let candidate =
            |(id, &probability): (_, &f64)| Candidate { token: Ranked::new(id, probability.ln() as f32), probability };
        Known { tokens: tokens.map(candidate).collect(), mass: 1.0, complete }
    }

    fn kept(filter: Filter, known: Known) -> Option<usize> {
        filter.apply(known).map(|k| {
            assert!(k.complete);
            k.tokens.len()
        })
    }

    #[test]
    fn top_k_keeps_ties_and_asks_where_they_may_go_on() {
        assert_eq!(kept(Filter::TopK(2), known(&[0.4, 0.2, 0.1], false)), Some(2));
        assert_eq!(kept(Filter::TopK(2), known(&[0.4, 0.2, 0.2, 0.1], false)), Some(3));
        assert_eq!(kept(Filter::TopK(2), known(&[0.4, 0.2, 0.2], false)), None);
        assert_eq!(kept(Filter::TopK(2), known(&[0.4, 0.2], false)), None);
        assert_eq!(kept(Filter::TopK(3), known(&[0.4, 0.2], false)), None);
        assert_eq!(kept(Filter::TopK(3), known(&[0.6, 0.4], true)), Some(2));
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        assert_eq!(kept(Filter::TopP(0.5), known(&[0.4, 0.2, 0.1], false)), Some(2));
        assert_eq!(kept(Filter::TopP(0.5), known(&[0.5, 0.2, 0.1], false)), Some(1));
        assert_eq!(kept(Filter::TopP(0.0), known(&[0.5, 0.2, 0.1], false)), Some(1));
        assert_eq!(kept(Filter::TopP(0.9), known(&[0.4, 0.2, 0.1], false)), None);
        assert_eq!(kept(Filter::TopP(0.9), known(&[0.4, 0.2, 0.1], true)), Some(3));
        let after_top_k = Filter::TopK(2).apply(known(&[0.4, 0.2, 0.1], false)).unwrap();
        assert_eq!(kept(Filter::TopP(0.6), after_top_k), Some(1), "shares of what top-k left");
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        assert_eq!(kept(Filter::MinP(0.5), known(&[0.4, 0.2, 0.1], false)), Some(2));
        assert_eq!(kept(Filter::MinP(0.1), known(&[0.4, 0.2, 0.1], false)), None);
        assert_eq!(kept(Filter::MinP(0.1), known(&[0.6, 0.3, 0.1], true)), Some(3));
        assert_eq!(kept(Filter::MinP(2.0), known(&[0.6, 0.3, 0.1], true)), Some(1));
    }

    #[test]
    fn typical_keeps_what_surprises_as_much_as_expected() {
        assert_eq!(kept(Filter::Typical(0.5), known(&[0.6, 0.3, 0.1], false)), None);
        // Entropy 0.90; surprises 0.51, 1.20, 2.30: the second is nearest, then the first.
        let typical = Filter::Typical(0.2).apply(known(&[0.6, 0.3, 0.1], true)).unwrap();
        assert_eq!(typical.tokens.iter().map(|t| t.token.id()).collect::<Vec<_>>(), [1]);
        assert_eq!(kept(Filter::Typical(0.5), known(&[0.6, 0.3, 0.1], true)), Some(2));
        assert_eq!(kept(Filter::Typical(0.3), known(&[0.25; 4], true)), Some(4), "ties stay");
    }

    #[test]
    fn a_draw_walks_down_and_asks_where_it_falls_off() {
        let open = known(&[0.5, 0.25], false);
        assert_eq!((open.draw(0.0), open.draw(0.4), open.draw(0.6), open.draw(0.8)), (Some(0), Some(0), Some(1), None));
        let short = known(&[0.6, 0.399_999], true);
        assert_eq!(short.draw(0.999_999_9), Some(1), "rounding does not lose the last token");
        let nothing = known(&[0.0, 0.0], true);
        assert_eq!(nothing.draw(0.7), Some(0));
    }
}
