//! Numbers, and the machine, in words: as figures and sentences of the chapters have them.

use std::fs;

use super::figure::{Text, text};

/// Milliseconds with three digits that matter.
pub(super) fn ms(seconds: f64) -> String {
    digits(seconds * 1e3)
}

/// Three digits that matter.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        x if x >= 1.0 => format!("{value:.2}"),
        x if x >= 0.1 => format!("{value:.3}"),
        0.0 => "0".into(),
        _ => format!("{value:.4}"),
    }
}

/// A factor, like `3.4 ×`.
pub(super) fn times(factor: f64) -> String {
    format!("{} ×", if factor >= 10.0 { format!("{factor:.0}") } else { format!("{factor:.1}") })
}

/// Bytes in units of a thousand.
pub(super) fn bytes(count: f64) -> String {
    match count {
        x if x >= 1e9 => format!("{:.2} GB", x / 1e9),
        x if x >= 1e6 => format!("{:.1} MB", x / 1e6),
        x => format!("{:.0} kB", x / 1e3),
    }
}

/// The machine in a few words: processor and cores.
pub(super) fn machine() -> Text {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.trim()));
    let name = name.unwrap_or("an unnamed processor");
    text!("{name}, {cores} cores", "{name}，{cores} 核")
}
