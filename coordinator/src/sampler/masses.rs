//! The draw from a whole row by masses of buckets: nothing is put in order but the two buckets that decide.
//!
//! ```text
//! logits, descending   |  bucket 0  |  bucket 1  | … |  the cut's  | …       buckets of equal width, from the most likely down
//! mass up to here      0 ─────────── m0 ───────── m1 …      ▲ top-p, min-p
//!                              ▲ uniform × the mass kept: the token
//! ```
//! Does not know penalties or requests, and only filters that keep a prefix of the descending order whatever its length.
//! Invariant: the same tokens could be drawn with the same probabilities as from the sorted row, up to the rounding of f32.
//! Passes over the row are loops over arrays without branches, which the compiler makes vectors of.

use nanoinfer_shared::protocol::TokenId;

use super::{filter::Filter, ranked::Ranked};

/// Adding it to a small number leaves the nearest integer in the low bits of the mantissa.
const TO_LOW_BITS: f32 = 12_582_912.0;
/// Enough that a bucket of a flat row has some dozen tokens; one less than a power of two, for the one behind.
const BUCKETS: usize = 4095;
const _: () = assert!(BUCKETS < 1 << 16);
/// Buckets that are passed over at once where what is looked for is not in them.
const PART: usize = 64;
/// Below this `exp` is nothing beside 1.
const LOWEST: f32 = -87.0;

/// The tokens of a row in buckets of descending logit; used for one row after the other, to keep its memory.
#[derive(Debug, Default)]
pub(super) struct Masses {
    /// Of each logit.
    buckets: Vec<u16>,
    /// Of each bucket: the sum of `exp((logit − max) / temperature)`.
    mass: Vec<f64>,
    /// Of each part of the buckets.
    parts: Vec<f64>,
}

/// A row in its buckets.
struct Row<'a> {
    /// With a place in a total order; −∞ where a token must not come.
    logits: &'a [f32],
    temperature: f32,
    max: f32,
    masses: &'a Masses,
}

impl Masses {
    /// The token at `uniform` of the mass that `filters`, all of them top-p or min-p, leave of `logits`, which have a place in
    /// a total order. `None` where nothing can be drawn, or all logits are alike: then order says nothing.
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
        let scale = (BUCKETS - 1) as f32 / (max - min);
        // Of a bucket, in what `exp` takes.
        let width = (scale * temperature).recip();
        if !max.is_finite() || !scale.is_finite() || !width.is_finite() {
            return None;
        }
        self.fill(logits, max, scale, width);
        Some(Row { logits, temperature, max, masses: self }.draw(filters, uniform))
    }

    /// Whether `filters` are of the kind that [`Masses::draw`] knows.
    pub(super) fn can(filters: &[Filter]) -> bool {
        filters.iter().all(|filter| matches!(filter, Filter::TopP(_) | Filter::MinP(_)))
    }

    /// `exp` of a logit is that of its bucket's middle times that of the small rest, for which three terms are exact enough.
    fn fill(&mut self, logits: &[f32], max: f32, scale: f32, width: f32) {
        // What weighs nothing gets a bucket of its own, behind the others.
        const BEHIND: f32 = BUCKETS as f32;
        self.buckets.resize(logits.len(), 0);
        self.mass.clear();
        self.mass.resize(BUCKETS + 1, 0.0);
        let mass: &mut [f64; BUCKETS + 1] = self.mass.as_mut_slice().try_into().expect("of that length");
        let mut rests = [0.0; 64];
        for (logits, buckets) in logits.chunks(rests.len()).zip(self.buckets.chunks_mut(rests.len())) {
            for ((rest, bucket), &logit) in rests.iter_mut().zip(&mut *buckets).zip(logits) {
                let place = (max - logit) * scale;
                let place = if place < BEHIND { place } else { BEHIND };
                let rounded = place + TO_LOW_BITS;
                let below = (rounded - TO_LOW_BITS - place) * width;
                *rest = 1.0 + below * (1.0 + 0.5 * below);
                *bucket = rounded.to_bits() as u16;
            }
            for (&rest, &bucket) in rests.iter().zip(&*buckets) {
                mass[usize::from(bucket) % (BUCKETS + 1)] += f64::from(rest);
            }
        }
        self.mass.truncate(BUCKETS);
        for (bucket, mass) in self.mass.iter_mut().enumerate() {
            *mass *= f64::from(exp(-(bucket as f32) * width));
        }
        self.parts.clear();
        self.parts.extend(self.mass.chunks(PART).map(|part| part.iter().sum::<f64>()));
    }
}

