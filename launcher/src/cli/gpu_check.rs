//! The `gpu-check` subcommand: whether a GPU computes what the CPU computes, and what it costs. A table and a verdict on standard
//! output.

use std::path::Path;

use nanoinfer_worker::{
    cuda::{self, Found, GpuInfo},
    gpu_check::{self, Finding},
};

use crate::{error::LaunchError, output};

/// Width of the first column but one.
const WHAT_WIDTH: usize = 58;

/// Checks the given GPUs, or all; returns whether all is well.
///
/// # Errors
/// When there is none, a folder for a small checkpoint cannot be made, or the table cannot be written.
pub(super) fn run(ordinals: &[u32]) -> Result<bool, LaunchError> {
    let Found { gpus, passed_over } = cuda::find(ordinals, usize::MAX)?;
    // All is checked even where nothing can be told.
    let mut unwritten = None;
    let mut tell = |line: String| {
        if let Err(error) = output::write(format_args!("{line}\n")) {
            unwritten.get_or_insert(error);
        }
    };
    passed_over.iter().for_each(|why| tell(format!("without {why}")));
    let scratch = tempfile::Builder::new().prefix("nanoinfer-gpu-check-").tempdir();
    let scratch = scratch.map_err(LaunchError::system("make a folder for a small checkpoint"))?;
    let mut failures = 0;
    for (i, gpu) in gpus.iter().enumerate() {
        let peer = &gpus[(i + 1) % gpus.len()];
        failures += check(gpu, peer, scratch.path(), &mut tell);
    }
    unwritten.map_or(Ok(failures == 0), |error| Err(error.into()))
}

/// Returns how much failed.
fn check(gpu: &GpuInfo, peer: &GpuInfo, scratch: &Path, tell: &mut impl FnMut(String)) -> usize {
    let (mut passed, mut failed) = (0, 0);
    tell(format!("GPU {} ({})", gpu.ordinal, gpu.name));
    gpu_check::check(gpu, peer.ordinal, scratch, &mut |Finding { what, got, passed: verdict }| {
        let mark = match verdict {
            Some(true) => "ok",
            Some(false) => "FAILED",
            None => "",
        };
        passed += usize::from(verdict == Some(true));
        failed += usize::from(verdict == Some(false));
        tell(format!("{mark:<6}  {what:<WHAT_WIDTH$}  {got}"));
    });
    let verdict = match failed {
        0 => format!("GPU {} passed: {passed} of {passed}", gpu.ordinal),
        _ => format!("GPU {} FAILED: {failed} of {}; do not serve from it", gpu.ordinal, passed + failed),
    };
    tell(verdict);
    failed
}
