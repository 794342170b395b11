//! One rank's weights on its GPU: slices of the checkpoint in the element type asked for, a row for each output.
//!
//! ```text
//! queries, keys, values [(H_local + 2·KV_local)·D, C], behind attention [C, H_local·D]   rows in whole slices
//! into the MLP [F_local, C], out of it [C, F_local], embedding, an untied head [V_local, C]   likewise
//! biases, norms, gains of heads, positions [P, C] (on the first rank), frequencies of rotations   f32, where there are
//! of bytes, the scales of each slice of each row   bf16 [slices, out]
//! ```
//! What a rank holds of a layer is [`Share::linear`]'s word, and so are the bytes that this takes.
//! Whoever multiplies a few inputs with a matrix reads rows of it, hence outputs are rows; here they are columns of the parts. Pieces go
//! from the mapped file through a few megabytes of pinned memory: the host never holds the share.

use std::{mem::take, ops::Range, sync::Mutex, thread};

use half::{bf16, f16};
use nanoinfer_checkpoint::{Checkpoint, CheckpointError};
use nanoinfer_kernels::{
    Element,
    cuda::{WeightRows, scales, weight_stride},
};
use nanoinfer_shared::model::{
    partition::{Linear, LinearShare, WIDTH_BLOCK, WeightBytes},
    parts::{LayerPart, Part, Term},
    shape::Positions,
};

use super::{
    failure::Failure,
    gpu::{Gpu, Memory, Pinned},
    model::RankModel,
};
use crate::{
    element::range_of,
    tile::{Norm as NormVectors, Tile, check_bias},
};

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 8 << 20;
/// Outputs that are read together: as many lines of a file stay in the cache while their inputs are read one by one.
const STRIP_OUTPUTS: usize = 64;
/// What a GPU's memory does not take, where it does not.
pub(crate) const WEIGHTS: &str = "weights";

/// Where a rank's weights lie, which stay there as long as this.
pub(crate) struct Weights {
    /// `[V_local, C]`.
    pub(crate) embedding: WeightRows,
    /// What logits are made with, likewise: the embedding where there is no other.
    pub(crate) head: WeightRows,
    /// `[P, C]` f32 on the first rank, 0 on the others and where there are none.
    pub(crate) positions: u64,
    /// `[D / 2]` f32 where positions are rotations, else 0.
    pub(crate) frequencies: u64,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: Norm,
    pub(crate) stream: StreamWeights,
    _held: Vec<Memory>,
}

/// What works on the residual stream, on every rank; nothing in most families.
pub(crate) struct StreamWeights {
    /// What the stream is multiplied by before each block, and what of its origin is added.
    pub(crate) lambdas: Option<[Vec<f32>; 2]>,
    /// Gate of the token before `[G]`, and what comes of it.
    pub(crate) smear: Option<(u64, f32)>,
    /// How much of the middle is taken away at the end.
    pub(crate) backout: Option<f32>,
}

/// What is added to the values of a block.
pub(crate) struct ValueTable {
    /// `[V, KV_local · D]`.
    pub(crate) rows: WeightRows,
    /// `[G, KV_local]` f32.
    pub(crate) gates: u64,
}

pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Norm,
    pub(crate) qkv: Matrix,
    pub(crate) attention_output: Matrix,
    /// Of queries and of keys `[D]` f32, 0 where there are none.
    pub(crate) head_gains: [u64; 2],
    pub(crate) values: Option<ValueTable>,
    pub(crate) mlp_norm: Norm,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

/// Where a matrix lies, and its bias, 0 where it has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// `[out, in]`.
    pub(crate) weights: WeightRows,
    /// `[out]` f32.
    pub(crate) bias: u64,
    pub(crate) inputs: usize,
    /// Inputs that have one scale where weights are bytes.
    pub(crate) unit: usize,
    pub(crate) outputs: usize,
}

impl Matrix {
    /// From one row to the next.
    pub(crate) fn stride(&self, element: Element) -> usize {
        weight_stride(self.inputs, self.unit, element)
    }
}

/// Each `[C]` f32, or 0 where there is none.
pub(crate) struct Norm {
    pub(crate) gain: u64,
    pub(crate) bias: u64,
}

