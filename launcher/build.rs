//! Names the build: package version, commit, and the digest of the embedded demo model.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Source folders of the workspace: the build is `-dirty` when they differ from the commit.
const SOURCES: [&str; 6] = ["Cargo.lock", "shared", "worker", "coordinator", "launcher", "client"];

fn main() {
    let package = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let workspace = package.parent().expect("the launcher lies in the workspace");
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());
    for crate_folder in &SOURCES[1..] {
        for part in ["src", "Cargo.toml", "kernels", "demo", "build.rs"] {
            let path = workspace.join(crate_folder).join(part);
            if path.exists() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    println!("cargo::rustc-env=NANOINFER_BUILD_ID={version}+{}", commit(workspace).unwrap_or("src".into()));
    println!("cargo::rustc-env=NANOINFER_DEMO_DIGEST={:016x}", digest(&package.join("demo/nano-chat")));
}

/// Short commit of the workspace, with `-dirty` where its sources were changed since; none outside of git.
fn commit(workspace: &Path) -> Option<String> {
    // A source archive unpacked inside another repository must not take that one's name.
    if fs::canonicalize(git(workspace, &["rev-parse", "--show-toplevel"])?).ok()? != fs::canonicalize(workspace).ok()? {
        return None;
    }
    let short = git(workspace, &["rev-parse", "--short=10", "HEAD"])?;
    for file in ["HEAD", "logs/HEAD"] {
        let path = workspace.join(git(workspace, &["rev-parse", "--git-path", file])?);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let status = ["status", "--porcelain", "--untracked-files=no", "--"];
    let changes = git(workspace, &[&status[..], &SOURCES[..]].concat())?;
    Some(if changes.is_empty() { short } else { format!("{short}-dirty") })
}

fn git(folder: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(folder).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// FNV-1a over names and contents of the files: it names a cache folder, it protects nothing.
fn digest(folder: &Path) -> u64 {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the demo model lies in launcher/demo/nano-chat")
        .map(|entry| entry.expect("a folder can be listed").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let name = file.file_name().expect("a file has a name").as_encoded_bytes().to_vec();
        let content = fs::read(&file).expect("the demo model can be read");
        for byte in name.into_iter().chain(content) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    hash
}
