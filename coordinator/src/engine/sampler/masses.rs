//! The draw from a whole row by masses of buckets: nothing is put in order but the few buckets that decide.
//!
//! ```text
//! logits, descending   |  bucket 0  |  bucket 1  | … |  the cut's  | …       buckets of equal width, from the most likely down
//! mass up to here      0 ─────────── m0 ───────── m1 …      ▲ top-k, top-p, min-p
//!                              ▲ uniform × the mass kept: the token
//! ```
//! Every filter keeps a run of that order: the first three one from its start; typical-p, by distance of the surprise from the
//! entropy, that is of the logit from the mean logit, one around the mean. So what is left is two ends and masses between.
//!
//! Does not know penalties or requests.
//! Invariant: the same tokens could be drawn with the same probabilities as from the sorted row, up to the rounding of f32.
//! Passes over the row are loops over arrays without branches, which the compiler makes vectors of.

use std::{array, ops::Range};

use nanoinfer_shared::protocol::TokenId;

use super::{
    filter::{Filter, Left, first_sum},
    ranked::Ranked,
};

/// Adding it to a small number leaves the nearest integer in the low bits of the mantissa.
const TO_LOW_BITS: f32 = 12_582_912.0;
/// Enough that a bucket of a flat row has some dozen tokens.
const BUCKETS: usize = 4095;
/// Tokens of a row that are looked at together.
const CHUNK: usize = 64;
/// A power of two, so that a number is bounded by its low bits.
const SLOTS: usize = 8192;
const _: () = assert!(BUCKETS + CHUNK <= SLOTS && SLOTS <= 1 << 16);
/// Buckets that are passed over at once where what is looked for is not in them.
const PART: usize = 64;
/// Below this `exp` is nothing beside 1.
const LOWEST: f32 = -87.0;

/// The tokens of a row in buckets of descending logit; used for one row after the other, to keep its memory.
#[derive(Debug, Default)]
pub(super) struct Masses {
    /// Of each logit.
    buckets: Vec<u16>,
    /// Of each bucket: the sum of `exp((logit − max) / temperature)` over what is left.
    mass: Vec<f64>,
    /// Of each part of the buckets.
    parts: Vec<f64>,
    /// `ln Σ exp(logit / temperature)` of the row that was drawn from.
    pub(super) normaliser: f64,
    /// After each filter, not counted yet.
    left: Vec<Left>,
}

/// A row in its buckets, and what of it is left.
struct Row<'a> {
    /// With a place in a total order; −∞ where a token must not come.
    logits: &'a [f32],
    temperature: f32,
    scale: Scale,
    masses: &'a mut Masses,
    first: Ranked,
    last: Ranked,
}

/// Where logits have their buckets.
#[derive(Clone, Copy)]
struct Scale {
    max: f32,
    /// Buckets a unit.
    scale: f32,
}

impl Masses {
    /// The token at `uniform` of the mass that `filters`, in their documented order, leave of `logits`, which have a place in a
    /// total order. `None` where nothing can be drawn.
    pub(super) fn draw(
        &mut self,
        logits: &[f32],
        temperature: f32,
        filters: &[Filter],
        uniform: f64,
    ) -> Option<TokenId> {
        let max = fold(logits, f32::NEG_INFINITY, |max, x| if x > max { x } else { max });
        let floor = max + LOWEST * temperature;
        let min = fold(logits, max, |min, x| {
            let weighs = if x >= floor { x } else { max };
            if weighs < min { weighs } else { min }
        });
        // Where all that weighs is alike, what weighs nothing still has to be kept apart.
        let span = if min < max { max - min } else { -LOWEST * temperature };
        // So that what tells logits apart is a number, however near they are.
        let scale = (BUCKETS - 1) as f32 / span.max(1e-30);
        // Of a bucket, in what `exp` takes.
        let width = (scale * temperature).recip();
        if !max.is_finite() || !scale.is_finite() || !width.is_finite() {
            return None;
        }
        let scale = Scale { max, scale };
        self.fill(logits, scale, width);
        let all = self.total();
        self.normaliser = f64::from(max) / f64::from(temperature) + all.ln();
        self.left.clear();
        let mut row = Row { logits, temperature, scale, masses: self, first: Ranked::FIRST, last: Ranked::LAST };
        for &filter in filters {
            row.narrow_by(filter);
            let mass = row.masses.total() / all;
            row.masses.left.push(Left { first: row.first, last: row.last, count: 0, mass });
        }
        // The last token is reached in any case: rounding must not lead beyond it.
        let kept = row.masses.total();
        let target = (uniform * kept).min(kept.next_down());
        Some(row.at(|sum| sum > target).id())
    }

