//! Products of bytes against what their scales and bytes say, in f64.

use half::bf16;
use nanoinfer_kernels::{
    Activation, Element,
    cuda::{
        BYTE_SLICE, EmbedArguments, Finish, InputRows, Launch, Norm, ProjectArguments, QuantiseArguments, WeightRows,
        gated_outputs, row_stride, weight_stride,
    },
};

use super::{EPSILON, F32_TOLERANCE, normed};
use crate::{
    cuda::GpuError,
    gpu_check::{Lab, Section, values},
};

/// Rows of bytes as they lie on the host, and what they stand for.
struct Bytes {
    stride: usize,
    bytes: Vec<i8>,
    /// Of each slice.
    scales: Vec<f32>,
    values: Vec<f64>,
}

/// Of the largest value of a unit of inputs, what bytes are to be multiplied by, and what values are.
fn of_inputs(largest: f32) -> [f32; 2] {
    [largest / 127.0, 127.0 / largest]
}

fn of_weights(largest: f32) -> [f32; 2] {
    let scale = bf16::from_f32(largest / 127.0).to_f32();
    [scale, scale.recip()]
}

/// Quantised in units, with scales as `scales` makes them.
fn quantised(x: &[f32], width: usize, unit: usize, scales: fn(f32) -> [f32; 2]) -> Bytes {
    let (stride, of_unit) = (weight_stride(width, unit, Element::Int8), weight_stride(unit, unit, Element::Int8));
    let mut all = Bytes { stride, bytes: Vec::new(), scales: Vec::new(), values: Vec::new() };
    for row in x.chunks_exact(width) {
        for unit in row.chunks(unit) {
            let largest = unit.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let [scale, inverse] = scales(largest);
            let bytes = unit.iter().map(|x| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8);
            let begin = all.bytes.len();
            all.bytes.extend(bytes);
            all.values.extend(all.bytes[begin..].iter().map(|&byte| f64::from(byte) * f64::from(scale)));
            all.bytes.resize(begin + of_unit, 0);
            all.scales.extend(std::iter::repeat_n(scale, of_unit / BYTE_SLICE));
        }
    }
    all
}

/// So many rows of such weights, small enough that sums do not lose what is compared.
fn weights(lab: &Lab, outputs: usize, width: usize, unit: usize) -> Result<(WeightRows, Bytes), GpuError> {
    let x: Vec<f32> = values(outputs * width, 1).into_iter().map(|x| 0.05 * x).collect();
    let all = quantised(&x, width, unit, of_weights);
    let slices = all.stride / BYTE_SLICE;
    // `[slices, outputs]` bf16, in words.
    let scale = |i: usize| u32::from(bf16::from_f32(all.scales[i % outputs * slices + i / outputs]).to_bits());
    let count = outputs * slices;
    let words: Vec<u32> =
        (0..count).step_by(2).map(|i| scale(i) | if i + 1 < count { scale(i + 1) << 16 } else { 0 }).collect();
    Ok((WeightRows { rows: lab.words(bytemuck::cast_slice(&all.bytes))?, scales: lab.words(&words)? }, all))
}

pub(super) fn check(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    embed(lab, section)?;
    // Units that are no slices, and of one and a bit; a last unit that is short.
    for (width, unit) in [(600, 64), (100, 20), (240, 80)] {
        project(lab, section, width, unit)?;
    }
    gated(lab, section)
}

fn embed(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (tokens, width, local) = ([3u32, 0, 10], 100, 11);
    let (embedding, exact) = weights(lab, local, width, BYTE_SLICE)?;
    let x = lab.empty(tokens.len() * width, 4)?;
    let arguments = EmbedArguments {
        tokens: lab.words(&tokens)?,
        positions: lab.words(&tokens)?,
        embedding,
        x,
        tokens_local: local as u32,
        width: width as u32,
        stride: exact.stride as u32,
        ..EmbedArguments::default()
    };
    lab.gpu.launch(Launch::rows(tokens.len()), &arguments)?;
    let exact = tokens.iter().flat_map(|&token| &exact.values[token as usize * width..][..width]).copied();
    section.compare("embed", &lab.read(x, tokens.len() * width)?, exact, 0.0);
    Ok(())
}

