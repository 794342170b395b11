//! Every kernel of one element type, and products, against the CPU on odd sizes.

use nanoinfer_kernels::{
    Activation, Arena, Epilogue, Isa, Kernels, PackedMatrix, WeightType,
    cuda::{
        ActivateArguments, AnswerArguments, AttendArguments, BLOCK, EmbedArguments, Launch, NormArguments, Placement,
        TILE_ROWS, WriteKvArguments,
    },
};
use nanoinfer_shared::protocol::Wants;

use super::{
    super::{
        GpuError,
        answers::{Asked, Questions},
        products::{Products, Shape},
    },
    Lab, Section, values,
};
use crate::step::answer;

/// f32 sums in another order, and an exponential of another library.
const F32_TOLERANCE: f64 = 1e-5;

pub(super) fn check(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    embed(lab, section)?;
    residual_norm(lab, section)?;
    activate(lab, section)?;
    for head_dim in [8, 64, 80, 256] {
        attention(lab, section, head_dim)?;
    }
    for width in [1, 61, 1000, 5003] {
        answers(lab, section, width)?;
    }
    products(lab, section)
}

fn embed(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    // Ids on both sides of this rank's slice are other ranks'.
    let (tokens, positions) = ([3, 13, 2, 14, 8], [0, 4, 2, 8, 1]);
    let (width, first, local) = (37, 3usize, 11);
    let embedding: Vec<f32> = values(local * width, 1).into_iter().map(|x| lab.round(x)).collect();
    let wpe = values(9 * width, 2);
    let memory = (lab.words(&tokens)?, lab.words(&positions)?, lab.elements(&embedding)?, lab.floats(&wpe)?);
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
                padding: 0,
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

fn residual_norm(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (rows, width, epsilon) = (5, 300, 1e-5f32);
    let [x, delta] = [3, 4].map(|seed| values(rows * width, seed));
    let [bias, gain, shift] = [5, 6, 7].map(|seed| values(width, seed));
    let [delta_at, bias_at, gain_at, shift_at] =
        [lab.floats(&delta)?, lab.floats(&bias)?, lab.floats(&gain)?, lab.floats(&shift)?];
    let sums: Vec<f64> =
        (0..rows * width).map(|i| f64::from(x[i]) + f64::from(delta[i]) + f64::from(bias[i % width])).collect();
    let normed = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / width as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = (variance + f64::from(epsilon)).sqrt().recip();
        let of = |(i, x): (usize, &f64)| (x - mean) * scale * f64::from(gain[i]) + f64::from(shift[i]);
        values.iter().enumerate().map(of).collect::<Vec<_>>()
    };
    for (what, wanted) in [("residual and LayerNorm", None), ("the same of wanted rows", Some([4u32, 0, 4]))] {
        let (x_at, out) = (lab.floats(&x)?, lab.empty(rows * width, lab.element.bytes())?);
        let list = wanted.map(|rows| lab.words(&rows)).transpose()?;
        let count = wanted.map_or(rows, |rows| rows.len());
        lab.gpu.launch(
            Launch::rows(count),
            &NormArguments {
                x: x_at.address(),
                delta: delta_at.address(),
                bias: bias_at.address(),
                gain: gain_at.address(),
                shift: shift_at.address(),
                rows: list.as_ref().map_or(0, |list| list.address()),
                out: out.address(),
                width: width as u32,
                epsilon,
            },
        )?;
        let order: Vec<usize> = wanted.map_or((0..rows).collect(), |rows| rows.map(|row| row as usize).to_vec());
        let exact: Vec<f64> = order.iter().flat_map(|&row| normed(&sums[row * width..][..width])).collect();
        section.compare(what, &lab.read_elements(&out, count * width)?, &exact, lab.tolerance());
        let left: Vec<f64> = if wanted.is_some() { x.iter().map(|&x| x.into()).collect() } else { sums.clone() };
        section.compare("the residual stream behind it", &lab.read(&x_at, rows * width)?, &left, 1e-6);
    }
    Ok(())
}

