//! From a checkpoint to a GPU's memory: matrices as rows of outputs in the element type asked for, vectors in f32.
//!
//! Whoever multiplies a few inputs with a matrix reads rows of it, hence outputs are rows; here they are columns of the parts. Pieces go
//! from the mapped file through a few megabytes of pinned memory: the host never holds the share.
//! Does not know what a model is made of.

use std::{ops::Range, sync::Mutex, thread};

use half::{bf16, f16};
use nanoinfer_checkpoint::{Checkpoint, CheckpointError};
use nanoinfer_kernels::{
    Element,
    cuda::{WeightRows, scales, weight_stride},
};
use nanoinfer_shared::model::parts::{LayerPart, Part};

use super::{
    failure::Failure,
    gpu::{Gpu, Memory, Pinned},
    model::RankModel,
};
use crate::{
    element::range_of,
    tile::{Norm, Tile},
};

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 8 << 20;
/// Outputs that are read together: as many lines of a file stay in the cache while their inputs are read one by one.
const STRIP_OUTPUTS: usize = 64;
/// What a GPU's memory does not take, where it does not.
pub(crate) const WEIGHTS: &str = "weights";

/// A rank's part of a checkpoint on its way.
pub(crate) struct Upload<'a> {
    gpu: &'a Gpu,
    pub(crate) checkpoint: Option<&'a Checkpoint>,
    pub(crate) model: &'a RankModel,
    threads: usize,
    staging: Pinned,
    /// Bytes that are still to be copied, fewer than a chunk and what one call adds.
    pending: Vec<u8>,
    /// All that was loaded.
    held: Vec<Memory>,
}

/// Outputs of a part, or elements of it.
pub(crate) type Piece = (Part, Range<usize>);

impl<'a> Upload<'a> {
    /// Of a checkpoint, read by `threads` threads; of zeros where there is none.
    pub(crate) fn new(
        gpu: &'a Gpu,
        checkpoint: Option<&'a Checkpoint>,
        model: &'a RankModel,
        threads: usize,
    ) -> Result<Self, Failure> {
        let staging = gpu.pinned(CHUNK_BYTES / 4)?;
        Ok(Self { gpu, checkpoint, model, threads, staging, pending: Vec::new(), held: Vec::new() })
    }

    /// All that was loaded.
    pub(crate) fn into_held(self) -> Vec<Memory> {
        self.held
    }

    /// Elements of vectors one behind the other, on the host; none where the model has no such parts.
    pub(crate) fn vector(&self, pieces: &[Piece]) -> Result<Vec<f32>, Failure> {
        if !pieces.iter().all(|(part, _)| part.is_in(&self.model.shape)) {
            return Ok(Vec::new());
        }
        let mut vector = Vec::new();
        for (part, elements) in pieces {
            match self.checkpoint {
                Some(checkpoint) => {
                    vector.extend(checkpoint.part(&self.model.shape, *part)?.read_vector(elements.clone())?);
                }
                None => vector.resize(vector.len() + elements.len(), 0.0),
            }
        }
        Ok(vector)
    }

