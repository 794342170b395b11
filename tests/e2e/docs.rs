//! What the documents name exists: files, links, flags.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::server::{launcher, root};

/// The documents that describe the present; docs/log.md tells the past.
fn documents() -> Vec<PathBuf> {
    let mut documents =
        vec![root().join("README.md"), root().join("README.zh-CN.md"), root().join("THIRD-PARTY-NOTICES.md")];
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    documents.extend(docs.filter(|path| path.extension().is_some_and(|e| e == "md") && !path.ends_with("log.md")));
    documents
}

/// Paths of all files and folders, from the workspace's root, without what is built.
fn tree(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        into.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        if path.is_dir() {
            tree(&path, into);
        }
    }
}

/// The words in backticks of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// docs/walk.md says how long the way is.
#[test]
fn the_walk_is_as_long_as_it_says() {
    let walk = fs::read_to_string(root().join("docs/walk.md")).unwrap();
    let rows = walk.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut all = 0;
    for (file, rest) in rows {
        let said: usize = rest.split(' ').next().unwrap().parse().unwrap();
        let text = fs::read_to_string(root().join(file)).unwrap();
        let lines = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().lines().count();
        assert!(
            lines.abs_diff(said) * 10 <= lines,
            "docs/walk.md says that {file} has {said} lines, and it has {lines}"
        );
        all += lines;
    }
    assert!(walk.contains("some 3,900 lines") && (3_000..4_000).contains(&all), "the walk has {all} lines");
}

#[test]
fn files_named_in_the_documents_exist() {
    let mut all = Vec::new();
    tree(&root(), &mut all);
    let exists = |name: &str| {
        let name = name.trim_end_matches(['/', '*']).trim_end_matches('/');
        all.iter().any(|path| path == name || path.ends_with(&format!("/{name}")))
    };
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let is_source = |word: &&str| {
            !word.contains([' ', '{', '(']) && (word.ends_with(".rs") || word.ends_with('/') || word.ends_with("/*"))
        };
        for word in quoted(&text).filter(is_source) {
            // `/` alone is a route.
            assert!(word == "/" || exists(word), "{} names {word}", document.display());
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = document.parent().unwrap().join(link);
            assert!(link.starts_with("http") || target.exists(), "{} links to {link}", document.display());
        }
    }
}

#[test]
fn flags_named_in_the_documents_are_known() {
    let mut known = BTreeSet::new();
    let verbs = [&[][..], &["node"], &["gpu-check"]];
    for verb in verbs {
        let command: Vec<_> = verb.iter().copied().chain(["--help"]).collect();
        let output = launcher(&command).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        known.extend(flags(&text).map(str::to_owned));
    }
    assert!(known.contains("--nproc") && known.contains("--secret-file"), "{known:?}");
    // cargo's, and of `nanoinfer generate`, which tests/client covers.
    let others = [
        "--release",
        "--bin",
        "--workspace",
        "--path",
        "--example",
        "--format",
        "--prompt",
        "--explain",
        "--json",
        "--json-schema",
        "--stream",
        "--test",
        // Of worker/kernels/cuda/build_ptx.py.
        "--check",
        // Of packaging/make.py.
        "--built",
        "--url",
        "--all-targets",
        "--nocapture",
    ];
    // The evaluator's page names flags of `nanoinfer eval`, which tests/client covers.
    for document in documents().into_iter().filter(|document| !document.ends_with("docs/evaluation.md")) {
        let text = fs::read_to_string(&document).unwrap();
        for flag in flags(&text).filter(|flag| !others.contains(flag)) {
            assert!(known.contains(flag), "{} names {flag}", document.display());
        }
    }
}

/// Words like `--flag`.
fn flags(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.len() > 3 && word.starts_with("--") && word.as_bytes()[2].is_ascii_lowercase())
}
