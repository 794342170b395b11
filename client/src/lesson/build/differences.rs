//! What each program of lesson 4 changes of the one before, and how long the file is that it brings.

use similar::TextDiff;

use crate::lesson::figure::Facts;

macro_rules! programs {
    ($($name:literal)*) => { [$(include_str!(concat!("../../../../docs/learn/steps/examples/", $name, ".rs"))),*] };
}
macro_rules! files {
    ($($fact:literal $name:literal)*) => { [$(($fact, include_str!(concat!("../../../../docs/learn/steps/src/", $name, ".rs")))),*] };
}

const PROGRAMS: [&str; 11] = programs!["step_1_tokens" "step_2_attention" "step_3_cache" "step_4_sampling" "step_5_batch" "step_6_blocks"
    "step_7_int8" "step_8_threads" "step_9_ranks" "step_10_scheduler" "step_11_http"];
const NAMES: [&str; 11] = [
    "4.program_1",
    "4.program_2",
    "4.program_3",
    "4.program_4",
    "4.program_5",
    "4.program_6",
    "4.program_7",
    "4.program_8",
    "4.program_9",
    "4.program_10",
    "4.program_11",
];
const FILES: [(&str, &str); 11] = files!["4.lines_model" "model" "4.lines_pass" "pass" "4.lines_cache" "cache" "4.lines_sampling" "sampling" "4.lines_batch" "batch"
    "4.lines_blocks" "blocks" "4.lines_int8" "int8" "4.lines_threads" "threads" "4.lines_ranks" "ranks" "4.lines_scheduler" "scheduler" "4.lines_http" "http"];

/// Lines of each file.
pub(super) fn lines() -> Facts {
    FILES.iter().map(|&(name, text)| (name, text.lines().count().to_string())).collect()
}

/// The programs: those of which less than half is new as differences, the others as they are.
pub(super) fn all() -> Vec<(&'static str, &'static str, String)> {
    let listing = |(i, name): (usize, &&'static str)| {
        // The last grows out of the one before the ranks.
        let before = if i == 9 { 4 } else { i.saturating_sub(1) };
        let diff = TextDiff::from_lines(PROGRAMS[before], PROGRAMS[i]);
        if i == 0 || diff.ratio() < 0.6 {
            return (*name, "rust", PROGRAMS[i].to_owned());
        }
        (*name, "diff", diff.unified_diff().context_radius(1).to_string())
    };
    NAMES.iter().enumerate().map(listing).collect()
}
