//! The forward pass of one rank, as kernels and products queued on its GPU.
//!
//! ```text
//! tokens ─► embed, positions on the first rank ─ all-reduce ─► norm, smear ─► x [T, C]
//! each layer:  x mixed with what it began as
//!              norm, QKV, KV write ─► attention ─► projection, x += ─ all-reduce
//!              norm, FC, activation or gate ─────► projection, x += ─ all-reduce
//! x less what it was in the middle;  wanted rows of x: norm, LM head, cap [R, V_local] ─► answers
//! ```
//! Mixtures, smear, middle and cap are some families' only. Where positions are rotations, QKV goes to f32 sums, and a kernel of its own
//! turns heads before they are stored.
//! What is between two commas is one kernel for few rows, and several for more ([`linear`](super::linear)). Products take inputs in the
//! element type and give f32, and so do reductions: as on the CPU, only what is multiplied is rounded.
//!
//! Invariant: all addresses are those of buffers made once, so that a captured step can run again. Does not know plans.

mod terms;

use std::time::{Duration, Instant};

use nanoinfer_kernels::Element;
use nanoinfer_kernels::cuda::{
    AnswerArguments, AttendArguments, EmbedArguments, Launch, NO_WINDOW, QkvPlaces, TILE_ROWS, TurnArguments,
    TurnsArguments, head_stride, row_stride, sharing, weight_stride,
};
use nanoinfer_shared::{
    comm::{Communicator as HostCommunicator, OneThread, ReduceSite},
    model::{
        partition::WIDTH_BLOCK,
        rotary::Rotary,
        shape::{Positions, QkNorm},
    },
};

use super::{
    buffers::{Buffers, layer_block_bytes},
    error::GpuError,
    failure::Failure,
    gpu::{Gpu, Memory, Pinned},
    inputs::Inputs,
    linear::{Input, Linears, Output},
    load::{Matrix, Weights},
    model::RankModel,
    nccl::Communicator,
};
use crate::bounds::Bounds;

/// How partial sums reach the other ranks.
pub(crate) enum Reduction {
    /// There are none.
    Alone,
    /// Through memory of the host, which the sums are copied to and from.
    Staged { comm: Box<dyn HostCommunicator>, staging: Pinned },
    /// On the GPUs.
    Nccl(Communicator),
}

/// A rank's model on its GPU.
pub(crate) struct Pass {
    reduction: Reduction,
    pub(crate) model: RankModel,
    linears: Linears,
    weights: Weights,
    /// Of each layer.
    cache: Vec<Memory>,
    buffers: Buffers,
    /// Time in reductions through the host since it was last asked for.
    reducing: Duration,
    pub(crate) gpu: Gpu,
}

impl Pass {
    /// Bytes of one block of the KV cache, in all layers.
    pub(crate) fn block_bytes(model: &RankModel) -> u64 {
        (model.shape.layers * layer_block_bytes(model)) as u64
    }

    /// Bytes of activations for steps of up to `tokens` tokens, of which at most `rows` logits are wanted at once.
    pub(crate) fn activation_bytes(model: &RankModel, tokens: usize, rows: usize) -> u64 {
        Buffers::bytes(model, tokens) + Linears::bytes(model, tokens, rows)
    }

    /// With room for steps within `bounds`, of which at most `rows` logits are wanted at once.
    pub(crate) fn new(
        gpu: Gpu,
        model: RankModel,
        weights: Weights,
        reduction: Reduction,
        bounds: Bounds,
        rows: usize,
    ) -> Result<Self, GpuError> {
        let tokens = bounds.max_batched_tokens;
        // Positions are added to embeddings as they are.
        assert!(model.shape.attention.positions != Positions::Learned || !model.shape.stream.normed_embedding);
        let linears = Linears::new(&gpu, &model, tokens, rows)?;
        let buffers = Buffers::new(&gpu, &model, tokens)?;
        // One block more, for rows that only fill a batch.
        let bytes = (bounds.kv_blocks + 1) * layer_block_bytes(&model);
        let cache = (0..model.shape.layers).map(|_| gpu.zeroed(bytes, "KV cache")).collect::<Result<_, _>>()?;
        let reducing = Duration::ZERO;
        Ok(Self { reduction, model, linears, weights, cache, buffers, reducing, gpu })
    }

