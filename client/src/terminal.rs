//! What the terminal of standard output shows: words that break at its width, and colours where it has them.
//!
//! A pipe or a file gets the text as it is. `NO_COLOR` and `TERM=dumb` switch colours off (no-color.org). Does not know what is
//! written.

use std::{
    env,
    io::{self, IsTerminal},
};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Where somebody is to type.
    Prompt,
    /// What is no answer: thoughts, statistics, what a command says.
    Aside,
    /// What was chosen among others.
    Chosen,
}

/// What standard output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Screen {
    /// Of a line; none where it is no terminal, or does not say.
    pub(crate) columns: Option<usize>,
    has_colours: bool,
}

impl Screen {
    pub(crate) fn of_stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self::default();
        }
        let size = rustix::termios::tcgetwinsize(&stdout).ok();
        let columns = size.map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0);
        let says = |name: &str| env::var_os(name).unwrap_or_default();
        Self { columns, has_colours: says("NO_COLOR").is_empty() && says("TERM") != "dumb" }
    }

    #[cfg(test)]
    pub(crate) fn coloured(columns: Option<usize>) -> Self {
        Self { columns, has_colours: true }
    }

    /// A whole text with its lines broken between words.
    pub(crate) fn wrapped(self, text: &str) -> String {
        let mut wrap = Wrap::new(self);
        wrap.take(text) + &wrap.end()
    }

    /// The text in its colour.
    pub(crate) fn paint(self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Prompt => "1;36",
            Look::Aside => "2",
            Look::Chosen => "1",
        };
        if self.has_colours && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Breaks a text that comes in pieces between its words, so that no line is wider than the screen.
///
/// ```text
/// written │ gap │ word │ … to come        the gap becomes a line end where the word does not fit behind it
/// ```
/// A word is held back until what follows it is known. Lines that the text ends itself, and spaces they begin with, stay; a word
/// wider than the screen is left to the terminal. Characters of double width, as of Chinese, are words of their own.
#[derive(Debug)]
pub(crate) struct Wrap {
    columns: Option<usize>,
    /// Where the next character will stand.
    column: usize,
    gap: String,
    word: String,
}

impl Wrap {
    pub(crate) fn new(screen: Screen) -> Self {
        Self { columns: screen.columns, column: 0, gap: String::new(), word: String::new() }
    }

    /// What of the text so far can be written.
    pub(crate) fn take(&mut self, piece: &str) -> String {
        if self.columns.is_none() {
            return piece.to_owned();
        }
        let mut out = String::new();
        for char in piece.chars() {
            match char {
                '\n' => {
                    self.flush(&mut out);
                    self.gap.clear();
                    self.column = 0;
                    out.push('\n');
                }
                ' ' | '\t' => {
                    self.flush(&mut out);
                    self.gap.push(char);
                }
                wide if wide.width() == Some(2) => {
                    self.flush(&mut out);
                    self.word.push(wide);
                    self.flush(&mut out);
                }
                char => self.word.push(char),
            }
        }
        out
    }

    /// The rest of the text.
    pub(crate) fn end(&mut self) -> String {
        let mut out = String::new();
        self.flush(&mut out);
        out
    }

    fn flush(&mut self, out: &mut String) {
        let Some(columns) = self.columns.filter(|_| !self.word.is_empty()) else { return };
        let (gap, word) = (self.gap.width(), self.word.width());
        if self.column > 0 && self.column + gap + word > columns {
            out.push('\n');
            self.column = word;
        } else {
            *out += &self.gap;
            self.column += gap + word;
        }
        if self.column > columns {
            self.column %= columns;
        }
        *out += &self.word;
        self.gap.clear();
        self.word.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(columns: usize, pieces: &[&str]) -> String {
        let mut wrap = Wrap::new(Screen { columns: Some(columns), has_colours: false });
        pieces.iter().map(|piece| wrap.take(piece)).collect::<String>() + &wrap.end()
    }

    #[test]
    fn lines_break_between_words_however_the_text_is_cut() {
        let text = "The cat sat on the mat.\n\n  and slept";
        let lines = "The cat\nsat on the\nmat.\n\n  and\nslept";
        assert_eq!(wrapped(10, &[text]), lines);
        for cut in 0..text.len() {
            assert_eq!(wrapped(10, &[&text[..cut], &text[cut..]]), lines, "cut at {cut}");
        }
        assert_eq!(wrapped(10, &["abcdefghij klm"]), "abcdefghij\nklm", "a line may be full");
        assert_eq!(
            wrapped(4, &["ab cdefghijkl m"]),
            "ab\ncdefghijkl m",
            "where the terminal broke it, two columns are taken"
        );
        assert_eq!(wrapped(6, &["猫是哺乳动物"]), "猫是哺\n乳动物");
    }

    #[test]
    fn what_is_no_terminal_gets_the_text_as_it_is() {
        let mut wrap = Wrap::new(Screen::default());
        let text = "a  b ".repeat(100);
        assert_eq!(wrap.take(&text) + &wrap.end(), text);
        assert_eq!(Screen::default().paint(Look::Aside, "x"), "x");
        assert_eq!(Screen::coloured(None).paint(Look::Chosen, "x"), "\x1b[1mx\x1b[0m");
    }
}
