//! Every kernel of one element type, and products, against the CPU on odd sizes.

use nanoinfer_kernels::{
    Activation, Arena, Element, Epilogue, Isa, Kernels, PackedMatrix,
    cuda::{
        ActivateArguments, AnswerArguments, AttendArguments, BLOCK, EmbedArguments, Finish, Launch, Norm,
        NormArguments, PART, Placement, ProjectArguments, QkvPlaces, TILE_ROWS, WriteKvArguments, head_stride,
        row_stride,
    },
};
use nanoinfer_shared::protocol::Wants;

use super::{Lab, Section, values};
use crate::cuda::{
    GpuError,
    answers::{Questions, Words},
    gpu::Memory,
    products::{Products, Shape},
};
use crate::{cpu::step::answer, runner::Wanted};

/// f32 sums in another order, and an exponential of another library.
const F32_TOLERANCE: f64 = 1e-5;

pub(crate) fn check(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    embed(lab, section)?;
    layer_norm(lab, section)?;
    activate(lab, section)?;
    for head_dim in [8, 20, 64, 80, 128] {
        attention(lab, section, head_dim)?;
    }
    for width in [1, 61, PART, 2 * PART + 911] {
        answers(lab, section, width)?;
    }
    project(lab, section)?;
    products(lab, section)
}

fn embed(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    // Ids on both sides of this rank's slice are other ranks'.
    let (tokens, positions) = ([3, 13, 2, 14, 8], [0, 4, 2, 8, 1]);
    let (width, first, local) = (37, 3usize, 11);
    let embedding: Vec<f32> = values(local * width, 1).into_iter().map(|x| lab.round(x)).collect();
    let wpe = values(9 * width, 2);
    let memory = (lab.words(&tokens)?, lab.words(&positions)?, lab.rows(&embedding, width)?, lab.floats(&wpe)?);
    for with_positions in [true, false] {
        let x = lab.empty(tokens.len() * width, 4)?;
        lab.gpu.launch(
            Launch::rows(tokens.len()),
            &EmbedArguments {
                tokens: memory.0.address(),
                positions: memory.1.address(),
                embedding: memory.2.address(),
                position_embedding: if with_positions { memory.3.address() } else { 0 },
                x: x.address(),
                first_token: first as u32,
                tokens_local: local as u32,
                width: width as u32,
                stride: row_stride(width) as u32,
            },
        )?;
        let exact = tokens.iter().zip(positions).flat_map(|(&token, position)| {
            let row = (token as usize).checked_sub(first).filter(|&row| row < local);
            let (embedding, wpe) = (&embedding, &wpe);
            (0..width).map(move |i| {
                let token = row.map_or(0.0, |row| embedding[row * width + i]);
                let position = if with_positions { wpe[position as usize * width + i] } else { 0.0 };
                f64::from(token + position)
            })
        });
        let what = if with_positions { "embed with positions" } else { "embed" };
        section.compare(what, &lab.read(&x, tokens.len() * width)?, &exact.collect::<Vec<_>>(), 0.0);
    }
    Ok(())
}

/// In f64.
fn normed(x: &[f32], gain: &[f32], shift: &[f32], epsilon: f32) -> Vec<f64> {
    let row = |x: &[f32]| {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = (variance + f64::from(epsilon)).sqrt().recip();
        let of = move |(i, &x): (usize, &f32)| (f64::from(x) - mean) * scale * f64::from(gain[i]) + f64::from(shift[i]);
        x.iter().enumerate().map(of).collect::<Vec<_>>()
    };
    x.chunks_exact(gain.len()).flat_map(row).collect()
}

