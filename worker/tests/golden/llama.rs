//! What only the Llama family has: two forms of a configuration, positions without an end.

use nanoinfer_shared::{ModelShape, protocol::*};
use serde_json::Value;

use crate::{
    MODELS, argmax, folder,
    formats::converted_keeps_the_logits,
    golden, load_golden,
    ranks::{Ranks, assert_close, greedy, links, load_order},
};

/// Tokens of a step.
const CHUNK: usize = 1024;
const BLOCKS: u32 = 2048;

#[test]
fn both_forms_of_a_configuration_are_one_shape() {
    let mut seen = 0;
    for model in MODELS.into_iter().chain(["long"]) {
        let read = |file: &str| std::fs::read_to_string(folder(model).join(file)).unwrap();
        let golden: Value = serde_json::from_str(&read("golden.json")).unwrap();
        if let Some(other) = golden.get("other_config") {
            let shape = |config: &str| ModelShape::from_config_json(config).unwrap_or_else(|e| panic!("{model}: {e}"));
            assert_eq!(shape(&other.to_string()), shape(&read("config.json")), "{model}");
            seen += 1;
        }
    }
    assert_eq!(seen, 7);
}

#[test]
fn convert_keeps_the_logits_of_every_kind() {
    MODELS.into_iter().for_each(|model| converted_keeps_the_logits(&golden(model)));
}

/// At positions beyond 30,000 one f32 angle is up to a thousandth of a turn away from the next.
#[test]
fn far_positions_are_transformers_too() {
    let golden = load_golden("long");
    let case = &golden.cases[0];
    for world in [1, 3] {
        let order = LoadOrder { max_batched_tokens: CHUNK, ..load_order(&golden, None, links(world)[0], DType::F32) };
        let mut ranks = Ranks::start_sized(order, world, BLOCKS as usize);
        let mut text = case.prompt.clone();
        let blocks: Vec<_> = (0..BLOCKS).rev().map(BlockId).collect();
        let mut seen = 0;
        // Logits of the last `rows` of what is new.
        let mut go_on = |text: &[TokenId], rows: usize| {
            let mut logits = Vec::new();
            while seen < text.len() {
                let tokens = text[seen..].chunks(CHUNK).next().unwrap().to_vec();
                let wanted =
                    (seen..seen + tokens.len()).filter(|&at| at + rows >= text.len()).map(|at| (at - seen) as u32);
                let outputs: Vec<_> = wanted.map(|row| RowRequest { row, wants: greedy() }).collect();
                let count = outputs.len() as u32;
                let held = (seen + tokens.len()).div_ceil(BLOCK_TOKENS);
                let start = seen as u32;
                seen += tokens.len();
                let blocks = blocks[..held].to_vec();
                ranks.step(vec![SequenceStep { tokens, start, before: None, blocks, outputs }]);
                if count > 0 {
                    logits.extend(ranks.fetch((0..count).collect()));
                }
            }
            logits
        };
        let rows = go_on(&text, case.logits.len());
        assert_close(&rows, &case.logits, &format!("long nproc {world}"));
        let mut next = argmax(rows.last().unwrap());
        for &expected in &case.greedy {
            assert_eq!(next, expected, "nproc {world}: position {}", text.len());
            text.push(next);
            next = argmax(&go_on(&text, 1)[0]);
        }
        ranks.stop();
    }
}
