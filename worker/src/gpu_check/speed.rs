//! What memory, launches and the kernels of a decode step cost on this GPU: figures, not verdicts. `docs/gpu.md` has a forecast for each.

use std::time::Instant;

use nanoinfer_kernels::cuda::{
    AttendArguments, BLOCK, EmbedArguments, Finish, InputRows, Launch, NO_WINDOW, Norm, Placement, ProjectArguments,
    QkvPlaces, WeightRows, head_stride, part_floats, row_stride, sharing,
};
use nanoinfer_shared::{ModelShape, protocol::DType};

use super::{Lab, Section, Trouble};
use crate::cuda::{GpuError, GpuInfo, error::While};

const COPY_BYTES: usize = 64 << 20;
const CLEAR_BYTES: usize = 256 << 20;
const LAUNCHES: usize = 200;
/// What is measured takes at least so long, beside which one launch and looking whether it is over are nothing.
const LEAST_SECONDS: f64 = 0.01;

pub(super) fn measure(
    gpu: &GpuInfo,
    shape: &ModelShape,
    history: usize,
    section: &mut Section<'_>,
) -> Result<(), Trouble> {
    let GpuInfo { compute_capability: (major, minor), free_bytes, total_bytes, .. } = gpu;
    section.tell("compute capability", format!("{major}.{minor}"), None);
    let gb = |bytes: u64| bytes as f64 / 1e9;
    section.tell("memory", format!("{:.1} GB, {:.1} GB free", gb(*total_bytes), gb(*free_bytes)), None);
    let lab = Lab::new(gpu.ordinal, DType::Bf16)?;
    copies(&lab, section)?;
    launches(&lab, section)?;
    layers(gpu.ordinal, shape, section)?;
    attention(gpu.ordinal, shape, history, section)?;
    Ok(())
}

/// Seconds of `queue` and all that it queues, of as many times one after the other as make it long enough, and not the first.
fn seconds(lab: &Lab, mut queue: impl FnMut() -> Result<(), GpuError>) -> Result<f64, GpuError> {
    let mut time = |times: usize| {
        let begun = Instant::now();
        (0..times).try_for_each(|_| queue())?;
        lab.gpu.wait("be measured", || Ok(()))?;
        Ok::<_, GpuError>(begun.elapsed().as_secs_f64() / times as f64)
    };
    time(1)?;
    let once = time(1)?;
    if once >= LEAST_SECONDS { Ok(once) } else { time((LEAST_SECONDS / once).ceil() as usize) }
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
    // A token of another rank: one zero is written.
    let at = lab.empty(8, 4)?;
    let nothing = EmbedArguments {
        tokens: at,
        positions: at,
        embedding: WeightRows { rows: at, scales: 0 },
        x: at + 16,
        first_token: 1,
        width: 1,
        stride: 1,
        ..EmbedArguments::default()
    };
    let queue = || (0..LAUNCHES).try_for_each(|_| lab.gpu.launch(Launch::rows(1), &nothing));
    let us = |seconds: f64| format!("{:.2} µs", seconds / LAUNCHES as f64 * 1e6);
    section.tell("a launch, one after the other", us(seconds(lab, &queue)?), None);
    let graph = lab.gpu.capture(queue)?;
    let launch = || graph.launch().doing("launch a graph");
    section.tell("a launch in a graph", us(seconds(lab, launch)?), None);
    section.tell("a wait for nothing", us(seconds(lab, || Ok(()))? * LAUNCHES as f64), None);
    Ok(())
}

/// A graph of `queue` for each of as many copies of `bytes` as the cache has no room for a quarter of, so that each is read from memory;
/// tells what one takes.
fn in_turns(
    lab: &Lab,
    bytes: usize,
    what: &str,
    section: &mut Section<'_>,
    queue: impl Fn(u64) -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    let copies = (4 * lab.gpu.cache_bytes).div_ceil(bytes).max(1);
    let stride = bytes.next_multiple_of(256);
    let at = lab.empty(copies * stride, 1)?;
    let graph = lab.gpu.capture(|| (0..copies).try_for_each(|copy| queue(at + (copy * stride) as u64)))?;
    let each = seconds(lab, || graph.launch().doing("launch a graph"))? / copies as f64;
    section.tell(what, format!("{:.2} µs, {:.0} GB/s", each * 1e6, bytes as f64 / each / 1e9), None);
    Ok(())
}