    /// The given outputs one below the other, each a row of the given inputs in units of `unit`, filled up with zeros. What they take over
    /// from the `absorbed` norm is added to `bias`.
    pub(crate) fn matrix(
        &mut self,
        pieces: &[Piece],
        inputs: Range<usize>,
        unit: usize,
        absorbed: Option<&Norm>,
        mut bias: &mut [f32],
    ) -> Result<WeightRows, Failure> {
        let element = self.model.element;
        let outputs: usize = pieces.iter().map(|(_, outputs)| outputs.len()).sum();
        let stride = weight_stride(inputs.len(), unit, element);
        let (row_bytes, of_row) = (stride * element.bytes(), scales(stride, element));
        // Of bytes a unit is filled up to slices.
        let unit_bytes =
            if element == Element::Int8 { weight_stride(unit, unit, element) } else { unit * element.bytes() };
        let slices_of_unit = scales(unit_bytes, element);
        let Some(checkpoint) = self.checkpoint else {
            return Ok(WeightRows {
                rows: self.zeros(outputs * row_bytes)?,
                scales: self.zeros(outputs * of_row * 2)?,
            });
        };
        let mut tensors = Vec::new();
        for (part, outputs) in pieces {
            let tensor = checkpoint.part(&self.model.shape, *part)?.narrowed_to(range_of(element));
            // Outputs as columns.
            let is_table = matches!(part, Part::Embedding | Part::Head | Part::Layer(_, LayerPart::ValueTable, _));
            tensors.push((if is_table { tensor.transposed() } else { tensor }, outputs.clone()));
        }
        let memory = self.gpu.allocate(outputs * row_bytes, WEIGHTS)?;
        // `[slices, out]`, in pairs as words are what is copied.
        let all_scales = Mutex::new(vec![0u16; (outputs * of_row).next_multiple_of(2)]);
        let at_once = (CHUNK_BYTES / (STRIP_OUTPUTS * row_bytes).max(1)).max(1);
        let strips: Vec<_> =
            (0..outputs).step_by(STRIP_OUTPUTS).map(|first| first..outputs.min(first + STRIP_OUTPUTS)).collect();
        let mut offset = 0;
        for strips in strips.chunks(at_once) {
            let begin = self.pending.len();
            let outputs_at_once: usize = strips.iter().map(ExactSizeIterator::len).sum();
            self.pending.resize(begin + outputs_at_once * row_bytes, 0);
            let mut places = &mut self.pending[begin..];
            let work: Vec<_> = strips
                .iter()
                .map(|strip| {
                    let place = places.split_off_mut(..strip.len() * row_bytes).expect("as counted");
                    let taken = strip.len().min(bias.len());
                    (strip.clone(), place, bias.split_off_mut(..taken).expect("no more than there are"))
                })
                .collect();
            let work = Mutex::new(work.into_iter());
            let fill_strips = || {
                let (mut tile, mut of_strip) = (Tile::default(), Vec::new());
                let next = || work.lock().expect("no thread panics").next();
                while let Some((strip, place, bias)) = next() {
                    of_strip.clear();
                    for index in 0..inputs.len().div_ceil(unit) {
                        let rows = inputs.start + index * unit..inputs.end.min(inputs.start + (index + 1) * unit);
                        tile.read(&tensors, rows, strip.clone())?;
                        if let Some(norm) = absorbed {
                            tile.absorb(norm, bias, &tensors)?;
                        }
                        let scales = put(&tile.values, element, place, row_bytes, index * unit_bytes);
                        (0..slices_of_unit).for_each(|_| of_strip.extend_from_slice(&scales));
                    }
                    let mut all = all_scales.lock().expect("no thread panics");
                    for (slice, scales) in of_strip.chunks_exact(strip.len()).enumerate() {
                        all[slice * outputs + strip.start..][..strip.len()].copy_from_slice(scales);
                    }
                }
                Ok::<_, CheckpointError>(())
            };
            thread::scope(|scope| {
                // Where the system gives fewer threads, those take more strips.
                let more = |_| thread::Builder::new().spawn_scoped(scope, fill_strips).ok();
                let others: Vec<_> = (1..self.threads.min(strips.len())).map_while(more).collect();
                let ours = fill_strips();
                others.into_iter().map(|other| other.join().expect("loading does not panic")).fold(ours, Result::and)
            })?;
            offset = self.send(&memory, offset, CHUNK_BYTES)?;
        }
        self.send(&memory, offset, 1)?;
        let scales = all_scales.into_inner().expect("no thread panics");
        let scales = self.copied(bytemuck::cast_slice(&scales))?;
        Ok(WeightRows { rows: self.hold(memory), scales })
    }

    /// Rows of the given columns side by side, in f32; 0 where the model has no such parts.
    pub(crate) fn floats(&mut self, pieces: &[Piece], rows: usize) -> Result<u64, Failure> {
        if !pieces.iter().all(|(part, _)| part.is_in(&self.model.shape)) {
            return Ok(0);
        }
        let width: usize = pieces.iter().map(|(_, columns)| columns.len()).sum();
        let bytes = rows * width * size_of::<f32>();
        let Some(checkpoint) = self.checkpoint else { return self.zeros(bytes) };
        let slice = |(part, columns): &Piece| Ok((checkpoint.part(&self.model.shape, *part)?, columns.clone()));
        let tensors = pieces.iter().map(slice).collect::<Result<Vec<_>, CheckpointError>>()?;
        let memory = self.gpu.allocate(bytes, WEIGHTS)?;
        let (mut offset, mut values) = (0, Vec::new());
        for index in 0..rows {
            for (tensor, columns) in &tensors {
                tensor.read_row(index, columns.clone(), &mut values)?;
                self.pending.extend_from_slice(bytemuck::cast_slice(&values));
            }
            offset = self.send(&memory, offset, CHUNK_BYTES)?;
        }
        self.send(&memory, offset, 1)?;
        Ok(self.hold(memory))
    }

