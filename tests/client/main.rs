//! `nanoinfer` as a user runs it: text on standard output and nothing else.

mod checkpoints;
mod eval;
mod learn;
mod surroundings;
#[path = "../hub.rs"]
#[allow(dead_code, reason = "its worse manners are for the launcher's own tests")]
mod hub;

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

fn nanoinfer(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nanoinfer"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Golden data is of f32, which the default is not on every CPU.
    command.env("NANOINFER_DTYPE", "f32");
    command
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn generate_starts_a_private_server_and_prints_the_answer_only() {
    for arguments in [&["--nproc", "2"][..], &["--stream"]] {
        let common =
            ["generate", "--model", "nano-chat", "--prompt", "What is the capital of France?", "--temperature", "0"];
        let output = nanoinfer(&[&common[..], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text(&output), "The capital of France is Paris.\n", "{arguments:?}");
    }
}

#[test]
fn generate_reads_its_prompt_from_a_pipe() {
    let mut command = nanoinfer(&["generate", "--temperature", "0"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"What is the capital of France?").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output), "The capital of France is Paris.\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn generate_explains_every_token_on_every_rank() {
    let prompt = ["generate", "--prompt", "What is the capital of France?", "--seed", "1", "--nproc", "2", "--explain"];
    for arguments in [&[][..], &["--stream"]] {
        let output = nanoinfer(&[&prompt[..], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = text(&output);
        for part in ["> \" Par\"", "temperature 0.3: changed 4096 logits", "top_p 0.9: removed", "removed by top_p"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let tokens = text.matches("   alternatives").count();
        assert!(tokens > 5 && text.matches("rank 0    rank 1").count() == tokens, "{text}");
        for stage in ["QKV", "attention", "all-reduce: MLP projection", "LM head", "the step, on the rank"] {
            assert_eq!(text.matches(&format!("     {stage} ")).count(), tokens, "{stage}: {text}");
        }
    }
}

#[test]
fn what_is_wrong_is_said_on_standard_error() {
    for (arguments, code, word) in [
        (&["generate", "--prompt", "a", "--model", "./no/such/folder"][..], 2, "no/such/folder"),
        (&["generate", "--prompt", "a", "--url", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (&["generate", "--prompt", "a", "--url", "http://127.0.0.1:9", "--nproc", "2"], 2, "--nproc"),
        (&["generat"], 2, "generate"),
        (&["bench", "decode", "--prompt-tokens", "18446744073709551615"], 2, "for '--prompt-tokens <N>'"),
        (&["bench", "decode", "--prompt-tokens", "4294967295"], 2, "4294967359 tokens a sequence do not fit"),
        (&["inspect", "nano-chat", "--nproc", "18446744073709551615"], 2, "more than the model's 8 attention heads"),
        (&["eval", "--temperature", "nan"], 2, "'nan' for '--temperature <T>': it should be a number from 0 to 100"),
        (&["eval", "--max-tokens", "0"], 2, "'0' for '--max-tokens <N>'"),
        (&["eval", "--output", "report.html"], 2, "report.html is where the page goes"),
        (&["chat", "gpt2"], 2, "hint: a model is named with --model"),
        (&["lesson", "1", "--model", "./no/such/folder"], 2, "no/such/folder"),
        (&["lesson", "1", "--dtype", "f23"], 2, "'f23' for '--dtype"),
        (&["lesson", "1", "--html", "/no/such/folder/page"], 1, "/no/such/folder/page"),
    ] {
        let output = nanoinfer(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(word) && output.stdout.is_empty(), "{arguments:?}: {error}");
        assert_eq!(error.matches("error: ").count(), 1, "{arguments:?}: {error}");
    }
}

#[test]
fn what_the_server_changed_is_said_beside_the_answer() {
    for streamed in [&[][..], &["--stream"]] {
        let ask =
            ["generate", "--prompt", "What is the capital of France?", "--temperature", "0", "--max-tokens", "999"];
        let output = nanoinfer(&[&ask[..], streamed].concat()).output().unwrap();
        let notes = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text(&output), "The capital of France is Paris.\n", "{notes}");
        assert!(notes.starts_with("note: max_tokens 999 was cut to"), "{notes}");
    }
}

#[test]
fn the_version_names_the_build() {
    let output = nanoinfer(&["--version"]).output().unwrap();
    assert!(text(&output).starts_with("nanoinfer 0.1.0 (build 0.1.0+"), "{}", text(&output));
}
