//! Ranks on GPUs, without one: the real binary finds the libraries of `tests/fake_gpu`, whose driver runs the kernels' sources on the
//! CPU and logs what is asked of it. What a GPU's compiler makes of those sources is not tried here; `gpu-check` tries it.

use std::{fs, io::BufRead, path::Path, process::Command};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    bad_input::{copy_of_heads5, spoil},
    fake_gpu::{DRIVER, NCCL, compile, launcher_with, libraries, only},
    nanochat::{GENERATIONS, cache, golden_prompts},
    server::{Server, golden_folder, is_alive, root, run_to_end, send_signal},
};

const ADJUSTED: &str = r#"{"5": 2.0, "17": -100}"#;

/// A served golden model, and the log of its GPUs.
struct OnGpus {
    server: Server,
    folder: tempfile::TempDir,
    golden: Value,
}

impl OnGpus {
    fn start(model: &str, settings: &[(&str, &str)], arguments: &[&str]) -> Self {
        let path = golden_folder(model);
        let golden = fs::read_to_string(path.join("golden.json")).unwrap();
        Self::of(&path, serde_json::from_str(&golden).unwrap(), settings, arguments)
    }

    fn of(path: &Path, golden: Value, settings: &[(&str, &str)], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let max_seqs = if arguments.contains(&"--max-seqs") { &[][..] } else { &["--max-seqs", "4"] };
        let common = ["--model", path.to_str().unwrap(), "--device", "cuda", "--port", "0"];
        let mut command = launcher_with(libraries(), settings, &[&common, max_seqs, arguments].concat());
        command.env("FAKE_GPU_LOG", folder.path().join("log"));
        let mut server = Server::spawn(command);
        server.await_ready();
        Self { server, folder, golden }
    }

    /// The log from line `from` on.
    fn log(&self, from: usize) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap();
        text.lines().skip(from).map(str::to_owned).collect()
    }

    /// Asks for the golden ids of case `index`.
    fn check(&self, index: usize) {
        let case = &self.golden["cases"][index];
        let expected = case["greedy_ids"].as_array().unwrap();
        let body = json!({ "prompt": case["prompt_ids"], "max_tokens": expected.len(), "temperature": 0, "return_token_ids": true,
                           "ignore_eos": true, "calculator": false });
        assert_eq!(self.server.ask("/v1/completions", &body)["choices"][0]["token_ids"], case["greedy_ids"], "{index}");
    }

    fn stop(mut self) -> Vec<String> {
        self.server.signal(Signal::TERM);
        assert_eq!(self.server.wait().code(), Some(0), "{}", self.server.log());
        self.log(0)
    }
}

fn count(log: &[String], what: &str) -> usize {
    log.iter().filter(|line| line.starts_with(what)).count()
}

#[test]
fn golden_ids_come_out_of_captured_steps() {
    for (model, layers) in [("heads5", 2), ("heads7", 3), ("inner", 3), ("tiny", 1)] {
        let gpus = OnGpus::start(model, &[], &["--dtype", "f32"]);
        let log = gpus.log(0);
        // Batches of 1, 2 and 4. A layer is 5 kernels; outside: embedding, head, answers of parts and of rows.
        assert_eq!(count(&log, "captured "), 3, "{log:?}");
        assert_eq!(count(&log, &format!("captured {}", 5 * layers + 4)), 3, "{log:?}");

        for case in 0..5 {
            let before = gpus.log(0).len();
            gpus.check(case);
            let steps = gpus.log(before);
            let tokens = gpus.golden["cases"][case]["greedy_ids"].as_array().unwrap().len();
            // The first comes out of the prompt, which is a decode step too where it is one token.
            let is_decode = gpus.golden["cases"][case]["prompt_ids"].as_array().unwrap().len() == 1;
            assert_eq!(count(&steps, "graph of"), tokens - usize::from(!is_decode), "{model} {case}: {steps:?}");
            let decode = steps.iter().position(|line| line.starts_with("graph of")).unwrap();
            let launched = steps[decode..].iter().filter(|line| line.starts_with("launch"));
            assert_eq!(launched.count(), 0, "a decode step is a graph and nothing else");
            // A step brings back bytes: the head of an answer, one pair.
            assert!(steps[decode..].iter().all(|line| !line.starts_with("copy down") || line == "copy down 32"));
        }
        let log = gpus.stop();
        assert_eq!(log.last().unwrap(), "exit: 0 allocations, 0 graphs");
    }
}

