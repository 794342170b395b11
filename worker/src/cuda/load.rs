//! One rank's weights on its GPU: slices of the checkpoint in the element type asked for, a row for each output.
//!
//! ```text
//! queries, keys, values [(H_local + 2·KV_local)·D, C], behind attention [C, H_local·D]   rows in whole slices
//! into the MLP [F_local, C], out of it [C, F_local], embedding, an untied head [V_local, C]   likewise
//! biases, norms, gains of heads, positions [P, C] (on the first rank), frequencies of rotations   f32, where there are
//! ```
//! What a rank holds of a layer is [`Share::linear`]'s word, and so are the bytes that this takes.
//! Whoever multiplies a few inputs with a matrix reads rows of it, hence outputs are rows; here they are columns of the parts. Pieces go
//! from the mapped file through a few megabytes of pinned memory: the host never holds the share.

use std::{mem::take, ops::Range, sync::Mutex, thread};

use half::{bf16, f16};
use nanoinfer_checkpoint::{Checkpoint, CheckpointError};
use nanoinfer_kernels::{Element, cuda::row_stride};
use nanoinfer_shared::model::{
    partition::{Linear, WeightBytes},
    parts::{LayerPart, Part, Term},
    shape::Positions,
};

use super::{
    failure::Failure,
    gpu::{Gpu, Memory, Pinned},
    model::RankModel,
};
use crate::element::range_of;

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 8 << 20;
/// Outputs that are read together: as many lines of a file stay in the cache while their inputs are read one by one.
const STRIP_OUTPUTS: usize = 64;
/// Inputs of theirs that are read before they are turned: a line of the result.
const BLOCK_INPUTS: usize = 16;
/// What a GPU's memory does not take, where it does not.
pub(crate) const WEIGHTS: &str = "weights";

/// Where a rank's weights lie, which stay there as long as this.
pub(crate) struct Weights {
    /// `[V_local, C]`, rows in whole slices.
    pub(crate) embedding: u64,
    /// What logits are made with, likewise: the embedding where there is no other.
    pub(crate) head: u64,
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
    /// `[V, KV_local · D]`, rows in whole slices.
    pub(crate) rows: u64,
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
    /// `[out, in]`, rows in whole slices.
    pub(crate) weights: u64,
    /// `[out]` f32.
    pub(crate) bias: u64,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// Each `[C]` f32, or 0 where there is none.
pub(crate) struct Norm {
    pub(crate) gain: u64,
    pub(crate) bias: u64,
}

impl Weights {
    /// Bytes that [`Weights::load`] takes.
    pub(crate) fn bytes(RankModel { rank, shape, share, element }: &RankModel) -> WeightBytes {
        let matrix = |_, inputs, outputs| outputs * row_stride(inputs) * element.bytes();
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
            final_norm: loader.norm(Part::FinalNorm)?,
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
        Ok(LayerWeights {
            qkv: self.linear(layer, Linear::Qkv)?,
            attention_output: self.linear(layer, Linear::AttentionOutput)?,
            head_gains: {
                let width = self.model.shape.attention.head_dim;
                let mut gain = |part| self.floats(&[(Part::Layer(layer, part, Term::Weight), 0..width)], 1);
                [gain(LayerPart::QueryNorm)?, gain(LayerPart::KeyNorm)?]
            },
            values: self.model.shape.has_value_table(layer).then(|| self.values(layer)).transpose()?,
            up: self.linear(layer, Linear::Up)?,
            down: self.linear(layer, Linear::Down)?,
            attention_norm: self.norm(|term| Part::Layer(layer, LayerPart::AttentionNorm, term))?,
            mlp_norm: self.norm(|term| Part::Layer(layer, LayerPart::MlpNorm, term))?,
        })
    }

    fn linear(&mut self, layer: usize, linear: Linear) -> Result<Matrix, Failure> {
        let held = self.model.share.linear(&self.model.shape, linear);
        let of = |term| held.of_layer(layer, term).collect::<Vec<Piece>>();
        Ok(Matrix {
            bias: self.floats(&of(Term::Bias), 1)?,
            inputs: held.inputs.len(),
            outputs: held.outputs(),
            weights: self.matrix(&of(Term::Weight), held.inputs.clone())?,
        })
    }

    fn norm(&mut self, part: impl Fn(Term) -> Part) -> Result<Norm, Failure> {
        let mut vector = |term| self.floats(&[(part(term), 0..self.model.shape.width)], 1);
        Ok(Norm { gain: vector(Term::Weight)?, bias: vector(Term::Bias)? })
    }

    fn values(&mut self, layer: usize) -> Result<ValueTable, Failure> {
        let RankModel { shape, share, .. } = self.model;
        let of = |part| Part::Layer(layer, part, Term::Weight);
        let channels = shape.value_tables.map_or(0, |tables| tables.gate_channels);
        Ok(ValueTable {
            rows: self.matrix(&[(of(LayerPart::ValueTable), 0..shape.vocab_size)], share.value_columns(shape))?,
            gates: self.floats(&[(of(LayerPart::ValueGate), share.kv_heads.clone())], channels)?,
        })
    }