impl Row<'_> {
    fn draw(&self, filters: &[Filter], uniform: f64) -> TokenId {
        // All of these keep a prefix of the descending order, so a prefix is known by its mass.
        let all: f64 = self.masses.parts.iter().sum();
        let kept = filters.iter().fold(all, |kept, filter| match *filter {
            Filter::TopP(p) => kept.min(self.at(|sum| sum >= p * kept).1),
            Filter::MinP(ratio) => kept.min(self.at_least(ratio)),
            Filter::TopK(_) | Filter::Typical(_) => unreachable!("these are decided from a sorted row"),
        });
        // The last token is reached in any case: rounding must not lead beyond it.
        let target = (uniform * kept).min(kept.next_down());
        self.at(|sum| sum > target).0
    }

    /// Mass of the tokens that are at least `ratio` times as likely as the most likely, which weighs 1.
    fn at_least(&self, ratio: f64) -> f64 {
        let weights = self.logits.iter().map(|&logit| f64::from(self.weight(logit)));
        weights.filter(|&weight| weight >= ratio.min(1.0)).sum()
    }

    /// The first token at which the sum of weights, in descending order, is such; and that sum. The last token with a
    /// weight, if none is.
    fn at(&self, reached: impl Fn(f64) -> bool) -> (TokenId, f64) {
        let Masses { mass, parts, .. } = self.masses;
        let mut before = 0.0;
        for (part, &of_part) in parts.iter().enumerate() {
            if !reached(before + of_part) {
                before += of_part;
                continue;
            }
            for (bucket, &of_bucket) in mass.iter().enumerate().skip(part * PART).take(PART) {
                if reached(before + of_bucket) {
                    let mut tokens = self.tokens(bucket);
                    tokens.sort_unstable();
                    let mut sum = before;
                    for token in tokens {
                        sum += f64::from(self.weight(token.logit()));
                        if reached(sum) {
                            return (token.id(), sum);
                        }
                    }
                }
                // In another order a sum may be a little less: then it is reached further on.
                before += of_bucket;
            }
        }
        let last = mass.iter().rposition(|&mass| mass > 0.0).expect("the most likely token has a weight");
        let may_come = |token: &Ranked| token.logit() > f32::NEG_INFINITY;
        let token = self.tokens(last).into_iter().filter(may_come).max().expect("a bucket with a mass has a token");
        (token.id(), before)
    }

    fn tokens(&self, bucket: usize) -> Vec<Ranked> {
        let bucket = bucket as u16;
        let mut tokens = Vec::new();
        for (part, buckets) in self.masses.buckets.chunks(64).enumerate() {
            // Most parts have none, which a vector sees at once.
            if buckets.iter().fold(false, |any, &of| any | (of == bucket)) {
                let of_bucket = (64 * part..).zip(buckets).filter(|&(_, &of)| of == bucket);
                tokens.extend(of_bucket.map(|(i, _)| Ranked::new(i as TokenId, self.logits[i])));
            }
        }
        tokens
    }

    fn weight(&self, logit: f32) -> f32 {
        exp((logit - self.max) / self.temperature)
    }
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
    use crate::random;

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

    /// What the filters leave of the sorted row, and the token at `uniform` of it.
    fn sorted(row: &[f32], temperature: f32, filters: &[Filter], uniform: f64) -> (f64, TokenId) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut tokens: Vec<Ranked> = (0..).zip(row).map(|(id, &logit)| Ranked::new(id, logit)).collect();
        tokens.sort_unstable();
        let weight = |token: &Ranked| f64::from(exp((token.logit() - max) / temperature));
        for filter in filters {
            let all: f64 = tokens.iter().map(weight).sum();
            let mut sum = 0.0;
            let count = match *filter {
                Filter::TopP(p) => tokens
                    .iter()
                    .position(|token| {
                        sum += weight(token);
                        sum >= p * all
                    })
                    .map_or(tokens.len(), |last| last + 1),
                Filter::MinP(ratio) => tokens.partition_point(|token| weight(token) >= ratio),
                _ => unreachable!(),
            };
            tokens.truncate(count);
        }
        let all: f64 = tokens.iter().map(weight).sum();
        let mut sum = 0.0;
        let drawn = tokens.iter().find(|token| {
            sum += weight(token);
            sum > uniform * all
        });
        (all, drawn.unwrap_or(tokens.last().unwrap()).id())
    }

    #[test]
    fn draws_what_the_sorted_row_draws() {
        let chains: [&[Filter]; 5] = [
            &[],
            &[Filter::TopP(0.9)],
            &[Filter::MinP(0.3)],
            &[Filter::TopP(0.5), Filter::MinP(0.6)],
            &[Filter::TopP(0.0)],
        ];
        let (mut draws, mut different, mut masses) = (0, 0, Masses::default());
        for (seed, spread) in [0.0001, 0.3, 2.0, 20.0, 200.0].into_iter().enumerate() {
            for (len, temperature) in [(3, 1.0), (700, 0.7), (5003, 1.0), (5003, 2.0)] {
                let row = row(len, spread, seed as u64);
                for filters in chains {
                    for i in 0..40 {
                        let uniform = if i == 0 { 0.0 } else { random::uniform(9, 0, 0, i) };
                        let (_, expected) = sorted(&row, temperature, filters, uniform);
                        let drawn = masses.draw(&row, temperature, filters, uniform).unwrap();
                        assert!(row[drawn as usize].is_finite(), "a token that must not come");
                        draws += 1;
                        different += u32::from(drawn != expected);
                    }
                }
            }
        }
        // The order of f64 additions differs: a draw at the very border between two tokens may fall on the other side.
        assert!(draws == 4000 && different <= 1, "{different} of {draws}");
    }

    #[test]
    fn a_row_without_order_is_left_to_others() {
        assert_eq!(Masses::default().draw(&[f32::NEG_INFINITY; 9], 1.0, &[], 0.5), None);
        assert_eq!(Masses::default().draw(&[1.0; 9], 1.0, &[], 0.5), None);
        assert!(!Masses::can(&[Filter::TopP(0.5), Filter::Typical(0.5)]) && Masses::can(&[]));
    }
}
