//! Bars in a terminal: eighths of a block where it shows them, `#` where the output is a pipe or a file.

use std::io::{self, IsTerminal};

/// How bars are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bars {
    /// `████▌`
    Blocks,
    /// `####`
    Ascii,
}

impl Bars {
    /// What standard output shows.
    pub(crate) fn of_stdout() -> Self {
        if io::stdout().is_terminal() { Self::Blocks } else { Self::Ascii }
    }

    /// A bar of `share` (0 to 1) of `width` characters; something is always seen of what is more than nothing.
    pub(crate) fn draw(self, share: f64, width: usize) -> String {
        const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
        let least = if share > 0.0 { 1 } else { 0 };
        match self {
            Self::Blocks => {
                let eighths = ((share * (8 * width) as f64).round() as usize).max(least);
                "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
            }
            Self::Ascii => "#".repeat(((share * width as f64).round() as usize).max(least)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share_and_never_invisible() {
        let lengths = |bars: Bars| [0.0, 1e-9, 0.5, 1.0, 7.0, f64::NAN].map(|share| bars.draw(share, 8));
        assert_eq!(lengths(Bars::Ascii), ["", "#", "####", "########", "########", ""]);
        assert_eq!(lengths(Bars::Blocks), ["", "▏", "████", "████████", "████████", ""]);
        assert_eq!(Bars::Blocks.draw(0.45, 8), "███▋");
    }
}