fn layer_norm(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (rows, width, epsilon) = (5, 300, 1e-5f32);
    let x = values(rows * width, 3);
    let [bias, gain, shift] = [5, 6, 7].map(|seed| values(width, seed));
    let [bias_at, gain_at, shift_at] = [lab.floats(&bias)?, lab.floats(&gain)?, lab.floats(&shift)?];
    for (what, wanted) in [("LayerNorm, and a bias", None), ("LayerNorm of wanted rows", Some([4u32, 0, 4]))] {
        let (x_at, out) = (lab.floats(&x)?, lab.rows(&vec![f32::NAN; rows * width], width)?);
        let list = wanted.map(|rows| lab.words(&rows)).transpose()?;
        let order: Vec<usize> = wanted.map_or((0..rows).collect(), |rows| rows.map(|row| row as usize).to_vec());
        let norm = Norm {
            x: x_at.address(),
            gain: gain_at.address(),
            shift: shift_at.address(),
            rows: list.as_ref().map_or(0, |list| list.address()),
            width: width as u32,
            epsilon,
        };
        let bias_at = if wanted.is_none() { bias_at.address() } else { 0 };
        let stride = row_stride(width) as u32;
        let arguments = NormArguments { norm, bias: bias_at, out: out.address(), stride, padding: 0 };
        lab.gpu.launch(Launch::rows(order.len()), &arguments)?;
        let wanted_x: Vec<f32> = order.iter().flat_map(|&row| x[row * width..][..width].to_vec()).collect();
        let exact = normed(&wanted_x, &gain, &shift, epsilon);
        section.compare(what, &lab.read_rows(&out, order.len(), width)?, &exact, lab.tolerance());
        let bias = |i: usize| if wanted.is_none() { bias[i % width] } else { 0.0 };
        let left: Vec<f64> = x.iter().enumerate().map(|(i, &x)| f64::from(x + bias(i))).collect();
        section.compare("the residual stream behind it", &lab.read(&x_at, rows * width)?, &left, 0.0);
    }
    Ok(())
}

fn activate(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    use Activation::{GeluErf, GeluTanh, QuickGelu, Relu, Relu2, Silu, Tanh};
    let (rows, width) = (7, 77);
    let (sums, bias) = (values(rows * width, 8), values(width, 9));
    let (sums_at, bias_at) = (lab.floats(&sums)?, lab.floats(&bias)?);
    // On the CPU an activation is the end of a product; here of one with the unit matrix.
    let mut unit = PackedMatrix::zeros(&Arena::default(), Element::F32, width, width, width);
    let diagonal = (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 });
    unit.set_unit(0, &diagonal.collect::<Vec<_>>());
    let mut cpu = Kernels::new(Isa::detect(), 1, false).expect("the caller is the only thread");
    for (number, kind) in [GeluTanh, GeluErf, QuickGelu, Relu, Relu2, Silu, Tanh].into_iter().enumerate() {
        let out = lab.empty(rows * row_stride(width), lab.element.bytes())?;
        lab.gpu.launch(
            Launch::elements(rows * width),
            &ActivateArguments {
                sums: sums_at.address(),
                bias: bias_at.address(),
                out: out.address(),
                count: (rows * width) as u32,
                width: width as u32,
                activation: number as u32,
                stride: row_stride(width) as u32,
            },
        )?;
        let mut exact = vec![0.0; rows * width];
        cpu.matmul(&sums, &unit, Epilogue::BiasActivation(&bias, kind), &mut exact);
        let exact: Vec<f64> = exact.into_iter().map(f64::from).collect();
        let got = lab.read_rows(&out, rows, width)?;
        section.compare(&format!("activation {kind:?}"), &got, &exact, lab.tolerance());
    }
    Ok(())
}

/// What attention stands on: rows of one sequence, with a pool that holds nothing yet.
struct Text {
    rows: usize,
    heads: usize,
    head_dim: usize,
    table: [u32; 4],
    queries: Memory,
    cache: Memory,
    words: [Memory; 3],
}

impl Text {
    fn new(lab: &Lab, rows: usize, heads: usize, head_dim: usize) -> Result<Self, GpuError> {
        let table = [2u32, 0, 3, 1];
        let positions: Vec<u32> = (0..rows as u32).collect();
        let stride = heads * head_stride(head_dim);
        Ok(Self {
            rows,
            heads,
            head_dim,
            table,
            queries: lab.empty(rows * stride, lab.element.bytes())?,
            cache: lab.empty(table.len() * 2 * BLOCK * stride, lab.element.bytes())?,
            words: [lab.words(&positions)?, lab.words(&vec![0; rows])?, lab.words(&table)?],
        })
    }

    fn places(&self) -> QkvPlaces {
        let [positions, sequences, tables] = self.words.each_ref().map(Memory::address);
        QkvPlaces {
            queries: self.queries.address(),
            cache: self.cache.address(),
            at: Placement { positions, sequences, tables },
            heads: self.heads as u32,
            head_dim: self.head_dim as u32,
            head_stride: head_stride(self.head_dim) as u32,
            table_blocks: self.table.len() as u32,
        }
    }

