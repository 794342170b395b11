//! The forward pass of one rank, as kernels and products queued on its GPU.
//!
//! ```text
//! tokens ─► embed, positions on the first rank ─ all-reduce ─► x [T, C]
//! each layer:  x += previous ─► LayerNorm ─► QKV ─► KV write ─► attention ─► projection ─ all-reduce ─► previous
//!              x += previous ─► LayerNorm ─► FC ─► activation ───────────► projection ─ all-reduce ─► previous
//! wanted rows of x + previous ─► LayerNorm ─► LM head [R, V_local] ─► answers
//! ```
//! The residual connection and the bias of a row-parallel layer are part of the LayerNorm behind it: one reading of `x` less.
//! Products take inputs in the element type and give f32, and so do reductions: as on the CPU, only what is multiplied is rounded.
//!
//! Invariant: all addresses are those of buffers made once, so that a captured step can run again. Does not know plans.

use std::time::{Duration, Instant};

use nanoinfer_kernels::cuda::{
    ActivateArguments, AnswerArguments, AttendArguments, BLOCK, Element, EmbedArguments, Launch, NormArguments,
    WriteKvArguments,
};
use nanoinfer_shared::{
    Activation, Geometry, Share,
    comm::{CommError, Communicator as HostCommunicator, Elements, ReduceSite},
};

use super::{
    error::GpuError,
    gpu::{Gpu, Memory, Pinned},
    inputs::Inputs,
    nccl::Communicator,
    products::{Products, Shape},
    weights::{Linear, Norm, Weights},
};

/// Rows of logits begin at multiples of so many floats: 256 bytes, which is what cublasLt takes for granted.
const LOGIT_ALIGNMENT: usize = 64;

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Comm(#[from] CommError),
}

/// How partial sums reach the other ranks.
pub(super) enum Reduction {
    /// There are none.
    Alone,
    /// Through memory of the host, which the sums are copied to and from.
    Staged { comm: Box<dyn HostCommunicator>, staging: Pinned },
    /// On the GPUs.
    Nccl(Communicator),
}

/// Activations, for the largest step.
struct Buffers {
    /// f32 `[T, C]`.
    x: Memory,
    /// `[T or R, C]`.
    normed: Memory,
    /// f32 `[T, 3 · H_local · D]`.
    qkv: Memory,
    /// `[T, H_local · D]`.
    mixed: Memory,
    /// f32 `[T, F_local]`.
    sums: Memory,
    /// `[T, F_local]`.
    hidden: Memory,
    /// f32 `[T, C]`.
    partial: Memory,
}

/// A rank's model on its GPU.
pub(super) struct Model {
    reduction: Reduction,
    pub(super) geometry: Geometry,
    pub(super) share: Share,
    products: Products,
    weights: Weights,
    /// Of each layer.
    cache: Vec<Memory>,
    buffers: Buffers,
    /// Time in reductions through the host since it was last asked for.
    reducing: Duration,
    pub(super) gpu: Gpu,
}

/// Sizes of what a model is given room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Most rows of a step.
    pub(super) tokens: usize,
    /// Most rows that logits are wanted of at once.
    pub(super) rows: usize,
    /// Blocks of the KV cache.
    pub(super) kv_blocks: usize,
}

impl Model {
    /// Bytes of one block of the KV cache, in all layers.
    pub(super) fn block_bytes(geometry: &Geometry, share: &Share, element: Element) -> u64 {
        (geometry.n_layer * layer_block_bytes(geometry, share, element)) as u64
    }

    /// Bytes of activations for steps of up to `tokens` tokens.
    pub(super) fn activation_bytes(geometry: &Geometry, share: &Share, element: Element, tokens: usize) -> u64 {
        let (c, width, f) = (geometry.n_embd, share.heads.len() * geometry.head_dim(), share.ffn.len());
        (tokens * ((2 * c + 3 * width + f) * size_of::<f32>() + (c + width + f) * element.bytes())) as u64
    }

    pub(super) fn new(
        gpu: Gpu,
        geometry: Geometry,
        share: Share,
        element: Element,
        weights: Weights,
        reduction: Reduction,
        room: Room,
    ) -> Result<Self, GpuError> {
        let (c, width, f) = (geometry.n_embd, share.heads.len() * geometry.head_dim(), share.ffn.len());
        let floats = |rows: usize, width: usize| gpu.allocate(rows * width * size_of::<f32>(), "activations");
        let elements = |rows: usize, width: usize| gpu.allocate(rows * width * element.bytes(), "activations");
        let buffers = Buffers {
            x: floats(room.tokens, c)?,
            normed: elements(room.tokens.max(room.rows), c)?,
            qkv: floats(room.tokens, 3 * width)?,
            mixed: elements(room.tokens, width)?,
            sums: floats(room.tokens, f)?,
            hidden: elements(room.tokens, f)?,
            partial: floats(room.tokens, c)?,
        };
        // One block more, for rows that only fill a batch.
        let bytes = (room.kv_blocks + 1) * layer_block_bytes(&geometry, &share, element);
        let cache = (0..geometry.n_layer).map(|_| gpu.zeroed(bytes, "KV cache")).collect::<Result<_, _>>()?;
        let products = Products::new(&gpu, element)?;
        Ok(Self { reduction, geometry, share, products, weights, cache, buffers, reducing: Duration::ZERO, gpu })
    }