    /// Whether a step can be captured: nothing in it needs the host.
    pub(crate) fn is_capturable(&self) -> bool {
        !matches!(self.reduction, Reduction::Staged { .. })
    }

    /// Queues all layers over rows that have been copied to `memory`.
    pub(crate) fn forward(&mut self, step: u64, inputs: &Inputs, memory: &Memory) -> Result<(), Failure> {
        let RankModel { shape, share, .. } = &self.model;
        let t = inputs.rows;
        let (embeddings, at) = (inputs.embeddings(), self.embeddings());
        self.gpu.launch(
            Launch::rows(embeddings),
            &EmbedArguments {
                tokens: inputs.tokens(memory),
                positions: inputs.placement(memory).positions,
                embedding: self.weights.embedding,
                position_embedding: self.weights.positions,
                x: at,
                first_token: share.vocab.start as u32,
                tokens_local: share.vocab.len() as u32,
                width: shape.width as u32,
                stride: weight_stride(shape.width, WIDTH_BLOCK, self.model.element) as u32,
            },
        )?;
        if let Positions::Rotary(rotary) = &shape.attention.positions {
            self.angles(rotary, inputs, memory)?;
        }
        let site = |layer, operation| ReduceSite { step, layer, operation };
        let x = self.linears.x.address();
        self.reduce((at, embeddings), site(None, "token embedding"))?;
        self.norm_embeddings(inputs, memory)?;
        for layer in 0..self.model.shape.layers {
            self.mix(layer, t)?;
            self.attention(layer, inputs, memory)?;
            self.reduce((x, t), site(Some(layer), "attention projection"))?;
            self.mlp(layer, t)?;
            self.reduce((x, t), site(Some(layer), "MLP projection"))?;
        }
        Ok(self.take_middle_away(t)?)
    }

    /// Queues the logits `[R, V_local]` after rows of the last forward pass, whose numbers are at `rows`, and what is `asked` of them;
    /// sizes are filled in here.
    pub(crate) fn answer(&self, (rows, count): (u64, usize), asked: AnswerArguments) -> Result<(), GpuError> {
        let RankModel { shape, share, .. } = &self.model;
        let width = share.vocab.len();
        let (weights, inputs) = (self.weights.head, shape.width);
        let head = Matrix { weights, bias: 0, inputs, unit: WIDTH_BLOCK, outputs: width };
        let input = Input::Norm { norm: &self.weights.final_norm, rows };
        self.linears.apply(&self.gpu, count, &input, head, Output::Logits(asked.logits))?;
        let arguments = AnswerArguments { width: width as u32, ..asked };
        self.gpu.launch_as("answer_parts", Launch::answer_parts(count, width), &arguments)?;
        self.gpu.launch(Launch::answers(count), &arguments)
    }

    /// Queues the angles of a step's rows.
    fn angles(&self, rotary: &Rotary, inputs: &Inputs, memory: &Memory) -> Result<(), GpuError> {
        let half = self.model.shape.attention.head_dim / 2;
        let arguments = TurnsArguments {
            positions: inputs.placement(memory).positions,
            frequencies: self.weights.frequencies,
            turns: self.buffers.turned[1].address(),
            count: (inputs.rows * half) as u32,
            half: half as u32,
            factor: rotary.attention_factor(),
            is_backwards: rotary.backwards.into(),
            is_rounded: rotary.is_rounded(self.model.element == Element::F32).into(),
            padding: 0,
        };
        self.gpu.launch(Launch::angles(inputs.rows * half), &arguments)
    }