/// Rotations, shared keys and values, gates, norms of heads, biases of a part, and windows.
#[test]
fn llama_and_its_kin_come_out_of_captured_steps() {
    for (model, nproc) in
        [("llama-9-3", "1"), ("llama-9-3", "2"), ("llama3-15-5", "1"), ("llama-yarn", "1"), ("mistral-8-2", "1")]
            .into_iter()
            .chain([("qwen2-14-2", "1"), ("qwen3-5-1", "1"), ("qwen3-5-1", "2")])
    {
        let settings = [("FAKE_GPU_DEVICES", nproc)];
        let gpus = OnGpus::start(model, &settings, &["--dtype", "f32", "--nproc", nproc]);
        (0..gpus.golden["cases"].as_array().unwrap().len().min(3)).for_each(|case| gpus.check(case));
        let log = gpus.stop();
        assert!(count(&log, "graph of") > 0 && count(&log, "launch turn") > 0, "{log:?}");
    }
}

/// Every generation, with prompts in chunks, alone and on two ranks.
#[test]
fn nanochat_comes_out_of_captured_steps() {
    for (i, generation) in GENERATIONS.into_iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        let (model, prompts) = (cache(root.path(), generation), golden_prompts(generation));
        let cases: Vec<Value> = prompts
            .iter()
            .map(|prompt| json!({ "prompt_ids": prompt["ids"], "greedy_ids": prompt["greedy"] }))
            .collect();
        let nproc = ["1", "2"][i % 2];
        let (settings, golden) = ([("FAKE_GPU_DEVICES", nproc)], json!({ "cases": cases }));
        let arguments = ["--dtype", "f32", "--nproc", nproc, "--max-batched-tokens", "64"];
        let gpus = OnGpus::of(Path::new(&model), golden, &settings, &arguments);
        (0..cases.len()).for_each(|case| gpus.check(case));
        assert!(count(&gpus.stop(), "graph of") > 0);
    }
}

/// The built-in model is sure enough of what it was taught that no type's rounding turns it. Its shortest golden answers, as the emulator
/// takes half a second a token.
#[test]
fn golden_ids_come_out_in_every_type() {
    let path = root().join("launcher/demo/nano-chat");
    let golden: Value = serde_json::from_str(&fs::read_to_string(path.join("golden.json")).unwrap()).unwrap();
    let mut cases = golden.as_array().unwrap().clone();
    cases.sort_by_key(|case| case["greedy_ids"].as_array().unwrap().len());
    for (dtype, nproc) in [("bf16", "1"), ("f16", "2"), ("int8", "2")] {
        let settings = [("FAKE_GPU_DEVICES", nproc)];
        let gpus = OnGpus::of(&path, json!({ "cases": cases }), &settings, &["--dtype", dtype, "--nproc", nproc]);
        (0..3).for_each(|case| gpus.check(case));
        assert!(count(&gpus.stop(), "graph of") > 0);
    }
}

/// Rows that a grammar masks are answered by the host, in one step with others that the GPU answers.
#[test]
fn a_grammar_allows_on_gpus_what_it_allows_on_cpus() {
    let path = root().join("launcher/demo/nano-chat");
    let gpus = OnGpus::of(&path, Value::Null, &[("FAKE_GPU_DEVICES", "2")], &["--dtype", "f32", "--nproc", "2"]);
    let cpu = Server::start(&["--dtype", "f32", "--nproc", "2"]);
    let question = "User: What is a cat?\nAssistant:";
    let free = json!({ "prompt": question, "max_tokens": 40, "temperature": 0, "ignore_eos": true });
    std::thread::scope(|threads| {
        let beside = threads.spawn(|| gpus.server.ask("/v1/completions", &free)["choices"][0]["text"].clone());
        for (grammar, is_whole) in [
            (json!({ "guided_choice": [" A dog.", " A small animal."] }), true),
            (json!({ "guided_regex": " [A-Z][a-z]{3,9} is [0-9]{2}" }), true),
            (json!({ "guided_json": { "type": "object", "properties": { "n": { "type": "integer" } } } }), false),
        ] {
            let mut body =
                json!({ "prompt": question, "max_tokens": 24, "temperature": 0.8, "seed": 3, "logprobs": 2 });
            body.as_object_mut().unwrap().extend(grammar.as_object().unwrap().clone());
            let [on_gpus, on_cpu] =
                [&gpus.server, &cpu].map(|server| server.ask("/v1/completions", &body)["choices"][0].take());
            assert_eq!(on_gpus["text"], on_cpu["text"], "{on_gpus}");
            assert_eq!(on_gpus["logprobs"]["tokens"], on_cpu["logprobs"]["tokens"]);
            assert!(!is_whole || on_gpus["finish_reason"] == "stop", "{on_gpus}");
        }
        assert_eq!(beside.join().unwrap(), cpu.ask("/v1/completions", &free)["choices"][0]["text"]);
    });
    gpus.stop();
}

