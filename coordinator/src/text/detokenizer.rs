//! Tokens in, text out: never half a character.
//!
//! A token is a run of bytes, not of characters: `日` may be three tokens. Byte-level text needs UTF-8 only; any other
//! decoder is asked for the text of the last tokens together, since it treats the first one, runs of bytes or spaces
//! between tokens in ways of its own.
//! Invariant: what was emitted so far plus what is pending is the text of all tokens that were pushed, as
//! [`Tokenizer::decode`] has it behind those that came before; invalid bytes became one U+FFFD for each maximal
//! invalid sequence (Unicode's recommended practice, and Rust's lossy decoding).

use std::str;

use nanoinfer_shared::protocol::TokenId;

use super::{Tokenizer, decoder::Decoder};

/// So many tokens are decoded together before the oldest are forgotten.
const WINDOW: usize = 64;
/// So many are remembered, for what the next ones make of them.
const CONTEXT: usize = 16;

/// Turns the tokens of one sequence into text, incrementally.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// Byte-level: the start of a character whose end has not come; at most 3 bytes between calls.
    pending: Vec<u8>,
    /// Any other decoder: the last tokens, as strings.
    window: Vec<String>,
    /// Bytes of their text that were given out.
    given: usize,
}

impl Detokenizer {
    /// Continues a text: where the decoder looks at the tokens before, it sees these.
    pub fn after(tokenizer: &Tokenizer, before: &[TokenId]) -> Self {
        let Some(decoder) = tokenizer.decoder() else {
            return Self::default();
        };
        let ids = before.iter().filter(|&&id| !tokenizer.is_special(id));
        let mut window: Vec<String> = ids.filter_map(|&id| tokenizer.token(id)).collect();
        // A character that was cut off between prompt and continuation stays cut off, as it does byte-level.
        let whole = window.iter().rposition(|token| decoder.byte(token).is_none()).map_or(0, |last| last + 1);
        window.truncate(whole);
        let mut detokenizer = Self { window, ..Self::default() };
        detokenizer.given = decoder.settled(&detokenizer.window, &decoder.text(detokenizer.window.clone()));
        detokenizer.forget(decoder);
        detokenizer
    }

    /// Adds a token, and appends to `out` all text that no further token can change.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId, out: &mut String) {
        let Some(decoder) = tokenizer.decoder() else {
            return self.push_bytes(tokenizer.bytes(id), out);
        };
        let Some(token) = tokenizer.token(id) else {
            return;
        };
        self.window.push(token);
        let text = decoder.text(self.window.clone());
        let settled = decoder.settled(&self.window, &text);
        if let Some(new) = text.get(self.given..settled) {
            out.push_str(new);
            self.given = settled;
        }
        if self.window.len() >= WINDOW && settled == text.len() {
            self.forget(decoder);
        }
    }

    /// Ends the text: what is still pending is all there is.
    pub fn flush(&mut self, tokenizer: &Tokenizer, out: &mut String) {
        match tokenizer.decoder() {
            None => out.push_str(&String::from_utf8_lossy(&self.pending)),
            Some(decoder) => {
                let text = decoder.text(self.window.clone());
                out.push_str(text.get(self.given..).unwrap_or_default());
            }
        }
        *self = Self::default();
    }

    /// Keeps so many of the last tokens that they have text: what is dropped at the start of a text is dropped.
    fn forget(&mut self, decoder: &Decoder) {
        let mut keep = CONTEXT;
        while keep < self.window.len() {
            let last = &self.window[self.window.len() - keep..];
            let text = decoder.text(last.to_vec());
            if !text.is_empty() {
                self.given = decoder.settled(last, &text);
                self.window.drain(..self.window.len() - keep);
                return;
            }
            keep *= 2;
        }
    }

    fn push_bytes(&mut self, bytes: &[u8], out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut held = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            out.push_str(chunk.valid());
            let is_cut_off = str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
            if is_cut_off && chunks.peek().is_none() {
                held = chunk.invalid().len();
            } else if !chunk.invalid().is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - held);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(parts: &[&[u8]]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        let mut texts: Vec<String> = parts
            .iter()
            .map(|part| {
                let mut text = String::new();
                detokenizer.push_bytes(part, &mut text);
                text
            })
            .collect();
        texts.push(String::from_utf8_lossy(&detokenizer.pending).into_owned());
        texts
    }

    #[test]
    fn a_split_character_waits_for_its_end() {
        let crab = "🦀".as_bytes();
        assert_eq!(pieces(&[&crab[..1], &crab[1..3], &crab[3..]]), ["", "", "🦀", ""]);
        assert_eq!(pieces(&[b"a\xe6", b"\x97", b"\xa5b\xe6", b"\x97\xa5"]), ["a", "", "日b", "日", ""]);
    }

    #[test]
    fn invalid_bytes_become_one_replacement_each() {
        assert_eq!(pieces(&[b"\xf0\x9f", b"A"]), ["", "\u{fffd}A", ""]);
        assert_eq!(pieces(&[b"\x80\x80z"]), ["\u{fffd}\u{fffd}z", ""]);
        assert_eq!(pieces(&[b"\xf0\x9f\xa6"]), ["", "\u{fffd}"], "cut at the end");
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_text(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0usize..40) {
            let cut = cut.min(bytes.len());
            let joined = pieces(&[&bytes[..cut], &bytes[cut..]]).concat();
            prop_assert_eq!(joined, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn valid_text_never_shows_a_replacement(text in "\\PC{0,20}") {
            let singles: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            let pieces = pieces(&singles);
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
