//! Checkpoints of nanochat, of every generation, against nanochat's own code; its port against transformers.

use std::{ops::Range, path::PathBuf};

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_reference::Reference;
use nanoinfer_shared::{
    ModelShape,
    model::{
        rotary::Rounding,
        shape::{Positions, QkNorm},
    },
    protocol::*,
};

use crate::{
    argmax, bits, each_type, folder,
    ranks::{Case, Golden, Ranks, links, sequence},
    read_cases,
};

pub(crate) const FOLDERS: [&str; 9] = ["A", "A-padded", "B-lambdas", "B", "C", "C-softcap20", "D", "E", "hf"];
/// Some times what nanochat's own two paths differ by, and a hundredth of what the smallest mistake is worth.
const TOLERANCE: f32 = 2e-4;
/// Tokens of a step.
const CHUNK: usize = 96;

pub(crate) fn load(name: &str) -> Golden {
    let model = format!("nanochat/{name}");
    let folder = folder(&model);
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let weights: Vec<PathBuf> =
        files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("model")).collect();
    let config = Checkpoint::open(&weights).unwrap().config().map(str::to_owned);
    let config = config.unwrap_or_else(|| std::fs::read_to_string(folder.join("config.json")).unwrap());
    let mut shape = ModelShape::from_config_json(&config).unwrap();
    if name == "C-softcap20" {
        assert_eq!(shape.logit_softcap, Some(15.0), "the guess");
        shape.logit_softcap = Some(20.0);
    }
    let (_, cases) = read_cases(&model, &shape, ["prompts", "ids", "greedy"]);
    Golden { weights, drawable: shape.vocab_size, shape, cases }
}

/// Part of a text, with the token before it.
fn part(text: &[TokenId], range: Range<usize>, first: u32) -> SequenceStep {
    let before = range.start.checked_sub(1).map(|before| text[before]);
    SequenceStep { before, ..sequence(&text[range.clone()], range.start, first) }
}

/// Logits after every token of a text.
fn in_chunks(ranks: &mut Ranks, text: &[TokenId], chunk: usize, first: u32) -> Vec<Vec<f32>> {
    let starts = (0..text.len()).step_by(chunk);
    starts.flat_map(|at| ranks.full_rows(vec![part(text, at..text.len().min(at + chunk), first)])).collect()
}

