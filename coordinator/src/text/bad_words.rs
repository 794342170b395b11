//! Words that must not be written, as the runs of tokens that would write them.
//!
//! Does not know what comes of them. Each word is looked at as it stands and behind a space, as a word begins a text or goes on
//! in it; other ways to spell it in tokens remain, as they do in vLLM, whose rule this is but for one thing: there, the form behind
//! a space counts only if it has as many tokens.

use super::{EncodeError, Specials, tokenizer::Tokenizer};
use crate::engine::request::BadWords;

/// The runs of tokens that spell `words`; special tokens count where they are spelled as they are.
///
/// # Errors
/// When the model has no token for a part of one.
pub(super) fn encode(tokenizer: &Tokenizer, words: &[String]) -> Result<BadWords, EncodeError> {
    let mut runs = Vec::with_capacity(2 * words.len());
    for word in words {
        let word = word.trim_start();
        runs.push(tokenizer.encode(word, Specials::Match)?);
        runs.push(tokenizer.encode(&format!(" {word}"), Specials::Match)?);
    }
    runs.sort_unstable();
    runs.dedup();
    Ok(runs.into_iter().filter(|run| !run.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::demo_text;

    #[test]
    fn a_word_is_forbidden_at_the_beginning_and_behind_a_space() {
        let tokenizer = &demo_text().tokenizer;
        let tokens = |text: &str| tokenizer.encode(text, Specials::Match).unwrap();
        let runs = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            encode(tokenizer, &words).unwrap().to_vec()
        };
        let mut both = vec![tokens("mat"), tokens(" mat")];
        both.sort_unstable();
        assert_ne!(both[0], both[1]);
        assert_eq!(runs(&["mat"]), both);
        assert_eq!(runs(&["  mat", "mat", " mat"]), both, "a space of its own says nothing, and once is enough");
        assert!(runs(&["<|endoftext|>"]).contains(&vec![4095]), "special tokens may be forbidden");
        assert!(runs(&[]).is_empty());
    }
}