    /// Whether a step can be captured: nothing in it needs the host.
    pub(super) fn is_capturable(&self) -> bool {
        !matches!(self.reduction, Reduction::Staged { .. })
    }

    /// Floats from one row of logits to the next.
    pub(super) fn logit_stride(share: &Share) -> usize {
        share.vocab.len().next_multiple_of(LOGIT_ALIGNMENT)
    }

    /// Queues all layers over rows that have been copied to `memory`.
    pub(super) fn forward(&mut self, step: u64, inputs: &Inputs, memory: &Memory) -> Result<(), PassError> {
        let t = inputs.rows;
        self.gpu.launch(
            Launch::rows(t),
            &EmbedArguments {
                tokens: inputs.tokens(memory),
                positions: inputs.placement(memory).positions,
                embedding: self.weights.embedding.address(),
                position_embedding: self.weights.positions.as_ref().map_or(0, Memory::address),
                x: self.buffers.x.address(),
                first_token: self.share.vocab.start as u32,
                tokens_local: self.share.vocab.len() as u32,
                width: self.geometry.n_embd as u32,
                padding: 0,
            },
        )?;
        let site = |layer, operation| ReduceSite { step, layer, operation };
        self.reduce(self.buffers.x.address(), t, site(None, "token embedding"))?;
        for layer in 0..self.geometry.n_layer {
            self.attention(layer, inputs, memory)?;
            self.reduce(self.buffers.partial.address(), t, site(Some(layer), "attention projection"))?;
            self.mlp(layer, t)?;
            self.reduce(self.buffers.partial.address(), t, site(Some(layer), "MLP projection"))?;
        }
        Ok(())
    }

    /// Queues the logits `[R, V_local]` after rows of the last forward pass, whose numbers are at `rows`, and what is wanted of them.
    pub(super) fn answer(
        &mut self,
        (rows, count): (u64, usize),
        logits: u64,
        wants: u64,
        ids: u64,
        answers: u64,
    ) -> Result<(), GpuError> {
        let (stride, width) = (Self::logit_stride(&self.share), self.share.vocab.len());
        let last = self.weights.layers.last().map(|layer| &layer.mlp_projection);
        self.norm(Launch::rows(count), &self.weights.final_norm, last, rows)?;
        let (c, head) = (self.geometry.n_embd, self.weights.head().address());
        let shape = Shape { rows: count, inputs: c, outputs: width, by_output: true, stride };
        self.products.multiply(&self.gpu, shape, head, self.buffers.normed.address(), logits)?;
        let arguments = AnswerArguments { logits, wants, ids, answers, width: width as u32, stride: stride as u32 };
        self.gpu.launch(Launch::answers(count), &arguments)
    }

    fn attention(&mut self, layer: usize, inputs: &Inputs, memory: &Memory) -> Result<(), GpuError> {
        let (t, c, d) = (inputs.rows, self.geometry.n_embd, self.geometry.head_dim());
        let heads = self.share.heads.len();
        let previous = layer.checked_sub(1).map(|previous| &self.weights.layers[previous].mlp_projection);
        let weights = &self.weights.layers[layer];
        let (cache, buffers, at) = (self.cache[layer].address(), &self.buffers, inputs.placement(memory));
        self.norm(Launch::rows(t), &weights.norm_1, previous, 0)?;
        let shape = plain(t, c, 3 * heads * d);
        self.products.multiply(
            &self.gpu,
            shape,
            weights.qkv.weights.address(),
            buffers.normed.address(),
            buffers.qkv.address(),
        )?;
        let (heads_local, head_dim, table_blocks) = (heads as u32, d as u32, inputs.table_blocks as u32);
        let write = WriteKvArguments {
            qkv: buffers.qkv.address(),
            bias: weights.qkv.bias.address(),
            cache,
            at,
            heads: heads_local,
            head_dim,
            table_blocks,
            padding: 0,
        };
        self.gpu.launch(Launch::rows(t), &write)?;
        let attend = AttendArguments {
            qkv: buffers.qkv.address(),
            cache,
            out: buffers.mixed.address(),
            tiles: inputs.tiles_address(memory),
            at,
            heads: heads_local,
            head_dim,
            table_blocks,
            scale: self.geometry.attention_scale(layer),
        };
        let tiled = inputs.tiles > 0;
        let (name, launch) = Launch::attention(if tiled { inputs.tiles } else { t }, heads, d, tiled);
        self.gpu.launch_as(name, launch, &attend)?;
        self.products.multiply(
            &self.gpu,
            plain(t, heads * d, c),
            weights.attention_projection.weights.address(),
            buffers.mixed.address(),
            buffers.partial.address(),
        )
    }

