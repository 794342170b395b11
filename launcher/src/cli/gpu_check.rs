//! The `gpu-check` subcommand: whether a GPU computes what the CPU computes, and what it costs. A table and a verdict on standard
//! output, or lines of JSON.

use std::{io, path::Path};

use nanoinfer_worker::{
    cuda::{self, Found, GpuInfo},
    gpu_check::{self, Finding, Part},
};
use serde_json::json;

use super::options::{CheckedPart, GpuCheckOptions};
use crate::{error::LaunchError, output};

/// Width of the first column but one.
const WHAT_WIDTH: usize = 58;

/// Checks the given GPUs, or all; returns whether all is well.
///
/// # Errors
/// When there is none, a folder for a small checkpoint cannot be made, or the table cannot be written.
pub(super) fn run(options: &GpuCheckOptions) -> Result<bool, LaunchError> {
    if let (Some(rank), Some(&gpu)) = (options.nccl_rank, options.gpu.first()) {
        let ran = gpu_check::run_nccl_rank(gpu, rank, &mut io::stdin().lock(), &mut io::stdout().lock());
        if let Err(error) = &ran {
            crate::say(format_args!("error: rank {rank}: {error}"));
        }
        return Ok(ran.is_ok());
    }
    let Found { gpus, passed_over } = cuda::find(&options.gpu, usize::MAX)?;
    // All is checked even where nothing can be told.
    let mut unwritten = None;
    let mut tell = |line: String| {
        if let Err(error) = output::write(format_args!("{line}\n")) {
            unwritten.get_or_insert(error);
        }
    };
    if !options.json {
        passed_over.iter().for_each(|why| tell(format!("without {why}")));
    }
    let scratch = tempfile::Builder::new().prefix("nanoinfer-gpu-check-").tempdir();
    let scratch = scratch.map_err(LaunchError::system("make a folder for a small checkpoint"))?;
    let mut failures = 0;
    for (i, gpu) in gpus.iter().enumerate() {
        let peer = &gpus[(i + 1) % gpus.len()];
        failures += check(gpu, peer, options, scratch.path(), &mut tell);
    }
    unwritten.map_or(Ok(failures == 0), |error| Err(error.into()))
}

/// Returns how much failed.
fn check(
    gpu: &GpuInfo,
    peer: &GpuInfo,
    options: &GpuCheckOptions,
    scratch: &Path,
    tell: &mut impl FnMut(String),
) -> usize {
    let only = options.only.map(|part| match part {
        CheckedPart::Kernels => Part::Kernels,
        CheckedPart::Steps => Part::Steps,
        CheckedPart::Decode => Part::Decode,
    });
    let (mut passed, mut failed) = (0, 0);
    if !options.json {
        tell(format!("GPU {} ({})", gpu.ordinal, gpu.name));
    }
    gpu_check::check(gpu, peer.ordinal, only, scratch, &mut |Finding { what, got, passed: verdict }| {
        passed += usize::from(verdict == Some(true));
        failed += usize::from(verdict == Some(false));
        if options.json {
            tell(json!({ "gpu": gpu.ordinal, "what": what, "got": got, "passed": verdict }).to_string());
            return;
        }
        let mark = match verdict {
            Some(true) => "ok",
            Some(false) => "FAILED",
            None => "",
        };
        tell(format!("{mark:<6}  {what:<WHAT_WIDTH$}  {got}"));
    });
    if options.json {
        tell(json!({ "gpu": gpu.ordinal, "name": gpu.name, "passed": passed, "failed": failed }).to_string());
        return failed;
    }
    let verdict = match failed {
        0 => format!("GPU {} passed: {passed} of {passed}", gpu.ordinal),
        _ => format!("GPU {} FAILED: {failed} of {}; do not serve from it", gpu.ordinal, passed + failed),
    };
    tell(verdict);
    failed
}
