//! The self-check of a GPU: every kernel against the CPU, graphs against plain launches, NCCL and ranks that share the GPU, and
//! what memory and launches cost. Reports line by line, and goes on after a failure.

mod decode;
mod kernels;
mod model;
mod speed;

use std::{fmt, path::Path};

use half::{bf16, f16};
use nanoinfer_kernels::{Element, cuda::row_stride};
use nanoinfer_shared::protocol::DType;

use crate::{
    cuda::{
        GpuError, GpuInfo, find,
        gpu::{Gpu, Memory, Pinned},
        load::narrow,
    },
    element::element,
};

/// Those that GPUs have kernels for.
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

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

/// Checks one GPU, and NCCL between it and the GPU `peer`, where that is another. `scratch` is a folder for a small checkpoint; each
/// finding is told as it is made.
pub fn check(gpu: &GpuInfo, peer: u32, scratch: &Path, tell: &mut dyn FnMut(Finding)) {
    // Where this fails, so does all that follows, and says so.
    let _context = find::open_one(gpu.ordinal);
    for dtype in DTYPES {
        let mut section = Section { name: dtype.to_string(), tell: &mut *tell };
        if let Err(error) = Lab::new(gpu.ordinal, dtype).and_then(|lab| kernels::check(&lab, &mut section)) {
            section.failed("kernels", &error);
        }
    }
    for dtype in DTYPES {
        let mut section = Section { name: dtype.to_string(), tell: &mut *tell };
        if let Err(error) = model::check(gpu.ordinal, dtype, scratch, &mut section) {
            section.failed("whole steps", &error);
        }
    }
    let mut section = Section { name: "f32".into(), tell: &mut *tell };
    if let Err(error) = model::check_nccl(gpu.ordinal, peer, &mut section) {
        section.failed("NCCL", &error);
    }
    if let Err(error) = model::check_shared_gpu(gpu.ordinal, scratch, &mut section) {
        section.failed("two ranks on this GPU", &error);
    }
    let mut section = Section { name: String::new(), tell };
    if let Err(error) = speed::measure(gpu, &mut section) {
        section.failed("figures", &error);
    }
    if let Err(error) = decode::measure(gpu, &mut section) {
        section.failed("decode steps", &error);
    }
}

/// Findings under one heading.
struct Section<'a> {
    name: String,
    tell: &'a mut dyn FnMut(Finding),
}

impl Section<'_> {
    fn tell(&mut self, what: &str, got: String, passed: Option<bool>) {
        let what = if self.name.is_empty() { what.to_owned() } else { format!("{}: {what}", self.name) };
        (self.tell)(Finding { what, got, passed });
    }

    fn failed(&mut self, what: &str, error: &dyn fmt::Display) {
        self.tell(what, error.to_string(), Some(false));
    }

    /// Tells the largest difference, relative to 1 or the size of the exact value, whichever is larger.
    fn compare(&mut self, what: &str, got: &[f32], exact: &[f64], tolerance: f64) {
        let difference = |(&got, &exact): (&f32, &f64)| (f64::from(got) - exact).abs() / exact.abs().max(1.0);
        // `max` would pass over what is not a number.
        let worst =
            got.iter().zip(exact).map(difference).fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        let passed = got.len() == exact.len() && worst <= tolerance;
        self.tell(what, format!("differs by {worst:.1e} at most, of {tolerance:.0e}"), Some(passed));
    }

    /// What must be the same to the last bit.
    fn same(&mut self, what: &str, same: bool) {
        self.tell(what, if same { "the same bits" } else { "other bits" }.into(), Some(same));
    }

    /// What would better be the same, and may differ where the driver's compiler fuses other operations.
    fn ideally_same(&mut self, what: &str, same: bool) {
        self.tell(
            what,
            if same { "the same bits" } else { "other bits, within the tolerance" }.into(),
            same.then_some(true),
        );
    }
}

/// A GPU, and what brings numbers there and back.
struct Lab {
    gpu: Gpu,
    element: Element,
}