/// Of models of every family, whose greedy ids are asked for in f32 above: in each type how likely those ids are, beside what the CPU says in
/// the same type, or in f32 where it has no such.
#[test]
fn every_type_gives_ids_the_probabilities_that_the_cpu_gives_them() {
    let root = tempfile::tempdir().unwrap();
    let nanochat = cache(root.path(), "E");
    let of = |model: &str| golden_folder(model).to_str().unwrap().to_owned();
    for (model, ids) in [
        (of("heads7"), (1..60).map(|i| i * 7 % 90).collect::<Vec<u32>>()),
        (of("qwen3-5-1"), (1..60).map(|i| i * 11 % 90).collect()),
        (nanochat, (1..60).map(|i| i * 13 % 250).collect()),
    ] {
        let body = json!({ "prompt": ids, "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 0 });
        let scores = |server: &Server| -> Vec<f64> {
            let answer = server.ask("/v1/completions", &body);
            let scores = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
            scores.iter().filter_map(Value::as_f64).collect()
        };
        for (dtype, on_cpu, tolerance) in
            // What is rounded half way may go the other way there: of bytes, and of bf16 in a model whose heads are normed.
            [("bf16", ["bf16", "bf16"], 0.2), ("f16", ["f32", "f32"], 0.04), ("int8", ["int8", "bf16"], 0.7)]
        {
            let common = ["--model", &model, "--max-seqs", "4", "--port", "0"];
            let on_cpu = ["--device", "cpu", "--dtype", on_cpu[0], "--kv-dtype", on_cpu[1]];
            let cpu = Server::start(&[&common[..4], &on_cpu].concat());
            let on_gpu = ["--device", "cuda", "--dtype", dtype, "--nproc", "2"];
            let gpu = launcher_with(libraries(), &[("FAKE_GPU_DEVICES", "2")], &[&common[..], &on_gpu].concat());
            let mut gpu = Server::spawn(gpu);
            gpu.await_ready();
            let (gpu, cpu) = (scores(&gpu), scores(&cpu));
            let worst = gpu.iter().zip(&cpu).map(|(gpu, cpu)| (gpu - cpu).abs()).fold(0.0, f64::max);
            println!("{model} in {dtype}: {worst:.4}");
            assert!(gpu.len() >= 58 && gpu.len() == cpu.len() && worst < tolerance, "{model} in {dtype}: {worst}");
        }
    }
}

#[test]
fn weights_that_are_no_numbers_do_not_reach_a_gpu() {
    let dir = tempfile::tempdir().unwrap();
    copy_of_heads5(dir.path());
    let arguments = ["--model", dir.path().to_str().unwrap(), "--device", "cuda", "--port", "0", "--dtype"];
    let weights = dir.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for (tensor, value, dtype, words) in [
        // Threads fill matrices; vectors come another way.
        ("h.1.mlp.c_fc.weight", f32::NAN, "bf16", "holds NaN (element [0, 0])"),
        ("ln_f.bias", f32::NEG_INFINITY, "f32", "holds -inf (element 0)"),
        ("wte.weight", 65520.0, "f16", "beyond f16"),
        ("h.0.attn.c_proj.weight", f32::MAX, "bf16", "beyond bf16"),
    ] {
        fs::write(&weights, &whole).unwrap();
        spoil(&weights, &format!("transformer.{tensor}"), value);
        let (status, log) = run_to_end(launcher_with(libraries(), &[], &[&arguments[..], &[dtype]].concat()));
        assert!(status.code() == Some(1) && log.contains(&format!("`{tensor}`")), "{log}");
        assert!(log.contains(words), "{log}");
    }
}

#[test]
fn a_batch_of_many_rows_has_the_bits_of_a_few() {
    let gpus = OnGpus::start("heads5", &[], &["--dtype", "f32", "--max-seqs", "65"]);
    // Two layers, of five kernels; of more than 64 rows, of two more, and of one more before the head.
    let log = gpus.log(0);
    assert_eq!((count(&log, "captured 14"), count(&log, "captured 19")), (7, 1), "{log:?}");
    let case = &gpus.golden["cases"][0];
    let expected = case["greedy_ids"].as_array().unwrap();
    let body = |texts: usize| {
        json!({ "prompt": vec![&case["prompt_ids"]; texts], "max_tokens": expected.len(), "temperature": 0, "logprobs": 1,
                "return_token_ids": true, "ignore_eos": true })
    };
    let choices =
        |texts: usize| gpus.server.ask("/v1/completions", &body(texts))["choices"].as_array().unwrap().clone();
    let alone = &choices(1)[0];
    assert_eq!(alone["token_ids"], case["greedy_ids"]);
    for choice in choices(65) {
        assert_eq!((&choice["token_ids"], &choice["logprobs"]), (&alone["token_ids"], &alone["logprobs"]));
    }
    assert!(count(&gpus.stop(), "graph of 19") > 0);
}

#[test]
fn two_ranks_share_a_gpu_through_the_hosts_memory() {
    let gpus = OnGpus::start("heads5", &[], &["--dtype", "f32", "--nproc", "2"]);
    (0..3).for_each(|case| gpus.check(case));
    gpus.server.await_line(r#"link="shared memory""#);
    let log = gpus.stop();
    assert_eq!(count(&log, "captured "), 0, "a step that needs the host cannot be captured");
    assert_eq!(count(&log, "nccl"), 0);
}

#[test]
fn ranks_with_a_gpu_each_add_up_within_their_graphs() {
    for (model, world, layers) in [("heads7", 2, 3), ("inner", 3, 3)] {
        let (nproc, devices) = (world.to_string(), world.to_string());
        let settings = [("FAKE_GPU_DEVICES", devices.as_str())];
        let gpus = OnGpus::start(model, &settings, &["--dtype", "f32", "--nproc", &nproc]);
        (0..3).for_each(|case| gpus.check(case));
        let log = gpus.stop();
        for rank in 0..world {
            assert_eq!(count(&log, &format!("nccl rank {rank} of {world}")), 1, "{log:?}");
        }
        // Of `inner` the last rank has no part of the MLP, and does without one of its kernels a layer.
        let nodes = 5 * layers + 4 + 2 * layers + 1;
        let whole = count(&log, &format!("captured {nodes}"));
        let without = count(&log, &format!("captured {}", nodes - layers));
        assert_eq!((whole, without), (3 * 2, 3 * (world - 2)), "{log:?}");
    }
}

#[test]
fn other_answers_come_from_the_gpu_as_from_the_cpu() {
    let path = golden_folder("heads7");
    let common = ["--model", path.to_str().unwrap(), "--max-seqs", "4", "--dtype", "f32"];
    let on_cpu = Server::start(&[&common[..], &["--device", "cpu"]].concat());
    let on_gpu = OnGpus::start("heads7", &[], &["--dtype", "f32"]);
    let bias: Value = serde_json::from_str(ADJUSTED).unwrap();
    for body in [
        // Every position scored: answers to rows that are not kept.
        json!({ "prompt": (0..40).collect::<Vec<_>>(), "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 5 }),
        // Ids left alone, a temperature, and several texts at once.
        json!({ "prompt": [1, 2, 3], "max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 7, "n": 3, "ignore_eos": true,
                "logit_bias": bias, "frequency_penalty": 0.3, "return_token_ids": true }),
        // Whole rows fetched.
        json!({ "prompt": [[4, 5], [6, 7, 8]], "max_tokens": 6, "temperature": 5.0, "seed": 1, "ignore_eos": true,
                "return_token_ids": true }),
    ] {
        let choices = |server: &Server| server.ask("/v1/completions", &body)["choices"].as_array().unwrap().clone();
        for (gpu, cpu) in choices(&on_gpu.server).iter().zip(&choices(&on_cpu)) {
            assert_eq!((&gpu["text"], &gpu["token_ids"]), (&cpu["text"], &cpu["token_ids"]), "{body}");
            let scores = |choice: &Value| {
                let scores = choice["logprobs"]["token_logprobs"].as_array().cloned().unwrap_or_default();
                scores.iter().filter_map(Value::as_f64).collect::<Vec<_>>()
            };
            let close = scores(gpu).iter().zip(scores(cpu)).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(close, "{:?} {:?}", scores(gpu), scores(cpu));
        }
    }
    on_gpu.stop();
}

#[test]
fn a_rank_that_dies_ends_its_peer_within_an_all_reduce() {
    let settings = [("FAKE_GPU_DEVICES", "2")];
    let exit = ["--dtype", "f32", "--nproc", "2", "--on-rank-loss", "exit"];
    let mut gpus = OnGpus::start("heads7", &settings, &exit);
    let body = json!({ "prompt": [1, 2], "max_tokens": 60, "ignore_eos": true, "stream": true });
    let (stream, _) = gpus.server.open_stream("/v1/completions", &body);
    let ranks = gpus.server.rank_pids();
    send_signal(ranks[1], Signal::KILL);
    assert_eq!(gpus.server.wait().code(), Some(1), "{}", gpus.server.log());
    assert!(gpus.server.log().contains("rank 1 was killed by signal 9"), "{}", gpus.server.log());
    assert!(!is_alive(ranks[0]), "it would wait for its peer for ever");
    drop(stream);
}

#[test]
fn a_lost_rank_takes_its_peer_along_and_both_come_again() {
    let settings = [("FAKE_GPU_DEVICES", "2")];
    let gpus = OnGpus::start("heads7", &settings, &["--dtype", "f32", "--nproc", "2"]);
    let body =
        json!({ "prompt": [1, 2], "max_tokens": 60, "temperature": 0, "ignore_eos": true, "return_token_ids": true });
    let undisturbed = gpus.server.ask("/v1/completions", &body)["choices"].clone();
    let streamed = json!({ "prompt": [1, 2], "max_tokens": 60, "ignore_eos": true, "stream": true });
    let (stream, _) = gpus.server.open_stream("/v1/completions", &streamed);
    let ranks = gpus.server.rank_pids();
    send_signal(ranks[1], Signal::KILL);
    assert_eq!(gpus.server.ask("/v1/completions", &body)["choices"], undisturbed, "{}", gpus.server.log());
    let events = stream.lines().map_while(Result::ok).collect::<Vec<_>>();
    assert!(events.iter().any(|line| line == "data: [DONE]"), "{events:?}");
    assert!(ranks.iter().all(|&rank| !is_alive(rank)), "{}", gpus.server.log());
    gpus.server.await_line("pools=Blank");
    gpus.stop();
}

#[test]
fn a_gpu_that_fails_ends_all_ranks_and_says_so() {
    let on = |gpus: &'static str, fault| [("FAKE_GPU_DEVICES", gpus), ("FAKE_GPU_FAULT", fault), ("FAULTY_GPU", "1")];
    let two = ["--dtype", "f32", "--nproc", "2"];
    // In a decode step: its graph holds NCCL's communicator, and the peer waits within its own.
    let mut gpus = OnGpus::start("heads7", &on("2", "graph of"), &two);
    let body = json!({ "prompt": [1, 2], "max_tokens": 60, "ignore_eos": true, "stream": true });
    // Which may fail before anything of its answer is sent.
    let stream = gpus.server.send("/v1/completions", &body);
    assert_eq!(gpus.server.wait().code(), Some(1), "{}", gpus.server.log());
    assert!(gpus.server.log().contains("rank 1: cannot finish a step"), "{}", gpus.server.log());
    drop(stream);

    // While graphs are captured.
    let path = golden_folder("heads7");
    let arguments = [&["--model", path.to_str().unwrap(), "--device", "cuda", "--port", "0"], &two[..]].concat();
    let (status, log) = run_to_end(launcher_with(libraries(), &on("2", "all-reduce"), &arguments));
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("rank 1: cannot"), "{log}");

    // The only rank, a thread of the server.
    let mut gpus = OnGpus::start("heads7", &[("FAKE_GPU_FAULT", "graph of")], &["--dtype", "f32"]);
    let stream = gpus.server.send("/v1/completions", &body);
    assert_eq!(gpus.server.wait().code(), Some(1), "{}", gpus.server.log());
    assert!(gpus.server.log().contains("rank 0: cannot finish a step"), "{}", gpus.server.log());
    drop(stream);
}

#[test]
fn a_gpu_that_cannot_be_opened_is_passed_over_unless_it_is_asked_for() {
    let settings = [("FAKE_GPU_DEVICES", "3"), ("FULL_GPU", "1")];
    for (arguments, expected, words) in [
        (
            &["--nproc", "2"][..],
            0,
            &["on GPU 0 (Emulated GPU 0), GPU 2 (Emulated GPU 2)", "without GPU 1: cannot open"][..],
        ),
        (&["--device", "cuda:2"], 0, &["on GPU 2 (Emulated GPU 2)\n"]),
        (&["--device", "cuda:1"], 2, &["GPU 1: cannot open", "out of memory"]),
    ] {
        let (code, text) = plan(libraries(), &settings, arguments);
        assert_eq!(code, Some(expected), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
    }
    let (code, text) = plan(libraries(), &[("FULL_GPU", "0")], &[]);
    assert!(code == Some(0) && text.contains("no GPU can be used: GPU 0: cannot open"), "{text}");
}

#[test]
fn kernels_that_a_driver_does_not_compile_are_told_with_its_words() {
    let path = golden_folder("heads7");
    let arguments = ["--model", path.to_str().unwrap(), "--device", "cuda", "--port", "0"];
    for (setting, words) in [
        ("FAKE_GPU_NO_COMPILER", ["cannot compile the kernels", "libnvidia-ptxjitcompiler.so.1", "container"]),
        ("FAKE_GPU_OLD_COMPILER", ["cannot compile the kernels", "ptxas fatal", "Unsupported .version"]),
    ] {
        let (status, log) = run_to_end(launcher_with(libraries(), &[(setting, "1")], &arguments));
        assert!(status.code() == Some(1) && words.iter().all(|word| log.contains(word)), "{log}");
    }
}

#[test]
fn nccl_of_a_newer_cuda_than_the_drivers_is_refused_in_words() {
    let settings = [("FAKE_GPU_DEVICES", "2"), ("FAKE_NCCL_CUDA", "13000")];
    let path = golden_folder("heads7");
    let arguments = ["--model", path.to_str().unwrap(), "--device", "cuda", "--port", "0", "--nproc", "2"];
    let (status, log) = run_to_end(launcher_with(libraries(), &settings, &arguments));
    assert_eq!(status.code(), Some(1), "{log}");
    for part in ["NCCL cannot join its peers", "driver version is insufficient", "--comm shm"] {
        assert!(log.contains(part), "{part} in {log}");
    }
}

/// What the launcher says with `--plan`, on stdout or stderr.
fn plan(folder: &Path, settings: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = launcher_with(folder, settings, &[&["--plan"], arguments].concat());
    let output = command.env_remove("NANOINFER_DTYPE").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn what_is_missing_is_named_and_auto_goes_on_with_the_cpu() {
    let (nothing, no_nccl) = (only(&[]), only(&[DRIVER]));
    let stub = only(&[]);
    let source = stub.path().join("empty.c");
    fs::write(&source, "int nothing_at_all;\n").unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(stub.path().join(DRIVER)).arg(&source).status();
    assert!(made.unwrap().success());
    let all = libraries();
    for (folder, settings, words) in [
        (nothing.path(), &[][..], &["no CUDA driver", "libcuda.so.1", "LD_LIBRARY_PATH"][..]),
        (stub.path(), &[], &["libcuda.so.1 has no cuInit", "stub"]),
        (all, &[("FAKE_GPU_STUB", "1")], &["libcuda.so is a stub", "LD_LIBRARY_PATH"]),
        (all, &[("FAKE_GPU_DEVICES", "0")], &["sees no GPU"]),
        (all, &[("FAKE_GPU_DRIVER", "11080")], &["driver is of CUDA 11.8", "need 12.0"]),
        (all, &[("FAKE_GPU_CAPABILITY", "75")], &["GPU 0 (Emulated GPU 0)", "capability 7.5", "need 8.0"]),
    ] {
        let (code, text) = plan(folder, settings, &["--device", "cuda"]);
        assert_eq!(code, Some(2), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
        assert!(!text.contains("panicked"), "{text}");

        let (code, text) = plan(folder, settings, &[]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("on the CPU, as no GPU can be used: ") && text.contains(words[0]), "{text}");
        let (code, text) = plan(folder, settings, &["--device", "cpu"]);
        assert!(code == Some(0) && text.contains("\non the CPU\n"), "{text}");
    }

    let (code, text) = plan(all, &[], &["--device", "cuda:3"]);
    assert!(code == Some(2) && text.contains("no GPU 3: the driver sees 1"), "{text}");
    let two = [("FAKE_GPU_DEVICES", "2")];
    let (_, text) = plan(no_nccl.path(), &two, &["--nproc", "2"]);
    assert!(text.contains("data link shared memory") && text.contains("no NCCL: looked for libnccl.so.2"), "{text}");
    let (code, text) = plan(no_nccl.path(), &two, &["--nproc", "2", "--comm", "nccl"]);
    assert!(code == Some(2) && text.contains("no NCCL") && text.contains("--comm shm"), "{text}");
    let (_, text) = plan(all, &two, &["--nproc", "2"]);
    assert!(text.contains("data link NCCL") && text.contains("GPU 1 (Emulated GPU 1)"), "{text}");
    assert!(text.contains("not run on hardware"), "{text}");
    // Where PyTorch brings it, which no linker looks through.
    let environment = tempfile::tempdir().unwrap();
    let packages = environment.path().join("lib/python3.11/site-packages/nvidia/nccl/lib");
    fs::create_dir_all(&packages).unwrap();
    fs::copy(all.join(NCCL), packages.join(NCCL)).unwrap();
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        let settings = [two[0], (variable, environment.path().to_str().unwrap())];
        let (_, text) = plan(no_nccl.path(), &settings, &["--nproc", "2"]);
        assert!(text.contains("data link NCCL"), "{text}");
    }
}

#[test]
fn too_little_memory_is_told_before_anything_is_loaded() {
    let settings = [("FAKE_GPU_MEMORY", "40000000")];
    let (code, text) = plan(libraries(), &settings, &["--device", "cuda"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("warning: the ranks need") && text.contains("GPU 0 (Emulated GPU 0) has 38.1 MiB free"),
        "{text}"
    );
    let (code, text) = plan(libraries(), &settings, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("on the CPU, as no GPU can be used: the ranks need"), "{text}");
    // Context and kernels take some too, beside what we allocate.
    let (_, text) = plan(libraries(), &[("FAKE_GPU_MEMORY", "500000000")], &["--device", "cuda"]);
    assert!(text.contains("warning: the ranks need"), "{text}");
    let (status, log) = run_to_end(launcher_with(libraries(), &settings, &["--device", "cuda", "--port", "0"]));
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("GPU 0 (Emulated GPU 0) has"), "{log}");
}

#[test]
fn the_check_passes_here_and_fails_where_something_is_wrong() {
    let check_with = |folder: &Path, settings: &[(&str, &str)], arguments: &[&str]| {
        let output = launcher_with(folder, settings, &[&["gpu-check"], arguments].concat()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let check = |folder: &Path, settings: &[(&str, &str)]| check_with(folder, settings, &[]);
    let (code, text) = check_with(libraries(), &[], &["--only", "decode", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["what"] == "QKV, 320 to 960, one row" && line["passed"].is_null()), "{text}");
    assert_eq!(lines.last().unwrap()["failed"], 0);
    let (code, text) = check(libraries(), &[("FAKE_GPU_DEVICES", "2")]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("\nGPU 0 passed: ") && text.lines().last().unwrap().starts_with("GPU 1 passed: "), "{text}");
    for part in [
        "bf16: attend_128, rows in tiles",
        "f16: project 37 rows, partial sums, as many",
        "f16: gpt2, captured steps",
        "bf16: nanochat, captured steps",
        "int8: 37 rows of 240 in units of 80, project_many",
        "int8: llama, steps on the GPU and on the CPU",
        "NCCL, version 22809, GPUs 0 and 1",
        "NCCL, version 22809, the same captured",
        "two ranks on this GPU",
        "GB/s",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }

    // Half of the exchange between lanes left out: a fault that only some kernels show.
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let settings = [("FAKE_GPU_LOG", log.to_str().unwrap())];
    let (code, text) = check(&compile("broken", &["-DBROKEN_SHUFFLE"]), &settings);
    assert_eq!(code, Some(1), "{text}");
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.lines().filter(|line| *line == "context 0").count(), 2, "one to look, one for the whole check");
    assert!(text.contains("FAILED  bf16: attend_64") && text.contains("ok      f32: embed"), "{text}");
    assert!(text.lines().last().unwrap().starts_with("GPU 0 FAILED: "), "{text}");
    assert!(text.contains("which one GPU does not need") && text.contains("loads and joins"), "{text}");
}