fn activate(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    use Activation::{GeluErf, GeluTanh, QuickGelu, Relu, Relu2, Silu, Tanh};
    let (rows, width) = (7, 77);
    let (sums, bias) = (values(rows * width, 8), values(width, 9));
    let (sums_at, bias_at) = (lab.floats(&sums)?, lab.floats(&bias)?);
    // On the CPU an activation is the end of a product; here of one with the unit matrix.
    let mut unit = PackedMatrix::zeros(&Arena::default(), WeightType::F32, width, width, width);
    let diagonal = (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 });
    unit.set_unit(0, &diagonal.collect::<Vec<_>>());
    let mut cpu = Kernels::new(Isa::detect(), 1, false);
    for (number, kind) in [GeluTanh, GeluErf, QuickGelu, Relu, Relu2, Silu, Tanh].into_iter().enumerate() {
        let out = lab.empty(rows * width, lab.element.bytes())?;
        lab.gpu.launch(
            Launch::elements(rows * width),
            &ActivateArguments {
                sums: sums_at.address(),
                bias: bias_at.address(),
                out: out.address(),
                count: (rows * width) as u32,
                width: width as u32,
                activation: number as u32,
                padding: 0,
            },
        )?;
        let mut exact = vec![0.0; rows * width];
        cpu.matmul(&sums, &unit, Epilogue::BiasActivation(&bias, kind), &mut exact);
        let exact: Vec<f64> = exact.into_iter().map(f64::from).collect();
        let got = lab.read_elements(&out, rows * width)?;
        section.compare(&format!("activation {kind:?}"), &got, &exact, lab.tolerance());
    }
    Ok(())
}

