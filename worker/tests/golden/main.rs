//! Ranks against transformers: real ranks on threads, driven by the coordinator's messages, over every data link.
//!
//! The golden data and the scripts that made it are in `tests/golden`. Index:
//! - [`excerpts`]: what shares read of a checkpoint is all that their ranks need
//! - [`quality`]: perplexity of rounded types beside f32, also where channels are large; a rounded KV cache
//! - [`family`]: a family under other names
//! - [`llama`]: both forms of a configuration, copies, a text of 30,050 tokens
//! - [`nanochat`]: its checkpoints of every generation
//! - [`formats`]: every format of checkpoints and every option of a configuration
//! - [`refused`]: weights that are no numbers, or not the coordinator's
//! - `logits_and_greedy_ids_agree_with_transformers`: every model, nproc 1 to 5, shm and tcp; shm = tcp bit for bit
//! - `a_batch_equals_each_alone`, `chunks_equal_the_whole`: bit for bit
//! - `rounded_types_stay_near_and_shm_equals_tcp`: bf16, int8
//! - `every_instruction_set_agrees`: each type on each that this CPU has, batched = single, near the best one
//! - `the_reference_agrees_with_transformers`: `worker/reference`
//! - `answers_agree_with_full_rows`: `Targets` and `Candidates` against fetched rows
//! - `a_plan_that_does_not_fit_ends_the_rank_with_the_reason`

mod excerpts;
mod family;
mod formats;
mod llama;
mod nanochat;
mod quality;
mod ranks;
mod refused;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_reference::Reference;
use nanoinfer_shared::{ModelShape, comm::CommDType, handshake::Identity, link::in_memory, protocol::*};
use nanoinfer_worker::rank::{OnLost, RankSetup, run};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::ranks::{Case, Golden, Ranks, TOLERANCE, assert_close, bits, greedy, links, load_order, sequence};

const MODELS: [&str; 10] = [
    "heads5",
    "heads7",
    "inner",
    "tiny",
    "llama-9-3",
    "llama3-15-5",
    "qwen2-14-2",
    "qwen3-5-1",
    "mistral-8-2",
    "llama-yarn",
];

fn golden(model: &str) -> Arc<Golden> {
    static LOADED: OnceLock<BTreeMap<&str, Arc<Golden>>> = OnceLock::new();
    let all = LOADED.get_or_init(|| MODELS.into_iter().map(|model| (model, Arc::new(load_golden(model)))).collect());
    Arc::clone(&all[model])
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(model)
}

/// The files of a checkpoint.
fn weights(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_weights = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".bin") || name.starts_with("model") && name.ends_with(".safetensors")
    };
    let mut files: Vec<_> = files.filter(is_weights).collect();
    files.sort();
    files
}

/// The cases of a model's golden data, by what golden.json calls their list, a prompt and its continuation; with all that it says.
fn read_cases(model: &str, shape: &ModelShape, [list, prompt_ids, greedy_ids]: [&str; 3]) -> (Value, Vec<Case>) {
    let read = |file: &str| std::fs::read(folder(model).join(file)).unwrap();
    let json: Value = serde_json::from_slice(&read("golden.json")).unwrap();
    let tensors = read("golden.safetensors");
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    let ids = |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect();
    let case = |case: &Value| {
        let name = case["name"].as_str().unwrap();
        let (floats, _) = tensors.tensor(&format!("{name}.logits")).unwrap().data().as_chunks::<4>();
        let floats: Vec<f32> = floats.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        // A long prompt is a short one, again and again.
        let prompt: Vec<TokenId> = ids(&case[prompt_ids]);
        let length = case["prompt_length"].as_u64().map_or(prompt.len(), |length| length as usize);
        Case {
            name: format!("{model}/{name}"),
            prompt: prompt.into_iter().cycle().take(length).collect(),
            logits: floats.chunks(shape.vocab_size).map(<[f32]>::to_vec).collect(),
            greedy: ids(&case[greedy_ids]),
            margins: case["top2_margins"].as_array().unwrap().iter().map(|m| m.as_f64().unwrap() as f32).collect(),
        }
    };
    let cases = json[list].as_array().unwrap().iter().map(case).collect();
    (json, cases)
}

fn load_golden(model: &str) -> Golden {
    let folder = folder(model);
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let shape = ModelShape::from_config_json(&config).unwrap();
    let (json, cases) = read_cases(model, &shape, ["cases", "prompt_ids", "greedy_ids"]);
    let drawable = json["tokens"].as_u64().map_or(shape.vocab_size, |tokens| tokens as usize);
    Golden { weights: weights(&folder), shape, drawable, cases }
}

