//! Broken and hostile files and frames, by the thousand: every reader of a model's files and of a socket answers with a value or
//! an error.
//!
//! Real files and frames are mutated by a seeded generator, so that a failure repeats. No panic, no abort, no endless loop; the
//! process may not grow by more than `ROOM_BYTES`, so that a size that a file claims cannot be allocated on its word. Index:
//! - `checkpoints`: safetensors, zip and legacy files of torch, their pickles, GGUF files
//! - `text`: tokenizer.json, vocab.json, merges.txt, tokenizer_config.json, tokenizer.pkl, chat templates
//! - `configurations`: config.json, the index of a split checkpoint
//! - `hostile`: pickles, archives and headers made to do harm; each error names the reason
//! - `links`: frames of the control link at both ends, handshakes, orders to a rank at every stage of its life
//! - `counting`: what they cost, in bytes asked for

mod counting;
mod mutate;
#[path = "../zip.rs"]
mod zip;

mod checkpoints;
mod configurations;
mod hostile;
mod links;
mod text;

use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How much the process may reserve besides: the files are below 1 MB, but ranks reserve 1 GB and templates as much, most of which is
/// never touched.
const ROOM_BYTES: u64 = 3 << 30;

/// From now on an allocation far beyond what is in use ends the process, and with it the test.
fn bound_memory() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")).unwrap();
        let limit = Some((size.trim().parse::<u64>().unwrap() << 10) + ROOM_BYTES);
        let maximum = getrlimit(Resource::As).maximum;
        setrlimit(Resource::As, Rlimit { current: limit, maximum }).unwrap();
    });
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