impl Weights {
    /// Bytes that [`Weights::load`] takes.
    pub(crate) fn bytes(RankModel { rank, shape, share, element }: &RankModel) -> WeightBytes {
        let matrix = |unit, inputs, outputs| {
            let stride = weight_stride(inputs, unit, *element);
            outputs * (stride * element.bytes() + scales(stride, *element) * size_of::<bf16>())
        };
        share.bytes(shape, *rank == 0, matrix)
    }

    /// Copies a rank's share of a checked checkpoint, read by `threads` threads; zeros, where there is none.
    ///
    /// # Errors
    /// When the GPU fails, a tensor is missing, a weight is no number or too large for the elements, or the files are written to
    /// meanwhile.
    ///
    /// # Panics
    /// When the system gives no thread.
    pub(crate) fn load(
        gpu: &Gpu,
        checkpoint: Option<&Checkpoint>,
        model: &RankModel,
        threads: usize,
    ) -> Result<Self, Failure> {
        let staging = gpu.pinned(CHUNK_BYTES / 4)?;
        let mut loader = Loader { gpu, checkpoint, model, threads, staging, pending: Vec::new(), held: Vec::new() };
        let shape = &model.shape;
        let embedding = loader.vocabulary(Part::Embedding)?;
        let weights = Self {
            embedding,
            head: if shape.tied_head { embedding } else { loader.vocabulary(Part::Head)? },
            positions: match model.rank {
                0 => loader.floats(&[(Part::Positions, 0..shape.width)], shape.context)?,
                _ => 0,
            },
            frequencies: match &shape.attention.positions {
                Positions::Learned => 0,
                Positions::Rotary(rotary) => loader.copied(&rotary.frequencies(shape.attention.head_dim))?,
            },
            layers: (0..shape.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?,
            final_norm: {
                let norm = loader.norm_vectors(Part::FinalNorm)?;
                loader.norm(&norm)?
            },
            stream: loader.stream()?,
            _held: take(&mut loader.held),
        };
        checkpoint.map_or(Ok(()), Checkpoint::still_as_opened)?;
        Ok(weights)
    }
}

struct Loader<'a> {
    gpu: &'a Gpu,
    checkpoint: Option<&'a Checkpoint>,
    model: &'a RankModel,
    threads: usize,
    staging: Pinned,
    /// Bytes that are still to be copied, fewer than a chunk and what one call adds.
    pending: Vec<u8>,
    /// All that was loaded.
    held: Vec<Memory>,
}

/// Outputs of a part, or elements of it.
type Piece = (Part, Range<usize>);

