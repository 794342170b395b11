//! Names for the content of KV blocks: a hash of a block's tokens and of all tokens before them.
//!
//! ```text
//! tokens   [0 .. 16)      [16 .. 32)      [32 .. 48)
//! hashes   h0 = H(0, t) ─► h1 = H(h0, t) ─► h2 = H(h1, t)      equal h2 ⇒ equal first 48 tokens
//! ```
//! Keys and values of a block depend on its tokens, on those before, and on nothing else: batch, chunks and links change
//! no bit. Does not know blocks or who holds them.
//! A salt, where a request brings one, stands before the first block: who does not know it finds nothing, not even by the
//! time that a right guess of the text would save.
//! Invariant: SHA-256, so that nobody can make two prefixes collide, by accident or on purpose, and read what was
//! computed for another's text. A shorter hash would have to compare tokens; this one costs under a microsecond a block.
//! Reference: vLLM's automatic prefix caching, which chains hashes in the same way.

use nanoinfer_shared::protocol::{BLOCK_TOKENS, TokenId};
use sha2::{Digest, Sha256};

/// Stands for the tokens of a full block and all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockHash([u8; 32]);

/// The hashes of a growing list of tokens, as far as they were asked for.
#[derive(Debug, Default)]
pub(crate) struct PrefixHashes {
    /// Stands before the first block: zeros, or what a salt makes of them.
    root: [u8; 32],
    hashes: Vec<BlockHash>,
}

impl PrefixHashes {
    /// Those of a text that nobody finds who does not know its salt.
    pub(crate) fn salted(salt: Option<&str>) -> Self {
        let root = salt.map_or([0; 32], |salt| Sha256::digest(salt).into());
        Self { root, hashes: Vec::new() }
    }

    /// The hashes of the first `blocks` full blocks of `tokens`, which begin with what they were at every earlier call.
    pub(crate) fn of(&mut self, tokens: &[TokenId], blocks: usize) -> &[BlockHash] {
        let (full, _) = tokens.as_chunks::<BLOCK_TOKENS>();
        for block in full.iter().take(blocks).skip(self.hashes.len()) {
            let mut hash = Sha256::new();
            hash.update(self.hashes.last().map_or(self.root, |parent| parent.0));
            block.iter().for_each(|token| hash.update(token.to_le_bytes()));
            self.hashes.push(BlockHash(hash.finalize().into()));
        }
        &self.hashes[..blocks]
    }

    /// The hash of one block, if it was asked for before.
    pub(crate) fn get(&self, block: usize) -> Option<&BlockHash> {
        self.hashes.get(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_stands_for_its_block_and_all_before() {
        let tokens: Vec<TokenId> = (0..48).collect();
        let of = |tokens: &[TokenId]| PrefixHashes::default().of(tokens, tokens.len() / BLOCK_TOKENS).to_vec();
        let base = of(&tokens);
        let mut grown = PrefixHashes::default();
        assert_eq!(grown.of(&tokens[..20], 1), &base[..1]);
        assert_eq!(grown.of(&tokens, 3), base, "grown step by step");
        assert_eq!(grown.get(2), base.get(2));
        for changed in [0, 15, 16, 47] {
            let mut other = tokens.clone();
            other[changed] += 100;
            let equal = of(&other).iter().zip(&base).take_while(|(a, b)| a == b).count();
            assert_eq!(equal, changed / BLOCK_TOKENS, "token {changed}");
        }
    }

    #[test]
    fn a_salt_keeps_equal_texts_apart() {
        let tokens: Vec<TokenId> = (0..32).collect();
        let of = |salt| PrefixHashes::salted(salt).of(&tokens, 2).to_vec();
        let all = [of(None), of(Some("a")), of(Some("b"))];
        assert!((0..2).all(|block| all[0][block] != all[1][block] && all[1][block] != all[2][block]));
        assert_eq!(of(Some("a")), all[1]);
    }
}
