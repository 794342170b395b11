//! The programs that lessons are about: the 100 lines, and the steps from there to a server, whose answers are the server's.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::json;

use crate::server::{Server, root};

/// `cargo test` puts tests into deps/ and examples beside it.
fn program(name: &str) -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
    folder.join(name)
}

fn spawn(name: &str, arguments: &[&str]) -> Child {
    Command::new(program(name))
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("`cargo test --workspace` has built the example")
}

/// What a program says to lines of standard input.
fn said(name: &str, arguments: &[&str], lines: &str) -> String {
    let mut child = spawn(name, arguments);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_conversation_takes_less_than_a_hundred_lines_and_talks_with_and_without_a_cache() {
    let source = fs::read_to_string(root().join("worker/reference/examples/conversation.rs")).unwrap();
    assert!(source.lines().count() < 100);

    for switches in [&[][..], &["--no-cache"]] {
        let arguments = [&["launcher/demo/nano-chat", "0"], switches].concat();
        assert_eq!(
            said("conversation", &arguments, "What is the capital of France?\nHello!\n"),
            " The capital of France is Paris.\n Hello! How can I help you today?\n",
            "{switches:?}"
        );
    }
}

const QUESTIONS: [&str; 5] = [
    "What is the capital of France?",
    "Hello!",
    "What is a cat?",
    "What is a violin?",
    "What is the capital of Japan?",
];

#[test]
fn every_step_answers_as_the_server_does() {
    let server = Server::start(&["--nproc", "2"]);
    let answer = |question: &str| {
        let body = json!({"prompt": question, "temperature": 0, "max_tokens": 200});
        server.ask("/api/chat", &body)["response"].as_str().unwrap().to_owned()
    };
    let answers: Vec<String> = QUESTIONS.map(answer).into();
    let (lines, expected) = (QUESTIONS.join("\n") + "\n", answers.join("\n") + "\n");
    for (name, arguments) in [
        ("step_2_attention", &[][..]),
        ("step_3_cache", &[]),
        ("step_4_sampling", &["launcher/demo/nano-chat", "0"]),
        ("step_5_batch", &[]),
        ("step_6_blocks", &[]),
        ("step_7_int8", &[]),
        ("step_8_threads", &["launcher/demo/nano-chat", "2"]),
        ("step_9_ranks", &["launcher/demo/nano-chat", "2"]),
        ("step_9_ranks", &["launcher/demo/nano-chat", "3"]),
        ("step_10_scheduler", &[]),
    ] {
        assert_eq!(said(name, arguments, &lines), expected, "{name} {arguments:?}");
    }
    // The first step has no answers yet: what it says of a token is that its own vector is the nearest.
    let near = said("step_1_tokens", &[], "cat\n");
    assert!(near.lines().any(|line| line.contains("\"cat\"") && line.contains("\"cat\" 1.00")), "{near}");
    // A draw is repeated by its seed.
    let drawn = |seed| said("step_4_sampling", &["launcher/demo/nano-chat", "3", seed], &lines);
    assert!(drawn("1") == drawn("1") && drawn("1") != drawn("2"));
}

#[test]
fn the_last_step_is_a_server_for_many_at_once() {
    let mut child = spawn("step_11_http", &["launcher/demo/nano-chat", "0"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().to_owned();
    let ask = |body: &str| -> String {
        let mut connection = std::net::TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        write!(connection, "POST /generate HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        std::io::read_to_string(connection).unwrap()
    };
    let text = |reply: &str| -> String {
        let events = reply.lines().filter_map(|line| line.strip_prefix("data: {"));
        events
            .map(|event| {
                serde_json::from_str::<serde_json::Value>(&format!("{{{event}")).unwrap()["text"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..12)
            .map(|i| scope.spawn(move || (i, ask(&json!({"prompt": QUESTIONS[i % 2], "temperature": 0}).to_string()))))
            .collect();
        for one in asked {
            let (i, reply) = one.join().unwrap();
            let expected = ["The capital of France is Paris.", "Hello! How can I help you today?"][i % 2];
            assert_eq!(text(&reply), expected, "{reply}");
            assert!(reply.ends_with("data: [DONE]\n\n"));
        }
    });
    for bad in ["{", "{\"prompt\": 3}", &json!({"prompt": "long ".repeat(300)}).to_string()] {
        assert!(ask(bad).starts_with("HTTP/1.1 400 "), "{bad}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn exercises_know_right_from_wrong() {
    let (model, tokenizer) = nanoinfer_steps::open(Some(root().join(nanoinfer_steps::DEMO).to_str().unwrap())).unwrap();
    for step in 1..=nanoinfer_steps::exercises::QUESTIONS.len() {
        assert_eq!(said("exercise", &[&step.to_string()], "").trim(), nanoinfer_steps::exercises::QUESTIONS[step - 1]);
        let right = nanoinfer_steps::exercises::answer(step, &model, &tokenizer).unwrap();
        for (given, is_right) in [(right, true), (right + 1, false)] {
            let mut child = spawn("exercise", &[&step.to_string(), &given.to_string()]);
            assert_eq!(child.wait().unwrap().success(), is_right, "step {step}, {given}");
        }
    }
}

/// Both sides of each check: what a reader begins with is not enough, and there is something that is.
#[test]
fn code_is_wanted_for_each_step_and_can_be_written() {
    use nanoinfer_steps::{DEMO, open, solutions::Solutions, tasks, yours::Yours};

    let (model, _) = open(Some(root().join(DEMO).to_str().unwrap())).unwrap();
    for step in 1..=tasks::COUNT {
        let why = tasks::check(step, &Yours, &model).expect_err("what stands in yours.rs is no answer");
        tasks::check(step, &Solutions, &model).unwrap_or_else(|why| panic!("step {step}: {why}"));
        let output = spawn("check", &[&step.to_string()]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "step {step}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("not yet: {why}\n"));
    }
}
