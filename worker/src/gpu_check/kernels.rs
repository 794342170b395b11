//! Every kernel of one element type against the CPU on odd sizes.

mod bytes;

use std::ops::Range;

use nanoinfer_kernels::{
    Activation, Arena, Element, Epilogue, Isa, Kernels, PackedMatrix,
    cuda::{
        AddedValues, AnswerArguments, AttendArguments, BLOCK, BeginArguments, EmbedArguments, Finish, Launch,
        MixArguments, NO_WINDOW, Norm, NormArguments, PART, Placement, ProjectArguments, QkvPlaces, TILE_ROWS,
        TurnArguments, TurnsArguments, gated_outputs, head_stride, part_floats, row_stride,
    },
};
use nanoinfer_shared::protocol::Wants;

use super::{Lab, Section, Trouble, values};
use crate::{
    answer::answer,
    cuda::{
        GpuError,
        answers::{Questions, Words},
    },
    runner::Wanted,
};

/// f32 sums in another order, and an exponential of another library.
const F32_TOLERANCE: f64 = 1e-5;
/// Added to the variance in norms.
const EPSILON: f32 = 1e-5;

pub(super) fn check(lab: &Lab, section: &mut Section<'_>) -> Result<(), Trouble> {
    if lab.element == Element::Int8 {
        return Ok(bytes::check(lab, section)?);
    }
    embed(lab, section)?;
    layer_norm(lab, section)?;
    rms_norm(lab, section)?;
    stream(lab, section)?;
    rotations(lab, section)?;
    gated(lab, section)?;
    activate(lab, section)?;
    for head_dim in [8, 20, 64, 80, 128] {
        attention(lab, section, head_dim)?;
    }
    for window in [NO_WINDOW, 300] {
        long_attention(lab, section, window)?;
    }
    for width in [1, 61, PART, 2 * PART + 911] {
        answers(lab, section, width)?;
    }
    project(lab, section)?;
    Ok(())
}

fn embed(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    // Ids on both sides of this rank's slice are other ranks'.
    let (tokens, positions) = ([3, 13, 2, 14, 8], [0, 4, 2, 8, 1]);
    let (width, first, local) = (37, 3, 11);
    let (embedding, wpe) = (lab.rounded(1.0, local * width, 1), values(9 * width, 2));
    let arguments = EmbedArguments {
        tokens: lab.words(&tokens)?,
        positions: lab.words(&positions)?,
        embedding: lab.weights(&embedding, width)?,
        first_token: first as u32,
        tokens_local: local as u32,
        width: width as u32,
        stride: row_stride(width) as u32,
        ..EmbedArguments::default()
    };
    for (what, position_embedding) in [("embed with positions", lab.floats(&wpe)?), ("embed", 0)] {
        let x = lab.empty(tokens.len() * width, 4)?;
        lab.gpu.launch(Launch::rows(tokens.len()), &EmbedArguments { position_embedding, x, ..arguments })?;
        let exact = (0..tokens.len() * width).map(|i| {
            let (row, column) = (i / width, i % width);
            let token = (tokens[row] as usize).checked_sub(first).filter(|&token| token < local);
            let token = token.map_or(0.0, |token| embedding[token * width + column]);
            let position = if position_embedding == 0 { 0.0 } else { wpe[positions[row] as usize * width + column] };
            f64::from(token + position)
        });
        section.compare(what, &lab.read(x, tokens.len() * width)?, exact, 0.0);
    }
    Ok(())
}

/// In f64.
fn normed(x: &[f32], gain: &[f32], shift: &[f32]) -> Vec<f64> {
    let row = |x: &[f32]| {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = (variance + f64::from(EPSILON)).sqrt().recip();
        let of = move |(i, &x): (usize, &f32)| (f64::from(x) - mean) * scale * f64::from(gain[i]) + f64::from(shift[i]);
        x.iter().enumerate().map(of).collect::<Vec<_>>()
    };
    x.chunks_exact(gain.len()).flat_map(row).collect()
}

