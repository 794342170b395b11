//! GGUF files of a repository: one of several, named by file or by quantisation.

use super::*;

const GGUFS: &str = "org/models-GGUF";

fn repository(others: &[(&'static str, Vec<u8>)]) -> FakeHub {
    let of = |name: &str| golden(&format!("gguf/{name}"));
    let mut files = BTreeMap::from([
        ("README.md", b"# Models".to_vec()),
        ("m-Q8_0.gguf", of("gpt2.gguf")),
        ("split/llama-00001-of-00002.gguf", of("llama-00001-of-00002.gguf")),
        ("split/llama-00002-of-00002.gguf", of("llama-00002-of-00002.gguf")),
    ]);
    files.extend(others.iter().cloned());
    FakeHub::start(GGUFS, files, Manners::default())
}

#[test]
fn one_of_several_is_fetched_by_its_quantisation_or_name_and_then_taken_from_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let hub = repository(&[]);
    let mut caches = caches(root.path(), &hub);
    let named = |file: &str| format!("{GGUFS}:{file}");
    let model = resolve(Some(&named("q8_0")), None, &caches).unwrap();
    assert_eq!((model.name.as_str(), model.shape.model_type()), ("org/models-GGUF:q8_0", "gpt2"));
    assert!(model.weights[0].ends_with("m-Q8_0.gguf"), "{:?}", model.weights);
    let asked = |hub: &FakeHub| hub.asked().into_iter().filter(|(path, _)| path.ends_with(".gguf")).count();
    assert!(asked(&hub) >= 1);
    assert_eq!(resolve(Some(&named("m-Q8_0.gguf")), None, &caches).unwrap().weights, model.weights);
    assert_eq!(hub.asked(), [], "it is there");
    // The other is not, and is split.
    let split = resolve(Some(&named("split/llama-00001-of-00002.gguf")), None, &caches).unwrap();
    assert_eq!((split.shape.model_type(), split.weights.len()), ("llama", 1));
    assert_eq!(Checkpoint::open(&split.weights).unwrap().files().count(), 2);
    assert!(asked(&hub) >= 2);
    caches.hub.offline = true;
    assert_eq!(resolve(Some(&named("Q8_0")), None, &caches).unwrap().weights, model.weights);
    assert_eq!(resolve(Some(&named("split")), None, &caches).unwrap().weights, split.weights);
    let error = resolve(Some(&named("Q4_K_M")), None, &caches).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("lacks weights"), "{error}");
    assert_eq!(hub.asked(), []);
}

#[test]
fn which_is_meant_is_asked_for_with_a_list() {
    let root = tempfile::tempdir().unwrap();
    let hub = repository(&[("n-00001-of-00002.gguf", Vec::new())]);
    let say = |name: &str| resolve(Some(name), None, &caches(root.path(), &hub)).unwrap_err().to_string();
    let error = say(GGUFS);
    for part in [
        "org/models-GGUF has several GGUF models: m-Q8_0.gguf, n-00001-of-00002.gguf, split/llama-00001-of-00002.gguf",
        "hint: name one: --model org/models-GGUF:Q4_K_M, or org/models-GGUF:FILE.gguf",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let error = say("org/models-GGUF:Q2_K");
    assert!(error.contains("has no GGUF model that is `Q2_K`; there are m-Q8_0.gguf"), "{error}");
    let error = say("org/models-GGUF:n-00001-of-00002.gguf");
    assert!(error.contains("has no n-00002-of-00002.gguf on the hub"), "{error}");
}

#[test]
fn the_only_one_needs_no_name_and_weights_of_transformers_come_first() {
    let root = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(GGUFS, BTreeMap::from([("m.gguf", golden("gguf/gpt2.gguf"))]), Manners::default());
    let caches_of_one = caches(root.path(), &hub);
    let model = resolve(Some(GGUFS), None, &caches_of_one).unwrap();
    assert!(model.weights[0].ends_with("m.gguf") && model.folder.join("tokenizer.json").exists());
    hub.asked();
    assert_eq!(resolve(Some(GGUFS), None, &caches_of_one).unwrap(), model);
    assert_eq!(hub.asked(), []);

    let root = tempfile::tempdir().unwrap();
    let mut both = files();
    both.insert("m.gguf", golden("gguf/gpt2.gguf"));
    let hub = FakeHub::start(ID, both, Manners::default());
    let caches = caches(root.path(), &hub);
    assert!(resolve(Some(ID), None, &caches).unwrap().weights[0].ends_with("model.safetensors"));
    assert!(resolve(Some(&format!("{ID}:m.gguf")), None, &caches).unwrap().weights[0].ends_with("m.gguf"));
    assert!(resolve(Some(ID), None, &caches).unwrap().weights[0].ends_with("model.safetensors"));
}