    fn attention(&self, layer: usize, inputs: &Inputs, memory: &Memory) -> Result<(), GpuError> {
        let RankModel { shape, share, .. } = &self.model;
        let (t, d, heads) = (inputs.rows, shape.attention.head_dim, share.heads.len());
        let weights = &self.weights.layers[layer];
        let places = QkvPlaces {
            queries: self.buffers.queries.address(),
            cache: self.cache[layer].address(),
            at: inputs.placement(memory),
            heads: heads as u32,
            kv_heads: share.kv_heads.len() as u32,
            head_dim: d as u32,
            head_stride: head_stride(d) as u32,
            table_blocks: inputs.of_sequence.table_blocks as u32,
            padding: 0,
        };
        let input = Input::Norm { norm: &weights.attention_norm, rows: 0 };
        if shape.attention.positions == Positions::Learned {
            self.linears.apply(&self.gpu, t, &input, weights.qkv, Output::Qkv(places))?;
        } else {
            let [sums, turns] = &self.buffers.turned;
            self.linears.apply(&self.gpu, t, &input, weights.qkv, Output::Sums(sums.address()))?;
            let [query_gain, key_gain] = weights.head_gains;
            let turn = TurnArguments {
                to: places,
                sums: sums.address(),
                bias: 0,
                turns: turns.address(),
                query_gain,
                key_gain,
                factor: match shape.attention.qk_norm {
                    QkNorm::Rotated { factor } => factor,
                    QkNorm::None | QkNorm::Gains => 0.0,
                },
                epsilon: shape.norm_epsilon,
                added: self.added_values(layer, inputs, memory),
            };
            self.gpu.launch(Launch::turn(t, heads + 2 * share.kv_heads.len()), &turn)?;
        }
        let tiled = inputs.tiles > 0;
        let sharing = if tiled { 1 } else { sharing(t, heads, shape.context, self.gpu.multiprocessors) };
        let [parts, arrived] = &self.buffers.parts;
        let attend = AttendArguments {
            from: places,
            out: self.buffers.mixed.address(),
            parts: parts.address(),
            arrived: arrived.address(),
            tiles: inputs.tiles_address(memory),
            tile_rows: if tiled { TILE_ROWS as u32 } else { 1 },
            out_stride: row_stride(heads * d) as u32,
            scale: shape.attention.scale(layer),
            group: shape.attention.group() as u32,
            skipped: share.skipped_heads(shape) as u32,
            window: shape.window(layer).map_or(NO_WINDOW, |window| window as u32),
            sharing: sharing as u32,
            padding: 0,
        };
        let (name, launch) = Launch::attention(if tiled { inputs.tiles } else { t }, heads, d, tiled, sharing);
        self.gpu.launch_as(name, launch, &attend)?;
        let mixed = Input::Carried(self.buffers.mixed.address());
        self.linears.apply(&self.gpu, t, &mixed, weights.attention_output, Output::Residual)
    }

    fn mlp(&self, layer: usize, t: usize) -> Result<(), GpuError> {
        let (weights, hidden) = (&self.weights.layers[layer], self.buffers.hidden.address());
        let input = Input::Norm { norm: &weights.mlp_norm, rows: 0 };
        self.linears.apply(&self.gpu, t, &input, weights.up, Output::Hidden(hidden))?;
        self.linears.apply(&self.gpu, t, &Input::Carried(hidden), weights.down, Output::Residual)
    }

    /// Replaces rows `[T, C]` by their sum over all ranks.
    fn reduce(&mut self, (address, rows): (u64, usize), site: ReduceSite) -> Result<(), Failure> {
        let count = rows * self.model.shape.width;
        match &mut self.reduction {
            Reduction::Alone => {}
            Reduction::Nccl(communicator) => {
                communicator.all_reduce(address, count, self.gpu.stream().cu_stream())?;
            }
            Reduction::Staged { comm, staging } => {
                let begun = Instant::now();
                self.gpu.download(address, staging, count)?;
                self.gpu.wait("bring partial sums", || Ok(()))?;
                comm.all_reduce(&mut staging.floats_mut()[..count], site, &mut OneThread)?;
                self.gpu.upload(staging, count, address)?;
                self.reducing += begun.elapsed();
            }
        }
        Ok(())
    }

    /// Waits for all that is queued.
    pub(crate) fn wait(&self) -> Result<(), GpuError> {
        self.gpu.wait("finish a step", || match &self.reduction {
            Reduction::Nccl(communicator) => communicator.check(),
            Reduction::Alone | Reduction::Staged { .. } => Ok(()),
        })
    }

    /// Time in reductions through the host since the last call; of those on the GPUs nobody knows.
    pub(crate) fn take_reducing(&mut self) -> Duration {
        std::mem::take(&mut self.reducing)
    }
}