    /// What each filter of the last draw left of `logits`, which were drawn from.
    pub(super) fn left(&self, logits: &[f32]) -> Vec<Left> {
        self.left.iter().map(|left| left.counted(logits)).collect()
    }

    /// `exp` of a logit is that of its bucket's middle times that of the small rest, for which three terms are exact enough.
    fn fill(&mut self, logits: &[f32], scale: Scale, width: f32) {
        self.buckets.resize(logits.len(), 0);
        self.mass.clear();
        self.mass.resize(SLOTS, 0.0);
        let mass: &mut [f64; SLOTS] = self.mass.as_mut_slice().try_into().expect("of that length");
        // Where what weighs nothing goes, behind the others: most of a peaked row, so each of a chunk has a place of its own.
        // In one place every sum would wait for the one before.
        let behind: [f32; CHUNK] = array::from_fn(|i| (BUCKETS + i) as f32);
        let mut rests = [0.0; CHUNK];
        for (logits, buckets) in logits.chunks(CHUNK).zip(self.buckets.chunks_mut(CHUNK)) {
            let places = rests.iter_mut().zip(&mut *buckets).zip(logits.iter().zip(&behind));
            for ((rest, bucket), (&logit, &behind)) in places {
                let place = scale.place(logit, behind);
                let rounded = place + TO_LOW_BITS;
                let below = (rounded - TO_LOW_BITS - place) * width;
                *rest = 1.0 + below * (1.0 + 0.5 * below);
                *bucket = rounded.to_bits() as u16;
            }
            for (&rest, &bucket) in rests.iter().zip(&*buckets) {
                mass[usize::from(bucket) % SLOTS] += f64::from(rest);
            }
        }
        self.mass.truncate(BUCKETS);
        for (bucket, mass) in self.mass.iter_mut().enumerate() {
            *mass *= f64::from(exp(-(bucket as f32) * width));
        }
        self.sum_parts();
    }

    fn sum_parts(&mut self) {
        self.parts.clear();
        self.parts.extend(self.mass.chunks(PART).map(|part| part.iter().sum::<f64>()));
    }

    fn total(&self) -> f64 {
        self.parts.iter().sum()
    }
}

impl Scale {
    /// In buckets from the most likely down.
    fn place(self, logit: f32, behind: f32) -> f32 {
        let place = (self.max - logit) * self.scale;
        if place < behind { place } else { behind }
    }

    /// At least [`BUCKETS`] for what weighs nothing.
    fn bucket(self, logit: f32) -> usize {
        usize::from((self.place(logit, BUCKETS as f32).max(0.0) + TO_LOW_BITS).to_bits() as u16)
    }
}

