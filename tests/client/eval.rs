//! `nanoinfer eval` against private servers: its numbers are those of transformers and torch.
//!
//! Golden numbers are in tests/data/eval, with the script that made them.

use std::{fs, path::PathBuf, process::Output};

use serde_json::Value;
use tempfile::TempDir;

use super::{nanoinfer, surroundings::Served, text};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(super) fn data(name: &str) -> String {
    root().join("tests/data/eval").join(name).display().to_string()
}

fn golden() -> Value {
    serde_json::from_str(&fs::read_to_string(data("golden.json")).unwrap()).unwrap()
}

/// Runs it and reads its report.
fn report(folder: &TempDir, arguments: &[&str]) -> (Output, Value) {
    let path = folder.path().join("report.json");
    let output =
        nanoinfer(&["eval", "--threads", "1", "--output", path.to_str().unwrap()]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    (output, serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
}

fn model(name: &str) -> String {
    let folder = if name == "nano-chat" { "launcher/demo" } else { "tests/golden" };
    root().join(folder).join(name).display().to_string()
}

#[test]
fn perplexities_are_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    for case in golden()["perplexity"].as_array().unwrap() {
        let (name, mode) = (case["model"].as_str().unwrap(), case["mode"].as_str().unwrap());
        let stride = case["stride"].as_u64().unwrap_or(16).to_string();
        let arguments =
            ["--model", &model(name), "--eval_set", &data("text.txt"), "--ppl-mode", mode, "--stride", &stride];
        let (_, report) = report(&folder, &arguments);
        for metric in ["ppl", "word_ppl", "byte_ppl", "bits_per_byte"] {
            let (ours, theirs) = (report["metrics"][metric].as_f64(), case[metric].as_f64());
            assert_eq!(ours.is_some(), theirs.is_some(), "{case}: {metric}");
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                let relative = (ours / theirs - 1.0).abs();
                assert!(relative <= 1e-4, "{case}: {metric} is {ours}, off by {relative:.1e}");
            }
        }
    }
}

#[test]
fn core_is_that_of_nanochats_algorithm_from_a_bundle_and_from_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("core_eval.json").display().to_string();
    let converted = nanoinfer(&["eval", "convert-bundle", &data("bundle"), &file]).output().unwrap();
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    let golden = &golden()["core"];
    for set in [&data("bundle"), &file] {
        let (output, report) = report(&folder, &["--model", "nano-chat", "--eval-set", set, "--log-items"]);
        for (label, theirs) in golden["tasks"].as_object().unwrap() {
            let ours = &report["tasks"][label];
            for number in ["accuracy", "centered"] {
                let difference = ours[number].as_f64().unwrap() - theirs[number].as_f64().unwrap();
                assert!(difference.abs() < 1e-12, "{set}, {label}: {ours}, not {theirs}");
            }
            assert_eq!(ours["n"], 14);
            let right =
                report["items"][label].as_array().unwrap().iter().filter(|item| item["correct"] == true).count();
            assert_eq!(ours["correct"], right);
        }
        let difference = report["metrics"]["core"].as_f64().unwrap() - golden["core"].as_f64().unwrap();
        assert!(difference.abs() < 1e-12, "{}", report["metrics"]);
        assert!(text(&output).contains("capitals_zeroshot"), "{}", text(&output));
    }
}

