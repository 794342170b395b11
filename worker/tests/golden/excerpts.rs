//! A copy with nothing but what some shares read, and marks that are no numbers in all other places, is the checkpoint to them.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{ModelShape, Partition, Share, model::parts::Part, protocol::DType};
use nanoinfer_worker::{Level, cpu::load::Shard};

use crate::{MODELS, folder, formats, golden, nanochat};

/// Fills a folder with what `shares` read, and returns the paths in it.
fn copy(weights: &[PathBuf], shape: &ModelShape, shares: &[Share], to: &Path) -> Vec<PathBuf> {
    let slices = Part::all(shape).flat_map(|part| shares.iter().map(move |share| (part, share.of_part(shape, part))));
    for excerpt in Checkpoint::open(weights).unwrap().excerpts(shape, slices).unwrap() {
        let mut bytes = vec![0xff; excerpt.len];
        for range in &excerpt.ranges {
            excerpt.file.read_exact_at(&mut bytes[range.clone()], range.start as u64).unwrap();
        }
        fs::write(to.join(excerpt.path.file_name().unwrap()), bytes).unwrap();
    }
    weights.iter().map(|path| to.join(path.file_name().unwrap())).collect()
}

#[test]
fn what_shares_read_of_every_format_and_family_is_all_that_their_ranks_need() {
    let of_gguf = |file: &str| {
        let path = folder("gguf").join(file);
        let checkpoint = Checkpoint::open(std::slice::from_ref(&path)).unwrap();
        let shape = checkpoint.refine(ModelShape::from_config_json(checkpoint.config().unwrap()).unwrap());
        (vec![path], shape)
    };
    let mut all: Vec<_> = MODELS.map(|model| (golden(model).weights.clone(), golden(model).shape.clone())).into();
    all.extend(formats::cases().into_iter().map(|golden| (golden.weights, golden.shape)));
    all.extend(nanochat::FOLDERS.map(nanochat::load).map(|golden| (golden.weights, golden.shape)));
    let by_index = |(files, shape): &(Vec<PathBuf>, ModelShape)| {
        (vec![files[0].with_file_name("model.safetensors.index.json")], shape.clone())
    };
    let split = all.iter().find(|(files, _)| files.len() == 2).map(by_index);
    all.push(split.expect("one is split"));
    all.extend(["gpt2.gguf", "llama-00001-of-00002.gguf", "qwen2.gguf", "qwen3.gguf"].map(of_gguf));
    let level = Level::choose(None).unwrap();
    for (weights, shape) in &all {
        let whole = Checkpoint::open(weights).unwrap();
        let world = shape.attention.heads.min(3);
        let partition = Partition::new(shape, world).unwrap();
        // One of a host by itself, and two together.
        for shares in [&partition.shares()[world - 1..], &partition.shares()[..world.min(2)]] {
            let dir = tempfile::tempdir().unwrap();
            let files = copy(weights, shape, shares, dir.path());
            let context = format!("{}: {world} ranks", weights[0].display());
            let there = Checkpoint::open(&files).unwrap_or_else(|error| panic!("{context}: {error}"));
            there.check(shape).unwrap();
            assert_eq!(there.fingerprint(), whole.fingerprint(), "{context}");
            for share in shares {
                for part in Part::all(shape) {
                    let [rows, columns] = share.of_part(shape, part);
                    let read = |from: &Checkpoint| {
                        let mut tile = Vec::new();
                        let slice = from.part(shape, part).unwrap();
                        slice.read_tile(rows.clone(), columns.clone(), &mut tile).map(|()| tile)
                    };
                    assert_eq!(read(&there).unwrap(), read(&whole).unwrap(), "{context}: {part:?}");
                }
                // Whatever else it read would be no number.
                Shard::load(&there, shape, share, DType::F32, &level, 1)
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
            }
        }
    }
}
