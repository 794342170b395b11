//! Texts from files in messages of ours.

/// Most characters of a text from a file in a message.
const SHOWN: usize = 200;

/// A text from a file as a message may have it: cut where it is long, and without what would move a cursor or begin a line.
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN) {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}
