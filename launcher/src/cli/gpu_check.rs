//! The `gpu-check` subcommand: whether a GPU computes what the CPU computes, and what it costs. A table and a verdict on standard
//! output.

use std::io::{self, Write};

use nanoinfer_worker::cuda::{self, Finding, Found, GpuInfo};

use crate::error::LaunchError;

/// Width of the first column but one.
const WHAT_WIDTH: usize = 58;

/// Checks the given GPUs, or all; returns whether all is well.
///
/// # Errors
/// When there is none, or a folder for a small checkpoint cannot be made.
pub(super) fn run(ordinals: &[u32]) -> Result<bool, LaunchError> {
    let Found { gpus, passed_over } = cuda::find(ordinals, usize::MAX)?;
    // A reader that has seen enough does not end the check.
    let mut out = io::stdout();
    passed_over.iter().for_each(|why| drop(writeln!(out, "without {why}")));
    let scratch = Scratch::new().map_err(LaunchError::system("make a folder for a small checkpoint"))?;
    let mut failures = 0;
    for (i, gpu) in gpus.iter().enumerate() {
        let peer = &gpus[(i + 1) % gpus.len()];
        failures += check(gpu, peer, &scratch, &mut out);
    }
    Ok(failures == 0)
}

/// Returns how much failed.
fn check(gpu: &GpuInfo, peer: &GpuInfo, scratch: &Scratch, out: &mut impl Write) -> usize {
    let (mut passed, mut failed) = (0, 0);
    let _ = writeln!(out, "GPU {} ({})", gpu.ordinal, gpu.name);
    cuda::check(gpu, peer.ordinal, &scratch.0, &mut |Finding { what, got, passed: verdict }| {
        let mark = match verdict {
            Some(true) => "ok",
            Some(false) => "FAILED",
            None => "",
        };
        passed += usize::from(verdict == Some(true));
        failed += usize::from(verdict == Some(false));
        let _ = writeln!(out, "{mark:<6}  {what:<WHAT_WIDTH$}  {got}");
    });
    let verdict = match failed {
        0 => format!("GPU {} passed: {passed} of {passed}", gpu.ordinal),
        _ => format!("GPU {} FAILED: {failed} of {}; do not serve from it", gpu.ordinal, passed + failed),
    };
    let _ = writeln!(out, "{verdict}");
    failed
}

/// A folder that goes when it is dropped.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("nanoinfer-gpu-check-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The system clears what is left of temporary folders.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