/// The products of a layer and the head, of one row: each reads its matrix once, and hardly computes.
fn layers(ordinal: u32, shape: &ModelShape, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (width, attended) = (shape.width, shape.attention.heads * shape.attention.head_dim);
    let inner = shape.mlp.inner;
    for (what, inputs, outputs, is_normed, finish) in [
        ("QKV", width, 3 * attended, true, Finish::Sums),
        ("attention projection", attended, width, false, Finish::Added),
        ("FC", width, inner, true, Finish::Activation),
        ("MLP projection", inner, width, false, Finish::Added),
        ("head", width, shape.vocab_size, true, Finish::Sums),
    ] {
        let lab = Lab::new(ordinal, DType::Bf16)?;
        let (name, launch) = Launch::project(1, outputs, is_normed.then_some(inputs), lab.element);
        let launch = launch.in_turns(lab.gpu.blocks_at_once(name, launch)?);
        let zeros = lab.empty(row_stride(inputs.max(outputs)), 4)?;
        let norm = Norm {
            x: zeros,
            gain: zeros,
            shift: zeros,
            width: inputs as u32,
            epsilon: 1e-5,
            is_centred: 1,
            ..Norm::default()
        };
        let layer = ProjectArguments {
            norm,
            inputs: InputRows { rows: zeros, scales: zeros },
            bias: zeros,
            out: lab.empty_elements(row_stride(outputs))?,
            sums: lab.empty(outputs, 4)?,
            rows: 1,
            outputs: outputs as u32,
            stride: row_stride(inputs) as u32,
            out_stride: row_stride(outputs) as u32,
            finish: finish as u32,
            ..ProjectArguments::default()
        };
        let bytes = outputs * row_stride(inputs) * lab.element.bytes();
        in_turns(&lab, bytes, &format!("{what}, {inputs} to {outputs}, one row"), section, |weights| {
            let weights = WeightRows { rows: weights, scales: 0 };
            lab.gpu.launch_as(name, launch, &ProjectArguments { weights, ..layer })
        })?;
    }
    Ok(())
}

/// Of one row behind `history` positions.
fn attention(ordinal: u32, shape: &ModelShape, history: usize, section: &mut Section<'_>) -> Result<(), GpuError> {
    let lab = Lab::new(ordinal, DType::Bf16)?;
    let (heads, d) = (shape.attention.heads, shape.attention.head_dim);
    let blocks = history / BLOCK + 1;
    let sharing = sharing(1, heads, history + 1, lab.gpu.multiprocessors);
    let table: Vec<u32> = (0..blocks as u32).collect();
    let places = QkvPlaces {
        queries: lab.empty_elements(heads * head_stride(d))?,
        at: Placement {
            positions: lab.words(&[history as u32])?,
            sequences: lab.words(&[0])?,
            tables: lab.words(&table)?,
        },
        heads: heads as u32,
        kv_heads: heads as u32,
        head_dim: d as u32,
        head_stride: head_stride(d) as u32,
        table_blocks: blocks as u32,
        ..QkvPlaces::default()
    };
    let attend = AttendArguments {
        from: places,
        out: lab.empty_elements(row_stride(heads * d))?,
        tile_rows: 1,
        out_stride: row_stride(heads * d) as u32,
        scale: 1.0,
        group: 1,
        window: NO_WINDOW,
        sharing: sharing as u32,
        parts: lab.empty(part_floats(1, heads, d, history + 1, lab.gpu.multiprocessors), 4)?,
        arrived: lab.empty(heads, 4)?,
        ..AttendArguments::default()
    };
    let (name, launch) = Launch::attention(1, heads, d, false, sharing);
    let bytes = blocks * 2 * BLOCK * heads * head_stride(d) * lab.element.bytes();
    in_turns(&lab, bytes, &format!("attention over {history} positions, one row"), section, |cache| {
        lab.gpu.launch_as(name, launch, &AttendArguments { from: QkvPlaces { cache, ..places }, ..attend })
    })
}