impl Lab {
    fn new(ordinal: u32, dtype: DType) -> Result<Self, GpuError> {
        let element = element(dtype);
        Ok(Self { gpu: Gpu::open(ordinal, element)?, element })
    }

    fn words(&self, words: &[u32]) -> Result<Memory, GpuError> {
        let memory = self.gpu.allocate(words.len() * 4, "check")?;
        let mut staging: Pinned = self.gpu.pinned(words.len())?;
        staging.words_mut()[..words.len()].copy_from_slice(words);
        self.gpu.upload(&staging, words.len(), memory.address())?;
        self.gpu.wait("copy", || Ok(()))?;
        Ok(memory)
    }

    fn floats(&self, values: &[f32]) -> Result<Memory, GpuError> {
        self.words(&values.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    }

    /// In the element type; `values` should be rounded to it already.
    fn elements(&self, values: &[f32]) -> Result<Memory, GpuError> {
        let mut bytes = vec![0; values.len() * self.element.bytes()];
        narrow(values, self.element, &mut bytes);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let (words, _) = bytes.as_chunks::<4>();
        self.words(&words.iter().map(|&word| u32::from_le_bytes(word)).collect::<Vec<_>>())
    }

    /// Rows of `width` in the element type, each filled up to whole slices with zeros.
    fn rows(&self, values: &[f32], width: usize) -> Result<Memory, GpuError> {
        let stride = row_stride(width);
        let mut filled = vec![0.0; values.len() / width * stride];
        for (row, values) in values.chunks_exact(width).enumerate() {
            filled[row * stride..][..width].copy_from_slice(values);
        }
        self.elements(&filled)
    }

    /// What [`Lab::rows`] writes.
    fn read_rows(&self, memory: &Memory, rows: usize, width: usize) -> Result<Vec<f32>, GpuError> {
        let stride = row_stride(width);
        let all = self.read_elements(memory, rows * stride)?;
        Ok(all.chunks_exact(stride).flat_map(|row| row[..width].to_vec()).collect())
    }

    fn empty(&self, count: usize, bytes: usize) -> Result<Memory, GpuError> {
        self.gpu.zeroed((count * bytes).next_multiple_of(4), "check")
    }

    fn read_words(&self, memory: &Memory, count: usize) -> Result<Vec<u32>, GpuError> {
        let mut staging = self.gpu.pinned(count)?;
        self.gpu.download(memory.at(0, count * 4), &mut staging, count)?;
        self.gpu.wait("copy", || Ok(()))?;
        Ok(staging.words()[..count].to_vec())
    }

    fn read(&self, memory: &Memory, count: usize) -> Result<Vec<f32>, GpuError> {
        Ok(self.read_words(memory, count)?.into_iter().map(f32::from_bits).collect())
    }

    fn read_elements(&self, memory: &Memory, count: usize) -> Result<Vec<f32>, GpuError> {
        if self.element == Element::F32 {
            return self.read(memory, count);
        }
        let words = self.read_words(memory, count.div_ceil(2))?;
        let halves = words.into_iter().flat_map(|word| [word as u16, (word >> 16) as u16]);
        let widen = |bits| match self.element {
            Element::F16 => f16::from_bits(bits).to_f32(),
            _ => bf16::from_bits(bits).to_f32(),
        };
        Ok(halves.take(count).map(widen).collect())
    }

    /// Rounded to the element type.
    fn round(&self, x: f32) -> f32 {
        match self.element {
            Element::F32 | Element::Int8 => x,
            Element::F16 => f16::from_f32(x).to_f32(),
            Element::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// Half a step of the element type at 1, and what f32 sums add to it.
    fn tolerance(&self) -> f64 {
        match self.element {
            Element::F32 | Element::Int8 => 1e-5,
            Element::F16 => 6e-4,
            Element::Bf16 => 5e-3,
        }
    }
}

/// Numbers around 0, the same at every run.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 500.0 - 2.0).collect()
}
