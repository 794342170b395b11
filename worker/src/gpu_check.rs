//! The self-check of a GPU: every kernel against the CPU, graphs against plain launches, NCCL and ranks that share the GPU, and
//! what memory and launches cost. Reports line by line, and goes on after a failure.

mod decode;
mod kernels;
mod model;
mod pair;
mod speed;

use std::{
    cell::RefCell,
    io::{self, BufRead, Write},
    path::Path,
    time::Duration,
};

use half::{bf16, f16};
use nanoinfer_checkpoint::CheckpointError;
use nanoinfer_kernels::{
    Element,
    cuda::{InputRows, WeightRows, row_stride},
};
use nanoinfer_shared::protocol::DType;

use crate::{
    WorkerError,
    cuda::{
        GpuError, GpuInfo, find,
        gpu::{Gpu, Memory},
        upload::narrow,
    },
    element::element,
};

const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::Bf16, DType::Int8];

/// What one part of the check found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// What came out.
    pub got: String,
    /// Whether that is right; `None` for a figure, or for what could not be looked at.
    pub passed: Option<bool>,
}

/// A part of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Every kernel against the CPU.
    Kernels,
    /// Whole steps of a small model, NCCL, and ranks that share the GPU.
    Steps,
    /// What memory, launches, kernels and decode steps take.
    Decode,
}

/// Checks one GPU, or a part of that only, and NCCL between it and the GPU `peer`, where that is another. `scratch` is a folder for a
/// small checkpoint; each finding is told as it is made.
pub fn check(gpu: &GpuInfo, peer: u32, only: Option<Part>, scratch: &Path, tell: &mut dyn FnMut(Finding)) {
    // Where this fails, so does all that follows, and says so.
    let _context = find::open_one(gpu.ordinal);
    let mut part = |of: Part, name: &str, what, check: &dyn Fn(&mut Section<'_>) -> Result<(), Trouble>| {
        if only.is_some_and(|only| only != of) {
            return;
        }
        let mut section = Section { name, tell };
        if let Err(error) = check(&mut section) {
            section.tell(what, error.to_string(), Some(false));
        }
    };
    for dtype in DTYPES {
        let check = |section: &mut Section<'_>| kernels::check(&Lab::new(gpu.ordinal, dtype)?, section);
        part(Part::Kernels, &dtype.to_string(), "kernels", &check);
    }
    for dtype in DTYPES {
        let check = |section: &mut Section<'_>| model::check(gpu.ordinal, dtype, scratch, section);
        part(Part::Steps, &dtype.to_string(), "whole steps", &check);
    }
    part(Part::Steps, "f32", "NCCL", &|section| pair::check(gpu.ordinal, peer, section));
    let shared = |section: &mut Section<'_>| model::check_shared_gpu(gpu.ordinal, scratch, section);
    part(Part::Steps, "f32", "two ranks on this GPU", &shared);
    let subject = decode::subject(gpu, DType::Bf16);
    let figures = |section: &mut Section<'_>| speed::measure(gpu, &subject.model.shape, subject.history, section);
    part(Part::Decode, "", "figures", &figures);
    for subject in [subject, decode::subject(gpu, DType::Int8)] {
        part(Part::Decode, "", "decode steps", &|section| decode::measure(&subject, section));
    }
}

/// What [`check`] runs in a process of its own for each of two GPUs that add up over NCCL.
///
/// # Errors
/// Why it could not.
pub fn run_nccl_rank(gpu: u32, rank: usize, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<(), Trouble> {
    let _context = find::open_one(gpu)?;
    pair::run_rank(gpu, rank, input, output)
}

/// Why a check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Of a rank.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Of a GPU or a library.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// Of the small checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Of a file or a process.
    #[error("the system refused a file, memory or a process: {0}")]
    System(#[from] io::Error),
    /// Two processes that do not end.
    #[error("waited {waited:?} for two ranks to add up over NCCL\n  hint: NCCL_DEBUG=INFO makes it say what it does")]
    Pair {
        /// How long.
        waited: Duration,
    },
    /// Our own fault.
    #[error("a rank panicked")]
    Panicked,
}

/// Findings under one heading.
struct Section<'a> {
    name: &'a str,
    tell: &'a mut dyn FnMut(Finding),
}

impl Section<'_> {
    fn tell(&mut self, what: &str, got: String, passed: Option<bool>) {
        let what = if self.name.is_empty() { what.to_owned() } else { format!("{}: {what}", self.name) };
        (self.tell)(Finding { what, got, passed });
    }

    /// Tells the largest difference, relative to 1 or the size of the exact value, whichever is larger.
    fn compare(&mut self, what: &str, got: &[f32], exact: impl IntoIterator<Item = f64>, tolerance: f64) {
        let exact: Vec<f64> = exact.into_iter().collect();
        let difference = |(&got, &exact): (&f32, &f64)| (f64::from(got) - exact).abs() / exact.abs().max(1.0);
        // `max` would pass over what is not a number.
        let worst =
            got.iter().zip(&exact).map(difference).fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        let passed = got.len() == exact.len() && worst <= tolerance;
        self.tell(what, format!("differs by {worst:.1e} at most, of {tolerance:.0e}"), Some(passed));
    }

    /// What must be the same to the last bit.
    fn same(&mut self, what: &str, same: bool) {
        self.tell(what, if same { "the same bits" } else { "other bits" }.into(), Some(same));
    }

    /// What would better be the same, and may differ where the driver's compiler fuses other operations.
    fn ideally_same(&mut self, what: &str, same: bool) {
        let got = if same { "the same bits" } else { "other bits, within the tolerance" };
        self.tell(what, got.into(), same.then_some(true));
    }
}