/// Of rows, without a mean and without a shift.
fn rms_norm(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (rows, width) = (3, 300);
    let (x, gain) = (values(rows * width, 3), values(width, 6));
    let norm =
        Norm { x: lab.floats(&x)?, gain: lab.floats(&gain)?, width: width as u32, epsilon: EPSILON, ..Norm::default() };
    let (out, stride) = (lab.rows(&vec![f32::NAN; rows * width], width)?, row_stride(width) as u32);
    lab.gpu.launch(Launch::warps(rows), &NormArguments { norm, out, scales: 0, count: rows as u32, stride })?;
    let exact = x.chunks_exact(width).flat_map(|x| rms_normed(x, &gain));
    section.compare("RMSNorm", &lab.read_rows(out, rows, width)?, exact, lab.tolerance);
    Ok(())
}

/// In f64.
fn rms_normed(x: &[f32], gain: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let scale = (squares / x.len() as f64 + f64::from(EPSILON)).sqrt().recip();
    x.iter().zip(gain).map(|(&x, &gain)| f64::from(x) * scale * f64::from(gain)).collect()
}

/// What the residual stream begins with where a text goes on and another begins, and a mixture.
fn stream(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (width, channels, scale) = (37, 5, 0.7f32);
    // Three texts, the second of which begins here.
    let (sequences, positions) = ([0u32, 0, 1, 1, 2], [6u32, 7, 0, 1, 3]);
    let rows = sequences.len();
    let (embeddings, gate) = (values((rows + 3) * width, 25), values(channels, 26));
    let arguments = BeginArguments {
        norm: Norm { x: lab.floats(&embeddings)?, width: width as u32, epsilon: EPSILON, ..Norm::default() },
        positions: lab.words(&positions)?,
        sequences: lab.words(&sequences)?,
        gate: lab.floats(&gate)?,
        x: lab.empty(rows * width, 4)?,
        count: rows as u32,
        channels: channels as u32,
        scale,
        padding: 0,
    };
    lab.gpu.launch(Launch::warps(rows), &arguments)?;
    let ones = vec![1.0; width];
    let normed = |row: usize| rms_normed(&embeddings[row * width..][..width], &ones);
    let befores = [Some(rows), Some(0), None, Some(2), Some(rows + 2)];
    let begun: Vec<f64> = (0..rows)
        .flat_map(|row| {
            let own = normed(row);
            let score: f64 = own.iter().zip(&gate).map(|(x, &gate)| x * f64::from(gate)).sum();
            let amount = f64::from(scale) / (1.0 + (-score).exp());
            let before = befores[row].map_or(vec![0.0; width], normed);
            own.into_iter().zip(before).map(|(own, before)| own + amount * before).collect::<Vec<_>>()
        })
        .collect();
    section.compare(
        "a stream's beginning",
        &lab.read(arguments.x, rows * width)?,
        begun.iter().copied(),
        F32_TOLERANCE,
    );

    let (other, kept) = (values(rows * width, 27), lab.empty(rows * width, 4)?);
    let mix = MixArguments {
        x: arguments.x,
        other: lab.floats(&other)?,
        kept,
        factor: 0.8,
        other_factor: -0.3,
        width: width as u32,
        padding: 0,
    };
    lab.gpu.launch(Launch::rows(rows), &mix)?;
    let mixed =
        begun.iter().zip(&other).map(|(x, &other)| f64::from(0.8f32) * x - f64::from(0.3f32) * f64::from(other));
    section.compare("a stream mixed with another", &lab.read(arguments.x, rows * width)?, mixed, F32_TOLERANCE);
    section.compare("a stream that was kept", &lab.read(kept, rows * width)?, begun.iter().copied(), F32_TOLERANCE);
    Ok(())
}