impl Row<'_> {
    fn narrow_by(&mut self, filter: Filter) {
        match filter {
            Filter::TopK(k) => self.top_k(k),
            Filter::TopP(p) => self.top_p(p),
            Filter::MinP(ratio) => self.min_p(ratio),
            Filter::Typical(p) => self.typical_p(p),
        }
    }

    /// The first filter: it counts all tokens.
    fn top_k(&mut self, k: usize) {
        if k >= self.logits.len() {
            return;
        }
        let mut counts = [0u32; SLOTS];
        self.masses.buckets.iter().for_each(|&bucket| counts[usize::from(bucket) % SLOTS] += 1);
        // The bucket at which there are k, and how many of them are its.
        let mut wanted = k.max(1);
        let bucket = counts[..BUCKETS].iter().position(|&count| {
            let here = wanted <= count as usize;
            wanted -= if here { 0 } else { count as usize };
            here
        });
        let mut tokens = bucket.map_or_else(|| self.gather(BUCKETS..SLOTS, 0..0), |bucket| self.tokens(bucket));
        let (_, &mut last, _) = tokens.select_nth_unstable(wanted - 1);
        self.narrow(self.first, Ranked::new(TokenId::MAX, last.logit()));
    }

    fn top_p(&mut self, p: f64) {
        let target = p * self.masses.total();
        self.narrow(self.first, self.at(|sum| sum >= target));
    }

    /// What is `ratio` times as likely as another has a logit that is that much less.
    fn min_p(&mut self, ratio: f64) {
        let least = f64::from(self.scale.max) + f64::from(self.temperature) * ratio.min(1.0).ln();
        self.narrow(self.first, Ranked::new(TokenId::MAX, at_least(least)));
    }

    /// The surprise of a token and the entropy are as far apart as its logit and the mean logit, over the temperature.
    fn typical_p(&mut self, p: f64) {
        let (total, mean) = (self.masses.total(), self.mean_logit());
        let target = p * total;
        let (sure, mut open) = self.around(mean, target);
        let distance = |token: &Ranked| (f64::from(token.logit()) - mean).abs();
        open.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)));
        let farthest = first_sum(sure, open.iter().map(|&token| self.weight(token)), |sum| sum >= target);
        // In another order a sum may be a little less than all.
        let Some(farthest) = farthest.map(|at| open[at].logit()) else { return };
        let mirrored = 2.0 * mean - f64::from(farthest);
        let (low, high) = if f64::from(farthest) < mean {
            (farthest, -at_least(-mirrored) + 0.0)
        } else {
            (at_least(mirrored), farthest)
        };
        self.narrow(Ranked::new(0, high), Ranked::new(TokenId::MAX, low));
    }

    /// Mean of the logits that are left, by probability.
    fn mean_logit(&self) -> f64 {
        const LANES: usize = 16;
        // Sums of f32 stay short.
        const GROUPS: usize = 16;
        let last = self.last.logit();
        let term = |logit: f32| {
            let x = ((logit - self.scale.max) / self.temperature).max(LOWEST);
            let weight = if logit > last { exp(x) } else { 0.0 };
            (weight, weight * x)
        };
        let sums = |groups: &[[f32; LANES]]| {
            let (mut weights, mut moments) = ([0f32; LANES], [0f32; LANES]);
            for group in groups {
                for ((weight, moment), &logit) in weights.iter_mut().zip(&mut moments).zip(group) {
                    let (w, m) = term(logit);
                    *weight += w;
                    *moment += m;
                }
            }
            (weights.iter().sum::<f32>(), moments.iter().sum::<f32>())
        };
        let (groups, tail) = self.logits.as_chunks::<LANES>();
        let (mut weight, mut moment) = (0.0, 0.0);
        for (w, m) in groups.chunks(GROUPS).map(sums).chain(tail.iter().map(|&logit| term(logit))) {
            weight += f64::from(w);
            moment += f64::from(m);
        }
        // Of what ties with the last, some may be left.
        let bucket = self.scale.bucket(last);
        let tied = if bucket < BUCKETS {
            let count = self.tokens(bucket).iter().filter(|token| token.logit() == last).count();
            count as f64 * self.weight(self.last)
        } else {
            0.0
        };
        let x_of_last = ((last - self.scale.max) / self.temperature).max(LOWEST);
        let mean = (moment + tied * f64::from(x_of_last)) / (weight + tied);
        f64::from(self.scale.max) + mean * f64::from(self.temperature)
    }

    /// The tokens nearest to `mean` whose mass reaches `target`: the mass of the buckets that are surely among them, and the
    /// tokens of those that may be.
    fn around(&self, mean: f64, target: f64) -> (f64, Vec<Ranked>) {
        let middle = (f64::from(self.scale.max) - mean) * f64::from(self.scale.scale);
        let mut sums = vec![0.0; BUCKETS + 1];
        for (bucket, mass) in self.masses.mass.iter().enumerate() {
            sums[bucket + 1] = sums[bucket] + mass;
        }
        let bounded = |place: f64| place.clamp(0.0, BUCKETS as f64) as usize;
        // Buckets reach half a bucket to both sides of their places.
        let within = |radius: f64| {
            let first = bounded((middle - radius + 0.5).ceil());
            first..bounded((middle + radius + 0.5).floor()).max(first)
        };
        let mass = |buckets: &Range<usize>| sums[buckets.end] - sums[buckets.start];
        let (mut short, mut enough) = (-1, BUCKETS as i32 + 1);
        while enough - short > 1 {
            let radius = i32::midpoint(short, enough);
            let mass = mass(&within(f64::from(radius)));
            if mass >= target && mass > 0.0 {
                enough = radius;
            } else {
                short = radius;
            }
        }
        // A bucket at the edge is left out of what is within, one to the other side. One more for rounded places.
        let sure = within(f64::from(enough - 3));
        let outer = bounded(middle - f64::from(enough) - 2.0)..bounded(middle + f64::from(enough) + 3.0);
        (mass(&sure), self.gather(outer.start..sure.start.max(outer.start), sure.end..outer.end.max(sure.end)))
    }

    /// Leaves nothing before `first` and behind `last`.
    fn narrow(&mut self, first: Ranked, last: Ranked) {
        let (was_first, was_last) = (self.first, self.last);
        (self.first, self.last) = (first.max(was_first), last.min(was_last));
        let [from, to] = [self.first, self.last].map(|token| self.scale.bucket(token.logit()));
        for (bucket, changed) in [(from, self.first != was_first), (to, self.last != was_last)] {
            if changed && bucket < BUCKETS {
                self.masses.mass[bucket] = self.tokens(bucket).iter().map(|&token| self.weight(token)).sum();
            }
        }
        self.masses.mass[..from.min(BUCKETS)].fill(0.0);
        self.masses.mass[(to + 1).min(BUCKETS)..].fill(0.0);
        self.masses.sum_parts();
    }

    /// The first token at which the sum of weights, in descending order, is such. The last token with a weight, if none is.
    fn at(&self, reached: impl Fn(f64) -> bool) -> Ranked {
        let Masses { mass, parts, .. } = &*self.masses;
        let mut before = 0.0;
        for (part, &of_part) in parts.iter().enumerate() {
            if !reached(before + of_part) {
                before += of_part;
                continue;
            }
            for (bucket, &of_bucket) in mass.iter().enumerate().skip(part * PART).take(PART) {
                if reached(before + of_bucket) && of_bucket > 0.0 {
                    let tokens = self.tokens(bucket);
                    if let Some(at) = first_sum(before, tokens.iter().map(|&token| self.weight(token)), &reached) {
                        return tokens[at];
                    }
                }
                // In another order a sum may be a little less: then it is reached further on.
                before += of_bucket;
            }
        }
        let last = mass.iter().rposition(|&mass| mass > 0.0).expect("the most likely token has a weight");
        let may_come = |token: &Ranked| token.logit() > f32::NEG_INFINITY;
        self.tokens(last).into_iter().rfind(may_come).expect("a bucket with a mass has a token")
    }

    /// What is left of a bucket, in order.
    fn tokens(&self, bucket: usize) -> Vec<Ranked> {
        let mut tokens = self.gather(bucket..bucket + 1, 0..0);
        tokens.sort_unstable();
        tokens
    }

    /// What is left of two runs of buckets.
    fn gather(&self, some: Range<usize>, others: Range<usize>) -> Vec<Ranked> {
        let bounds = |run: Range<usize>| (run.start as u16, run.len() as u16);
        let ((first, count), (other_first, other_count)) = (bounds(some), bounds(others));
        let here = |of: u16| (of.wrapping_sub(first) < count) | (of.wrapping_sub(other_first) < other_count);
        let mut tokens = Vec::new();
        for (part, buckets) in self.masses.buckets.chunks(CHUNK).enumerate() {
            // Most parts have none, which a vector sees at once.
            if buckets.iter().fold(false, |any, &of| any | here(of)) {
                let tokens_here = (CHUNK * part..).zip(buckets).filter(|&(_, &of)| here(of));
                let ranked = tokens_here.map(|(i, _)| Ranked::new(i as TokenId, self.logits[i]));
                tokens.extend(ranked.filter(|token| (self.first..=self.last).contains(token)));
            }
        }
        tokens
    }

    fn weight(&self, token: Ranked) -> f64 {
        exp((token.logit() - self.scale.max) / self.temperature).into()
    }
}