/// One sequence, by single rows and in tiles, and a row that ends it in a batch of its own.
fn attention(lab: &Lab, section: &mut Section<'_>, head_dim: usize) -> Result<(), GpuError> {
    let (rows, heads, scale) = (37, 3, 0.3f32);
    let width = heads * head_dim;
    let qkv: Vec<f32> = values(rows * 3 * width, head_dim).into_iter().map(|x| x * 0.3).collect();
    let bias: Vec<f32> = values(3 * width, 10).into_iter().map(|x| x * 0.1).collect();
    let table = [2u32, 0, 3, 1];
    let (positions, sequences): (Vec<u32>, Vec<u32>) = ((0..rows as u32).collect(), vec![0; rows]);
    let cells = 4 * 2 * BLOCK * width;
    let cache = lab.empty(cells, lab.element.bytes())?;
    let (qkv_at, bias_at) = (lab.floats(&qkv)?, lab.floats(&bias)?);
    let [positions_at, sequences_at, table_at] = [lab.words(&positions)?, lab.words(&sequences)?, lab.words(&table)?];
    let at =
        Placement { positions: positions_at.address(), sequences: sequences_at.address(), tables: table_at.address() };
    let (heads_local, head_dim_local, table_blocks) = (heads as u32, head_dim as u32, table.len() as u32);
    lab.gpu.launch(
        Launch::rows(rows),
        &WriteKvArguments {
            qkv: qkv_at.address(),
            bias: bias_at.address(),
            cache: cache.address(),
            at,
            heads: heads_local,
            head_dim: head_dim_local,
            table_blocks,
            padding: 0,
        },
    )?;

    let biased = |row: usize, i: usize| qkv[row * 3 * width + i] + bias[i];
    let mut expected = vec![0.0; cells];
    for position in 0..rows {
        for i in 0..width {
            let (head, d) = (i / head_dim, i % head_dim);
            let head = (table[position / BLOCK] as usize * heads + head) * 2 * BLOCK * head_dim;
            expected[head + d * BLOCK + position % BLOCK] = f64::from(lab.round(biased(position, width + i)));
            let value = head + BLOCK * head_dim + position % BLOCK * head_dim + d;
            expected[value] = f64::from(lab.round(biased(position, 2 * width + i)));
        }
    }
    let written = lab.read_elements(&cache, cells)?;
    section.compare(&format!("KV write, heads of {head_dim}"), &written, &expected, 0.0);

    let exact = attention_by_hand(lab, &biased, (rows, heads, head_dim), scale);
    let tiles: Vec<u32> =
        (0..rows).step_by(TILE_ROWS).flat_map(|first| [first as u32, TILE_ROWS.min(rows - first) as u32]).collect();
    let tiles_at = lab.words(&tiles)?;
    let mut of_both = Vec::new();
    for tiled in [false, true] {
        let out = lab.empty(rows * width, lab.element.bytes())?;
        let (name, launch) = Launch::attention(if tiled { tiles.len() / 2 } else { rows }, heads, head_dim, tiled);
        let arguments = AttendArguments {
            qkv: qkv_at.address(),
            cache: cache.address(),
            out: out.address(),
            tiles: if tiled { tiles_at.address() } else { 0 },
            at,
            heads: heads_local,
            head_dim: head_dim_local,
            table_blocks,
            scale,
        };
        lab.gpu.launch_as(name, launch, &arguments)?;
        let got = lab.read_elements(&out, rows * width)?;
        section.compare(&format!("{name}, heads of {head_dim}"), &got, &exact, lab.tolerance());
        of_both.push(got.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    }
    section.ideally_same(&format!("rows in tiles and alone, heads of {head_dim}"), of_both[0] == of_both[1]);
    Ok(())
}

/// In f64, over keys and values as they are rounded in the cache.
fn attention_by_hand(
    lab: &Lab,
    biased: &dyn Fn(usize, usize) -> f32,
    (rows, heads, head_dim): (usize, usize, usize),
    scale: f32,
) -> Vec<f64> {
    let width = heads * head_dim;
    let mut out = vec![0.0; rows * width];
    for (row, head) in (0..rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let first = head * head_dim;
        let stored = |position, i| f64::from(lab.round(biased(position, i)));
        let score = |position| {
            let terms = (first..first + head_dim).map(|i| f64::from(biased(row, i)) * stored(position, width + i));
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
    let asked: Vec<Asked<'_>> = wants.iter().enumerate().map(|(i, wants)| Asked { answer: i, row: i, wants }).collect();
    let (questions, taken) = Questions::of(&asked, asked.len(), &vocab, usize::MAX);
    let mut staging = lab.gpu.pinned(200 + 20 * wants.len())?;
    let words = questions.write(&mut staging);
    let questions_at = lab.words(&staging.words()[..words])?;
    let (logits_at, answers_at) = (lab.floats(&logits)?, lab.empty(questions.answer_words(), 4)?);
    let (wants_at, ids_at) = Questions::offsets(taken);
    lab.gpu.launch(
        Launch::answers(taken),
        &AnswerArguments {
            logits: logits_at.address(),
            wants: questions_at.address() + 4 * wants_at as u64,
            ids: questions_at.address() + 4 * ids_at as u64,
            answers: answers_at.address(),
            width: width as u32,
            stride: stride as u32,
        },
    )?;
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
    let left: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
    section.compare(&format!("{width} logits behind it"), &lab.read(&logits_at, logits.len())?, &left, 0.0);
    Ok(())
}

fn products(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let mut products = Products::new(&lab.gpu, lab.element)?;
    let (inputs, outputs) = (80, 56);
    let round = |values: Vec<f32>| values.into_iter().map(|x| lab.round(x)).collect::<Vec<_>>();
    let weights = round(values(inputs * outputs, 11));
    let weights_at = lab.elements(&weights)?;
    for (rows, by_output) in [(1, false), (5, false), (33, false), (1, true), (5, true), (33, true)] {
        let stride = if by_output { 64 } else { outputs };
        let x = round(values(rows * inputs, 12));
        let (x_at, out) = (lab.elements(&x)?, lab.empty(rows * stride, 4)?);
        let shape = Shape { rows, inputs, outputs, by_output, stride };
        products.multiply(&lab.gpu, shape, weights_at.address(), x_at.address(), out.address())?;
        let got = lab.read(&out, rows * stride)?;
        let weight = |k: usize, n: usize| if by_output { weights[n * inputs + k] } else { weights[k * outputs + n] };
        let exact: Vec<f64> = (0..rows * outputs)
            .map(|i| {
                let (row, n) = (i / outputs, i % outputs);
                (0..inputs).map(|k| f64::from(x[row * inputs + k]) * f64::from(weight(k, n))).sum()
            })
            .collect();
        let dense: Vec<f32> = got.chunks(stride).flat_map(|row| row[..outputs].to_vec()).collect();
        let stored = if by_output { "[N, K]" } else { "[K, N]" };
        section.compare(&format!("product of {rows} rows, weights {stored}"), &dense, &exact, F32_TOLERANCE);
    }
    Ok(())
}
