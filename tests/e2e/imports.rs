//! The import rules of docs/architecture.md, read from the manifests.

use std::{collections::BTreeSet, fs};

use crate::server::root;

/// Our crates that `folder` depends on, dev-dependencies aside.
fn imports(folder: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let section =
        manifest.split("\n[").find(|section| section.starts_with("dependencies]")).unwrap_or_default().to_owned();
    let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| name.starts_with("nanoinfer")).map(str::to_owned).collect()
}

#[test]
fn imports_go_one_way() {
    for (folder, allowed) in [
        ("worker/kernels", &[][..]),
        ("shared", &[]),
        ("worker/checkpoint", &["nanoinfer-shared"]),
        ("worker/reference", &["nanoinfer-shared", "nanoinfer-checkpoint"]),
        ("worker", &["nanoinfer-shared", "nanoinfer-kernels", "nanoinfer-checkpoint"]),
        ("coordinator", &["nanoinfer-shared"]),
        ("launcher", &["nanoinfer-coordinator", "nanoinfer-worker", "nanoinfer-checkpoint", "nanoinfer-shared"]),
        ("eval", &["nanoinfer-shared"]),
        ("docs/learn/steps", &[]),
        (
            "client",
            &["nanoinfer-launch", "nanoinfer-eval", "nanoinfer-checkpoint", "nanoinfer-reference", "nanoinfer-steps"],
        ),
    ] {
        let allowed = allowed.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(imports(folder), allowed, "{folder}/Cargo.toml");
    }
}

#[test]
fn the_coordinator_links_no_tensor_library_and_the_worker_has_no_async() {
    let manifest = |folder: &str| fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    for library in ["candle", "safetensors", "half"] {
        assert!(!manifest("coordinator").contains(library), "the coordinator knows no {library}");
    }
    for folder in ["worker", "worker/checkpoint", "launcher", "shared"] {
        assert!(!manifest(folder).contains("candle"), "{folder} knows no candle");
    }
    for library in ["tokio", "futures", "axum"] {
        assert!(!manifest("worker").contains(library) && !manifest("shared").contains(library), "no {library} there");
    }
}