/// Heads of queries and keys normed and turned, values left as they are, at positions that turn them far.
fn rotations(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (rows, heads, head_dim) = (37, 3, 20);
    let (half, width) = (head_dim / 2, 3 * heads * head_dim);
    let frequencies: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i as i32)).collect();
    let (sums, gain) = (values(rows * width, 20), values(head_dim, 21));
    let text = Text::new(lab, rows, heads, head_dim)?;
    let turns = lab.empty(rows * head_dim, 4)?;
    let angles = TurnsArguments {
        positions: text.places.at.positions,
        frequencies: lab.floats(&frequencies)?,
        turns,
        count: (rows * half) as u32,
        half: half as u32,
        factor: 1.0,
        ..TurnsArguments::default()
    };
    lab.gpu.launch(Launch::angles(rows * half), &angles)?;
    let gain_at = lab.floats(&gain)?;
    // Of a block's input, some channels of which say how far rows of a table are added to values.
    let (block_input, stream_width, channels, factor) = (values(rows * 41, 28), 41, 7, 3.0f32);
    let (table, gates) = (lab.rounded(1.0, 11 * heads * head_dim, 29), values(channels * heads, 30));
    let tokens: Vec<u32> = (0..rows as u32).map(|row| row * 5 % 11).collect();
    let norm = Norm { x: lab.floats(&block_input)?, width: stream_width as u32, epsilon: EPSILON, ..Norm::default() };
    let added = AddedValues {
        norm,
        tokens: lab.words(&tokens)?,
        table: lab.weights(&table, heads * head_dim)?,
        gates: lab.floats(&gates)?,
        stride: row_stride(heads * head_dim) as u32,
        channels: channels as u32,
        factor,
        rows: 11,
    };
    let ones = vec![1.0; stream_width];
    let value = |row: usize, kv: usize, d: usize| {
        let input = rms_normed(&block_input[row * stream_width..][..stream_width], &ones);
        let score: f64 = (0..channels).map(|i| input[i] * f64::from(gates[i * heads + kv])).sum();
        let row = &table[tokens[row] as usize * heads * head_dim..][..heads * head_dim];
        f64::from(factor) / (1.0 + (-score).exp()) * f64::from(row[kv * head_dim + d])
    };
    let turn = TurnArguments {
        to: text.places,
        sums: lab.floats(&sums)?,
        bias: 0,
        turns,
        query_gain: gain_at,
        key_gain: gain_at,
        factor: 0.0,
        epsilon: EPSILON,
        added,
    };
    lab.gpu.launch(Launch::turn(rows, 3 * heads), &turn)?;
    let turned = |row: usize, i: usize| {
        let (head, d) = (i / head_dim, i % head_dim);
        let own = &sums[row * width + head * head_dim..][..head_dim];
        if head >= 2 * heads {
            return f64::from(own[d]) + value(row, head - 2 * heads, d);
        }
        let (normed, angle) = (rms_normed(own, &gain), row as f64 * f64::from(frequencies[d % half]));
        let (sign, partner) = if d < half { (-1.0, d + half) } else { (1.0, d - half) };
        normed[d] * angle.cos() + sign * normed[partner] * angle.sin()
    };
    section.compare("heads normed, turned and added to", &text.read(lab)?, text.expected(turned), lab.tolerance);
    Ok(())
}

/// As few and as many: eleven pairs, which are no whole fours.
fn gated(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (rows, inputs, pairs) = (5, 77, 11);
    let (x, weights) = (lab.rounded(1.0, rows * inputs, 22), lab.rounded(0.1, 2 * pairs * inputs, 23));
    let bias = values(2 * pairs, 24);
    let arguments = ProjectArguments {
        inputs: lab.inputs(&x, inputs)?,
        weights: lab.weights(&weights, inputs)?,
        bias: lab.floats(&bias)?,
        rows: rows as u32,
        outputs: gated_outputs(pairs) as u32,
        pairs: pairs as u32,
        stride: row_stride(inputs) as u32,
        out_stride: row_stride(pairs) as u32,
        finish: Finish::Gated as u32,
        activation: Activation::Relu as u32,
        ..ProjectArguments::default()
    };
    let sum = |row, i| product(&x, row, &weights, i, inputs) + f64::from(bias[i]);
    let exact: Vec<f64> = (0..rows * pairs)
        .map(|i| (i / pairs, i % pairs))
        .map(|(row, i)| sum(row, i).max(0.0) * sum(row, pairs + i))
        .collect();
    for (how, (name, launch)) in [
        ("few", Launch::project(rows, gated_outputs(pairs), None, lab.element)),
        ("many", ("project_many", Launch::project_many(rows, gated_outputs(pairs), lab.element))),
    ] {
        let out = lab.empty_elements(rows * row_stride(pairs))?;
        lab.gpu.launch_as(name, launch, &ProjectArguments { out, ..arguments })?;
        let got = lab.read_rows(out, rows, pairs)?;
        section.compare(&format!("a gate, as {how}"), &got, exact.iter().copied(), lab.tolerance);
    }
    Ok(())
}

