//! Checkpoints that ranks do not load: weights that are no numbers, that do not fit a type, or that are not the coordinator's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nanoinfer_checkpoint::{Checkpoint, CheckpointError};
use nanoinfer_shared::{Partition, protocol::*};
use nanoinfer_worker::{Level, cpu::load::Shard};
use safetensors::SafeTensors;

use crate::{
    golden,
    ranks::{Golden, Ranks, load_order},
};

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::Int8];

/// heads5, in f32, to be spoiled.
struct Spoiled {
    golden: std::sync::Arc<Golden>,
    whole: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Spoiled {
    fn new() -> Self {
        let golden = golden("heads5");
        Self { whole: fs::read(&golden.weights[0]).unwrap(), golden, dir: tempfile::tempdir().unwrap() }
    }

    /// Names of all tensors, and their sizes.
    fn tensors(&self) -> Vec<(String, usize)> {
        let file = SafeTensors::deserialize(&self.whole).unwrap();
        file.iter().map(|(name, view)| (name.to_owned(), view.data().len() / 4)).collect()
    }

    /// A file in which `change` was made to elements of the tensors whose names end so.
    fn file(&self, ending: &str, change: impl Fn(usize, f32) -> f32) -> PathBuf {
        let mut bytes = self.whole.clone();
        let file = SafeTensors::deserialize(&self.whole).unwrap();
        for (_, view) in file.iter().filter(|(name, _)| name.ends_with(ending)) {
            let at = view.data().as_ptr().addr() - self.whole.as_ptr().addr();
            let (words, _) = bytes[at..at + view.data().len()].as_chunks_mut::<4>();
            for (i, word) in words.iter_mut().enumerate() {
                *word = change(i, f32::from_le_bytes(*word)).to_le_bytes();
            }
        }
        let path = self.dir.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn load(&self, path: &Path, dtype: DType) -> Result<Shard, CheckpointError> {
        let shape = &self.golden.shape;
        let checkpoint = Checkpoint::open(&[path.to_owned()]).unwrap();
        let partition = Partition::new(shape, 1).unwrap();
        Shard::load(&checkpoint, shape, partition.share(0), dtype, &Level::choose(None).unwrap(), 2)
    }

    /// The order of a coordinator whose checkpoint `path` is.
    fn order(&self, path: &Path, comm: CommKind, dtype: DType) -> LoadOrder {
        let golden = Golden {
            weights: vec![path.to_owned()],
            shape: self.golden.shape.clone(),
            cases: Vec::new(),
            ..*self.golden
        };
        load_order(&golden, None, comm, dtype)
    }
}

#[test]
fn a_weight_that_is_no_number_is_refused_by_its_name_wherever_it_stands() {
    let spoiled = Spoiled::new();
    for (name, len) in spoiled.tensors() {
        for (number, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN].into_iter().enumerate() {
            let at = [0, len / 2, len - 1, len / 3][number];
            let path = spoiled.file(&name, |i, x| if i == at { value } else { x });
            let bare = name.trim_start_matches("transformer.");
            for dtype in DTYPES {
                let error = spoiled.load(&path, dtype).unwrap_err().to_string();
                for part in [format!("`{bare}`"), format!("holds {value} ").replace('-', ""), "hint: ".into()] {
                    assert!(error.replace('-', "").contains(&part.replace('-', "")), "{dtype} {part}: {error}");
                }
            }
            // Nor is it hidden in a copy.
            let checkpoint = Checkpoint::open(std::slice::from_ref(&path)).unwrap();
            let copy = spoiled.dir.path().join("copy");
            let error = checkpoint.write_safetensors(&spoiled.golden.shape, &copy).unwrap_err().to_string();
            assert!(error.contains(bare) && !copy.exists(), "{error}");
        }
    }
}

#[test]
fn the_rank_that_holds_it_says_which_element_it_is() {
    let spoiled = Spoiled::new();
    let last = spoiled.golden.shape.vocab_size - 1;
    let c = spoiled.golden.shape.width;
    let path = spoiled.file("wte.weight", |i, x| if i == last * c + 3 { f32::NAN } else { x });
    let answers = Ranks::load(spoiled.order(&path, CommKind::Shm, DType::Int8), &[None, None]);
    assert_eq!(answers[0], None);
    assert!(answers[1].as_ref().is_some_and(|e| e.contains(&format!("[{last}, 3]"))), "{answers:?}");
}

#[test]
fn a_weight_that_its_type_cannot_hold_is_refused_by_its_name() {
    let spoiled = Spoiled::new();
    let with = |ending: &str, value: f32| spoiled.file(ending, |i, x| if i == 1 { value } else { x });
    for matrix in ["wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_proj.weight"] {
        let path = with(matrix, f32::MAX);
        let error = spoiled.load(&path, DType::Bf16).unwrap_err().to_string();
        assert!(error.contains(matrix) && error.contains("3.4028235e38") && error.contains("beyond bf16"), "{error}");
        spoiled.load(&path, DType::F32).unwrap();
        // The largest that bf16 has is none too many.
        spoiled.load(&with(matrix, f32::from_bits(0x7f7f_0000)), DType::Bf16).unwrap();
    }
    // Vectors stay f32.
    spoiled.load(&with("ln_f.weight", f32::MAX), DType::Bf16).unwrap();
    // What int8 takes over from a LayerNorm.
    let path = with("h.1.ln_2.weight", f32::MAX);
    spoiled.load(&path, DType::F32).unwrap();
    let path = spoiled.file("h.1.ln_2.weight", |_, _| f32::MAX);
    let large = fs::read(&path).unwrap();
    let spoiled = Spoiled { whole: large, ..spoiled };
    let path = spoiled.file("h.1.mlp.c_fc.weight", |i, x| if i == 170 { -2.0 } else { x });
    let error = spoiled.load(&path, DType::Int8).unwrap_err().to_string();
    assert!(error.contains("h.1.mlp.c_fc.weight") && error.contains("[1, 10]") && error.contains("gain"), "{error}");
    spoiled.load(&path, DType::F32).unwrap();
}

#[test]
fn ranks_with_other_weights_of_the_same_layout_do_not_compute_together() {
    let spoiled = Spoiled::new();
    let (ours, dir) = (spoiled.golden.weights[0].clone(), tempfile::tempdir().unwrap());
    let theirs = dir.path().join("model.safetensors");
    fs::copy(spoiled.file("c_proj.weight", |_, x| -x), &theirs).unwrap();
    for comm in [CommKind::Shm, CommKind::Tcp] {
        let order = || spoiled.order(&ours, comm, DType::F32);
        assert_eq!(Ranks::load(order(), &[None, Some(ours.clone())]), [None, None]);
        let answers = Ranks::load(order(), &[None, Some(theirs.clone())]);
        assert_eq!(answers[0], None);
        let error = answers[1].as_ref().unwrap();
        for part in ["rank 1 holds another checkpoint", theirs.to_str().unwrap(), "sampled", "hint: "] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    // A change of any one tensor is seen.
    let digest = |path: &Path| Checkpoint::open(&[path.to_owned()]).unwrap().fingerprint();
    for (name, _) in spoiled.tensors() {
        assert_ne!(digest(&spoiled.file(&name, |_, x| -x - 1.0)), digest(&ours), "{name}");
    }
    for (name, len) in spoiled.tensors() {
        let last = spoiled.file(&name, |i, x| if i == len - 1 { x + 1.0 } else { x });
        assert_ne!(digest(&last), digest(&ours), "{name}");
    }
    // One that only lies elsewhere is the same.
    let copy = dir.path().join("copy");
    let checkpoint = Checkpoint::open(std::slice::from_ref(&ours)).unwrap();
    checkpoint.write_safetensors(&spoiled.golden.shape, &copy).unwrap();
    assert_ne!(fs::read(&copy).unwrap(), spoiled.whole);
    assert_eq!(digest(&copy), digest(&ours));
}

#[test]
fn a_file_that_is_replaced_between_two_opens_is_not_taken_for_the_first() {
    let spoiled = Spoiled::new();
    let (dir, bytes) =
        (tempfile::tempdir().unwrap(), fs::read(spoiled.file("mlp.c_fc.weight", |_, x| x * 1.5)).unwrap());
    let path = dir.path().join("model.safetensors");
    // By renaming another, and by writing into it.
    for in_place in [false, true] {
        fs::write(&path, &spoiled.whole).unwrap();
        let order = spoiled.order(&path, CommKind::Shm, DType::F32);
        if in_place {
            fs::write(&path, &bytes).unwrap();
        } else {
            fs::write(dir.path().join("new"), &bytes).unwrap();
            fs::rename(dir.path().join("new"), &path).unwrap();
        }
        let answers = Ranks::load(order, &[None, None]);
        assert!(answers.iter().all(|answer| answer.as_ref().is_some_and(|e| e.contains("another checkpoint"))));
    }
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_refused_by_its_name() {
    let spoiled = Spoiled::new();
    let path = spoiled.file("nothing", |_, x| x);
    let checkpoint = Checkpoint::open(std::slice::from_ref(&path)).unwrap();
    checkpoint.still_as_opened().unwrap();
    // One that takes its name leaves the open one as it was.
    fs::rename(&path, spoiled.dir.path().join("old")).unwrap();
    fs::write(&path, &spoiled.whole).unwrap();
    checkpoint.still_as_opened().unwrap();
    // As a writer leaves it, whatever the clock's steps are.
    let file = File::options().write(true).open(spoiled.dir.path().join("old")).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    let shape = &spoiled.golden.shape;
    let partition = Partition::new(shape, 1).unwrap();
    let error = Shard::load(&checkpoint, shape, partition.share(0), DType::F32, &Level::choose(None).unwrap(), 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("model.safetensors was changed while it was read"), "{error}");
}
