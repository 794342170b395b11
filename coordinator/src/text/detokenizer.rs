//! Bytes of tokens in, text out: never half a character.
//!
//! A token is a run of bytes, not of characters: `日` may be three tokens. Knows UTF-8 only.
//! Invariant: what was emitted so far plus what is pending is, byte for byte, what was pushed, except that a maximal
//! invalid sequence became one U+FFFD (as in Unicode's recommended practice, and Rust's lossy decoding).

use std::str;

/// Turns the bytes of one sequence into text, incrementally.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// The start of a character whose end has not come; at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Adds the bytes of a token, and appends to `out` every character that is complete now.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut consumed = 0;
        loop {
            let rest = &self.pending[consumed..];
            match str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending.clear();
                    return;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    out.push_str(str::from_utf8(&rest[..valid]).expect("checked by the line above"));
                    consumed += valid;
                    let Some(invalid) = error.error_len() else {
                        self.pending.drain(..consumed);
                        return;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    consumed += invalid;
                }
            }
        }
    }

    /// Ends the text: what is still pending is no character.
    pub fn flush(&mut self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
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
                detokenizer.push(part, &mut text);
                text
            })
            .collect();
        let mut tail = String::new();
        detokenizer.flush(&mut tail);
        texts.push(tail);
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