fn largest_difference(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let pairs = got.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_and_greedy_ids_are_nanochats() {
    for name in FOLDERS {
        let golden = load(name);
        for world in [1, 2, 3, 5].into_iter().filter(|&world| world <= golden.shape.attention.heads) {
            let mut of_links = Vec::new();
            for comm in links(world) {
                let mut ranks = Ranks::start(&golden, world, comm, DType::F32);
                let mut seen = Vec::new();
                for case in &golden.cases {
                    let what = format!("{} nproc {world} {comm:?}", case.name);
                    let mut rows = in_chunks(&mut ranks, &case.prompt, CHUNK, 5);
                    let difference = largest_difference(&rows, &case.logits);
                    assert!(difference < TOLERANCE, "{what}: {difference}");
                    let mut text = case.prompt.clone();
                    for (&expected, &margin) in case.greedy.iter().zip(&case.margins) {
                        assert!(margin > 100.0 * TOLERANCE, "{what}");
                        assert_eq!(argmax(rows.last().unwrap()), expected, "{what}: position {}", text.len());
                        text.push(expected);
                        rows.extend(ranks.full_rows(vec![part(&text, text.len() - 1..text.len(), 5)]));
                    }
                    seen.extend(rows);
                }
                ranks.stop();
                of_links.push(bits(&seen));
            }
            assert!(of_links.windows(2).all(|pair| pair[0] == pair[1]), "{name} nproc {world}: shm and tcp differ");
        }
    }
}

#[test]
fn neither_batch_nor_chunk_changes_a_bit() {
    for ((name, world), dtype) in each_type(&[("B-lambdas", 3), ("C", 2), ("D", 1), ("E", 2)]) {
        let golden = load(name);
        let mut ranks = Ranks::start(&golden, world, links(world)[0], dtype);
        let case = golden.cases.iter().max_by_key(|case| case.prompt.len()).unwrap();
        let whole = bits(&in_chunks(&mut ranks, &case.prompt, CHUNK, 2));
        for chunk in [1, 5, 16, 17, 33] {
            let rows = bits(&in_chunks(&mut ranks, &case.prompt, chunk, 3));
            assert_eq!(rows, whole, "{name} nproc {world} {dtype:?}, chunks of {chunk}");
        }
        // Three sequences that go on, one of them the whole time alone.
        let texts: Vec<&[TokenId]> = [0..28, 3..31, 7..26].map(|range: Range<usize>| &case.prompt[range]).to_vec();
        let alone: Vec<_> = texts.iter().map(|text| bits(&in_chunks(&mut ranks, text, CHUNK, 1))).collect();
        let step =
            |range: fn(usize) -> Range<usize>| texts.iter().zip(0..).map(move |(text, i)| (text, range(text.len()), i));
        let mut together = Vec::new();
        for range in [|len| 0..len / 2, |len| len / 2..len - 1, |len| len - 1..len] as [fn(usize) -> Range<usize>; 3] {
            let steps = step(range).map(|(text, range, i)| part(text, range, i)).collect();
            let mut rows = bits(&ranks.full_rows(steps)).into_iter();
            for (_, range, i) in step(range) {
                together.resize_with(3, Vec::new);
                together[i as usize].extend(rows.by_ref().take(range.len()));
            }
        }
        assert_eq!(together, alone, "{name} nproc {world} {dtype:?}");
        ranks.stop();
    }
}

#[test]
fn rounded_types_stay_near_what_was_trained() {
    for (name, (dtype, limit)) in
        FOLDERS.into_iter().flat_map(|name| [(name, (DType::Bf16, 0.03)), (name, (DType::Int8, 0.06))])
    {
        let golden = load(name);
        let case = &golden.cases[1];
        let mut ranks = Ranks::start(&golden, 2, CommKind::Shm, dtype);
        let relative = crate::relative_error(&in_chunks(&mut ranks, &case.prompt, CHUNK, 0), &case.logits);
        ranks.stop();
        assert!(relative < limit && relative > 1e-4, "{name} {dtype:?}: {relative}");
    }
}

#[test]
fn the_reference_agrees_and_every_likely_mistake_would_be_seen() {
    type Mistake = (&'static str, fn(&mut ModelShape));
    let mistakes: [Mistake; 9] = [
        ("turned the textbook way", |shape| {
            if let Positions::Rotary(rotary) = &mut shape.attention.positions {
                rotary.backwards = false;
            }
        }),
        ("the other tables", |shape| {
            if let Positions::Rotary(rotary) = &mut shape.attention.positions {
                let other = if rotary.rounding == Rounding::Bf16 { Rounding::None } else { Rounding::Bf16 };
                rotary.rounding = other;
            }
        }),
        ("a key too few", |shape| shape.windows.iter_mut().for_each(|window| *window -= 1)),
        ("no windows", |shape| shape.windows.clear()),
        ("no smear", |shape| shape.stream.smear = None),
        ("no backout", |shape| shape.stream.backout = false),
        ("no lambdas", |shape| shape.stream.lambdas = false),
        ("no tables of values", |shape| shape.value_tables = None),
        ("no factor", |shape| shape.attention.qk_norm = QkNorm::Rotated { factor: 1.0 }),
    ];
    let mut seen = Vec::new();
    for name in FOLDERS {
        let golden = load(name);
        let checkpoint = Checkpoint::open(&golden.weights).unwrap();
        let difference = |shape: ModelShape| {
            let reference = Reference::load(&checkpoint, shape).unwrap();
            let of = |case: &Case| {
                let logits = reference.logits(&case.prompt).unwrap().to_vec2::<f32>().unwrap();
                largest_difference(&logits, &case.logits)
            };
            golden.cases.iter().map(of).fold(0.0, f32::max)
        };
        assert!(difference(golden.shape.clone()) < TOLERANCE, "{name}");
        for (mistake, make) in mistakes {
            let mut shape = golden.shape.clone();
            make(&mut shape);
            if shape != golden.shape {
                let difference = difference(shape);
                assert!(difference > 50.0 * TOLERANCE, "{name}, {mistake}: {difference}");
                seen.push(mistake);
            }
        }
    }
    assert!(mistakes.iter().all(|(mistake, _)| seen.contains(mistake)));
}

#[test]
fn what_is_converted_computes_the_same_bits() {
    for name in ["A-padded", "B-lambdas", "E"] {
        let golden = load(name);
        let original = Checkpoint::open(&golden.weights).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        original.write_safetensors(&golden.shape, &path).unwrap();
        let config = (original.family().write_config)(&golden.shape).to_string();
        assert_eq!(ModelShape::from_config_json(&config).unwrap(), golden.shape, "{name}");
        let copy = Golden { weights: vec![path], shape: golden.shape.clone(), drawable: 0, cases: Vec::new() };
        let rows = [&golden, &copy].map(|of| {
            let mut ranks = Ranks::start(of, 2, CommKind::Shm, DType::F32);
            let rows = bits(&in_chunks(&mut ranks, &golden.cases[1].prompt, CHUNK, 0));
            ranks.stop();
            rows
        });
        assert_eq!(rows[0], rows[1], "{name}");
    }
}

#[test]
fn a_token_before_that_is_missing_is_refused() {
    let golden = load("E");
    let mut ranks = Ranks::start(&golden, 1, CommKind::Local, DType::F32);
    let plan = StepPlan { step: 3, sequences: vec![sequence(&[1, 2], 4, 0)], timed: false };
    ranks.send(&ToRank::Step(plan));
    let failure = ranks.receive(|message| match message {
        FromRank::Failed { reason, .. } => reason,
        other => panic!("{other:?}"),
    });
    assert!(failure[0].contains("goes on at 4") && failure[0].contains("step 3"), "{}", failure[0]);
    ranks.threads.remove(0).join().unwrap().unwrap_err();
}