    /// Where values lie once they are copied; 0 of none.
    pub(crate) fn copied_floats(&mut self, values: &[f32]) -> Result<u64, Failure> {
        self.copied(bytemuck::cast_slice(values))
    }

    /// The same of whole words.
    fn copied(&mut self, bytes: &[u8]) -> Result<u64, Failure> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let memory = self.gpu.allocate(bytes.len(), WEIGHTS)?;
        self.pending.extend_from_slice(bytes);
        self.send(&memory, 0, 1)?;
        Ok(self.hold(memory))
    }

    fn zeros(&mut self, bytes: usize) -> Result<u64, Failure> {
        let memory = self.gpu.zeroed(bytes, WEIGHTS)?;
        Ok(self.hold(memory))
    }

    fn hold(&mut self, memory: Memory) -> u64 {
        let address = memory.address();
        self.held.push(memory);
        address
    }

    /// Copies what is pending behind the first `offset` bytes, chunk by chunk, while there are at least `least` bytes; returns the next
    /// offset. All that is pending is whole words.
    fn send(&mut self, to: &Memory, mut offset: usize, least: usize) -> Result<usize, Failure> {
        while self.pending.len() >= least {
            let bytes = self.pending.len().min(CHUNK_BYTES);
            bytemuck::cast_slice_mut::<u32, u8>(&mut self.staging.words_mut()[..bytes / 4])
                .copy_from_slice(&self.pending[..bytes]);
            self.gpu.upload(&self.staging, bytes / 4, to.at(offset, bytes))?;
            self.gpu.wait("load weights", || Ok(()))?;
            self.pending.drain(..bytes);
            offset += bytes;
        }
        Ok(offset)
    }
}

/// Puts values of some inputs, `[inputs, outputs]`, where they begin in rows of the outputs; returns what bytes are to be multiplied by.
fn put(values: &[f32], element: Element, rows: &mut [u8], row_bytes: usize, first_byte: usize) -> Vec<u16> {
    let outputs = rows.len() / row_bytes;
    let mut of_output = Vec::with_capacity(values.len() / outputs);
    let rows = rows.chunks_exact_mut(row_bytes).enumerate();
    let put_one = |(output, row): (usize, &mut [u8])| {
        of_output.clear();
        of_output.extend(values.iter().skip(output).step_by(outputs));
        let to = &mut row[first_byte..][..of_output.len() * element.bytes()];
        if element == Element::Int8 {
            return Some(quantise(&of_output, to));
        }
        narrow(&of_output, element, to);
        None
    };
    rows.filter_map(put_one).collect()
}

/// Bytes of values, and the bf16 that they are to be multiplied by: a CPU's.
fn quantise(values: &[f32], to: &mut [u8]) -> u16 {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    // Rounded before anything is divided by it, so that the rounding costs no accuracy.
    let scale = bf16::from_f32(largest / 127.0);
    let inverse = if scale > bf16::ZERO { scale.to_f32().recip() } else { 0.0 };
    let byte = |value: &f32| (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    to.iter_mut().zip(values).for_each(|(to, value)| *to = byte(value).cast_unsigned());
    scale.to_bits()
}

pub(crate) fn narrow(values: &[f32], element: Element, out: &mut [u8]) {
    match element {
        Element::F32 => out.copy_from_slice(bytemuck::cast_slice(values)),
        Element::F16 => convert(values, out, |x| f16::from_f32(x).to_le_bytes()),
        Element::Bf16 => convert(values, out, |x| bf16::from_f32(x).to_le_bytes()),
        Element::Int8 => unreachable!("bytes have scales"),
    }
}

fn convert(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; 2]) {
    let (words, _) = out.as_chunks_mut::<2>();
    words.iter_mut().zip(values).for_each(|(word, &x)| *word = convert(x));
}
