//! Windows over a long text: which tokens a request holds, and how many of its last ones it scores.
//!
//! ```text
//! strided   [begin ………………… end)          at most L tokens, S apart; scored: those not yet scored, never the window's first
//! rolling   [document token][t … p]       M targets at most, each behind as much context as fits
//! ```
//! References: Hugging Face's "Perplexity of fixed-length models"; lm-eval's `get_rolling_token_windows`.

use std::ops::Range;

/// One request's share of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Tokens of the text.
    pub tokens: Range<usize>,
    /// Whether the token that begins a document stands before them.
    pub document_start: bool,
    /// How many of the last tokens are scored.
    pub scored: usize,
    /// What Hugging Face's script weighs the window's mean with.
    pub weight: usize,
}

/// Windows of at most `length` tokens, `stride` apart, over `n` tokens.
///
/// Every token but the first is scored once, with `stride` below `length`; the first token of every window has no score,
/// which matters where they do not overlap.
pub fn strided(n: usize, length: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut scored_to = 0;
    for begin in (0..n).step_by(stride) {
        let end = (begin + length).min(n);
        let new = end - scored_to;
        let scored = new.min(end - begin - 1);
        // The script takes one label for lost to the shift in every window, though only the first loses one.
        windows.push(Window { tokens: begin..end, document_start: false, scored, weight: new.saturating_sub(1) });
        scored_to = end;
        if end == n {
            break;
        }
    }
    windows
}

/// Windows of at most `max` targets over `n` tokens: every token is scored once, the first after the document token.
pub fn rolling(n: usize, max: usize) -> Vec<Window> {
    let window = |scored_to: usize| {
        let end = (scored_to + max).min(n);
        let (scored, document_start) = (end - scored_to, scored_to == 0);
        let begin = if document_start { 0 } else { end - max - 1 };
        Window { tokens: begin..end, document_start, scored, weight: scored }
    };
    (0..n).step_by(max).map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which tokens are scored, in order.
    fn targets(windows: &[Window]) -> Vec<usize> {
        windows.iter().flat_map(|window| window.tokens.end - window.scored..window.tokens.end).collect()
    }

    #[test]
    fn strided_windows_are_those_of_the_script() {
        // (begin, end, scored, weight), traced by hand from the script with L = 8, S = 3, N = 15.
        let traced = [(0, 8, 7, 7), (3, 11, 3, 2), (6, 14, 3, 2), (9, 15, 1, 0)];
        let windows = strided(15, 8, 3);
        let ours: Vec<_> = windows.iter().map(|w| (w.tokens.start, w.tokens.end, w.scored, w.weight)).collect();
        assert_eq!(ours, traced);
        assert_eq!(targets(&windows), (1..15).collect::<Vec<_>>());
        // Without overlap every window's first token is lost.
        assert_eq!(targets(&strided(8, 4, 4)), [1, 2, 3, 5, 6, 7]);
        assert_eq!(strided(1, 8, 3).iter().map(|w| w.scored).collect::<Vec<_>>(), [0]);
        assert!(strided(0, 8, 3).is_empty());
    }

    #[test]
    fn rolling_windows_score_every_token_once_with_full_context() {
        for (n, max) in [(0, 4), (1, 4), (4, 4), (5, 4), (11, 4), (12, 4)] {
            let windows = rolling(n, max);
            assert_eq!(targets(&windows), (0..n).collect::<Vec<_>>(), "{n}");
            for window in windows.iter().skip(1) {
                assert_eq!(window.tokens.len(), max + 1, "{n}: a target has {max} tokens before it");
            }
        }
    }
}
