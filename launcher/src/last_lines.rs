//! The last lines that a child wrote to its standard error, kept for the report of its end.
//!
//! Does not know the child, nor what becomes of its lines otherwise.

use std::{
    collections::VecDeque,
    io::{BufRead, Read},
    sync::{Arc, Mutex, PoisonError},
};

/// How many are kept.
const KEPT_LINES: usize = 20;
/// Longest line that is read whole; a longer one is broken.
const MAX_LINE_BYTES: u64 = 16 << 10;

/// The last lines of a child. Clones are of the same: a thread of its own reads what another tells.
#[derive(Clone, Debug, Default)]
pub struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    /// One more.
    pub fn keep(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// The next line that a child writes, without its end; none when it has closed the stream.
pub fn next_line(stream: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    match stream.take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_long_ones_are_broken() {
        let text: String = (0..50).map(|i| format!("line {i}\n")).collect();
        let (kept, mut stream) = (LastLines::default(), text.as_bytes());
        while let Some(line) = next_line(&mut stream) {
            kept.keep(line);
        }
        let lines = kept.lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[19].as_str()), (KEPT_LINES, "line 30", "line 49"));
        let long = "x".repeat(MAX_LINE_BYTES as usize + 1);
        let mut stream = long.as_bytes();
        assert_eq!(std::iter::from_fn(|| next_line(&mut stream)).count(), 2);
    }
}