    fn mlp(&mut self, layer: usize, t: usize) -> Result<(), GpuError> {
        let (c, f) = (self.geometry.n_embd, self.share.ffn.len());
        let (weights, buffers) = (&self.weights.layers[layer], &self.buffers);
        self.norm(Launch::rows(t), &weights.norm_2, Some(&weights.attention_projection), 0)?;
        let (normed, sums) = (buffers.normed.address(), buffers.sums.address());
        self.products.multiply(&self.gpu, plain(t, c, f), weights.fc.weights.address(), normed, sums)?;
        let activate = ActivateArguments {
            sums,
            bias: weights.fc.bias.address(),
            out: buffers.hidden.address(),
            count: (t * f) as u32,
            width: f as u32,
            activation: activation_number(self.geometry.activation),
            padding: 0,
        };
        self.gpu.launch(Launch::elements(t * f), &activate)?;
        let (projection, partial) = (weights.mlp_projection.weights.address(), buffers.partial.address());
        self.products.multiply(&self.gpu, plain(t, f, c), projection, buffers.hidden.address(), partial)
    }

    /// Queues `x += partial + bias of previous` and LayerNorm: of the rows at `rows`, or of all where that is 0.
    fn norm(&self, launch: Launch, norm: &Norm, previous: Option<&Linear>, rows: u64) -> Result<(), GpuError> {
        let arguments = NormArguments {
            x: self.buffers.x.address(),
            delta: previous.map_or(0, |_| self.buffers.partial.address()),
            bias: previous.map_or(0, |layer| layer.bias.address()),
            gain: norm.gain.address(),
            shift: norm.bias.address(),
            rows,
            out: self.buffers.normed.address(),
            width: self.geometry.n_embd as u32,
            epsilon: self.geometry.layer_norm_epsilon,
        };
        self.gpu.launch(launch, &arguments)
    }

    /// Replaces `[T, C]` floats by their sum over all ranks.
    fn reduce(&mut self, address: u64, t: usize, site: ReduceSite) -> Result<(), PassError> {
        let count = t * self.geometry.n_embd;
        match &mut self.reduction {
            Reduction::Alone => {}
            Reduction::Nccl(communicator) => {
                communicator.all_reduce(address, count, self.gpu.stream().cu_stream())?;
            }
            Reduction::Staged { comm, staging } => {
                let begun = Instant::now();
                self.gpu.download(address, staging, count)?;
                self.gpu.wait("bring partial sums", || Ok(()))?;
                comm.all_reduce(Elements::F32(&mut staging.floats_mut()[..count]), site)?;
                self.gpu.upload(staging, count, address)?;
                self.reducing += begun.elapsed();
            }
        }
        Ok(())
    }

    /// Waits for all that is queued.
    pub(super) fn wait(&self) -> Result<(), GpuError> {
        self.gpu.wait("finish a step", || match &self.reduction {
            Reduction::Nccl(communicator) => communicator.check(),
            Reduction::Alone | Reduction::Staged { .. } => Ok(()),
        })
    }

    /// Time in reductions through the host since the last call; of those on the GPUs nobody knows.
    pub(super) fn take_reducing(&mut self) -> Duration {
        std::mem::take(&mut self.reducing)
    }

    /// Frees peers that wait for this rank.
    pub(super) fn abort(&self) {
        match &self.reduction {
            Reduction::Alone => {}
            Reduction::Staged { comm, .. } => comm.abort(),
            Reduction::Nccl(communicator) => communicator.abort(),
        }
    }
}

/// Of a layer's matrix, stored `[K, N]`.
fn plain(rows: usize, inputs: usize, outputs: usize) -> Shape {
    Shape { rows, inputs, outputs, by_output: false, stride: outputs }
}

/// K and V of the heads of one block of one layer.
fn layer_block_bytes(geometry: &Geometry, share: &Share, element: Element) -> usize {
    2 * BLOCK * share.heads.len() * geometry.head_dim() * element.bytes()
}

/// As `rows.h` counts them.
fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::QuickGelu => 2,
        Activation::Relu => 3,
        Activation::Relu2 => 4,
        Activation::Silu => 5,
        Activation::Tanh => 6,
    }
}
