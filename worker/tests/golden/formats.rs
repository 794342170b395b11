//! Every format of checkpoints, and every option of a configuration, against transformers.
//!
//! The checkpoints were made by torch and transformers: `tests/golden/make_formats.py`. Index:
//! - `logits_agree_with_transformers`: each case of golden.json, nproc 1, 2, 3
//! - `the_reference_agrees_with_transformers`: `worker/src/reference.rs` on each
//! - `convert_keeps_the_logits`: each checkpoint, written as safetensors and read back

use std::path::{Path, PathBuf};

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_reference::Reference;
use nanoinfer_shared::{ModelShape, protocol::*};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::ranks::{Case, Golden, Ranks, assert_close, bits, links, sequence};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/formats")
}

/// All cases; the shape as the launcher makes it from configuration and checkpoint.
pub(crate) fn cases() -> Vec<Golden> {
    let read = |file: &str| std::fs::read(folder().join(file)).unwrap();
    let json: Value = serde_json::from_slice(&read("golden.json")).unwrap();
    let tensors = read("golden.safetensors");
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    let prompt: Vec<TokenId> = serde_json::from_value(json["prompt_ids"].clone()).unwrap();
    let case = |case: &Value| {
        let name = case["name"].as_str().unwrap();
        let files: Vec<String> = serde_json::from_value(case["files"].clone()).unwrap();
        let weights: Vec<PathBuf> = files.iter().map(|file| folder().join(file)).collect();
        let checkpoint = Checkpoint::open(&weights).unwrap_or_else(|e| panic!("{name}: {e}"));
        let config = match &case["config"] {
            Value::Null => checkpoint.config().unwrap().to_owned(),
            config => config.to_string(),
        };
        let shape = checkpoint.refine(ModelShape::from_config_json(&config).unwrap());
        checkpoint.check(&shape).unwrap_or_else(|e| panic!("{name}: {e}"));
        let view = tensors.tensor(name).unwrap();
        let (floats, _) = view.data().as_chunks::<4>();
        let floats: Vec<f32> = floats.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let logits = floats.chunks(shape.vocab_size).map(<[f32]>::to_vec).collect();
        let case = Case { name: name.into(), prompt: prompt.clone(), logits, greedy: Vec::new(), margins: Vec::new() };
        Golden { weights, drawable: shape.vocab_size, shape, cases: vec![case] }
    };
    json["cases"].as_array().unwrap().iter().map(case).collect()
}

/// Of the last case.
fn logits(golden: &Golden, world: usize) -> Vec<Vec<f32>> {
    let mut ranks = Ranks::start(golden, world, links(world)[0], DType::F32);
    let rows = ranks.full_rows(vec![sequence(&golden.cases.last().unwrap().prompt, 0, 5)]);
    ranks.stop();
    rows
}

#[test]
fn logits_agree_with_transformers() {
    let cases = cases();
    assert!(cases.len() >= 24);
    for golden in &cases {
        let case = &golden.cases[0];
        for world in [1, 2, 3] {
            assert_close(&logits(golden, world), &case.logits, &format!("{} nproc {world}", case.name));
        }
    }
}

#[test]
fn the_reference_agrees_with_transformers() {
    for golden in &cases() {
        let case = &golden.cases[0];
        let checkpoint = Checkpoint::open(&golden.weights).unwrap();
        let reference = Reference::load(&checkpoint, golden.shape.clone()).unwrap();
        assert_close(&reference.logits(&case.prompt).unwrap().to_vec2::<f32>().unwrap(), &case.logits, &case.name);
    }
}

#[test]
fn convert_keeps_the_logits() {
    cases().iter().for_each(converted_keeps_the_logits);
}

pub(crate) fn converted_keeps_the_logits(golden: &Golden) {
    let dir = tempfile::tempdir().unwrap();
    let converted = dir.path().join("model.safetensors");
    let checkpoint = Checkpoint::open(&golden.weights).unwrap();
    checkpoint.write_safetensors(&golden.shape, &converted).unwrap();
    let config = ModelShape::from_config_json(&(checkpoint.family().write_config)(&golden.shape).to_string()).unwrap();
    let reopened = Checkpoint::open(std::slice::from_ref(&converted)).unwrap();
    let shape = reopened.refine(config);
    reopened.check(&shape).unwrap();
    assert_eq!(shape, golden.shape);
    let before = bits(&logits(golden, 2));
    let name = &golden.cases[0].name;
    let converted = Golden { weights: vec![converted], cases: golden.cases.clone(), shape, ..*golden };
    assert_eq!(bits(&logits(&converted, 2)), before, "{name}");
}
