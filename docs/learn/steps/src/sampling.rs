//! Step 4. Which token comes next is drawn, from what is left when the unlikely are cut off.
//!
//! The draw is made of a seed and a position alone, so that the same question with the same seed gives the same text, whoever else is
//! being served.

use crate::{likeliest, pass::softmax};

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Below 1 the likely become likelier; at 0 the likeliest is taken.
    pub temperature: f32,
    /// How many tokens are left; 0 for all.
    pub top_k: usize,
    /// How likely those that are left are together.
    pub top_p: f32,
    /// Chooses one of all possible texts.
    pub seed: u64,
}

impl Sampling {
    /// No chance at all.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// The tokens that are left with their probabilities, the likeliest first.
    pub fn candidates(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        if self.temperature == 0.0 {
            return vec![(likeliest(logits), 1.0)];
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_unstable_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        order.truncate(if self.top_k == 0 { usize::MAX } else { self.top_k });
        let mut shares: Vec<f32> = order.iter().map(|&id| logits[id as usize] / self.temperature).collect();
        softmax(&mut shares);
        let mut before = 0.0;
        let is_kept = |share: &&f32| {
            let is_kept = before < self.top_p;
            before += **share;
            is_kept
        };
        let kept = shares.iter().take_while(is_kept).count().max(1);
        let all: f32 = shares[..kept].iter().sum();
        order.into_iter().zip(shares).take(kept).map(|(id, share)| (id, share / all)).collect()
    }

    /// The token at a position of a text.
    pub fn draw(&self, logits: &[f32], position: usize) -> u32 {
        let candidates = self.candidates(logits);
        let mut left = uniform(self.seed, position as u64);
        let reached = |&&(_, share): &&(u32, f32)| {
            left -= share;
            left < 0.0
        };
        candidates.iter().find(reached).or(candidates.last()).map_or(0, |&(id, _)| id)
    }
}

/// A number from 0 to 1 that a seed and a position always give (SplitMix64, Steele et al. 2014).
fn uniform(seed: u64, position: u64) -> f32 {
    let mut z = seed.wrapping_add(position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}
