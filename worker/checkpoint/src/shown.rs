//! Texts from files in messages of ours.

/// Most characters of a text from a file in a message.
const SHOWN: usize = 200;

/// A text from a file as a message may have it: cut where it is long, and without what would move a cursor or begin a line.
pub fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    if shown.chars().any(|c| escaped(c).is_some()) {
        shown = shown.chars().map(|c| escaped(c).unwrap_or(c.into())).collect();
    }
    shown
}

/// How a character that is not printed as itself is written.
fn escaped(c: char) -> Option<String> {
    let as_it_is = matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    (!as_it_is).then(|| c.escape_debug().collect())
}
