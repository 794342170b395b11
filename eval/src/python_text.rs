//! White space as Python's `str` has it, which the reference implementations split and strip by.
//!
//! Python also counts the four separators U+001C to U+001F, which Unicode's `White_Space`, and so Rust, does not.

/// `c.isspace()`.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `text.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text.rstrip()`.
pub(crate) fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `text.split()`.
pub(crate) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// `len(re.split(r"\s+", text))`: one more than there are runs of white space.
pub(crate) fn words(text: &str) -> usize {
    1 + text.split(|c| !is_space(c)).filter(|run| !run.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_white_space() {
        assert_eq!(strip("\u{1f} a\u{a0}b \n"), "a\u{a0}b");
        assert_eq!(split(" a\u{1c}b\u{3000}c ").collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn words_are_what_the_regular_expression_splits() {
        // Printed by CPython: an empty piece before, after, and of nothing counts.
        for (text, count) in [("", 1), (" ", 2), ("a", 1), ("a b", 2), (" a  b\n", 4), ("a\u{1c}b", 2)] {
            assert_eq!(words(text), count, "{text:?}");
        }
    }
}