    fn stream(&mut self) -> Result<StreamWeights, Failure> {
        let (shape, layers) = (&self.model.shape, self.model.shape.layers);
        Ok(StreamWeights {
            lambdas: match shape.stream.lambdas {
                true => Some([self.numbers(Part::StreamScales, layers)?, self.numbers(Part::OriginScales, layers)?]),
                false => None,
            },
            smear: match shape.stream.smear {
                Some(channels) => {
                    Some((self.floats(&[(Part::SmearGate, 0..channels)], 1)?, self.numbers(Part::SmearScale, 1)?[0]))
                }
                None => None,
            },
            backout: match shape.stream.backout {
                true => Some(self.numbers(Part::BackoutScale, 1)?[0]),
                false => None,
            },
        })
    }

    /// A vector that stays on the host.
    fn numbers(&self, part: Part, count: usize) -> Result<Vec<f32>, Failure> {
        let Some(checkpoint) = self.checkpoint else { return Ok(vec![0.0; count]) };
        Ok(checkpoint.part(&self.model.shape, part)?.read_vector(0..count)?)
    }

    fn vocabulary(&mut self, part: Part) -> Result<u64, Failure> {
        let RankModel { shape, share, .. } = self.model;
        self.matrix(&[(part, share.vocab.clone())], 0..shape.width)
    }

    /// The given outputs one below the other, each a row of the given inputs in the element type, filled up with zeros.
    fn matrix(&mut self, pieces: &[Piece], inputs: Range<usize>) -> Result<u64, Failure> {
        let element = self.model.element;
        let stride = row_stride(inputs.len());
        let row_bytes = stride * element.bytes();
        let rows: usize = pieces.iter().map(|(_, outputs)| outputs.len()).sum();
        let Some(checkpoint) = self.checkpoint else { return self.zeros(rows * row_bytes) };
        let mut strips = Vec::new();
        for (part, outputs) in pieces {
            let tensor = checkpoint.part(&self.model.shape, *part)?.narrowed_to(range_of(element));
            // Outputs as columns.
            let is_table = matches!(part, Part::Embedding | Part::Head | Part::Layer(_, LayerPart::ValueTable, _));
            let tensor = if is_table { tensor.transposed() } else { tensor };
            let strip = |first: usize| (tensor, first..outputs.end.min(first + STRIP_OUTPUTS));
            strips.extend(outputs.clone().step_by(STRIP_OUTPUTS).map(strip));
        }
        let memory = self.gpu.allocate(rows * row_bytes, WEIGHTS)?;
        let at_once = (CHUNK_BYTES / (STRIP_OUTPUTS * row_bytes).max(1)).max(1);
        let mut offset = 0;
        for strips in strips.chunks(at_once) {
            let begin = self.pending.len();
            self.pending.resize(begin + strips.iter().map(|(_, strip)| strip.len()).sum::<usize>() * row_bytes, 0);
            let mut places = &mut self.pending[begin..];
            let places =
                strips.iter().map(|(_, strip)| places.split_off_mut(..strip.len() * row_bytes).expect("as counted"));
            let work = Mutex::new(strips.iter().cloned().zip(places));
            let fill_strips = || {
                let (mut values, mut columns, mut rows) = (Vec::new(), Vec::new(), Vec::new());
                let next = || work.lock().expect("no thread panics").next();
                while let Some(((tensor, strip), place)) = next() {
                    rows.resize(strip.len() * stride, 0.0);
                    for (block, first) in inputs.clone().step_by(BLOCK_INPUTS).enumerate() {
                        columns.clear();
                        for input in first..inputs.end.min(first + BLOCK_INPUTS) {
                            tensor.read_row(input, strip.clone(), &mut values)?;
                            columns.extend_from_slice(&values);
                        }
                        for (output, row) in rows.chunks_exact_mut(stride).enumerate() {
                            let inputs = columns.iter().skip(output).step_by(strip.len());
                            row[block * BLOCK_INPUTS..].iter_mut().zip(inputs).for_each(|(place, &x)| *place = x);
                        }
                    }
                    narrow(&rows, element, place);
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
        Ok(self.hold(memory))
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

    fn copied(&mut self, values: &[f32]) -> Result<u64, Failure> {
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

pub(crate) fn narrow(values: &[f32], element: Element, out: &mut [u8]) {
    match element {
        Element::F32 => out.copy_from_slice(bytemuck::cast_slice(values)),
        Element::F16 => convert(values, out, |x| f16::from_f32(x).to_le_bytes()),
        Element::Bf16 => convert(values, out, |x| bf16::from_f32(x).to_le_bytes()),
        Element::Int8 => unreachable!("`fits` refuses it"),
    }
}

fn convert(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; 2]) {
    let (words, _) = out.as_chunks_mut::<2>();
    words.iter_mut().zip(values).for_each(|(word, &x)| *word = convert(x));
}
