//! What rounding costs in quality: perplexity in bf16 and int8 beside f32, also where a few channels are large.
//!
//! The text is drawn from the demo model itself in f32, so that a type that computes another distribution can only lose.

use std::path::Path;

use nanoinfer_shared::{ModelShape, comm::CommDType, protocol::*};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{
    ranks::{Golden, Ranks, bits, load_order, sequence},
    weights,
};

const TEXTS: u64 = 10;
/// Tokens of each that are scored.
const LENGTH: usize = 230;
/// Channels that become large, and how many times.
const OUTLIERS: [usize; 4] = [3, 77, 140, 201];
const GAIN: f32 = 50.0;

fn demo() -> Golden {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo/nano-chat");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let shape = ModelShape::from_config_json(&config).unwrap();
    Golden { weights: weights(&folder), drawable: shape.vocab_size, shape, cases: Vec::new() }
}

/// The same function with large channels: gain and bias of a LayerNorm times [`GAIN`], the next matrix's rows divided by it.
fn with_outliers(model: &Golden, folder: &Path) -> Golden {
    let bytes = std::fs::read(&model.weights[0]).unwrap();
    let width = model.shape.width;
    let planted = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().map(|(name, view)| {
        assert_eq!(view.dtype(), Dtype::BF16);
        let (halves, _) = view.data().as_chunks::<2>();
        let widen = |&half: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(half)) << 16);
        let mut values: Vec<f32> = halves.iter().map(widen).collect();
        let norm = ["ln_1.", "ln_2."].iter().any(|part| name.contains(part));
        let next = ["attn.c_attn.weight", "mlp.c_fc.weight"].iter().any(|part| name.ends_with(part));
        for channel in OUTLIERS {
            if norm {
                values[channel] *= GAIN;
            } else if next {
                let columns = values.len() / width;
                values[channel * columns..][..columns].iter_mut().for_each(|weight| *weight /= GAIN);
            }
        }
        let data: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        (name, view.shape().to_vec(), data)
    });
    let planted: Vec<_> = planted.collect();
    let views = planted
        .iter()
        .map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    Golden { weights: vec![path], shape: model.shape.clone(), cases: Vec::new(), ..*model }
}

/// A text drawn from the model at temperature 1, from the end of text on.
fn draw(ranks: &mut Ranks, begin: TokenId, seed: u64) -> Vec<TokenId> {
    let (mut text, mut state) = (vec![begin], seed);
    for position in 0..LENGTH {
        let row = ranks.full_rows(vec![sequence(&text[position..], position, 0)]).remove(0);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let masses: Vec<f64> = row.iter().map(|logit| f64::from(logit - largest).exp()).collect();
        let mut left = (state >> 11) as f64 / (1u64 << 53) as f64 * masses.iter().sum::<f64>();
        let drawn = masses.iter().position(|mass| {
            left -= mass;
            left < 0.0
        });
        text.push(drawn.unwrap_or(0) as TokenId);
    }
    text
}

type Types = (DType, DType, CommDType);

fn perplexity(model: &Golden, world: usize, types: Types, texts: &[Vec<TokenId>]) -> f64 {
    let (dtype, kv_dtype, comm_dtype) = types;
    let comm = if world == 1 { CommKind::Local } else { CommKind::Shm };
    let order = LoadOrder { kv_dtype, comm_dtype, ..load_order(model, None, comm, dtype) };
    let mut ranks = Ranks::start_with(order, world);
    let mut loss = 0.0;
    for text in texts {
        let mut plan = sequence(&text[..LENGTH], 0, 0);
        let wants = |row: usize| Wants::Targets { ids: vec![text[row + 1]], top: 0 };
        plan.outputs = (0..LENGTH).map(|row| RowRequest { row: row as u32, wants: wants(row) }).collect();
        let answers = ranks.step(vec![plan]);
        for row in 0..LENGTH {
            let slices = || answers.iter().map(|answer| &answer.rows[row]);
            let all = slices().map(|slice| slice.all).fold(LogSumExp::EMPTY, LogSumExp::merge).value();
            loss += all - f64::from(slices().find_map(|slice| slice.listed.first()).unwrap().1);
        }
    }
    ranks.stop();
    (loss / (texts.len() * LENGTH) as f64).exp()
}

#[test]
fn rounding_costs_little_also_where_channels_are_large() {
    let dir = tempfile::tempdir().unwrap();
    let plain = demo();
    let planted = with_outliers(&plain, dir.path());
    let mut ranks = Ranks::start(&plain, 1, CommKind::Local, DType::F32);
    let texts: Vec<_> = (0..TEXTS).map(|seed| draw(&mut ranks, plain.shape.eos_token_ids[0], seed)).collect();
    ranks.stop();
    use DType::{Bf16, F32, Int8};
    let unrounded = CommDType::F32;
    let exact = perplexity(&plain, 1, (F32, DType::F32, unrounded), &texts);
    for (what, model) in [("plain", &plain), ("with outliers", &planted)] {
        for (world, types, limit) in [
            (1, (F32, DType::F32, unrounded), 1e-5),
            (1, (F32, DType::Bf16, unrounded), 1e-3),
            (1, (F32, DType::Int8, unrounded), 1e-3),
            (1, (Bf16, DType::Bf16, unrounded), 1e-3),
            (1, (Int8, DType::Bf16, unrounded), 5e-3),
            (1, (Int8, DType::Int8, unrounded), 5e-3),
            (3, (Int8, DType::Int8, unrounded), 5e-3),
            (2, (F32, DType::F32, CommDType::Bf16), 1e-3),
            (4, (F32, DType::F32, CommDType::Bf16), 1e-3),
            (4, (Int8, DType::Int8, CommDType::Bf16), 5e-3),
        ] {
            let got = perplexity(model, world, types, &texts);
            println!("{what} nproc {world} {types:?}: perplexity {got:.5}, {:+.4} %", (got / exact - 1.0) * 100.0);
            assert!((got / exact - 1.0).abs() < limit, "{what} nproc {world} {types:?}: {got}, in f32 {exact}");
        }
    }
}

#[test]
fn chunks_equal_the_whole_with_a_rounded_kv_cache() {
    let model = demo();
    let tokens: Vec<TokenId> = (0..60).map(|i| i * 37 % 4000).collect();
    let mut exact = Ranks::start(&model, 2, CommKind::Shm, DType::F32);
    let unrounded = exact.full_rows(vec![sequence(&tokens, 0, 2)]);
    exact.stop();
    for kv_dtype in [DType::Bf16, DType::Int8] {
        let order = LoadOrder { kv_dtype, ..load_order(&model, None, CommKind::Shm, DType::F32) };
        let mut ranks = Ranks::start_with(order, 2);
        let whole = ranks.full_rows(vec![sequence(&tokens, 0, 2)]);
        for chunk in [1, 16, 23] {
            let chunks = tokens.chunks(chunk).enumerate();
            let rows: Vec<_> =
                chunks.flat_map(|(i, part)| ranks.full_rows(vec![sequence(part, i * chunk, 3)])).collect();
            assert_eq!(bits(&rows), bits(&whole), "{kv_dtype}, chunks of {chunk}");
        }
        ranks.stop();
        assert_ne!(bits(&unrounded), bits(&whole), "the cache is not rounded to {kv_dtype}");
    }
}