#[test]
fn core_of_a_checkpoint_of_nanochat_is_the_figure_that_nanochat_gives() {
    let golden = root().join("tests/golden/nanochat");
    let folder = tempfile::tempdir().unwrap();
    for file in ["E/model_000483.pt", "E/meta_000483.json", "tokenizer/tokenizer.pkl"].map(|file| golden.join(file)) {
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let theirs: Value = serde_json::from_slice(&fs::read(data("nanochat_core.json")).unwrap()).unwrap();
    let model = folder.path().display().to_string();
    let to = tempfile::tempdir().unwrap();
    let (_, report) = report(&to, &["--model", &model, "--dtype", "f32", "--eval-set", &data("bundle")]);
    let close = |ours: &Value, theirs: &Value, what: &str| {
        // It counts in f32.
        let difference = ours.as_f64().unwrap() - theirs.as_f64().unwrap();
        assert!(difference.abs() < 1e-7, "{what}: {ours}, not {theirs}");
    };
    for (task, accuracy) in theirs["results"].as_object().unwrap() {
        close(&report["tasks"][task]["accuracy"], accuracy, task);
        close(&report["tasks"][task]["centered"], &theirs["centered_results"][task], task);
    }
    close(&report["metrics"]["core"], &theirs["core_metric"], "core");
}

#[test]
fn eval_alone_says_something_true_about_the_built_in_model() {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = report(&folder, &[]);
    let metrics = &report["metrics"];
    // It was taught these facts, so it should know most of them.
    assert!(metrics["rouge1"].as_f64().unwrap() > 0.8 && metrics["bleu"].as_f64().unwrap() > 60.0, "{metrics}");
    assert!(metrics["ppl"].as_f64().unwrap() > 1.0);
    assert!(text(&output).contains("rougeLsum"));
    assert!(text(&output).contains("of the references alone, without the prompts"), "{}", text(&output));
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(!page.contains("Beside published numbers"), "those are of another corpus");
    assert!(page.contains("<svg") && !page.contains("src=") && !page.contains("href="), "it stands alone");
    assert!(!folder.path().join("report.json.partial").exists());
}

#[test]
fn a_server_that_wants_a_key_is_evaluated_with_it() {
    let served = Served::start(&["--api-key", "s3cret"]);
    // As clients have it: Ollama's without a scheme, OpenAI's with a version.
    let address = format!("{}/v1", served.address);
    let [without, with] = [&[][..], &["--api-key", "s3cret"]].map(|key| {
        nanoinfer(&["eval", "--url", &address, "--limit", "1", "--metrics", "ppl"]).args(key).output().unwrap()
    });
    let error = String::from_utf8_lossy(&without.stderr);
    assert!(error.contains("401") && error.contains("hint: --api-key KEY") && !error.contains("header"), "{error}");
    assert!(with.status.success() && text(&with).starts_with("ppl"), "{with:?}");
}

#[test]
fn verify_finds_any_number_of_ranks_equal_to_the_reference() {
    for name in ["heads5", "llama-9-3", "qwen3-5-1"] {
        // In f32 whatever servers compute in.
        let arguments = ["eval", "verify", "--model", &model(name), "--ranks", "1,2"];
        let output = nanoinfer(&arguments).env("NANOINFER_DTYPE", "bf16").output().unwrap();
        assert!(output.status.success(), "{}{}", text(&output), String::from_utf8_lossy(&output.stderr));
        assert!(text(&output).contains("all agree with the reference"), "{name}: {}", text(&output));
        let last: Value = serde_json::from_str(text(&output).lines().last().unwrap()).unwrap();
        for row in last["rows"].as_array().unwrap() {
            assert!(row["largest_difference"].as_f64().unwrap() < 1e-3 && row["first_difference"].is_null(), "{row}");
        }
    }
}

#[test]
fn what_a_set_cannot_give_is_refused_before_a_model_is_loaded() {
    for (arguments, word) in [
        (&["--eval_set", &data("text.txt"), "--metrics", "bleu"][..], "--metrics ppl"),
        (&["--eval_set", &data("bundle"), "--tasks", "copa"], "capitals_zeroshot"),
        (&["--eval_set", "no/such/set.json"], "no/such/set.json"),
    ] {
        let output = nanoinfer(&["eval"]).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn flags_named_on_the_evaluators_page_are_known() {
    let mut known = String::new();
    for verb in [&["eval", "--help"][..], &["eval", "verify", "--help"], &["eval", "speed", "--help"]] {
        known += text(&nanoinfer(verb).output().unwrap());
    }
    let page = fs::read_to_string(root().join("docs/evaluation.md")).unwrap();
    let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    // `--eval_set` is as good as `--eval-set`.
    let flags: Vec<String> = words
        .filter(|word| word.starts_with("--") && !word.starts_with("---"))
        .map(|word| word.replace('_', "-"))
        .collect();
    assert!(flags.len() > 10);
    for flag in flags {
        assert!(known.contains(&flag), "docs/evaluation.md names {flag}");
    }
}
