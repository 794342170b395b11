//! Checkpoints of nanochat on the hub: which of them is brought, with what.

use super::*;
use crate::model::{Version, nanochat::PICKLE};

const NANOCHAT: &str = "org/nanochat-d4";

/// A model of this step in a folder of a repository.
fn model(folder: &str, step: &str) -> Vec<(String, Vec<u8>)> {
    let file = |name: String, from: &str| (format!("{folder}{name}"), golden(&format!("nanochat/E/{from}")));
    vec![
        file(format!("model_{step}.pt"), "model_000483.pt"),
        file(format!("meta_{step}.json"), "meta_000483.json"),
        (format!("{folder}optim_{step}.pt"), b"never asked for".to_vec()),
    ]
}

fn repository(models: &[Vec<(String, Vec<u8>)>], tokenizer: &str) -> FakeHub {
    let all = models.iter().flatten().cloned();
    let all = all.chain([(tokenizer.to_owned(), golden("nanochat/tokenizer/tokenizer.pkl"))]);
    // Names live as long as the hub, and that as long as the test.
    let all = all.map(|(name, content)| (&*name.leak(), content));
    FakeHub::start(NANOCHAT, all.collect(), Manners::default())
}

#[test]
fn the_last_step_of_a_flat_repository_is_brought_or_the_one_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let hub = repository(&[model("", "000100"), model("", "000483")], "tokenizer.pkl");
    let mut caches = caches(root.path(), &hub);
    let of = |step, caches: &Caches| resolve(Some(NANOCHAT), Version { step, revision: None }, caches);
    let file = |path: &str| Some(path.split_once("/resolve/")?.1.split_once('/')?.1.to_owned());
    let brought = |hub: &FakeHub| hub.asked().iter().filter_map(|(path, _)| file(path)).collect::<Vec<_>>();

    let older = of(Some(100), &caches).unwrap();
    assert!(older.weights[0].ends_with("model_000100.pt") && older.folder.join("tokenizer.json").exists());
    assert_eq!(brought(&hub), ["meta_000100.json", "tokenizer.pkl", "model_000100.pt"]);
    assert_eq!(of(Some(100), &caches).unwrap(), older);
    assert_eq!(hub.asked(), [], "it is there");
    // Whether there is a later one is not known yet.
    let last = of(None, &caches).unwrap();
    assert!(last.weights[0].ends_with("model_000483.pt"));
    assert_eq!(hub.asked().len(), 1, "the list: what it has more is here by other names");
    assert_eq!(of(None, &caches).unwrap(), last);
    assert_eq!(hub.asked(), [], "now it is");
    caches.hub.offline = true;
    assert_eq!(of(None, &caches).unwrap(), last);
    assert!(of(Some(7), &caches).unwrap_err().to_string().contains("lacks weights"));
    caches.hub.offline = false;
    let error = of(Some(7), &caches).unwrap_err().to_string();
    assert!(error.contains("org/nanochat-d4 has no checkpoint of step 7; there are 100, 483"), "{error}");
}

#[test]
fn of_several_folders_one_is_named_and_what_is_missing_is_told() {
    let root = tempfile::tempdir().unwrap();
    let models = [model("chatsft_checkpoints/d4/", "000483"), model("base_checkpoints/d4/", "000100")];
    let hub = repository(&models, "tokenizer/tokenizer.pkl");
    let mut caches = caches(root.path(), &hub);
    let say = |name: &str, caches: &Caches| resolve(Some(name), None, caches).unwrap_err().to_string();
    let error = say(NANOCHAT, &caches);
    assert!(error.contains("in several folders: base_checkpoints/d4, chatsft_checkpoints/d4"), "{error}");
    assert!(error.ends_with("hint: name one: --model org/nanochat-d4:base_checkpoints/d4"), "{error}");
    for named in ["chatsft_checkpoints/d4", "chatsft_checkpoints/d4/model_000483.pt"] {
        let model = resolve(Some(&format!("{NANOCHAT}:{named}")), None, &caches).unwrap();
        assert!(model.weights[0].ends_with("chatsft_checkpoints/d4/model_000483.pt"), "{named}");
    }
    caches.hub.offline = true;
    resolve(Some(&format!("{NANOCHAT}:chatsft_checkpoints/d4")), None, &caches).unwrap();

    let root = tempfile::tempdir().unwrap();
    let hub =
        repository(&[model("", "000483").into_iter().filter(|(name, _)| !name.contains("meta")).collect()], PICKLE);
    assert!(say(NANOCHAT, &super::caches(root.path(), &hub)).contains("has no meta_000483.json on the hub"));
    let hub = repository(&[model("", "000483")], "elsewhere/tokenizer.pkl");
    let error = say(NANOCHAT, &super::caches(root.path(), &hub));
    assert!(error.contains("has no tokenizer.pkl on the hub") && error.contains("hint: copy it"), "{error}");
}
