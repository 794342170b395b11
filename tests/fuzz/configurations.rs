//! JSON that decides sizes and names of files.

use std::fs;

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_launch::model::{Caches, HubAccess, resolve};
use nanoinfer_shared::ModelShape;

use crate::{bound_memory, mutate::Mutator, root};

const ROUNDS: u64 = 3000;
const WORDS: [&[u8]; 8] = [b"null", b"-1", b"1e308", b"[", b"{", b"\"", b"../", b"18446744073709551616"];

#[test]
fn mutated_configurations_give_values_or_errors() {
    bound_memory();
    let seed = fs::read(root().join("tests/golden/inner/config.json")).unwrap();
    let mut mutator = Mutator::new(1);
    for _ in 0..ROUNDS {
        let text = mutator.mutated(&seed, &WORDS);
        if let Ok(shape) = ModelShape::from_config_json(&String::from_utf8_lossy(&text)) {
            assert!(shape.attention.head_dim * shape.attention.heads == shape.width && shape.parameters() > 0);
        }
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    ModelShape::from_config_json(&deep).unwrap_err();
}

#[test]
fn mutated_indexes_never_leave_their_folder() {
    bound_memory();
    let dir = tempfile::tempdir().unwrap();
    let from = root().join("tests/golden/formats/split-safetensors");
    for entry in fs::read_dir(&from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(root().join("tests/golden/tiny").join(file), dir.path().join(file)).unwrap();
    }
    let hub = HubAccess::offline(dir.path().join("hub"));
    let caches = Caches { demo: Vec::new(), hub };
    let name = dir.path().to_str().unwrap();
    resolve(Some(name), None, &caches).unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let seed = fs::read(&index).unwrap();
    let mut mutator = Mutator::new(2);
    for _ in 0..ROUNDS / 4 {
        fs::write(&index, mutator.mutated(&seed, &WORDS)).unwrap();
        if let Ok(model) = resolve(Some(name), None, &caches) {
            let checkpoint = Checkpoint::open(&model.weights).unwrap();
            assert!(checkpoint.files().all(|path| path.parent() == Some(dir.path())), "{:?}", model.weights);
        }
    }
}
