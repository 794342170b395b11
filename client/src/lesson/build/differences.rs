//! What each program of lesson 4 changes of the one before, and how long the file is that it brings.

use similar::TextDiff;

use crate::lesson::figure::Facts;

macro_rules! files {
    ($folder:literal $($fact:literal $name:literal)*) => {
        [$(($fact, include_str!(concat!("../../../../docs/learn/steps/", $folder, $name, ".rs")))),*]
    };
}

const PROGRAMS: [(&str, &str); 11] = files!["examples/step_" "4.program_1" "1_tokens" "4.program_2" "2_attention" "4.program_3" "3_cache"
    "4.program_4" "4_sampling" "4.program_5" "5_batch" "4.program_6" "6_blocks" "4.program_7" "7_int8" "4.program_8" "8_threads"
    "4.program_9" "9_ranks" "4.program_10" "10_scheduler" "4.program_11" "11_http"];
const FILES: [(&str, &str); 11] = files!["src/" "4.lines_model" "model" "4.lines_pass" "pass" "4.lines_cache" "cache" "4.lines_sampling" "sampling"
    "4.lines_batch" "batch" "4.lines_blocks" "blocks" "4.lines_int8" "int8" "4.lines_threads" "threads" "4.lines_ranks" "ranks"
    "4.lines_scheduler" "scheduler" "4.lines_http" "http"];

/// Lines of each file.
pub(super) fn lines() -> Facts {
    FILES.iter().map(|&(name, text)| (name, text.lines().count().to_string())).collect()
}

/// The programs: those of which less than half is new as differences, the others as they are.
pub(super) fn all() -> Vec<(&'static str, &'static str, String)> {
    let listing = |(i, &(name, program)): (usize, &(&'static str, &str))| {
        // The last grows out of the one before the ranks.
        let before = if i == 9 { 4 } else { i.saturating_sub(1) };
        let diff = TextDiff::from_lines(PROGRAMS[before].1, program);
        if i == 0 || diff.ratio() < 0.6 {
            return (name, "rust", program.to_owned());
        }
        (name, "diff", diff.unified_diff().context_radius(1).to_string())
    };
    PROGRAMS.iter().enumerate().map(listing).collect()
}
