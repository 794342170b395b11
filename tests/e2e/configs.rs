//! Every deployment example starts and answers.

use serde_json::json;

use crate::server::{Server, root};

#[test]
fn every_file_in_configs_starts() {
    let mut files: Vec<_> =
        std::fs::read_dir(root().join("configs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    assert!(!files.is_empty());
    for file in files {
        let server = Server::start(&["--config", file.to_str().unwrap()]);
        let answer = server.ask("/api/chat", &json!({ "prompt": "Hello!", "temperature": 0 }));
        assert!(!answer["response"].as_str().unwrap().is_empty(), "{}", file.display());
    }
}
