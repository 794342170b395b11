//! The forward pass of one rank over its shard.
//!
//! ```text
//! tokens ─► embedding (rows of this rank, zeros elsewhere) ─ all-reduce ─► norm, smear, or + learned positions ─► x [T, C]
//! each layer:  x ─► mixed with what it began as
//!              x ─► norm ─► QKV [T, (H_local + 2·KV_local)·D] ─► rotation ─► paged attention ─► projection [T, C] ─ all-reduce ─► x += sum + bias
//!              x ─► norm ─► FC, activation or gate [T, F_local] ──────────────────────────────► projection [T, C] ─ all-reduce ─► x += sum + bias
//! x ─► less what it was in the middle;  wanted rows of x ─► norm ─► LM head [R, V_local] ─► cap
//! ```
//! Mixtures, smear, middle and cap are some families' only.
//! Invariant: after each all-reduce `x` has the same bits on every rank. f32, but for what weights, their
//! inputs and the KV cache are rounded to.
//! Does not know plans beyond rows, positions and block tables, nor what logits are wanted for.

mod terms;

use std::time::{Duration, Instant};

use nanoinfer_kernels::{
    Angles, AttentionRow, AttentionRows, Epilogue, HeadNorms, Kernels, QueryHeads, Scoring, Turns, ValueGates,
};
use nanoinfer_shared::{
    ModelShape, Share,
    comm::{CommError, Communicator, ReduceSite, Threads},
    model::{
        partition::Linear,
        rotary::Rotary,
        shape::{NormKind, Positions, QkNorm},
    },
    protocol::{DType, LoadOrder, TokenId},
};

use super::{load::Shard, pool::KvPool};
use crate::{
    element::activation,
    tile::Norm,
    trace::{Category, Trace},
};

/// One token of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    /// Its id.
    pub(super) token: TokenId,
    /// The token before it, where that is not the row before.
    pub(super) before: Option<TokenId>,
    /// Its position in its sequence.
    pub(super) position: usize,
    /// Block table of its sequence.
    pub(super) blocks: &'a [u32],
}

/// A rank's model, ready to run.
pub(crate) struct Pass {
    pub(super) shape: ModelShape,
    pub(super) share: Share,
    shard: Shard,
    pub(super) kv: KvPool,
    comm: Box<dyn Communicator>,
    pub(super) kernels: Kernels,
    pub(super) trace: Trace,
    heads: QueryHeads,
    rotation: Option<Rotation>,
    /// Time in reductions since it was last asked for.
    reducing: Duration,
    buffers: Buffers,
}

/// Where positions are rotations.
struct Rotation {
    angles: Angles,
    /// Of the step's rows.
    turns: Turns,
}

/// Activations of one step, allocated once for the largest.
struct Buffers {
    /// Residual stream `[T, C]`.
    x: Vec<f32>,
    /// A norm's output `[T, C]`; at the end the rows that the LM head reads.
    normed: Vec<f32>,
    /// `[T, (H_local + 2 · KV_local) · D]`.
    qkv: Vec<f32>,
    /// Attention's output `[T, H_local · D]`.
    mixed: Vec<f32>,
    /// What comes into a gate `[T, 2 · F_local]`.
    both: Vec<f32>,
    /// `[T, F_local]`.
    hidden: Vec<f32>,
    /// Partial sums `[T, C]` of a row-parallel layer.
    partial: Vec<f32>,
    /// What the stream began as `[T, C]`, where that comes back.
    origin: Vec<f32>,
    /// What it was in the middle `[T, C]`, where that is taken away.
    middle: Vec<f32>,
    /// What is added to values `[T, KV_local · D]`.
    added: Vec<f32>,
}

/// Floats of each buffer for a token, in the order of their fields.
fn buffer_widths(shape: &ModelShape, share: &Share) -> [usize; 10] {
    let (c, width) = (shape.width, share.heads.len() * shape.attention.head_dim);
    let both = if shape.mlp.gated { 2 * share.ffn.len() } else { 0 };
    let stream = &shape.stream;
    // The embeddings of a step, and of the tokens before those of each sequence.
    let embeddings = if stream.smear.is_some() { 2 * c } else { c };
    let where_needed = |is_needed, width| if is_needed { width } else { 0 };
    let (origin, middle) = (where_needed(stream.lambdas, c), where_needed(stream.backout, c));
    let added = where_needed(shape.value_tables.is_some(), share.value_columns(shape).len());
    let qkv = share.linear(shape, Linear::Qkv).outputs();
    [embeddings, embeddings, qkv, width, both, share.ffn.len(), c, origin, middle, added]
}