/// Every case in every element type.
fn each_type<T: Copy>(cases: &[T]) -> impl Iterator<Item = (T, DType)> {
    cases.iter().flat_map(|&case| [DType::F32, DType::Bf16, DType::Int8].map(|dtype| (case, dtype)))
}

fn argmax(row: &[f32]) -> TokenId {
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as TokenId
}

#[test]
fn logits_and_greedy_ids_agree_with_transformers() {
    for model in MODELS {
        let golden = golden(model);
        for world in 1..=5.min(golden.shape.attention.heads) {
            let mut of_links = Vec::new();
            for comm in links(world) {
                let mut ranks = Ranks::start(&golden, world, comm, DType::F32);
                let mut seen = Vec::new();
                for case in &golden.cases {
                    let what = format!("{} nproc {world} {comm:?}", case.name);
                    let rows = ranks.full_rows(vec![sequence(&case.prompt, 0, 5)]);
                    assert_close(&rows, &case.logits, &what);
                    let draw = |row: &[f32]| argmax(&row[..golden.drawable]);
                    let mut next = draw(rows.last().unwrap());
                    for (position, (&expected, &margin)) in
                        (case.prompt.len()..).zip(case.greedy.iter().zip(&case.margins))
                    {
                        // Every margin of the golden data is far above the tolerance, so no id may differ.
                        assert!(margin > 100.0 * TOLERANCE, "{what}");
                        assert_eq!(next, expected, "{what}: position {position}");
                        if position == golden.shape.context {
                            break;
                        }
                        let row = ranks.full_rows(vec![sequence(&[next], position, 5)]).remove(0);
                        next = draw(&row);
                        seen.push(row);
                    }
                    seen.extend(rows);
                }
                ranks.stop();
                of_links.push(bits(&seen));
            }
            assert!(of_links.windows(2).all(|pair| pair[0] == pair[1]), "{model} nproc {world}: shm and tcp differ");
        }
    }
}

#[test]
fn a_batch_equals_each_alone() {
    let gpt2 = [("heads5", 1), ("heads5", 2), ("heads7", 3), ("inner", 5)];
    let llama = [("llama-9-3", 2), ("llama3-15-5", 4), ("qwen2-14-2", 5), ("qwen3-5-1", 3)];
    for ((model, world), dtype) in each_type(&[gpt2, llama].concat()) {
        let golden = golden(model);
        let mut ranks = Ranks::start(&golden, world, links(world)[0], dtype);
        // 5 sequences whose blocks do not overlap: sequence i takes blocks i, i + 7, i + 14, …
        let cases = &golden.cases[..5];
        let alone: Vec<_> =
            cases.iter().map(|case| bits(&ranks.full_rows(vec![sequence(&case.prompt, 0, 1)]))).collect();
        let together = ranks.full_rows(cases.iter().zip(0..).map(|(case, i)| sequence(&case.prompt, 0, i)).collect());
        assert_eq!(bits(&together), alone.concat(), "{model} nproc {world} {dtype:?}");
        // And one more token of each, beside a prompt that starts now.
        let mut mixed: Vec<_> = cases.iter().zip(0..).map(|(case, i)| sequence(&[7], case.prompt.len(), i)).collect();
        let decoded_alone: Vec<_> = mixed.iter().map(|s| bits(&ranks.full_rows(vec![s.clone()]))).collect();
        mixed.push(sequence(&cases[1].prompt, 0, 5));
        let together = bits(&ranks.full_rows(mixed));
        assert_eq!(together[..5], decoded_alone.concat()[..], "{model} nproc {world}");
        assert_eq!(together[5..], alone[1][..], "{model} nproc {world}");
        ranks.stop();
    }
}

#[test]
fn chunks_equal_the_whole() {
    let gpt2 = [("heads5", 1), ("heads7", 2), ("inner", 3)];
    let llama = [("llama-9-3", 5), ("qwen3-5-1", 2), ("mistral-8-2", 3)];
    for ((model, world), dtype) in each_type(&[gpt2, llama].concat()) {
        let golden = golden(model);
        let case = golden.cases.iter().max_by_key(|case| case.prompt.len()).unwrap();
        let mut ranks = Ranks::start(&golden, world, links(world)[0], dtype);
        let whole = bits(&ranks.full_rows(vec![sequence(&case.prompt, 0, 2)]));
        for chunk in [1, 5, 16, 17, 33] {
            let mut rows = Vec::new();
            for (i, tokens) in case.prompt.chunks(chunk).enumerate() {
                rows.extend(ranks.full_rows(vec![sequence(tokens, i * chunk, 3)]));
            }
            assert_eq!(bits(&rows), whole, "{} nproc {world}, chunks of {chunk}", case.name);
        }
        ranks.stop();
    }
}

