//! Seeded mutations of bytes and texts.

/// Numbers at the borders of what fields hold.
const BORDERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Xorshift64*: the same seed gives the same mutations.
pub(crate) struct Mutator(u64);

impl Mutator {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }

    /// A copy of `seed` with 1 to 4 changes; `words` are put in now and then.
    pub(crate) fn mutated(&mut self, seed: &[u8], words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            self.change(&mut bytes, words);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, words: &[&[u8]]) {
        if bytes.is_empty() {
            return;
        }
        // Headers and directories are at the ends; most of the middle is weights.
        let near = self.below(bytes.len().min(2048));
        let at = match self.below(4) {
            0 => self.below(bytes.len()),
            1 => bytes.len() - 1 - near,
            _ => near,
        };
        let len = 1 + self.below(32.min(bytes.len() - at));
        let end = at + len.min(bytes.len() - at);
        match self.below(8) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.below(256) as u8,
            2 | 3 => {
                let border = BORDERS[self.below(BORDERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&border[..width]);
            }
            4 => drop(bytes.drain(at..end)),
            5 => {
                let copy = bytes[at..end].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            6 if !words.is_empty() => {
                let word = words[self.below(words.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            _ => {
                let keep = self.below(bytes.len());
                if self.below(8) == 0 {
                    bytes.truncate(keep);
                } else {
                    bytes.swap(at, keep);
                }
            }
        }
    }
}