/// Rows that a lane holds, and rows that it reads again.
fn layer_norm(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let rows = 9;
    for (width, order, list) in [(300, (0..rows).collect::<Vec<_>>(), false), (2077, vec![4, 0, 8], true)] {
        let (x, gain, shift) = (values(rows * width, 3), values(width, 6), values(width, 7));
        let list = if list { lab.words(&order.iter().map(|&row| row as u32).collect::<Vec<_>>())? } else { 0 };
        let norm = Norm {
            x: lab.floats(&x)?,
            gain: lab.floats(&gain)?,
            shift: lab.floats(&shift)?,
            rows: list,
            width: width as u32,
            epsilon: EPSILON,
            is_centred: 1,
            padding: 0,
        };
        let (out, stride) = (lab.rows(&vec![f32::NAN; rows * width], width)?, row_stride(width) as u32);
        lab.gpu.launch(
            Launch::warps(order.len()),
            &NormArguments { norm, out, scales: 0, count: order.len() as u32, stride },
        )?;
        let wanted: Vec<f32> = order.iter().flat_map(|&row| &x[row * width..][..width]).copied().collect();
        let got = lab.read_rows(out, order.len(), width)?;
        section.compare(&format!("LayerNorm of {width}"), &got, normed(&wanted, &gain, &shift), lab.tolerance);
    }
    Ok(())
}

