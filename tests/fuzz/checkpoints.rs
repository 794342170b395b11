//! Checkpoint files: opened, checked, and where they still pass, cut into a shard.

use std::{fs, path::Path};

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{ModelShape, Partition, protocol::DType};
use nanoinfer_worker::{Level, cpu::load::Shard};

use crate::{bound_memory, mutate::Mutator, root};

const ROUNDS: u64 = 1500;
/// Largest shape that is loaded: a broken file may describe a consistent model that is merely large.
const MAX_PARAMETERS: usize = 1 << 20;

/// Opens a file as a launcher and a rank do. Whether it passed.
fn use_file(path: &Path, config: &str) -> bool {
    let files = [path.to_path_buf()];
    let Ok(checkpoint) = Checkpoint::open(&files) else { return false };
    let Ok(shape) = ModelShape::from_config_json(checkpoint.config().unwrap_or(config)) else { return false };
    let shape = checkpoint.refine(shape);
    if checkpoint.check(&shape).is_err() || shape.parameters() > MAX_PARAMETERS {
        return false;
    }
    checkpoint.fingerprint();
    // Broken or not, it costs nothing but an error.
    let _ = checkpoint.tokenizer();
    let partition = Partition::new(&shape, 1).unwrap();
    // A byte of a weight may make it no number.
    Shard::load(&checkpoint, &shape, partition.share(0), DType::F32, &Level::choose(None).unwrap(), 1).is_ok()
}

#[test]
fn mutated_checkpoints_give_values_or_errors() {
    bound_memory();
    let dir = tempfile::tempdir().unwrap();
    let formats = root().join("tests/golden/formats");
    let words: [&[u8]; 13] = [
        b"cos\nsystem\n",
        b"(lp0\n",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"PK\x01\x02",
        b"PK\x06\x07",
        b"R",
        b"Q",
        b"\x93",
        b"\"",
        b"\x85\x85",
        b"\x09\0\0\0\x08\0\0\0",
        b"\0\0\0\0\0\0\0\x80",
        b"\x0e\0\0\0",
    ];
    for (number, file) in [
        "untied/model.safetensors",
        "dialogpt/pytorch_model.bin",
        "strided/pytorch_model.bin",
        "legacy/pytorch_model.bin",
        "nanogpt/ckpt.pt",
        "nanoinfer/model.pt",
        "../gguf/gpt2.gguf",
    ]
    .iter()
    .enumerate()
    {
        let seed = fs::read(formats.join(file)).unwrap();
        let config = fs::read_to_string(formats.join(file).with_file_name("config.json")).unwrap_or_default();
        let path = dir.path().join("checkpoint");
        fs::write(&path, &seed).unwrap();
        assert!(use_file(&path, &config), "{file} itself is good");
        let mut mutator = Mutator::new(number as u64);
        let mut passed = 0;
        for _ in 0..ROUNDS {
            fs::write(&path, mutator.mutated(&seed, &words)).unwrap();
            passed += u64::from(use_file(&path, &config));
        }
        assert!(passed < ROUNDS, "no mutation of {file} did any harm, which is no test");
    }
}
