//! Numbers that a seed decides, the same on every machine: for loads and prompts, where any even spread will do.
//!
//! Reference: SplitMix64, by Steele, Lea and Flood.

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// So many token ids below a vocabulary's size.
    pub(crate) fn ids(&mut self, count: usize, vocab_size: usize) -> Vec<u32> {
        (0..count).map(|_| (self.unit() * vocab_size as f64) as u32).collect()
    }
}
