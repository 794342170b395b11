//! Standard error, as all our programs write it: for people, so that where nobody reads it, nothing is lost.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Writes a line to standard error.
pub fn say(line: impl Display) {
    // Nobody is left to be told that it cannot be written.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
