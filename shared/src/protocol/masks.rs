//! Which tokens may come, as bits: they follow the plan of a step while the ranks compute it.
//!
//! ```text
//! token   0 1 2 … 31 | 32 …        of a slice: its first token is bit 0 of word 0
//! word    0          | 1           bits behind the last token are 0
//! ```
//! Does not know what allows them.

use std::{fmt, ops::Range, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

/// Tokens to a word.
const WORD: usize = u32::BITS as usize;

/// The masks of a step's rows, as one rank gets them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masks {
    /// Of the plan.
    pub step: u64,
    /// Of the rank's slice; one for each row of the plan that is masked, in their order.
    pub rows: Vec<TokenMask>,
}

/// Which tokens of a vocabulary, or of a slice of one, may come. Copies share it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenMask(Arc<[u32]>);

impl TokenMask {
    /// That of such words.
    pub fn new(words: &[u32]) -> Self {
        Self(words.into())
    }

    /// Whether token `index` may come.
    pub fn allows(&self, index: usize) -> bool {
        self.0.get(index / WORD).is_some_and(|word| word >> (index % WORD) & 1 == 1)
    }

    /// How many may.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The one that may, where there is no other.
    pub fn only(&self) -> Option<u32> {
        let word = self.0.iter().position(|&word| word != 0).filter(|_| self.count() == 1)?;
        Some((word * WORD) as u32 + self.0[word].trailing_zeros())
    }

    /// Those of a slice, which begins at the beginning of a word.
    pub fn slice(&self, tokens: &Range<usize>) -> Self {
        assert!(tokens.start.is_multiple_of(WORD), "slices of the vocabulary begin where words do");
        let words = tokens.start / WORD..tokens.end.div_ceil(WORD);
        let mut words: Vec<u32> = words.map(|at| self.0.get(at).copied().unwrap_or(0)).collect();
        if let (Some(last), behind @ 1..) = (words.last_mut(), tokens.end % WORD) {
            *last &= (1 << behind) - 1;
        }
        Self(words.into())
    }

    /// Whether it is of a slice of so many tokens.
    pub fn is_of(&self, tokens: usize) -> bool {
        self.0.len() == tokens.div_ceil(WORD)
    }

    /// Puts `value` where a token must not come.
    pub fn fill_others(&self, row: &mut [f32], value: f32) {
        let words = self.0.iter().chain(std::iter::repeat(&0));
        for (&word, tokens) in words.zip(row.chunks_mut(WORD)) {
            match word {
                u32::MAX => {}
                0 => tokens.fill(value),
                _ => tokens.iter_mut().enumerate().filter(|(i, _)| word >> i & 1 == 0).for_each(|(_, x)| *x = value),
            }
        }
    }
}

impl FromIterator<u32> for TokenMask {
    /// That of these tokens, in any order.
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut words = Vec::new();
        for id in ids.into_iter().map(|id| id as usize) {
            words.resize(words.len().max(id / WORD + 1), 0);
            words[id / WORD] |= 1 << (id % WORD);
        }
        Self(words.into())
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenMask({} of {})", self.count(), self.0.len() * WORD)
    }
}

/// As bytes: element by element, a step of 32 rows would take longer than to compute it.
impl Serialize for TokenMask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for TokenMask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = TokenMask;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("words of four bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<TokenMask, E> {
                let (words, rest) = bytes.as_chunks();
                if !rest.is_empty() {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(TokenMask(words.iter().map(|&word| u32::from_le_bytes(word)).collect()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_has_the_bits_of_its_tokens_and_no_others() {
        let mask: TokenMask = [0, 31, 64, 70, 99, 130].into_iter().collect();
        assert_eq!((mask.count(), mask.allows(70), mask.allows(71), mask.allows(5000)), (6, true, false, false));
        assert_eq!((mask.only(), [70].into_iter().collect::<TokenMask>().only()), (None, Some(70)));
        let slice = mask.slice(&(64..98));
        assert!(slice.is_of(34) && !slice.is_of(65));
        assert_eq!((0..64).filter(|&i| slice.allows(i)).collect::<Vec<_>>(), [0, 6], "99 is another slice's");
        assert_eq!(mask.slice(&(128..300)).count(), 1);
        let mut row = vec![1.0; 34];
        slice.fill_others(&mut row, 0.0);
        assert_eq!(row.iter().sum::<f32>(), 2.0);
        let mut row = vec![1.0; 90];
        TokenMask::new(&[u32::MAX]).fill_others(&mut row, 0.0);
        assert_eq!(row.iter().sum::<f32>(), 32.0);
    }

    #[test]
    fn masks_survive_the_link() {
        let masks = Masks { step: 7, rows: vec![TokenMask::new(&[1, u32::MAX]), TokenMask::default()] };
        let bytes = postcard::to_stdvec(&masks).unwrap();
        assert_eq!(postcard::from_bytes::<Masks>(&bytes).unwrap(), masks);
        assert!(bytes.len() < 16);
        assert!(postcard::from_bytes::<TokenMask>(&[3, 1, 2, 3]).is_err());
    }
}