impl Buffers {
    fn new(shape: &ModelShape, share: &Share, tokens: usize) -> Self {
        let [x, normed, qkv, mixed, both, hidden, partial, origin, middle, added] =
            buffer_widths(shape, share).map(|width| vec![0.0; tokens * width]);
        Self { x, normed, qkv, mixed, both, hidden, partial, origin, middle, added }
    }
}

impl Pass {
    /// Bytes of activations for steps of up to `tokens` tokens.
    pub(crate) fn activation_bytes(shape: &ModelShape, share: &Share, tokens: usize) -> u64 {
        (tokens * buffer_widths(shape, share).iter().sum::<usize>() * size_of::<f32>()) as u64
    }

    /// A model over its parts, as it was ordered.
    pub(crate) fn new(
        order: &LoadOrder,
        share: Share,
        shard: Shard,
        kv: KvPool,
        comm: Box<dyn Communicator>,
        kernels: Kernels,
    ) -> Self {
        let shape = order.shape.clone();
        let buffers = Buffers::new(&shape, &share, order.max_batched_tokens);
        let attention = &shape.attention;
        let heads =
            QueryHeads { count: share.heads.len(), group: attention.group(), skipped: share.skipped_heads(&shape) };
        let rotation = |rotary: &Rotary| {
            let rounded = rotary.is_rounded(order.dtype == DType::F32);
            let (frequencies, factor) = (rotary.frequencies(attention.head_dim), rotary.attention_factor());
            let angles = Angles { frequencies, factor, backwards: rotary.backwards, rounded };
            Rotation { angles, turns: Turns::default() }
        };
        let rotation = match &attention.positions {
            Positions::Learned => None,
            Positions::Rotary(rotary) => Some(rotation(rotary)),
        };
        let (trace, reducing) = (Trace::default(), Duration::ZERO);
        Self { shape, share, shard, kv, comm, kernels, trace, heads, rotation, reducing, buffers }
    }

    /// Time in reductions since the last call, waiting for others included.
    pub(super) fn take_reducing(&mut self) -> Duration {
        std::mem::take(&mut self.reducing)
    }

    /// Goes on with other peers; keys and values stay.
    pub(super) fn join(&mut self, comm: Box<dyn Communicator>) {
        self.comm = comm;
    }

    /// Whether a step ever wrote keys and values, in this process or in one before that had the same pool.
    pub(super) fn pool_is_written(&self) -> bool {
        self.kv.is_written()
    }