/// At the end of a product with the unit matrix.
fn activate(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    use Activation::{GeluErf, GeluTanh, QuickGelu, Relu, Relu2, Silu, Tanh};
    let (rows, width) = (7, 77);
    let (x, bias) = (lab.rounded(1.0, rows * width, 8), values(width, 9));
    let diagonal: Vec<f32> = (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let arguments = ProjectArguments {
        inputs: lab.inputs(&x, width)?,
        weights: lab.weights(&diagonal, width)?,
        bias: lab.floats(&bias)?,
        rows: rows as u32,
        outputs: width as u32,
        stride: row_stride(width) as u32,
        out_stride: row_stride(width) as u32,
        finish: Finish::Activation as u32,
        ..ProjectArguments::default()
    };
    let mut unit = PackedMatrix::zeros(&Arena::default(), Isa::detect(), Element::F32, width, width, width);
    unit.set_tile(0, 0..width, &diagonal);
    let mut cpu = Kernels::new(Isa::detect(), 1, false).expect("the caller is the only thread");
    for kind in [GeluTanh, GeluErf, QuickGelu, Relu, Relu2, Silu, Tanh] {
        let out = lab.empty_elements(rows * row_stride(width))?;
        let (name, launch) = Launch::project(rows, width, None, lab.element);
        lab.gpu.launch_as(name, launch, &ProjectArguments { out, activation: kind as u32, ..arguments })?;
        let mut exact = vec![0.0; rows * width];
        cpu.matmul(&x, &unit, Epilogue::BiasActivation(&bias, kind), &mut exact);
        let (got, exact) = (lab.read_rows(out, rows, width)?, exact.into_iter().map(f64::from));
        section.compare(&format!("activation {kind:?}"), &got, exact, lab.tolerance);
    }
    Ok(())
}

/// What attention stands on: rows of one sequence, with a pool that holds nothing yet.
struct Text {
    rows: usize,
    heads: usize,
    head_dim: usize,
    /// Blocks of the pool, in its order.
    table: Vec<u32>,
    places: QkvPlaces,
}

impl Text {
    fn new(lab: &Lab, rows: usize, heads: usize, head_dim: usize) -> Result<Self, GpuError> {
        // One block behind the other, but the first two.
        let mut table: Vec<u32> = (0..rows.div_ceil(BLOCK).max(2) as u32).collect();
        table.swap(0, 1);
        let mut text = Self { rows, heads, head_dim, table, places: QkvPlaces::default() };
        let (queries, cache) = text.elements();
        text.places = QkvPlaces {
            queries: lab.empty_elements(queries)?,
            cache: lab.empty_elements(cache)?,
            at: Placement {
                positions: lab.words(&(0..rows as u32).collect::<Vec<_>>())?,
                sequences: lab.words(&vec![0; rows])?,
                tables: lab.words(&text.table)?,
            },
            heads: heads as u32,
            kv_heads: heads as u32,
            head_dim: head_dim as u32,
            head_stride: head_stride(head_dim) as u32,
            table_blocks: text.table.len() as u32,
            padding: 0,
        };
        Ok(text)
    }

    /// Elements of the queries, and of the cache.
    fn elements(&self) -> (usize, usize) {
        let stride = self.heads * head_stride(self.head_dim);
        (self.rows * stride, self.table.len() * 2 * BLOCK * stride)
    }

    /// Queries and cache.
    fn read(&self, lab: &Lab) -> Result<Vec<f32>, GpuError> {
        let (queries, cache) = self.elements();
        Ok([lab.read_elements(self.places.queries, queries)?, lab.read_elements(self.places.cache, cache)?].concat())
    }

    /// Brings them there, of rows of queries, keys and values side by side.
    fn write(&mut self, lab: &Lab, qkv: impl Fn(usize, usize) -> f64) -> Result<(), GpuError> {
        let all: Vec<f32> = self.expected(qkv).into_iter().map(|x| x as f32).collect();
        let (queries, cache) = all.split_at(self.elements().0);
        (self.places.queries, self.places.cache) = (lab.elements(queries)?, lab.elements(cache)?);
        Ok(())
    }

    /// What [`Text::read`] should read, of rows of queries, keys and values side by side.
    fn expected(&self, qkv: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        let (stride, width) = (head_stride(self.head_dim), self.heads * self.head_dim);
        let (queries, cache) = self.elements();
        let mut all = vec![0.0; queries + cache];
        for (row, i) in (0..self.rows).flat_map(|row| (0..width).map(move |i| (row, i))) {
            let (head, d) = (i / self.head_dim, i % self.head_dim);
            all[(row * self.heads + head) * stride + d] = qkv(row, i);
            let block = self.table[row / BLOCK] as usize * self.heads + head;
            for (half, value) in [qkv(row, width + i), qkv(row, 2 * width + i)].into_iter().enumerate() {
                all[queries + ((2 * block + half) * BLOCK + row % BLOCK) * stride + d] = value;
            }
        }
        all
    }
}

/// One sequence, by single rows and in tiles, and a row that ends it in a batch of its own.
fn attention(lab: &Lab, section: &mut Section<'_>, head_dim: usize) -> Result<(), GpuError> {
    let (rows, heads, scale) = (37, 3, 0.3f32);
    let width = heads * head_dim;
    let qkv: Vec<f32> = values(rows * 3 * width, head_dim).into_iter().map(|x| x * 0.3).collect();
    let stored = |row: usize, i: usize| f64::from((lab.round)(qkv[row * 3 * width + i]));
    let mut text = Text::new(lab, rows, heads, head_dim)?;
    text.write(lab, stored)?;

    let exact = attention_by_hand(&stored, (heads, head_dim), 0..rows, (scale, NO_WINDOW));
    let hows = [("rows alone", 1, false), ("rows in tiles", 1, true)];
    attend(lab, section, &text, (scale, NO_WINDOW), &hows, (0, &exact))
}

/// The last rows of a text whose history comes in parts, which a block goes through by itself or shares with others.
fn long_attention(lab: &Lab, section: &mut Section<'_>, window: u32) -> Result<(), GpuError> {
    let (rows, heads, head_dim, scale, wanted) = (4131, 2, 20, 0.3f32, 19);
    let width = heads * head_dim;
    let qkv: Vec<f32> = values(rows * 3 * width, head_dim).into_iter().map(|x| x * 0.3).collect();
    let stored = |row: usize, i: usize| f64::from((lab.round)(qkv[row * 3 * width + i]));
    let mut text = Text::new(lab, rows, heads, head_dim)?;
    text.write(lab, stored)?;
    let exact = attention_by_hand(&stored, (heads, head_dim), rows - wanted..rows, (scale, window));
    let hows = [("rows alone", 1, false), ("rows in tiles", 1, true), ("blocks that share rows", 3, false)];
    attend(lab, section, &text, (scale, window), &hows, (rows - wanted, &exact))
}

/// Attention of rows from `first` on, in several ways: their names, how many blocks share a row, and whether rows attend in tiles.
fn attend(
    lab: &Lab,
    section: &mut Section<'_>,
    text: &Text,
    (scale, window): (f32, u32),
    hows: &[(&str, usize, bool)],
    (first, exact): (usize, &[f64]),
) -> Result<(), GpuError> {
    let (rows, &Text { heads, head_dim, places, .. }) = (text.rows - first, text);
    let width = heads * head_dim;
    let at = Placement {
        positions: places.at.positions + 4 * first as u64,
        sequences: places.at.sequences + 4 * first as u64,
        ..places.at
    };
    let queries = places.queries + (first * heads * head_stride(head_dim) * lab.element.bytes()) as u64;
    let from = QkvPlaces { queries, at, ..places };
    let tile = |sixteen: usize| {
        let (from, to) = (first.max(sixteen * TILE_ROWS), text.rows.min((sixteen + 1) * TILE_ROWS));
        [(from - first) as u32, (to - from) as u32]
    };
    let tiles: Vec<u32> = (first / TILE_ROWS..text.rows.div_ceil(TILE_ROWS)).flat_map(tile).collect();
    let mut of_all = Vec::new();
    for &(how, sharing, is_tiled) in hows {
        let (groups, tiles_at) = if is_tiled { (tiles.len() / 2, lab.words(&tiles)?) } else { (rows, 0) };
        let (name, launch) = Launch::attention(groups, heads, head_dim, is_tiled, sharing);
        let arguments = AttendArguments {
            from,
            out: lab.empty_elements(rows * row_stride(width))?,
            // As of as many multiprocessors as there are blocks.
            parts: lab.empty(part_floats(rows, heads, head_dim, text.rows, rows * heads), 4)?,
            arrived: lab.empty(rows * heads, 4)?,
            tiles: tiles_at,
            tile_rows: if is_tiled { TILE_ROWS as u32 } else { 1 },
            out_stride: row_stride(width) as u32,
            scale,
            group: 1,
            window,
            sharing: sharing as u32,
            ..AttendArguments::default()
        };
        // Twice, as each leaves all as the next needs it.
        lab.gpu.launch_as(name, launch, &arguments)?;
        lab.gpu.launch_as(name, launch, &arguments)?;
        let got = lab.read_rows(arguments.out, rows, width)?;
        let what = format!("{name}, {how}, heads of {head_dim}, {} positions", text.rows);
        section.compare(&what, &got, exact.iter().copied(), lab.tolerance);
        of_all.push(got.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    }
    let same = of_all.iter().all(|got| *got == of_all[0]);
    section.ideally_same(&format!("attention in each way, heads of {head_dim}, {} positions", text.rows), same);
    Ok(())
}

/// In f64, over queries, keys and values as they are rounded.
fn attention_by_hand(
    stored: &dyn Fn(usize, usize) -> f64,
    (heads, head_dim): (usize, usize),
    rows: Range<usize>,
    (scale, window): (f32, u32),
) -> Vec<f64> {
    let width = heads * head_dim;
    let (mut out, first_row) = (vec![0.0; rows.len() * width], rows.start);
    for (row, head) in rows.flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let first = head * head_dim;
        let score = |position| {
            let terms = (first..first + head_dim).map(|i| stored(row, i) * stored(position, width + i));
            terms.sum::<f64>() * f64::from(scale)
        };
        let seen = row.saturating_sub(window as usize);
        let scores: Vec<f64> = (seen..=row).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for i in first..first + head_dim {
            let mixed: f64 =
                weights.iter().zip(seen..).map(|(weight, position)| weight * stored(position, 2 * width + i)).sum();
            out[(row - first_row) * width + i] = mixed / sum;
        }
    }
    out
}

/// In f64, of a row of inputs with one of weights, both of so many inputs.
fn product<X: Copy + Into<f64>>(x: &[X], row: usize, weights: &[f32], output: usize, inputs: usize) -> f64 {
    let (x, weights) = (&x[row * inputs..][..inputs], &weights[output * inputs..][..inputs]);
    x.iter().zip(weights).map(|(&x, &weight)| x.into() * f64::from(weight)).sum()
}

/// All that the kernels of linear layers begin and end with, at sizes that do not divide, and that a row has the same bits among others,
/// whichever of them makes it.
fn project(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    // What a warp asks for at once, and a bit; 8 heads of 20 in 3 parts, some more outputs than blocks take at once.
    let (inputs, heads, head_dim) = (if lab.element == Element::F32 { 600 } else { 1100 }, 8, 20);
    let outputs = 3 * heads * head_dim;
    let weights = lab.rounded(0.05, outputs * inputs, 13);
    let (bias, gain, shift) = (values(outputs, 14), values(inputs, 15), values(inputs, 16));
    let (weights_at, bias_at) = (lab.weights(&weights, inputs)?, lab.floats(&bias)?);
    let (gain_at, shift_at) = (lab.floats(&gain)?, lab.floats(&shift)?);
    let mut alone = Vec::new();
    for rows in [1, 9, 37] {
        let (x, before) = (values(rows * inputs, 17), values(rows * outputs, 18));
        let ready = lab.rounded(1.0, rows * inputs, 17);
        // f32 differs from f64 by less than rounding turns it over, except at ties: then by a step, which a product hides.
        let normed: Vec<f32> = normed(&x, &gain, &shift).into_iter().map(|x| (lab.round)(x as f32)).collect();
        let of_normed = |row, i| product(&normed, row, &weights, i, inputs) + f64::from(bias[i]);
        let of_ready = |row, i| product(&ready, row, &weights, i, inputs);
        let all = || (0..rows).flat_map(|row| (0..outputs).map(move |i| (row, i)));
        let text = Text::new(lab, rows, heads, head_dim)?;
        let width = inputs as u32;
        let arguments = ProjectArguments {
            norm: Norm {
                x: lab.floats(&x)?,
                gain: gain_at,
                shift: shift_at,
                rows: 0,
                width,
                epsilon: EPSILON,
                is_centred: 1,
                padding: 0,
            },
            inputs: lab.inputs(&ready, inputs)?,
            weights: weights_at,
            bias: bias_at,
            to: text.places,
            out: lab.empty_elements(rows * row_stride(outputs))?,
            rows: rows as u32,
            outputs: outputs as u32,
            stride: row_stride(inputs) as u32,
            ..ProjectArguments::default()
        };
        let finishing = |finish, out_stride| ProjectArguments {
            finish: finish as u32,
            out_stride: out_stride as u32,
            activation: Activation::Relu as u32,
            sums: arguments.sums,
            ..arguments
        };
        // Few blocks, so that they take turns.
        let few = |normed, arguments: &ProjectArguments| {
            let (name, launch) = Launch::project(rows, outputs, normed, lab.element);
            lab.gpu.launch_as(name, launch.in_turns(10), arguments)
        };
        let many = |arguments: &ProjectArguments| {
            lab.gpu.launch_as("project_many", Launch::project_many(rows, outputs, lab.element), arguments)
        };
        let mut compare = |what: &str, got: &[f32], exact: Vec<f64>, tolerance| {
            section.compare(&format!("project {rows} rows, {what}"), got, exact, tolerance);
        };
        few(Some(inputs), &finishing(Finish::Qkv, 0))?;
        compare("QKV", &text.read(lab)?, text.expected(of_normed), lab.tolerance);

        few(Some(inputs), &finishing(Finish::Activation, row_stride(outputs)))?;
        let exact = all().map(|(row, i)| of_normed(row, i).max(0.0));
        compare("activation", &lab.read_rows(arguments.out, rows, outputs)?, exact.collect(), lab.tolerance);

        let exact: Vec<f64> =
            all().zip(&before).map(|((row, i), &x)| of_ready(row, i) + f64::from(bias[i]) + f64::from(x)).collect();
        let added =
            || Ok::<_, GpuError>(ProjectArguments { sums: lab.floats(&before)?, ..finishing(Finish::Added, outputs) });
        let sums = || {
            Ok::<_, GpuError>(ProjectArguments {
                sums: lab.empty(rows * outputs, 4)?,
                bias: 0,
                ..finishing(Finish::Sums, outputs)
            })
        };
        for (how, is_few) in [("few", true), ("many", false)] {
            let run = |arguments: &ProjectArguments| if is_few { few(None, arguments) } else { many(arguments) };
            let (added, sums) = (added()?, sums()?);
            run(&added)?;
            compare(
                &format!("added to what is there, as {how}"),
                &lab.read(added.sums, rows * outputs)?,
                exact.clone(),
                F32_TOLERANCE,
            );
            run(&sums)?;
            let got = lab.read(sums.sums, rows * outputs)?;
            let exact = all().map(|(row, i)| of_ready(row, i)).collect();
            compare(&format!("partial sums, as {how}"), &got, exact, F32_TOLERANCE);
            alone.push(got[..outputs].iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        }
    }
    section
        .ideally_same("a projected row alone, among others, and among many", alone.iter().all(|row| *row == alone[0]));
    Ok(())
}

fn answers(lab: &Lab, section: &mut Section<'_>, width: usize) -> Result<(), GpuError> {
    let vocab = 100..100 + width;
    let last = (vocab.end - 1) as u32;
    let wants = [
        Wants::Candidates { k: 1, temperature: 1.0, adjusted: Vec::new(), masked: None },
        Wants::Candidates { k: 64, temperature: 0.7, adjusted: vec![last, 99, last + 1], masked: None },
        Wants::Candidates { k: 2 * width as u32, temperature: 2.0, adjusted: Vec::new(), masked: None },
        Wants::Targets { ids: vec![100, last, 100], top: 7 },
        Wants::Targets { ids: vec![100], top: 0 },
    ];
    // Few distinct values, so that ties are common.
    let logits: Vec<f32> = (0..wants.len() * width).map(|i| ((i * 7919) % 251) as f32 / 10.0 - 12.0).collect();
    let asked: Vec<Wanted<'_>> =
        wants.iter().enumerate().map(|(i, wants)| Wanted { answer: i, row: i, wants }).collect();
    let questions = Questions::of(&asked, asked.len(), &vocab, Words::ENDLESS);
    let mut staging = lab.gpu.pinned(200 + 20 * wants.len())?;
    let words = questions.write(&mut staging);
    let questions_at = lab.words(&staging.words()[..words])?;
    let (wants_at, ids_at) = Questions::offsets(questions.len());
    let arguments = AnswerArguments {
        logits: lab.floats(&logits)?,
        wants: questions_at + 4 * wants_at as u64,
        ids: questions_at + 4 * ids_at as u64,
        parts: lab.empty(questions.part_words, 4)?,
        answers: lab.empty(questions.answer_words, 4)?,
        width: width as u32,
        padding: 0,
    };
    lab.gpu.launch_as("answer_parts", Launch::answer_parts(questions.len(), width), &arguments)?;
    lab.gpu.launch(Launch::answers(questions.len()), &arguments)?;
    let words = lab.read_words(arguments.answers, questions.answer_words)?;
    let (mut lists_agree, mut sums, mut exact) = (true, Vec::new(), Vec::new());
    for (place, wants) in wants.iter().enumerate() {
        let got = questions.answer(&words, place, wants, &vocab);
        let expected = answer(Isa::detect(), &logits[place * width..][..width], vocab.start, wants, None);
        lists_agree &= got.top == expected.top && got.listed == expected.listed;
        for (got, expected) in [(got.all, expected.all), (got.rest, expected.rest)] {
            // Of no terms both are −∞, whose difference is not a number.
            let finite = expected.max > f32::NEG_INFINITY || got.max > f32::NEG_INFINITY;
            sums.push(if finite { got.value() as f32 } else { 0.0 });
            exact.push(if finite { expected.value() } else { 0.0 });
        }
    }
    section.compare(&format!("log-sum-exps of {width} logits"), &sums, exact, F32_TOLERANCE);
    section.same(&format!("largest and listed of {width} logits"), lists_agree);
    Ok(())
}