    /// Queries and cache, of rows of queries, keys and values side by side.
    fn read(&self, lab: &Lab) -> Result<Vec<f32>, GpuError> {
        let mut all = lab.read_elements(&self.queries, self.rows * self.heads * head_stride(self.head_dim))?;
        let cells = self.table.len() * 2 * BLOCK * self.heads * head_stride(self.head_dim);
        all.extend(lab.read_elements(&self.cache, cells)?);
        Ok(all)
    }

    /// What [`Text::read`] should read.
    fn expected(&self, qkv: &dyn Fn(usize, usize) -> f64) -> Vec<f64> {
        let (stride, width) = (head_stride(self.head_dim), self.heads * self.head_dim);
        let queries = self.rows * self.heads * stride;
        let mut all = vec![0.0; queries + self.table.len() * 2 * BLOCK * self.heads * stride];
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
    let bias: Vec<f32> = values(3 * width, 10).into_iter().map(|x| x * 0.1).collect();
    let text = Text::new(lab, rows, heads, head_dim)?;
    let (sums, bias_at) = (lab.floats(&qkv)?, lab.floats(&bias)?);
    let write = WriteKvArguments { to: text.places(), sums: sums.address(), bias: bias_at.address() };
    lab.gpu.launch(Launch::rows(rows), &write)?;

    let stored = |row: usize, i: usize| f64::from(lab.round(qkv[row * 3 * width + i] + bias[i]));
    section.compare(&format!("KV write, heads of {head_dim}"), &text.read(lab)?, &text.expected(&stored), 0.0);

    let exact = attention_by_hand(&stored, (rows, heads, head_dim), scale);
    let tiles: Vec<u32> =
        (0..rows).step_by(TILE_ROWS).flat_map(|first| [first as u32, TILE_ROWS.min(rows - first) as u32]).collect();
    let tiles_at = lab.words(&tiles)?;
    let mut of_both = Vec::new();
    for tiled in [false, true] {
        let out = lab.empty(rows * row_stride(width), lab.element.bytes())?;
        let (name, launch) = Launch::attention(if tiled { tiles.len() / 2 } else { rows }, heads, head_dim, tiled);
        let arguments = AttendArguments {
            from: text.places(),
            out: out.address(),
            tiles: if tiled { tiles_at.address() } else { 0 },
            tile_rows: if tiled { TILE_ROWS as u32 } else { 1 },
            out_stride: row_stride(width) as u32,
            scale,
            padding: 0,
        };
        lab.gpu.launch_as(name, launch, &arguments)?;
        let got = lab.read_rows(&out, rows, width)?;
        let how = if tiled { "rows in tiles" } else { "rows alone" };
        section.compare(&format!("{name}, {how}, heads of {head_dim}"), &got, &exact, lab.tolerance());
        of_both.push(got.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    }
    section.ideally_same(&format!("rows in tiles and alone, heads of {head_dim}"), of_both[0] == of_both[1]);
    Ok(())
}

/// In f64, over queries, keys and values as they are rounded.
fn attention_by_hand(
    stored: &dyn Fn(usize, usize) -> f64,
    (rows, heads, head_dim): (usize, usize, usize),
    scale: f32,
) -> Vec<f64> {
    let width = heads * head_dim;
    let mut out = vec![0.0; rows * width];
    for (row, head) in (0..rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let first = head * head_dim;
        let score = |position| {
            let terms = (first..first + head_dim).map(|i| stored(row, i) * stored(position, width + i));
            terms.sum::<f64>() * f64::from(scale)
        };
        let scores: Vec<f64> = (0..=row).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for i in first..first + head_dim {
            let mixed: f64 =
                weights.iter().enumerate().map(|(position, weight)| weight * stored(position, 2 * width + i)).sum();
            out[row * width + i] = mixed / sum;
        }
    }
    out
}

/// All that `project` begins and ends with, at sizes that do not divide, and that a row has the same bits among others.
fn project(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    // Two rounds of a warp's slices, and a bit; 8 heads of 20 in 3 parts, some more outputs than blocks take at once.
    let (inputs, heads, head_dim, epsilon) = (600, 8, 20, 1e-5f32);
    let outputs = 3 * heads * head_dim;
    let rounded = |count, seed| values(count, seed).into_iter().map(|x| lab.round(0.05 * x)).collect::<Vec<_>>();
    let weights = rounded(outputs * inputs, 13);
    let (bias, gain, shift) = (values(outputs, 14), values(inputs, 15), values(inputs, 16));
    let (weights_at, bias_at) = (lab.rows(&weights, inputs)?, lab.floats(&bias)?);
    let (gain_at, shift_at) = (lab.floats(&gain)?, lab.floats(&shift)?);
    let product = |x: &[f64], row: usize, column: usize| {
        let terms = (0..inputs).map(|k| x[row * inputs + k] * f64::from(weights[column * inputs + k]));
        terms.sum::<f64>()
    };
    let most = Launch::projected_rows(inputs, lab.element, lab.gpu.shared_bytes("project_normed"));
    let mut alone = Vec::new();
    for rows in [1, 2, 9, most] {
        let x = values(rows * inputs, 17);
        let ready: Vec<f32> = x.iter().map(|&x| lab.round(x)).collect();
        let (x_at, ready_at) = (lab.floats(&x)?, lab.rows(&ready, inputs)?);
        let text = Text::new(lab, rows, heads, head_dim)?;
        let out = lab.empty(rows * row_stride(outputs), lab.element.bytes())?;
        let norm = Norm {
            x: x_at.address(),
            gain: gain_at.address(),
            shift: shift_at.address(),
            rows: 0,
            width: inputs as u32,
            epsilon,
        };
        // f32 differs from f64 by less than rounding turns it over, except at ties: then by a step, which a product hides.
        let normed: Vec<f64> = normed(&x, &gain, &shift, epsilon);
        let normed: Vec<f64> = normed.into_iter().map(|x| f64::from(lab.round(x as f32))).collect();
        let ready: Vec<f64> = ready.into_iter().map(f64::from).collect();
        let before = values(rows * outputs, 18);
        let sums_at = lab.floats(&before)?;
        let mut arguments = ProjectArguments {
            norm,
            inputs: ready_at.address(),
            weights: weights_at.address(),
            bias: bias_at.address(),
            to: text.places(),
            out: out.address(),
            sums: sums_at.address(),
            rows: rows as u32,
            outputs: outputs as u32,
            stride: row_stride(inputs) as u32,
            out_stride: outputs as u32,
            finish: Finish::Qkv as u32,
            activation: 3,
        };
        let of = |x: &dyn Fn(usize, usize) -> f64| {
            (0..rows * outputs).map(|i| x(i / outputs, i % outputs)).collect::<Vec<_>>()
        };
        // Few blocks, so that they take turns.
        let multiprocessors = 5;
        let run = |normed, arguments: &ProjectArguments| {
            let (name, launch) = Launch::project(rows, outputs, normed, lab.element, multiprocessors);
            lab.gpu.launch_as(name, launch, arguments)
        };
        run(Some(inputs), &arguments)?;
        let expected = text.expected(&|row, i| product(&normed, row, i) + f64::from(bias[i]));
        section.compare(&format!("project {rows} rows, QKV"), &text.read(lab)?, &expected, lab.tolerance());

        (arguments.finish, arguments.out_stride) = (Finish::Activation as u32, row_stride(outputs) as u32);
        run(Some(inputs), &arguments)?;
        let expected = of(&|row, i| (product(&normed, row, i) + f64::from(bias[i])).max(0.0));
        let got = lab.read_rows(&out, rows, outputs)?;
        section.compare(&format!("project {rows} rows, activation"), &got, &expected, lab.tolerance());

        arguments.norm.x = 0;
        (arguments.finish, arguments.out_stride) = (Finish::Residual as u32, outputs as u32);
        run(None, &arguments)?;
        let expected =
            of(&|row, i| product(&ready, row, i) + f64::from(bias[i]) + f64::from(before[row * outputs + i]));
        let got = lab.read(&sums_at, rows * outputs)?;
        section.compare(&format!("project {rows} rows, residual"), &got, &expected, F32_TOLERANCE);

        arguments.bias = 0;
        run(None, &arguments)?;
        let got = lab.read(&sums_at, rows * outputs)?;
        let expected = of(&|row, i| product(&ready, row, i));
        section.compare(&format!("project {rows} rows, partial sums"), &got, &expected, F32_TOLERANCE);
        alone.push(got[..outputs].iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    }
    section.ideally_same("a projected row alone and among others", alone.iter().all(|row| *row == alone[0]));
    Ok(())
}

fn answers(lab: &Lab, section: &mut Section<'_>, width: usize) -> Result<(), GpuError> {
    let stride = width.next_multiple_of(64);
    let vocab = 100..100 + width;
    let last = (vocab.end - 1) as u32;
    let wants = [
        Wants::Candidates { k: 1, temperature: 1.0, adjusted: Vec::new() },
        Wants::Candidates { k: 64, temperature: 0.7, adjusted: vec![last, 99, last + 1] },
        Wants::Candidates { k: 2 * width as u32, temperature: 2.0, adjusted: Vec::new() },
        Wants::Targets { ids: vec![100, last, 100], top: 7 },
        Wants::Targets { ids: vec![100], top: 0 },
    ];
    // Few distinct values, so that ties are common.
    let logits: Vec<f32> = (0..wants.len() * stride).map(|i| ((i * 7919) % 251) as f32 / 10.0 - 12.0).collect();
    let asked: Vec<Wanted<'_>> =
        wants.iter().enumerate().map(|(i, wants)| Wanted { answer: i, row: i, wants }).collect();
    let (questions, taken) = Questions::of(&asked, asked.len(), &vocab, Words::ENDLESS);
    let mut staging = lab.gpu.pinned(200 + 20 * wants.len())?;
    let words = questions.write(&mut staging);
    let questions_at = lab.words(&staging.words()[..words])?;
    let (logits_at, answers_at) = (lab.floats(&logits)?, lab.empty(questions.answer_words(), 4)?);
    let (wants_at, ids_at) = Questions::offsets(taken);
    let parts_at = lab.empty(questions.part_words(), 4)?;
    let arguments = AnswerArguments {
        logits: logits_at.address(),
        wants: questions_at.address() + 4 * wants_at as u64,
        ids: questions_at.address() + 4 * ids_at as u64,
        parts: parts_at.address(),
        answers: answers_at.address(),
        width: width as u32,
        stride: stride as u32,
    };
    lab.gpu.launch_as("answer_parts", Launch::answer_parts(taken, width), &arguments)?;
    lab.gpu.launch(Launch::answers(taken), &arguments)?;
    let words = lab.read_words(&answers_at, questions.answer_words())?;
    let (mut lists_agree, mut sums, mut exact) = (true, Vec::new(), Vec::new());
    for (place, wants) in wants.iter().enumerate() {
        let got = questions.answer(&words, place, wants, &vocab);
        let expected = answer(Isa::detect(), &logits[place * stride..][..width], vocab.start, wants);
        lists_agree &= got.top == expected.top && got.listed == expected.listed;
        for (got, expected) in [(got.all, expected.all), (got.rest, expected.rest)] {
            // Of no terms both are −∞, whose difference is not a number.
            let finite = expected.max > f32::NEG_INFINITY || got.max > f32::NEG_INFINITY;
            sums.push(if finite { got.value() as f32 } else { 0.0 });
            exact.push(if finite { expected.value() } else { 0.0 });
        }
    }
    section.compare(&format!("log-sum-exps of {width} logits"), &sums, &exact, F32_TOLERANCE);
    section.same(&format!("largest and listed of {width} logits"), lists_agree);
    Ok(())
}

fn products(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let mut products = Products::new(&lab.gpu, lab.element)?;
    let (inputs, outputs, stride) = (80, 56, 64);
    let round = |values: Vec<f32>| values.into_iter().map(|x| lab.round(x)).collect::<Vec<_>>();
    let weights = round(values(inputs * outputs, 11));
    let weights_at = lab.rows(&weights, inputs)?;
    for (rows, add) in [(17, false), (33, false), (33, true)] {
        let x = round(values(rows * inputs, 12));
        let before = values(rows * stride, 19);
        let (x_at, out) = (lab.rows(&x, inputs)?, lab.floats(&before)?);
        let shape = Shape { rows, inputs, outputs, stride };
        products.multiply(&lab.gpu, shape, weights_at.address(), x_at.address(), out.address(), add)?;
        let got = lab.read(&out, rows * stride)?;
        let exact = (0..rows * outputs).map(|i| {
            let (row, n) = (i / outputs, i % outputs);
            let terms = (0..inputs).map(|k| f64::from(x[row * inputs + k]) * f64::from(weights[n * inputs + k]));
            terms.sum::<f64>() + if add { f64::from(before[row * stride + n]) } else { 0.0 }
        });
        let dense: Vec<f32> = got.chunks(stride).flat_map(|row| row[..outputs].to_vec()).collect();
        let how = if add { "added" } else { "alone" };
        let what = format!("product of {rows} rows, {how}");
        section.compare(&what, &dense, &exact.collect::<Vec<_>>(), F32_TOLERANCE);
    }
    Ok(())
}