/// Inputs as a kernel quantises them, and products as few and as many.
fn project(lab: &Lab, section: &mut Section<'_>, width: usize, unit: usize) -> Result<(), GpuError> {
    let (outputs, mut alone) = (90, Vec::new());
    let (weights, exact_weights) = weights(lab, outputs, width, unit)?;
    for rows in [1, 9, 37] {
        let x = values(rows * width, 3);
        let (carried, x_stride) = (x.chunks_exact(width), row_stride(width));
        let filled: Vec<f32> = carried.flat_map(|row| [row, &vec![0.0; x_stride - width]].concat()).collect();
        let exact = quantised(&x, width, unit, of_inputs);
        let (out, scales) = (lab.empty(rows * exact.stride, 1)?, lab.empty(rows * exact.stride / BYTE_SLICE, 4)?);
        let quantise = QuantiseArguments {
            x: lab.floats(&filled)?,
            out,
            scales,
            count: rows as u32,
            width: width as u32,
            x_stride: x_stride as u32,
            stride: exact.stride as u32,
            unit: unit as u32,
            padding: 0,
        };
        lab.gpu.launch(Launch::quantise(rows, width.div_ceil(unit)), &quantise)?;
        let got = lab.read_words(out, rows * exact.stride / 4)?;
        let what = |what: &str| format!("{rows} rows of {width} in units of {unit}, {what}");
        section.same(&what("quantised"), bytemuck::cast_slice::<u32, i8>(&got) == exact.bytes);
        let got = lab.read(scales, exact.scales.len())?;
        section.compare(&what("scales"), &got, exact.scales.iter().map(|&x| f64::from(x)), 0.0);

        let product = |values: &[f64], row: usize, output: usize| {
            let pairs = values[row * width..][..width].iter().zip(&exact_weights.values[output * width..][..width]);
            pairs.map(|(x, weight)| x * weight).sum::<f64>()
        };
        let sums = || (0..rows).flat_map(|row| (0..outputs).map(move |output| (row, output)));
        let arguments = ProjectArguments {
            inputs: InputRows { rows: out, scales },
            weights,
            sums: lab.empty(rows * outputs, 4)?,
            rows: rows as u32,
            outputs: outputs as u32,
            stride: exact.stride as u32,
            out_stride: outputs as u32,
            finish: Finish::Sums as u32,
            ..ProjectArguments::default()
        };
        let (name, few) = Launch::project(rows, outputs, None, lab.element);
        let many = Launch::project_many(rows, outputs, lab.element);
        for (name, launch) in [(name, few.in_turns(10)), ("project_many", many)] {
            lab.gpu.launch_as(name, launch, &arguments)?;
            let got = lab.read(arguments.sums, rows * outputs)?;
            let exact = sums().map(|(row, output)| product(&exact.values, row, output));
            section.compare(&what(name), &got, exact, F32_TOLERANCE);
            alone.push(got[..outputs].iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        }
        if unit != BYTE_SLICE {
            continue;
        }
        let (gain, shift) = (values(width, 4), values(width, 5));
        let norm = Norm {
            x: lab.floats(&x)?,
            gain: lab.floats(&gain)?,
            shift: lab.floats(&shift)?,
            width: width as u32,
            epsilon: EPSILON,
            is_centred: 1,
            ..Norm::default()
        };
        let (name, launch) = Launch::project(rows, outputs, Some(width), lab.element);
        lab.gpu.launch_as(name, launch.in_turns(10), &ProjectArguments { norm, ..arguments })?;
        let normed: Vec<f32> = normed(&x, &gain, &shift).into_iter().map(|x| x as f32).collect();
        let exact = quantised(&normed, width, unit, of_inputs);
        let exact = sums().map(|(row, output)| product(&exact.values, row, output));
        // A value at the edge of two bytes may become the other.
        section.compare(&what(name), &lab.read(arguments.sums, rows * outputs)?, exact, 0.02);
    }
    section
        .ideally_same("a projected row alone, among others, and among many", alone.iter().all(|row| *row == alone[0]));
    Ok(())
}

/// Eleven pairs, which are no whole fours.
fn gated(lab: &Lab, section: &mut Section<'_>) -> Result<(), GpuError> {
    let (rows, width, pairs) = (5, 77, 11);
    let (weights, exact_weights) = weights(lab, 2 * pairs, width, BYTE_SLICE)?;
    let x = quantised(&values(rows * width, 7), width, BYTE_SLICE, of_inputs);
    let arguments = ProjectArguments {
        inputs: InputRows { rows: lab.words(bytemuck::cast_slice(&x.bytes))?, scales: lab.floats(&x.scales)? },
        weights,
        rows: rows as u32,
        outputs: gated_outputs(pairs) as u32,
        pairs: pairs as u32,
        stride: x.stride as u32,
        out_stride: pairs as u32,
        finish: Finish::Gated as u32,
        activation: Activation::Relu as u32,
        ..ProjectArguments::default()
    };
    let sum = |row: usize, output: usize| {
        let weights = &exact_weights.values[output * width..][..width];
        x.values[row * width..][..width].iter().zip(weights).map(|(x, weight)| x * weight).sum::<f64>()
    };
    for (name, launch) in [
        Launch::project(rows, gated_outputs(pairs), None, lab.element),
        ("project_many", Launch::project_many(rows, gated_outputs(pairs), lab.element)),
    ] {
        let out = lab.empty(rows * pairs, 4)?;
        lab.gpu.launch_as(name, launch, &ProjectArguments { out, ..arguments })?;
        let exact = (0..rows * pairs).map(|i| (i / pairs, i % pairs));
        let exact = exact.map(|(row, i)| sum(row, i).max(0.0) * sum(row, pairs + i));
        section.compare(&format!("a gate, by {name}"), &lab.read(out, rows * pairs)?, exact, F32_TOLERANCE);
    }
    Ok(())
}
