//! Finds stop strings in text that arrives in pieces.
//!
//! Knows text only. Invariant: nothing that may still turn out to be the start of a stop string is given out, and no
//! part of the one that ends the text ever is, unless it is to be shown.

/// Looks for the first of several stop strings in one text.
#[derive(Clone, Debug, Default)]
pub struct StopFinder {
    stops: Vec<Stop>,
    /// Text held back: a proper prefix of some stop string.
    held: String,
}

#[derive(Clone, Debug)]
struct Stop {
    text: String,
    /// It is part of the text that it ends.
    shown: bool,
}

impl StopFinder {
    /// The same with further stop strings, of which empty ones are ignored. Those that are `shown` are part of the text that
    /// they end.
    pub fn with(mut self, stops: impl IntoIterator<Item = String>, shown: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty());
        self.stops.extend(stops.map(|text| Stop { text, shown }));
        self
    }

    /// Adds text. Returns what is safe to give out, and whether a stop string that ends in it was found behind that; after
    /// that, nothing may be pushed.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        let old = self.held.len();
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| {
            let mut from = (old + 1).saturating_sub(stop.text.len());
            while !self.held.is_char_boundary(from) {
                from += 1;
            }
            let at = from + self.held[from..].find(&stop.text)?;
            Some((at, if stop.shown { at + stop.text.len() } else { at }))
        });
        if let Some((_, end)) = found.min() {
            self.held.truncate(end);
            return (std::mem::take(&mut self.held), true);
        }
        (self.give_out(), false)
    }

    /// Adds text in which no stop string may end. Returns what is safe to give out.
    pub fn pass(&mut self, text: &str) -> String {
        self.held.push_str(text);
        self.give_out()
    }

    fn give_out(&mut self) -> String {
        let keep = self.stops.iter().map(|stop| overlap(&self.held, &stop.text)).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, tail)
    }

    /// The text ends here: what was held back is text after all.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper prefix of `stop` that `text` ends with, in bytes.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).rev().find(|&at| text.ends_with(&stop[..at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut finder = StopFinder::default().with(strings(stops), false);
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

    #[test]
    fn a_stop_string_that_is_shown_ends_the_text_behind_it() {
        let mut finder = StopFinder::default().with(strings(&["B"]), false).with(strings(&["END"]), true);
        assert_eq!([finder.push("a E"), finder.push("ND x")], [("a ".to_owned(), false), ("END".to_owned(), true)]);
        let mut finder = StopFinder::default().with(strings(&["B"]), false).with(strings(&["END"]), true);
        assert_eq!(finder.push("aBEND"), ("a".to_owned(), true), "the first one decides");
    }

    #[test]
    fn a_stop_string_counts_where_it_ends() {
        let mut finder = StopFinder::default().with(strings(&["END"]), false);
        assert_eq!(finder.pass("an END, EN"), "an END, ");
        assert_eq!(finder.push("D."), (String::new(), true));
        let mut finder = StopFinder::default().with(strings(&["ab", "éabc"]), false);
        assert_eq!(finder.pass("xéab"), "x", "the start of the longer one");
        assert_eq!(finder.push("d"), ("éabd".to_owned(), false), "the shorter one ended before");
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
