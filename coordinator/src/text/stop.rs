//! Finds stop strings in text that arrives in pieces.
//!
//! Knows text only. Invariant: nothing that may still turn out to be the start of a stop string is given out, and no
//! part of a stop string ever is.

/// Looks for the first of several stop strings in one text.
#[derive(Clone, Debug, Default)]
pub struct StopFinder {
    stops: Vec<String>,
    /// Text held back: a proper prefix of some stop string.
    held: String,
}

impl StopFinder {
    /// Empty stop strings are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Adds text. Returns what is safe to give out, and whether a stop string was found behind it; after that, nothing
    /// may be pushed.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, tail), false)
    }

    /// The text ends here: what was held back is text after all.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper prefix of `stop` that `text` ends with, in bytes.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).rev().find(|&at| text.ends_with(&stop[..at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut finder = StopFinder::new(stops.iter().map(|s| (*s).to_owned()));
        let mut out = Vec::new();
        for piece in pieces {
            let (text, found) = finder.push(piece);
            out.push(text);
            if found {
                return (out, true);
            }
        }
        out.push(finder.flush());
        (out, false)
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn a_stop_string_may_span_pieces() {
        assert_eq!(run(&["\nUser:"], &["Hi", "\n", "Use", "r: x"]), (strings(&["Hi", "", "", ""]), true));
        assert_eq!(run(&["END"], &["aEN", "xEND"]), (strings(&["a", "ENx"]), true));
    }

    #[test]
    fn what_was_held_in_vain_comes_back() {
        assert_eq!(run(&["\nUser:"], &["a\nUs", "e"]), (strings(&["a", "", "\nUse"]), false));
        assert_eq!(run(&["\nUser:"], &["a\nUs", "x"]), (strings(&["a", "\nUsx", ""]), false));
        assert_eq!(run(&["\nUser:"], &["a\nUs"]), (strings(&["a", "\nUs"]), false));
    }

    #[test]
    fn the_first_of_several_wins_and_repeats_overlap() {
        assert_eq!(run(&["cd", "b"], &["abcd"]), (strings(&["a"]), true));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), (strings(&["", "", "a", ""]), true));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), (strings(&["caf", "", ""]), true));
        assert_eq!(run(&["", "x"], &["yz"]), (strings(&["yz", ""]), false));
    }

    proptest! {
        #[test]
        fn pieces_equal_the_whole(text in "[abé]{0,12}", stop in "[abé]{1,4}", other in "[abé]{1,3}") {
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            let refs: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (out, found) = run(&[&stop, &other], &refs);
            // Piecewise, the stop string that is complete first wins; in the whole, the one that starts first.
            let first_end = |s: &str| text.find(s).map(|at| (at + s.len(), at));
            let expected = [first_end(&stop), first_end(&other)].into_iter().flatten().min();
            prop_assert_eq!(found, expected.is_some());
            if expected.is_none() {
                prop_assert_eq!(out.concat(), text);
            } else {
                prop_assert!(!out.concat().contains(&stop) && !out.concat().contains(&other));
                prop_assert!(text.starts_with(&out.concat()));
            }
        }
    }
}
