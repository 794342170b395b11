//! What memory, launches and layers cost on this GPU: figures, not verdicts.

use std::time::Instant;

use nanoinfer_kernels::cuda::{ActivateArguments, Finish, Launch, ProjectArguments};
use nanoinfer_shared::protocol::DType;

use super::{Lab, Section, Trouble};
use crate::cuda::{GpuError, GpuInfo, error::While};

const COPY_BYTES: usize = 64 << 20;
const CLEAR_BYTES: usize = 256 << 20;
const LAUNCHES: usize = 200;
/// Of a square matrix.
const WIDTH: usize = 4096;

pub(super) fn measure(gpu: &GpuInfo, section: &mut Section<'_>) -> Result<(), Trouble> {
    let GpuInfo { compute_capability: (major, minor), free_bytes, total_bytes, .. } = gpu;
    section.tell("compute capability", format!("{major}.{minor}"), None);
    let gb = |bytes: u64| bytes as f64 / 1e9;
    section.tell("memory", format!("{:.1} GB, {:.1} GB free", gb(*total_bytes), gb(*free_bytes)), None);
    let lab = Lab::new(gpu.ordinal, DType::Bf16)?;
    copies(&lab, section)?;
    launches(&lab, section)?;
    projections(&lab, section)?;
    Ok(())
}

/// Seconds of `queue` and all that it queues, the second time.
fn seconds(lab: &Lab, mut queue: impl FnMut() -> Result<(), GpuError>) -> Result<f64, GpuError> {
    queue()?;
    lab.gpu.wait("warm up", || Ok(()))?;
    let begun = Instant::now();
    queue()?;
    lab.gpu.wait("be measured", || Ok(()))?;
    Ok(begun.elapsed().as_secs_f64())
}

fn rate(section: &mut Section<'_>, what: &str, bytes: usize, seconds: f64) {
    section.tell(what, format!("{:.1} GB/s", bytes as f64 / seconds / 1e9), None);
}

fn copies(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let memory = lab.gpu.allocate(CLEAR_BYTES, "check")?;
    let mut host = lab.gpu.pinned(COPY_BYTES / 4)?;
    let up = seconds(lab, || lab.gpu.upload(&host, COPY_BYTES / 4, memory.address()))?;
    rate(section, "copy to the GPU, pinned", COPY_BYTES, up);
    let down = seconds(lab, || lab.gpu.download(memory.address(), &mut host, COPY_BYTES / 4))?;
    rate(section, "copy from the GPU, pinned", COPY_BYTES, down);
    let clear = seconds(lab, || lab.gpu.clear(memory.address(), CLEAR_BYTES))?;
    rate(section, "writing the GPU's memory", CLEAR_BYTES, clear);
    Ok(())
}

fn launches(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let at = lab.empty(256, 4)?;
    let nothing = ActivateArguments { sums: at, bias: at, out: at, count: 1, width: 1, activation: 3, stride: 32 };
    let queue = || (0..LAUNCHES).try_for_each(|_| lab.gpu.launch(Launch::elements(1), &nothing));
    let us = |seconds: f64| format!("{:.2} µs", seconds / LAUNCHES as f64 * 1e6);
    section.tell("a launch, one after the other", us(seconds(lab, &queue)?), None);
    let graph = lab.gpu.capture(queue)?;
    let launch = || graph.launch().doing("launch a graph");
    section.tell("a launch in a graph", us(seconds(lab, launch)?), None);
    section.tell("a wait for nothing", us(seconds(lab, || Ok(()))? * LAUNCHES as f64), None);
    Ok(())
}

/// Layers of one row read their matrices once, and hardly compute: as decode steps do. Plainly, and captured.
fn projections(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let bytes = WIDTH * WIDTH * lab.element.bytes();
    // So many that the cache holds few of them until they are read again.
    let matrices = (4 * lab.gpu.cache_bytes).div_ceil(bytes).max(1);
    let weights = lab.empty(matrices * bytes, 1)?;
    let width = WIDTH as u32;
    let layer = ProjectArguments {
        inputs: lab.empty_elements(WIDTH)?,
        sums: lab.empty(WIDTH, 4)?,
        rows: 1,
        outputs: width,
        stride: width,
        out_stride: width,
        finish: Finish::Logits as u32,
        ..ProjectArguments::default()
    };
    let (name, launch) = Launch::project(1, WIDTH, None, lab.element, lab.gpu.multiprocessors);
    let of_each =
        || (0..matrices).map(|matrix| ProjectArguments { weights: weights + (matrix * bytes) as u64, ..layer });
    let queue = || of_each().try_for_each(|layer| lab.gpu.launch_as(name, launch, &layer));
    rate(section, "reading weights, bf16 layers of one row", matrices * bytes, seconds(lab, &queue)?);
    let graph = lab.gpu.capture(queue)?;
    let launch = || graph.launch().doing("launch a graph");
    rate(section, "the same in a graph", matrices * bytes, seconds(lab, launch)?);
    Ok(())
}