/// `‖got − exact‖ / ‖exact‖` over all logits.
fn relative_error(got: &[Vec<f32>], exact: &[Vec<f32>]) -> f64 {
    let (mut error, mut signal) = (0.0, 0.0);
    for (got, exact) in got.iter().flatten().zip(exact.iter().flatten()) {
        error += f64::from(got - exact).powi(2);
        signal += f64::from(*exact).powi(2);
    }
    (error / signal).sqrt()
}

#[test]
fn rounded_types_stay_near_and_are_the_same_on_every_layout_of_hosts() {
    // A bf16 has 8 significant bits: relative rounding up to 2^-9 at each of a handful of products in a row. A byte has 7 below
    // the largest of its unit.
    for (model, (dtype, limit)) in MODELS.into_iter().flat_map(|m| [(m, (DType::Bf16, 0.02)), (m, (DType::Int8, 0.05))])
    {
        let golden = golden(model);
        let case = golden.cases.iter().max_by_key(|case| case.prompt.len()).unwrap();
        let mut of_links = Vec::new();
        // Sums of rounded contributions are of the same bits everywhere, too.
        let comm_dtype = if dtype == DType::Int8 { CommDType::Bf16 } else { CommDType::F32 };
        for hosts in [&[3][..], &[1, 1, 1], &[2, 1]] {
            let comm = if hosts.len() == 1 { CommKind::Shm } else { CommKind::Tcp };
            let order = LoadOrder { hosts: hosts.to_vec(), comm_dtype, ..load_order(&golden, None, comm, dtype) };
            let mut ranks = Ranks::start_with(order, 3);
            let rows = ranks.full_rows(vec![sequence(&case.prompt, 0, 5)]);
            ranks.stop();
            let relative = relative_error(&rows, &case.logits);
            assert!(relative < limit, "{} {hosts:?} {dtype:?}: relative error {relative}", case.name);
            assert!(relative > 1e-4, "{}: {dtype:?} cannot be this exact: is it f32?", case.name);
            of_links.push(bits(&rows));
        }
        assert!(of_links.iter().all(|bits| *bits == of_links[0]), "{model} {dtype:?}");
    }
}

#[test]
fn every_instruction_set_agrees() {
    let of_models = |isa| ["heads5", "llama-9-3", "llama3-15-5", "qwen3-5-1"].map(|model| (isa, model));
    for (isa, model) in nanoinfer_kernels::Isa::available().into_iter().flat_map(of_models) {
        let golden = golden(model);
        let cases = &golden.cases[..5];
        for dtype in [DType::F32, DType::Bf16, DType::Int8] {
            let what = format!("{model} {} {dtype:?}", isa.name());
            let mut ranks = Ranks::start_on(Some(isa.name()), &golden, 2, CommKind::Shm, dtype);
            let alone: Vec<_> =
                cases.iter().flat_map(|case| ranks.full_rows(vec![sequence(&case.prompt, 0, 1)])).collect();
            let together =
                ranks.full_rows(cases.iter().zip(0..).map(|(case, i)| sequence(&case.prompt, 0, i)).collect());
            ranks.stop();
            assert_eq!(bits(&together), bits(&alone), "{what}");
            let exact: Vec<_> = cases.iter().flat_map(|case| case.logits.clone()).collect();
            let limit = if dtype == DType::F32 { 1e-5 } else { 0.05 };
            assert!(
                relative_error(&alone, &exact) < limit,
                "{what}: relative error {}",
                relative_error(&alone, &exact)
            );
        }
    }
}

#[test]
fn an_instruction_set_that_is_not_there_is_named_with_those_that_are() {
    let golden = golden("tiny");
    let (mut link, theirs) = in_memory();
    let setup = RankSetup {
        link: theirs,
        identity: Identity { build_id: "test".into(), world: 1, rank: 0 },
        epoch: 0,
        memory: None,
        weights: None,
        data_host: "127.0.0.1".into(),
        data_ports: None,
        on_lost: OnLost::Return,
    };
    let rank = std::thread::spawn(move || run(setup));
    link.sender.send(ToRank::Load(Box::new(load_order(&golden, Some("sse9"), CommKind::Local, DType::F32)))).unwrap();
    let FromRank::Failed { reason, .. } = link.receiver.receive().unwrap() else { panic!("it cannot have loaded") };
    assert!(reason.contains("sse9") && reason.contains("portable"), "{reason}");
    rank.join().unwrap().unwrap_err();
}

