//! Standard error, as all our programs write it: for people, so that where nobody reads it, nothing is lost; for programs, where
//! those read it, as events of the log.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

static ARE_EVENTS: AtomicBool = AtomicBool::new(false);

/// From now on what is said are events of the log, which is not for people.
pub fn say_in_the_log() {
    ARE_EVENTS.store(true, Relaxed);
}

/// Whether what is said are events of the log.
pub fn is_in_the_log() -> bool {
    ARE_EVENTS.load(Relaxed)
}

/// Writes a line to standard error.
pub fn say(line: impl Display) {
    if !is_in_the_log() {
        return say_as_it_is(line);
    }
    let line = line.to_string();
    match (line.strip_prefix("error: "), line.strip_prefix("warning: ")) {
        (Some(error), _) => tracing::error!("{error}"),
        (_, Some(warning)) => tracing::warn!("{warning}"),
        _ => tracing::info!("{}", line.trim()),
    }
}

/// Writes a line that has its form already.
pub fn say_as_it_is(line: impl Display) {
    // Nobody is left to be told that it cannot be written.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
