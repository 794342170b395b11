//! Every deployment example starts and answers, and what watches a server finds what it asks for.

use std::collections::BTreeSet;

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

#[test]
fn monitoring_asks_for_metrics_that_there_are() {
    let server = Server::start(&[]);
    server.ask("/api/chat", &json!({ "prompt": "Hello!", "temperature": 0 }));
    let (_, metrics) = server.get("/metrics");
    let there: BTreeSet<&str> = metrics.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    for file in ["dashboard.json", "rules.yml"] {
        let text = std::fs::read_to_string(root().join("configs/monitoring").join(file)).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        // Those with a colon are what rules record.
        let asked: BTreeSet<&str> =
            words.filter(|word| word.starts_with("nanoinfer_") && !word.contains(':')).collect();
        assert!(asked.len() > 5 && asked.is_subset(&there), "{file}: {:?}", asked.difference(&there));
    }
}
