//! The program of `worker/reference/examples/conversation.rs`: from checkpoint to conversation.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use crate::server::root;

#[test]
fn the_conversation_takes_less_than_a_hundred_lines_and_talks_with_and_without_a_cache() {
    let source = fs::read_to_string(root().join("worker/reference/examples/conversation.rs")).unwrap();
    assert!(source.lines().count() < 100);

    // `cargo test` puts tests into deps/ and examples beside it.
    let folder = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
    for switches in [&[][..], &["--no-cache"]] {
        let mut child = Command::new(folder.join("conversation"))
            .args(["launcher/demo/nano-chat", "0"])
            .args(switches)
            .current_dir(root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`cargo test --workspace` has built the example");
        child.stdin.take().unwrap().write_all(b"What is the capital of France?\nHello!\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            " The capital of France is Paris.\n Hello! How can I help you today?\n",
            "{switches:?}"
        );
    }
}