impl Loader<'_> {
    fn layer(&mut self, layer: usize) -> Result<LayerWeights, Failure> {
        let mut attention_norm = self.norm_vectors(|term| Part::Layer(layer, LayerPart::AttentionNorm, term))?;
        let mut mlp_norm = self.norm_vectors(|term| Part::Layer(layer, LayerPart::MlpNorm, term))?;
        Ok(LayerWeights {
            qkv: self.linear(layer, Linear::Qkv, Some(&mut attention_norm))?,
            attention_output: self.linear(layer, Linear::AttentionOutput, None)?,
            head_gains: {
                let width = self.model.shape.attention.head_dim;
                let mut gain = |part| self.floats(&[(Part::Layer(layer, part, Term::Weight), 0..width)], 1);
                [gain(LayerPart::QueryNorm)?, gain(LayerPart::KeyNorm)?]
            },
            values: self.model.shape.has_value_table(layer).then(|| self.values(layer)).transpose()?,
            up: self.linear(layer, Linear::Up, Some(&mut mlp_norm))?,
            down: self.linear(layer, Linear::Down, None)?,
            attention_norm: self.norm(&attention_norm)?,
            mlp_norm: self.norm(&mlp_norm)?,
        })
    }

    /// What bytes take over from `norm`, which computes the layer's input, leaves that without.
    fn linear(&mut self, layer: usize, linear: Linear, norm: Option<&mut NormVectors>) -> Result<Matrix, Failure> {
        let LinearShare { inputs, unit, .. } = self.model.share.linear(&self.model.shape, linear);
        let held = self.model.share.linear(&self.model.shape, linear);
        let of = |term| held.of_layer(layer, term).collect::<Vec<Piece>>();
        let mut absorbed = norm.filter(|_| self.model.element == Element::Int8);
        let biases = of(Term::Bias);
        let mut bias = self.vector(&biases)?;
        if absorbed.as_ref().is_some_and(|norm| !norm.bias.is_empty()) {
            bias.resize(held.outputs(), 0.0);
        }
        let weights = self.matrix(&of(Term::Weight), inputs.clone(), unit, absorbed.as_deref(), &mut bias)?;
        if let Some(norm) = &mut absorbed {
            if let Some(checkpoint) = self.checkpoint.filter(|_| !bias.is_empty()) {
                let there = biases.iter().filter(|(part, _)| part.is_in(&self.model.shape));
                let piece = |(part, outputs): &Piece| Ok((checkpoint.part(&self.model.shape, *part)?, outputs.clone()));
                check_bias(&there.map(piece).collect::<Result<Vec<_>, CheckpointError>>()?, &bias)?;
            }
            norm.gain.clear();
            norm.bias.clear();
        }
        Ok(Matrix { weights, bias: self.copied(&bias)?, inputs: inputs.len(), unit, outputs: held.outputs() })
    }

    fn norm_vectors(&self, part: impl Fn(Term) -> Part) -> Result<NormVectors, Failure> {
        let vector = |term| self.vector(&[(part(term), 0..self.model.shape.width)]);
        Ok(NormVectors { gain: vector(Term::Weight)?, bias: vector(Term::Bias)? })
    }

    fn norm(&mut self, norm: &NormVectors) -> Result<Norm, Failure> {
        Ok(Norm { gain: self.copied(&norm.gain)?, bias: self.copied(&norm.bias)? })
    }

    fn values(&mut self, layer: usize) -> Result<ValueTable, Failure> {
        let RankModel { shape, share, .. } = self.model;
        let of = |part| Part::Layer(layer, part, Term::Weight);
        let channels = shape.value_tables.map_or(0, |tables| tables.gate_channels);
        Ok(ValueTable {
            rows: {
                let (columns, unit) = (share.value_columns(shape), shape.attention.head_dim);
                self.matrix(&[(of(LayerPart::ValueTable), 0..shape.vocab_size)], columns, unit, None, &mut [])?
            },
            gates: self.floats(&[(of(LayerPart::ValueGate), share.kv_heads.clone())], channels)?,
        })
    }

    fn stream(&mut self) -> Result<StreamWeights, Failure> {
        let (shape, layers) = (&self.model.shape, self.model.shape.layers);
        Ok(StreamWeights {
            lambdas: match shape.stream.lambdas {
                true => Some([
                    self.vector(&[(Part::StreamScales, 0..layers)])?,
                    self.vector(&[(Part::OriginScales, 0..layers)])?,
                ]),
                false => None,
            },
            smear: match shape.stream.smear {
                Some(channels) => Some((
                    self.floats(&[(Part::SmearGate, 0..channels)], 1)?,
                    self.vector(&[(Part::SmearScale, 0..1)])?[0],
                )),
                None => None,
            },
            backout: match shape.stream.backout {
                true => Some(self.vector(&[(Part::BackoutScale, 0..1)])?[0]),
                false => None,
            },
        })
    }

    /// Elements of vectors one behind the other, on the host; none where the model has no such parts.
    fn vector(&self, pieces: &[Piece]) -> Result<Vec<f32>, Failure> {
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

    fn vocabulary(&mut self, part: Part) -> Result<WeightRows, Failure> {
        let RankModel { shape, share, .. } = self.model;
        self.matrix(&[(part, share.vocab.clone())], 0..shape.width, WIDTH_BLOCK, None, &mut [])
    }

    /// The given outputs one below the other, each a row of the given inputs in units of `unit`, filled up with zeros. What they take over
    /// from the `absorbed` norm is added to `bias`.
    fn matrix(
        &mut self,
        pieces: &[Piece],
        inputs: Range<usize>,
        unit: usize,
        absorbed: Option<&NormVectors>,
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
        let scales = if of_row == 0 { 0 } else { self.copied(bytemuck::cast_slice(&scales))? };
        Ok(WeightRows { rows: self.hold(memory), scales })
    }

    /// Rows of the given columns side by side, in f32; 0 where the model has no such parts.
    fn floats(&mut self, pieces: &[Piece], rows: usize) -> Result<u64, Failure> {
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
    fn copied(&mut self, values: &[f32]) -> Result<u64, Failure> {
        if values.is_empty() {
            return Ok(0);
        }
        let memory = self.gpu.allocate(size_of_val(values), WEIGHTS)?;
        self.pending.extend_from_slice(bytemuck::cast_slice(values));
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