/// A GPU, and what brings numbers there and back. They stay there as long as this lives.
struct Lab {
    held: RefCell<Vec<Memory>>,
    gpu: Gpu,
    element: Element,
    /// Rounds to the element type.
    round: fn(f32) -> f32,
    /// Half a step of the element type at 1, and what f32 sums add to it.
    tolerance: f64,
}

impl Lab {
    fn new(ordinal: u32, dtype: DType) -> Result<Self, GpuError> {
        let element = element(dtype);
        let (round, tolerance): (fn(f32) -> f32, _) = match element {
            Element::F32 | Element::Int8 => (|x| x, 1e-5),
            Element::F16 => (|x| f16::from_f32(x).to_f32(), 6e-4),
            Element::Bf16 => (|x| bf16::from_f32(x).to_f32(), 5e-3),
        };
        Ok(Self { held: RefCell::default(), gpu: Gpu::open(ordinal, element)?, element, round, tolerance })
    }

    fn hold(&self, memory: Memory) -> u64 {
        let address = memory.address();
        self.held.borrow_mut().push(memory);
        address
    }

    fn empty(&self, count: usize, bytes: usize) -> Result<u64, GpuError> {
        Ok(self.hold(self.gpu.zeroed((count * bytes).next_multiple_of(4), "check")?))
    }

    /// Elements, of zeros.
    fn empty_elements(&self, count: usize) -> Result<u64, GpuError> {
        self.empty(count, self.element.bytes())
    }

    fn words(&self, words: &[u32]) -> Result<u64, GpuError> {
        let memory = self.gpu.allocate(words.len() * 4, "check")?;
        let mut staging = self.gpu.pinned(words.len())?;
        staging.words_mut()[..words.len()].copy_from_slice(words);
        self.gpu.upload(&staging, words.len(), memory.address())?;
        self.gpu.wait("copy", || Ok(()))?;
        Ok(self.hold(memory))
    }

    fn floats(&self, values: &[f32]) -> Result<u64, GpuError> {
        self.words(bytemuck::cast_slice(values))
    }

    /// Rows of `width` in the element type, which `values` should be rounded to already, each filled up to whole slices with zeros.
    fn rows(&self, values: &[f32], width: usize) -> Result<u64, GpuError> {
        let stride = row_stride(width);
        let mut filled = vec![0.0; values.len() / width * stride];
        for (row, values) in filled.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
            row[..width].copy_from_slice(values);
        }
        self.elements(&filled)
    }

    /// The same as weights.
    fn weights(&self, values: &[f32], width: usize) -> Result<WeightRows, GpuError> {
        Ok(WeightRows { rows: self.rows(values, width)?, scales: 0 })
    }

    /// The same as what is multiplied with them.
    fn inputs(&self, values: &[f32], width: usize) -> Result<InputRows, GpuError> {
        Ok(InputRows { rows: self.rows(values, width)?, scales: 0 })
    }

    /// An even number of them.
    fn elements(&self, values: &[f32]) -> Result<u64, GpuError> {
        let mut words = vec![0; values.len() * self.element.bytes() / 4];
        narrow(values, self.element, bytemuck::cast_slice_mut(&mut words));
        self.words(&words)
    }

    fn read_words(&self, at: u64, count: usize) -> Result<Vec<u32>, GpuError> {
        let mut staging = self.gpu.pinned(count)?;
        self.gpu.download(at, &mut staging, count)?;
        self.gpu.wait("copy", || Ok(()))?;
        Ok(staging.words()[..count].to_vec())
    }

    fn read(&self, at: u64, count: usize) -> Result<Vec<f32>, GpuError> {
        Ok(bytemuck::cast_slice(&self.read_words(at, count)?).to_vec())
    }

    fn read_elements(&self, at: u64, count: usize) -> Result<Vec<f32>, GpuError> {
        let words = self.read_words(at, (count * self.element.bytes()).div_ceil(4))?;
        Ok(match self.element {
            Element::F32 | Element::Int8 => bytemuck::cast_slice(&words).to_vec(),
            Element::F16 => bytemuck::cast_slice(&words)[..count].iter().map(|x: &f16| x.to_f32()).collect(),
            Element::Bf16 => bytemuck::cast_slice(&words)[..count].iter().map(|x: &bf16| x.to_f32()).collect(),
        })
    }

    /// What [`Lab::rows`] writes.
    fn read_rows(&self, at: u64, rows: usize, width: usize) -> Result<Vec<f32>, GpuError> {
        let all = self.read_elements(at, rows * row_stride(width))?;
        Ok(all.chunks_exact(row_stride(width)).flat_map(|row| &row[..width]).copied().collect())
    }

    /// [`values`] so many times as large, rounded to the element type.
    fn rounded(&self, factor: f32, count: usize, seed: usize) -> Vec<f32> {
        values(count, seed).into_iter().map(|x| (self.round)(factor * x)).collect()
    }
}

/// Numbers around 0, the same at every run.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 500.0 - 2.0).collect()
}