    /// Runs all layers over `rows` and writes their keys and values to the pool; [`Pass::logits`] reads the result.
    ///
    /// # Errors
    /// When a reduction fails.
    ///
    /// # Panics
    /// When rows were not checked against the vocabulary, the positions and the pool, or are more than the buffers hold.
    pub(super) fn forward(&mut self, step: u64, rows: &[Row<'_>]) -> Result<(), CommError> {
        self.kv.begin_step();
        self.embed(step, rows)?;
        let attending = rows.iter().map(|row| AttentionRow { blocks: row.blocks, positions: row.position + 1 });
        let attending = AttentionRows::new(attending.collect());
        // Of tables of values, which are whole.
        let columns: Vec<_> = rows.iter().map(|row| Some(row.token as usize)).collect();
        for layer in 0..self.shape.layers {
            self.trace.layer(Some(layer));
            let begun = self.trace.begin();
            self.mix_origin(layer, rows.len());
            self.attention(step, layer, &columns, &attending)?;
            self.mlp(step, layer, rows.len())?;
            self.keep_middle(layer, rows.len());
            self.trace.end("layer", begun);
        }
        self.trace.layer(None);
        self.take_middle_away(rows.len());
        Ok(())
    }

    /// Logits `[R, V_local]` after the given rows of the last forward pass, in `out`.
    pub(super) fn logits(&mut self, rows: &[usize], out: &mut [f32]) {
        let c = self.shape.width;
        let Buffers { x, normed, partial, .. } = &mut self.buffers;
        let (gathered, normed) = (&mut partial[..rows.len() * c], &mut normed[..rows.len() * c]);
        for (to, &row) in gathered.chunks_exact_mut(c).zip(rows) {
            to.copy_from_slice(&x[row * c..][..c]);
        }
        norm(&mut self.kernels, gathered, &self.shard.final_norm, &self.shape, normed);
        self.trace.lap(Category::Rows, "norm");
        // Of the next step.
        self.kernels.expect(&self.shard.layers[0].qkv.weights);
        self.kernels.matmul(normed, self.shard.head(), Epilogue::None, out);
        self.trace.lap(Category::Product, "LM head");
        if let Some(cap) = self.shape.logit_softcap {
            self.kernels.softcap(out, self.share.vocab.len(), cap);
            self.trace.lap(Category::Rows, "cap");
        }
    }

    /// VocabParallelEmbedding: each token's row comes from the one rank that holds it.
    fn embed(&mut self, step: u64, rows: &[Row<'_>]) -> Result<(), CommError> {
        let c = self.shape.width;
        let vocab = &self.share.vocab;
        let tokens = rows.iter().map(|row| row.token).chain(self.tokens_outside(rows));
        let local = |token: TokenId| {
            Some(token as usize).filter(|token| vocab.contains(token)).map(|token| token - vocab.start)
        };
        let columns: Vec<_> = tokens.map(local).collect();
        let x = &mut self.buffers.x[..columns.len() * c];
        self.kernels.gather(&self.shard.embedding, &columns, x);
        self.trace.lap(Category::Rows, "gather");
        let site = ReduceSite { step, layer: None, operation: "token embedding" };
        self.reducing += reduce(&mut *self.comm, x, site, &mut self.kernels, &mut self.trace)?;
        self.norm_embeddings(rows, columns.len());
        if let Some(positions) = &self.shard.positions {
            for (to, row) in self.buffers.x.chunks_exact_mut(c).zip(rows) {
                let position = &positions[row.position * c..][..c];
                to.iter_mut().zip(position).for_each(|(x, p)| *x += p);
            }
        }
        if let Some(Rotation { angles, turns }) = &mut self.rotation {
            let positions: Vec<_> = rows.iter().map(|row| row.position).collect();
            self.kernels.turns(angles, &positions, turns);
        }
        self.trace.lap(Category::Rows, "positions");
        Ok(())
    }

    fn attention(
        &mut self,
        step: u64,
        layer: usize,
        columns: &[Option<usize>],
        rows: &AttentionRows<'_>,
    ) -> Result<(), CommError> {
        let (t, c) = (rows.len(), self.shape.width);
        let width = self.heads.count * self.kv.layout.head_dim;
        let weights = &self.shard.layers[layer];
        let Buffers { x, normed, qkv, mixed, partial, added, .. } = &mut self.buffers;
        let (x, normed, partial) = (&mut x[..t * c], &mut normed[..t * c], &mut partial[..t * c]);
        let qkv = &mut qkv[..t * (width + 2 * self.kv.layout.width())];
        let mixed = &mut mixed[..t * width];

        norm(&mut self.kernels, x, &weights.attention_norm, &self.shape, normed);
        self.trace.lap(Category::Rows, "norm");
        self.kernels.expect(&weights.attention_output.weights);
        self.kernels.matmul(normed, &weights.qkv.weights, Epilogue::Bias(&weights.qkv.bias), qkv);
        self.trace.lap(Category::Product, "QKV");
        if let Some(values) = &weights.values {
            let added = &mut added[..t * self.kv.layout.width()];
            self.kernels.gather(&values.table, columns, added);
            let factor = self.shape.value_tables.map_or(1.0, |tables| tables.gate_factor);
            let gates = ValueGates { weights: &values.gates, factor };
            let (heads, dim) = (self.kv.layout.heads_local, self.kv.layout.head_dim);
            self.kernels.add_to_values(qkv, normed, gates, added, heads, dim);
            self.trace.lap(Category::Rows, "values");
        }
        if let Some(rotation) = &self.rotation {
            let epsilon = self.shape.norm_epsilon;
            let norms = match (&weights.qk_norm, self.shape.attention.qk_norm) {
                (Some([query, key]), _) => HeadNorms::Gains { query, key, epsilon },
                (None, QkNorm::Rotated { factor }) => HeadNorms::Turned { factor, epsilon },
                (None, _) => HeadNorms::None,
            };
            let heads = (self.heads.count, self.kv.layout.heads_local);
            self.kernels.turn_heads(qkv, heads, norms, &rotation.turns);
            self.trace.lap(Category::Rows, "rotation");
        }
        self.kernels.write_kv(&mut self.kv.layers[layer], rows, qkv);
        self.trace.lap(Category::Rows, "KV write");
        let scoring = Scoring { scale: self.shape.attention.scale(layer), window: self.shape.window(layer) };
        self.kernels.attention(&self.kv.layers[layer], rows, self.heads, qkv, scoring, mixed);
        self.trace.lap(Category::Attention, "attention");
        let projection = &weights.attention_output;
        self.kernels.expect(&weights.up.weights);
        self.kernels.matmul(mixed, &projection.weights, Epilogue::None, partial);
        self.trace.lap(Category::Product, "projection");
        let site = ReduceSite { step, layer: Some(layer), operation: "attention projection" };
        self.reducing += reduce(&mut *self.comm, partial, site, &mut self.kernels, &mut self.trace)?;
        self.kernels.add_residual(x, partial, &projection.bias);
        self.trace.lap(Category::Rows, "residual");
        Ok(())
    }

    fn mlp(&mut self, step: u64, layer: usize, t: usize) -> Result<(), CommError> {
        let c = self.shape.width;
        let weights = &self.shard.layers[layer];
        let Buffers { x, normed, both, hidden, partial, .. } = &mut self.buffers;
        let (x, normed, partial) = (&mut x[..t * c], &mut normed[..t * c], &mut partial[..t * c]);
        let width = self.share.ffn.len();
        let hidden = &mut hidden[..t * width];

        norm(&mut self.kernels, x, &weights.mlp_norm, &self.shape, normed);
        self.trace.lap(Category::Rows, "norm");
        let (up, activation) = (&weights.up, activation(self.shape.mlp.activation));
        self.kernels.expect(&weights.down.weights);
        if self.shape.mlp.gated {
            let both = &mut both[..2 * t * width];
            self.kernels.matmul(normed, &up.weights, Epilogue::Bias(&up.bias), both);
            self.trace.lap(Category::Product, "FC");
            self.kernels.gate(activation, both, width, hidden);
            self.trace.lap(Category::Rows, "gate");
        } else {
            self.kernels.matmul(normed, &up.weights, Epilogue::BiasActivation(&up.bias, activation), hidden);
            self.trace.lap(Category::Product, "FC");
        }
        let next = self.shard.layers.get(layer + 1).map_or(self.shard.head(), |next| &next.qkv.weights);
        self.kernels.expect(next);
        self.kernels.matmul(hidden, &weights.down.weights, Epilogue::None, partial);
        self.trace.lap(Category::Product, "MLP projection");
        let site = ReduceSite { step, layer: Some(layer), operation: "MLP projection" };
        self.reducing += reduce(&mut *self.comm, partial, site, &mut self.kernels, &mut self.trace)?;
        self.kernels.add_residual(x, partial, &weights.down.bias);
        self.trace.lap(Category::Rows, "residual");
        Ok(())
    }
}

fn norm(kernels: &mut Kernels, x: &[f32], norm: &Norm, shape: &ModelShape, out: &mut [f32]) {
    match shape.norm {
        NormKind::Layer => kernels.layer_norm(x, &norm.gain, &norm.bias, shape.norm_epsilon, out),
        NormKind::Rms | NormKind::BareRms => {
            kernels.rms_norm(x, shape.width, &norm.gain, shape.norm_epsilon, out);
        }
    }
}

/// Adds up over ranks; returns how long that took, waiting for others included.
fn reduce(
    comm: &mut dyn Communicator,
    data: &mut [f32],
    site: ReduceSite,
    kernels: &mut Kernels,
    trace: &mut Trace,
) -> Result<Duration, CommError> {
    let begun = Instant::now();
    let waited = comm.all_reduce(data, site, &mut OnThreads(kernels))?;
    trace.reduction(site.operation, waited);
    Ok(begun.elapsed())
}

/// The kernels' threads, which are idle then.
struct OnThreads<'a>(&'a mut Kernels);

impl Threads for OnThreads<'_> {
    fn count(&self) -> usize {
        self.0.threads()
    }

    fn run(&mut self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.0.run(tasks, task);
    }
}