/// The least logit that is not below `bound`.
fn at_least(bound: f64) -> f32 {
    let nearest = bound as f32;
    // −0 has no place in the order.
    (if f64::from(nearest) < bound { nearest.next_up() } else { nearest }) + 0.0
}

/// Folds in sixteen parts side by side, so that it is done in vectors: `pick` must not mind the order.
fn fold(values: &[f32], first: f32, pick: impl Fn(f32, f32) -> f32) -> f32 {
    let (groups, tail) = values.as_chunks::<16>();
    let mut lanes = [first; 16];
    for group in groups {
        lanes.iter_mut().zip(group).for_each(|(lane, &x)| *lane = pick(*lane, x));
    }
    lanes.iter().chain(tail).fold(first, |so_far, &x| pick(so_far, x))
}

/// `e^x` for `x` ≤ 0 to 2 ulp, 0 below [`LOWEST`]; without branches, so that the compiler makes vectors of it.
/// Reference: Cephes' `expf`.
fn exp(x: f32) -> f32 {
    let bounded = x.max(LOWEST);
    let shifted = bounded * std::f32::consts::LOG2_E + TO_LOW_BITS;
    let power = shifted - TO_LOW_BITS;
    // ln 2 in two parts, the first with few bits, so that the product is exact.
    let rest = (bounded - power * 0.693_359_4) + power * 2.121_944_4e-4;
    let mut value = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        value = value * rest + coefficient;
    }
    value = value * rest * rest + rest + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < LOWEST { 0.0 } else { value * scale }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        random,
        sampler::filter::{Candidate, Known},
    };

    #[test]
    fn exp_agrees_with_the_library() {
        for i in 0..200_000 {
            let x = -(i as f32) * 4.3e-4;
            let expected = x.exp();
            assert!((exp(x) - expected).abs() <= 3e-7 * expected, "{x}: {} {expected}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    /// Rows from flat to peaked, with ties, and tokens that must not come.
    fn row(len: usize, spread: f32, seed: u64) -> Vec<f32> {
        let noise = |i: usize, stream: u32| random::uniform(seed, stream, 0, i as u32) as f32;
        let mut row: Vec<f32> = (0..len).map(|i| spread * (noise(i, 0) + noise(i, 1) + noise(i, 2) - 1.5)).collect();
        for i in (0..len).step_by(7) {
            row[i] = row[i / 2];
        }
        for i in (0..len).step_by(11) {
            row[i] = f32::NEG_INFINITY;
        }
        row
    }

    /// What each filter leaves of the sorted row, and the token at `uniform` of the last of them.
    fn sorted(row: &[f32], temperature: f32, filters: &[Filter], uniform: f64) -> (Vec<Left>, TokenId) {
        let score = |logit: f32| f64::from(logit) / f64::from(temperature);
        let max = row.iter().copied().map(score).fold(f64::NEG_INFINITY, f64::max);
        let all: f64 = row.iter().map(|&logit| (score(logit) - max).exp()).sum();
        let mut tokens: Vec<Ranked> = (0..).zip(row).map(|(id, &logit)| Ranked::new(id, logit)).collect();
        tokens.sort_unstable();
        let candidate =
            |token: &Ranked| Candidate { token: *token, probability: (score(token.logit()) - max).exp() / all };
        let mut known = Known { tokens: tokens.iter().map(candidate).collect(), mass: 1.0, complete: true };
        let mut left = Vec::new();
        for filter in filters {
            known = filter.apply(known).unwrap();
            left.push(known.left());
        }
        (left, known.draw(uniform).unwrap())
    }

    #[test]
    fn draws_what_the_sorted_row_draws() {
        use Filter::{MinP, TopK, TopP, Typical};
        let chains: [&[Filter]; 17] = [
            &[],
            &[TopP(0.9)],
            &[MinP(0.3)],
            &[TopP(0.5), MinP(0.6)],
            &[TopP(0.0)],
            &[TopK(1)],
            &[TopK(40)],
            &[TopK(3000)],
            &[TopK(300), TopP(0.7)],
            &[TopK(3000), TopP(0.999), MinP(0.001)],
            &[Typical(0.0)],
            &[Typical(0.2)],
            &[Typical(0.95)],
            &[TopK(100), Typical(0.5)],
            &[TopP(0.8), Typical(0.5)],
            &[MinP(0.05), Typical(0.9)],
            &[TopK(3000), TopP(0.95), MinP(0.01), Typical(0.3)],
        ];
        let (mut draws, mut different, mut told_otherwise, mut masses) = (0, 0, 0, Masses::default());
        for (seed, spread) in [0.0001, 0.3, 2.0, 20.0, 200.0].into_iter().enumerate() {
            for (len, temperature) in [(3, 1.0), (700, 0.7), (5003, 1.0), (5003, 2.0)] {
                let row = row(len, spread, seed as u64);
                for filters in chains {
                    for i in 0..40 {
                        let uniform = if i == 0 { 0.0 } else { random::uniform(9, 0, 0, i) };
                        let (expected_left, expected) = sorted(&row, temperature, filters, uniform);
                        let drawn = masses.draw(&row, temperature, filters, uniform).unwrap();
                        assert!(row[drawn as usize].is_finite(), "a token that must not come");
                        draws += 1;
                        different += u32::from(drawn != expected);
                        if i > 0 {
                            continue;
                        }
                        for (left, expected) in masses.left(&row).iter().zip(&expected_left) {
                            assert!((left.mass - expected.mass).abs() < 1e-3, "{filters:?}: {left:?} {expected:?}");
                            let same = left.count == expected.count && (left.mass - expected.mass).abs() < 1e-6;
                            told_otherwise += u32::from(!same);
                        }
                    }
                }
            }
        }
        // The order of additions differs: a draw, or a cut, at the very border between two tokens may fall on the other side.
        assert!(draws == 13_600 && different <= 3 && told_otherwise <= 1, "{different}, {told_otherwise} of {draws}");
    }

    #[test]
    fn ties_stay_where_a_filter_keeps_them() {
        let mut masses = Masses::default();
        let mut kept = |row: &[f32], filters: &[Filter]| {
            masses.draw(row, 1.0, filters, 0.5).unwrap();
            masses.left(row).last().unwrap().count
        };
        let tied = [3.0, 1.0, 2.0, 1.0, 1.0, 0.0];
        assert_eq!([1, 2, 3, 5, 6, 9].map(|k| kept(&tied, &[Filter::TopK(k)])), [1, 2, 5, 5, 6, 6]);
        assert_eq!(kept(&[0.0; 5], &[Filter::TopK(2)]), 5);
        assert_eq!(kept(&[0.0; 5], &[Filter::TopP(0.5)]), 3, "of ties only as many as reach it");
        assert_eq!(kept(&[0.0; 4], &[Filter::Typical(0.3)]), 4);
        // Entropy 0.90; surprises 0.51, 1.20, 2.30: the second is nearest, then the first.
        let row = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        assert_eq!([0.2, 0.5, 0.95].map(|p| kept(&row, &[Filter::Typical(p)])), [1, 2, 3]);
    }

    #[test]
    fn what_weighs_nothing_is_kept_apart_where_all_else_is_alike() {
        let mut masses = Masses::default();
        let row = [f32::NEG_INFINITY, 4.0, f32::NEG_INFINITY, 4.0, -1e9];
        for (uniform, expected) in [(0.0, 1), (0.49, 1), (0.51, 3), (0.999_999, 3)] {
            for filters in [&[][..], &[Filter::TopK(4)], &[Filter::Typical(0.9)], &[Filter::TopP(1.0)]] {
                assert_eq!(masses.draw(&row, 1.0, filters, uniform), Some(expected), "{filters:?}");
            }
        }
        assert_eq!(masses.draw(&[f32::NEG_INFINITY; 9], 1.0, &[], 0.5), None, "nothing can be drawn");
        // Neither are logits that no bucket can tell apart, nor the least and largest temperatures.
        let near = [-1e-40, 0.0, -2e-40, f32::NEG_INFINITY];
        for temperature in [1e-5, 1.0, 100.0] {
            for (uniform, expected) in [(0.0, 1), (0.4, 0), (0.9, 2)] {
                assert_eq!(masses.draw(&near, temperature, &[Filter::TopP(0.999)], uniform), Some(expected));
            }
            assert_eq!(masses.draw(&[0.0, f32::MAX, 3.0], temperature, &[Filter::Typical(0.9)], 0.9), Some(1));
        }
        assert_eq!(masses.draw(&[1.0; 9], 1.0, &[], 0.5), Some(4));
    }
}