#[test]
fn the_reference_agrees_with_transformers() {
    for model in MODELS {
        let golden = golden(model);
        let checkpoint = Checkpoint::open(&golden.weights).unwrap();
        let reference = Reference::load(&checkpoint, golden.shape.clone()).unwrap();
        for case in &golden.cases {
            let logits = reference.logits(&case.prompt).unwrap().to_vec2::<f32>().unwrap();
            assert_close(&logits, &case.logits, &case.name);
        }
    }
}

#[test]
fn answers_agree_with_full_rows() {
    for (model, world) in [("heads5", 1), ("heads5", 3), ("tiny", 3), ("heads7", 7), ("qwen2-14-2", 5)] {
        let golden = golden(model);
        let mut ranks = Ranks::start(&golden, world, links(world)[0], DType::F32);
        let case = &golden.cases[3];
        let targets: Vec<TokenId> = vec![0, 3, golden.shape.vocab_size as u32 - 1];
        let (k, temperature) = (6, 0.7);
        let mut plan = sequence(&case.prompt, 0, 0);
        let row = plan.tokens.len() as u32 - 1;
        let ask = |wants| RowRequest { row, wants };
        plan.outputs = vec![
            ask(Wants::Targets { ids: targets.clone(), top: k }),
            ask(Wants::Candidates { k, temperature, adjusted: targets.clone(), masked: None }),
        ];
        let outputs = ranks.step(vec![plan]);
        let logits = ranks.fetch(vec![1]).remove(0);

        let log_sum = |scale: f32, skip: &[TokenId]| {
            let terms = logits.iter().zip(0u32..).filter(|(_, id)| !skip.contains(id));
            terms.map(|(x, _)| f64::from(x * scale).exp()).sum::<f64>().ln()
        };
        let sorted = |skip: &[TokenId]| {
            let mut pairs: Vec<_> = (0u32..).zip(logits.iter().copied()).filter(|(id, _)| !skip.contains(id)).collect();
            pairs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            pairs.truncate(k as usize);
            pairs
        };
        let merged = |row: usize, lse: fn(&RowSlice) -> LogSumExp| {
            outputs.iter().map(|o| lse(&o.rows[row])).fold(LogSumExp::EMPTY, LogSumExp::merge).value()
        };
        let tops = |row: usize| {
            let mut pairs: Vec<_> = outputs.iter().flat_map(|o| o.rows[row].top.clone()).collect();
            pairs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            pairs.truncate(k as usize);
            pairs
        };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "{model}: {a} {b}");
        close(merged(0, |r| r.all), log_sum(1.0, &[]));
        close(merged(1, |r| r.all), log_sum(1.0, &[]));
        close(merged(1, |r| r.rest), log_sum(1.0 / temperature, &targets));
        assert_eq!(tops(0), sorted(&[]));
        assert_eq!(tops(1), sorted(&targets));
        for row in 0..2 {
            let listed: Vec<_> = outputs.iter().flat_map(|o| o.rows[row].listed.clone()).collect();
            assert_eq!(listed, targets.iter().map(|&id| (id, logits[id as usize])).collect::<Vec<_>>());
        }
        ranks.stop();
    }
}

#[test]
fn a_plan_that_does_not_fit_ends_the_rank_with_the_reason() {
    let golden = golden("heads5");
    let good = sequence(&[1, 2, 3], 0, 0);
    let broken = |change: fn(&mut SequenceStep)| {
        let mut plan = good.clone();
        change(&mut plan);
        plan
    };
    for (plan, word) in [
        (broken(|s| s.tokens[1] = 307), "token 307"),
        (broken(|s| s.tokens.clear()), "no tokens"),
        (broken(|s| s.start = 62), "position 64"),
        (broken(|s| s.blocks[0] = BlockId(40)), "BlockId(40)"),
        (broken(|s| s.blocks.clear()), "0 blocks"),
        (broken(|s| s.outputs = vec![RowRequest { row: 3, wants: greedy() }]), "row 3"),
        (broken(|s| s.tokens = vec![1; 300]), "300 tokens"),
        (broken(|s| (s.tokens, s.blocks) = (vec![1; 17], vec![s.blocks[0]; 2])), "written by two"),
    ] {
        let mut ranks = Ranks::start(&golden, 1, CommKind::Local, DType::F32);
        ranks.send(&ToRank::Step(StepPlan { step: 9, sequences: vec![plan], timed: false }));
        let failure = ranks.receive(|message| match message {
            FromRank::Failed { reason, .. } => reason,
            other => panic!("{other:?}"),
        });
        assert!(failure[0].contains(word) && failure[0].contains("step 9"), "{}", failure[0]);
        ranks.threads.remove(0).join().unwrap().unwrap_err();
    }
}
