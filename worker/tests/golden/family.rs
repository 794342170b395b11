//! A family that differs from GPT-2 in nothing but its names of tensors is this one file, and one line where it is listed.

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    Partition,
    model::{
        families::FAMILIES,
        family::{Family, Names, QkvNames},
        parts::Part,
    },
    protocol::DType,
};
use nanoinfer_worker::{Level, cpu::load::Shard};

use crate::{golden, ranks::Golden};

static RENAMED: Family = Family {
    model_types: &["renamed"],
    namings: &[Names {
        written_prefix: "",
        embedding: "tokens",
        positions: "places",
        head: "output",
        final_norm: "last_norm",
        layers: "block.",
        attention_norm: "first_norm",
        qkv: QkvNames::Fused("qkv"),
        qk_norm: ["", ""],
        attention_output: "mixed",
        mlp_norm: "second_norm",
        gate: "",
        up: "widen",
        down: "narrow",
        value_gate: "",
        stream: None,
        biases_may_be_absent: true,
    }],
    ..*FAMILIES[0]
};
static WITH_RENAMED: &[&Family] = &[&RENAMED];

/// `checkpoint` under the other family's names, as a file of safetensors.
fn renamed(from: &Checkpoint, golden: &Golden) -> Vec<u8> {
    let [ours, theirs] =
        [FAMILIES[0], &RENAMED].map(|family| family.namings[0].tensors(&golden.shape).collect::<Vec<_>>());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    from.write_safetensors(&golden.shape, &path).unwrap();
    let file = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let name = |ours: &str| FAMILIES[0].namings[0].written_name(ours);
    let views =
        ours.iter().zip(&theirs).map(|(ours, theirs)| (&theirs.tensor, tensors.tensor(&name(&ours.tensor)).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn a_family_is_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("renamed.safetensors");
    for golden in ["tiny", "heads5"].map(golden) {
        let original = Checkpoint::open(&golden.weights).unwrap();
        std::fs::write(&path, renamed(&original, &golden)).unwrap();
        let checkpoint = Checkpoint::of_families(WITH_RENAMED, std::slice::from_ref(&path)).unwrap();
        assert_eq!(checkpoint.family().model_types[0], "renamed");
        checkpoint.check(&golden.shape).unwrap();
        assert_eq!(checkpoint.refine(golden.shape.clone()), golden.shape);
        for part in Part::all(&golden.shape) {
            let values = |from: &Checkpoint| from.part(&golden.shape, part).unwrap().read_matrix().unwrap();
            assert_eq!(values(&checkpoint), values(&original), "{part:?}");
        }
        let share = Partition::new(&golden.shape, 2).unwrap().share(1).clone();
        Shard::load(&checkpoint, &golden.shape, &share, DType::F32, &Level::choose(None).unwrap(), 1).unwrap();
        // Under GPT-2's names there is nothing.
        let error = Checkpoint::open(std::slice::from_ref(&path)).unwrap().check(&golden.shape).unwrap_err();
        assert!(error.to_string().contains("no tensor `wte.weight`"), "{error}");
    }
}
