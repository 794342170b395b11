//! Downloads from a hub of our own on loopback, which behaves as badly as hubs, mirrors and networks do.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nanoinfer_checkpoint::Checkpoint;

use crate::{
    model::{
        Caches, HubAccess, HubError, ModelError, Refusal, ResolvedModel, pull, resolve, resolve_weights, tests::golden,
    },
    proxy::Proxies,
};

mod gguf;
mod nanochat;

#[path = "../../../../tests/hub.rs"]
mod fake;

use fake::{COMMIT, FakeHub, Lists, Manners, Ranges, git_blob, is_large, sha256};

const ID: &str = "openai-community/gpt2";

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("config.json", golden("tiny/config.json")),
        ("merges.txt", golden("tiny/merges.txt")),
        ("vocab.json", golden("tiny/vocab.json")),
        ("generation_config.json", b"{}".to_vec()),
        ("model.safetensors", golden("tiny/model.safetensors")),
        ("pytorch_model.bin", b"never asked for".to_vec()),
    ])
}

fn weights() -> Vec<u8> {
    files().remove("model.safetensors").unwrap()
}

fn hub(manners: Manners) -> FakeHub {
    FakeHub::start(ID, files(), manners)
}

fn caches(root: &Path, hub: &FakeHub) -> Caches {
    let hub = HubAccess {
        cache: root.join("hub"),
        endpoint: hub.endpoint.clone(),
        token: None,
        offline: false,
        // Of what stands still; what is slow in these tests still moves.
        patience: Duration::from_millis(900),
        proxies: Proxies::default(),
    };
    Caches { demo: vec![root.join("demo")], hub }
}

/// A folder of the repository in the cache.
fn repo(root: &Path, folder: &str) -> PathBuf {
    root.join("hub/models--openai-community--gpt2").join(folder)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Pulls from a hub of such manners; everything came as it is, and nothing but whole blobs is left.
fn pulled(root: &Path, manners: Manners) -> (FakeHub, ResolvedModel) {
    let hub = hub(manners);
    let model = pull(ID, None, &caches(root, &hub)).unwrap();
    for (name, content) in files().into_iter().filter(|(name, _)| *name != "pytorch_model.bin") {
        assert_eq!(fs::read(model.folder.join(name)).unwrap(), content, "{name}");
    }
    assert!(names(&repo(root, "blobs")).iter().all(|name| name.len() == 40 || name.len() == 64));
    (hub, model)
}

fn refused(manners: Manners) -> (HubError, PathBuf, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    match pull(ID, None, &caches(root.path(), &hub(manners))) {
        Err(ModelError::Hub(error)) => (error, repo(root.path(), ""), root),
        other => panic!("{other:?}"),
    }
}

/// From which bytes the weights were asked for, where they are.
fn asked_for_weights(hub: &FakeHub) -> Vec<usize> {
    hub.asked().into_iter().filter(|(path, _)| path == "/model.safetensors").map(|(_, from)| from).collect()
}

#[test]
fn a_hub_id_is_downloaded_whole_once_and_then_taken_from_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(Manners::default());
    let mut caches = caches(root.path(), &hub);
    let model = resolve(Some("gpt2"), None, &caches).unwrap();
    assert_eq!((model.name.as_str(), model.shape.attention.heads), ("gpt2", 3));
    assert!(!model.folder.join("pytorch_model.bin").exists());
    assert!(hub.asked().last().unwrap().0.ends_with("/model.safetensors"), "weights come last");

    assert_eq!(resolve(Some(ID), None, &caches).unwrap().weights, model.weights);
    assert_eq!(resolve(Some("gpt2"), Some(COMMIT), &caches).unwrap().weights, model.weights);
    caches.hub.offline = true;
    assert_eq!(resolve(Some("gpt2"), None, &caches).unwrap(), model);
    assert_eq!(hub.asked(), [], "a complete snapshot needs no hub");
}

#[test]
fn weights_of_what_is_not_served_are_not_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let config = ("config.json", br#"{"model_type":"gemma2"}"#.to_vec());
    let hub = FakeHub::start(ID, files().into_iter().chain([config]).collect(), Manners::default());
    let error = resolve(Some(ID), None, &caches(root.path(), &hub)).unwrap_err().to_string();
    assert!(error.starts_with("openai-community/gpt2: config.json: it describes a `gemma2` model"), "{error}");
    assert!(asked_for_weights(&hub).is_empty());
}

#[test]
fn the_cache_is_as_other_tools_write_it() {
    let root = tempfile::tempdir().unwrap();
    let (_, model) = pulled(root.path(), Manners::default());
    assert_eq!(model.folder, repo(root.path(), "snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo(root.path(), "refs/main")).unwrap(), COMMIT);
    for (name, content) in files().iter().filter(|(name, _)| **name != "pytorch_model.bin") {
        let blob = if is_large(name) { sha256(content) } else { git_blob(content) };
        assert_eq!(fs::read_link(model.folder.join(name)).unwrap(), Path::new("../../blobs").join(&blob));
        assert!(root.path().join(format!("hub/.locks/models--openai-community--gpt2/{blob}.lock")).exists());
    }
    let absent = ["added_tokens.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json"];
    assert_eq!(names(&repo(root.path(), ".no_exist").join(COMMIT)), [&absent[..], &["tokenizer_config.json"]].concat());
}

#[test]
fn a_pull_asks_for_what_is_new_and_fetches_nothing_twice() {
    let root = tempfile::tempdir().unwrap();
    let (hub, model) = pulled(root.path(), Manners::default());
    let mut caches = caches(root.path(), &hub);
    hub.asked();
    assert_eq!(pull(ID, None, &caches).unwrap(), model);
    assert_eq!(hub.asked(), [("/api/models/openai-community/gpt2/revision/main".into(), 0)]);
    caches.hub.offline = true;
    assert_eq!(pull(ID, None, &caches).unwrap(), model, "offline, what is there will do");
    assert_eq!(hub.asked(), []);
}

#[test]
fn a_download_that_broke_off_or_stalled_goes_on_where_it_did() {
    let half = weights().len() / 2;
    for manners in [Manners { breaks: 1, ..Manners::default() }, Manners { stalls: 1, ..Manners::default() }] {
        let root = tempfile::tempdir().unwrap();
        let (hub, _) = pulled(root.path(), manners);
        assert_eq!(asked_for_weights(&hub), [0, half]);
    }
    // For ever: it ends all the same.
    let (error, repo, _root) = refused(Manners { breaks: 1000, ranges: Ranges::Ignored, ..Manners::default() });
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(!error.to_string().contains("Signature"), "{error}");
    assert!(!repo.join("blobs").join(sha256(&weights())).exists() && !repo.join("refs").exists());
}

#[test]
fn what_a_killed_download_left_is_used_if_it_is_of_the_file() {
    let content = weights();
    let mut wrong = content.clone();
    wrong[0] ^= 1;
    let longer = [&content[..], b"more"].concat();
    for (left, expected) in [
        (&content[..5000], &[5000][..]),
        (&content[..], &[]),
        (&longer[..], &[0]),
        (&wrong[..5000], &[5000, 0]),
        (&wrong[..], &[0]),
    ] {
        let root = tempfile::tempdir().unwrap();
        let blobs = repo(root.path(), "blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(&content))), left).unwrap();
        let (hub, _) = pulled(root.path(), Manners::default());
        assert_eq!(asked_for_weights(&hub), expected, "{} bytes were there", left.len());
    }
}

#[test]
fn ranges_may_be_ignored_unsaid_or_refused() {
    let half = weights().len() / 2;
    for (ranges, expected) in
        [(Ranges::Ignored, &[0, half][..]), (Ranges::Unsaid, &[0, half, 0]), (Ranges::Refused, &[0, half, 0])]
    {
        let root = tempfile::tempdir().unwrap();
        let (hub, _) = pulled(root.path(), Manners { breaks: 1, ranges, ..Manners::default() });
        assert_eq!(asked_for_weights(&hub), expected);
    }
}

#[test]
fn a_mirror_may_know_neither_digests_nor_sizes() {
    for lists in [Lists::Sizes, Lists::Names] {
        let root = tempfile::tempdir().unwrap();
        pulled(root.path(), Manners { lists, breaks: 1, ..Manners::default() });
        assert!(repo(root.path(), "blobs").join(sha256(&weights())).exists(), "called by what came");
    }
    // What the hub says of the place that it links to is compared where there is nothing better.
    let (error, ..) = refused(Manners { lists: Lists::Names, spoils: Some("model.safetensors"), ..Manners::default() });
    assert!(matches!(&error, HubError::Content { file, .. } if file == "model.safetensors"), "{error}");
}

#[test]
fn what_is_not_as_announced_is_not_kept() {
    for spoils in ["model.safetensors", "vocab.json"] {
        let (error, repo, _root) = refused(Manners { spoils: Some(spoils), ..Manners::default() });
        assert!(matches!(&error, HubError::Content { file, .. } if file == spoils), "{error}");
        let content = &files()[spoils];
        let blob = if is_large(spoils) { sha256(content) } else { git_blob(content) };
        assert!(!names(&repo.join("blobs")).iter().any(|name| name.starts_with(&blob)), "{spoils}");
        assert!(!repo.join("snapshots").join(COMMIT).join(spoils).exists() && !repo.join("refs").exists());
    }
    let (error, ..) = refused(Manners { compresses: true, ..Manners::default() });
    assert!(error.to_string().contains("it comes as gzip"), "{error}");
}

#[test]
fn nothing_that_a_server_says_leads_out_of_the_cache() {
    let outside = tempfile::tempdir().unwrap();
    let victim: &str = outside.path().join("victim").to_str().unwrap().to_owned().leak();
    fs::write(victim, "precious").unwrap();
    for manners in [
        Manners { commit: Some(victim), ..Manners::default() },
        Manners { commit: Some("../../../victim"), ..Manners::default() },
        Manners { commit: Some("main"), ..Manners::default() },
        Manners { names: Some(victim), ..Manners::default() },
        Manners { names: Some("a/../../../victim"), ..Manners::default() },
        Manners { lists: Lists::Digest(victim), ..Manners::default() },
        Manners { lists: Lists::Digest("../../../victim"), ..Manners::default() },
    ] {
        let (error, repo, _root) = refused(manners);
        assert!(matches!(error, HubError::Listing { .. }), "{error}");
        assert!(!repo.exists(), "nothing was begun");
    }
    let mut parts = files();
    parts.remove("model.safetensors");
    for part in [victim, "../victim", "of-another-repository.bin"] {
        let index = serde_json::json!({"weight_map": {"wte": part}}).to_string();
        parts.insert("model.safetensors.index.json", index.into_bytes());
        let root = tempfile::tempdir().unwrap();
        let hub = FakeHub::start(ID, parts.clone(), Manners::default());
        let error = pull(ID, None, &caches(root.path(), &hub)).unwrap_err();
        assert!(matches!(error, ModelError::Hub(HubError::Index { .. })), "{error}");
    }
    for revision in ["../main", "/etc", ""] {
        let root = tempfile::tempdir().unwrap();
        let error = pull(ID, Some(revision), &caches(root.path(), &hub(Manners::default()))).unwrap_err();
        assert!(matches!(error, ModelError::Hub(HubError::Revision { .. })), "{error}");
    }
    // Links that lie in the cache already are replaced, not followed.
    let root = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (repo(root.path(), "blobs"), repo(root.path(), "snapshots").join(COMMIT));
    fs::create_dir_all(&blobs).and_then(|()| fs::create_dir_all(&snapshot)).unwrap();
    symlink(victim, snapshot.join("config.json")).unwrap();
    symlink(victim, blobs.join(sha256(&weights()))).unwrap();
    symlink(victim, blobs.join(format!("{}.incomplete", sha256(&weights())))).unwrap();
    pulled(root.path(), Manners::default());
    assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    assert_eq!(names(outside.path()), ["victim"]);
}

#[test]
fn a_token_opens_what_is_closed_and_goes_to_nobody_else() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(Manners { token: Some("secret"), ..Manners::default() });
    let mut caches = caches(root.path(), &hub);
    let error = pull(ID, None, &caches).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
    caches.hub.token = Some("other".into());
    let error = pull(ID, None, &caches).unwrap_err().to_string();
    assert!(error.contains("the token in use") && !error.contains("other"), "{error}");
    caches.hub.token = Some("no\ntoken".into());
    let error = pull(ID, None, &caches).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN") && !error.contains("no\ntoken"), "{error}");
    // The store of large files refuses whoever shows it.
    caches.hub.token = Some("secret".into());
    pull(ID, None, &caches).unwrap();
}

#[test]
fn refusals_say_what_to_do() {
    let refuse = |status, code, words| {
        let (error, ..) = refused(Manners { refuses: Some((status, code, words)), ..Manners::default() });
        let HubError::Refused { refusal, .. } = error else { panic!("{error}") };
        (refusal, error.to_string())
    };
    let (refusal, words) = refuse("403 Forbidden", "GatedRepo", "Access to model x is restricted.");
    assert_eq!(refusal, Refusal::Gated);
    for part in ["ask for access at https://huggingface.co/openai-community/gpt2", "HF_TOKEN", "is restricted."] {
        assert!(words.contains(part), "{part} in {words}");
    }
    let (refusal, words) = refuse("404 Not Found", "RevisionNotFound", "Invalid rev id: main");
    assert!(refusal == Refusal::Revision && words.contains("no revision main"), "{words}");
    let (refusal, words) = refuse("401 Unauthorized", "RepoNotFound", "Repository not found");
    assert!(refusal == Refusal::Repository && words.contains("check the spelling"), "{words}");
    let (refusal, words) = refuse("404 Not Found", "EntryNotFound", "Entry not found");
    assert!(refusal == Refusal::File && words.contains("Entry not found"), "{words}");
}

#[test]
fn a_busy_hub_is_asked_again_for_a_while() {
    for answer in ["429 Too Many Requests\r\nRetry-After: 0", "503 Service Unavailable", "500 Internal Server Error"] {
        let root = tempfile::tempdir().unwrap();
        pulled(root.path(), Manners { busy: (3, answer), ..Manners::default() });
    }
    let (error, ..) = refused(Manners { busy: (1000, "503 Service Unavailable"), ..Manners::default() });
    assert!(error.to_string().contains("503"), "{error}");
    let (error, ..) =
        refused(Manners { busy: (1, "429 Too Many Requests\r\nRetry-After: 86400"), ..Manners::default() });
    assert!(error.to_string().contains("come back in 86400 s"), "{error}");
}

#[test]
fn a_snapshot_that_another_tool_filled_in_part_is_completed() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(Manners::default());
    let mut caches = caches(root.path(), &hub);
    let snapshot = repo(root.path(), "snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).and_then(|()| fs::create_dir_all(repo(root.path(), "refs"))).unwrap();
    fs::write(repo(root.path(), "refs/main"), COMMIT).unwrap();
    for name in ["config.json", "vocab.json", "merges.txt", "model.safetensors"] {
        fs::write(snapshot.join(name), &files()[name]).unwrap();
    }
    // Without the hub it serves, with a warning.
    caches.hub.offline = true;
    resolve(Some(ID), None, &caches).unwrap();
    caches.hub.offline = false;
    let endpoint = std::mem::replace(&mut caches.hub.endpoint, "http://127.0.0.1:9".into());
    resolve(Some(ID), None, &caches).unwrap();
    assert!(!snapshot.join("generation_config.json").exists());

    caches.hub.endpoint = endpoint;
    resolve(Some(ID), None, &caches).unwrap();
    assert_eq!(fs::read(snapshot.join("generation_config.json")).unwrap(), b"{}");
    let asked: Vec<_> = hub.asked().into_iter().map(|(path, _)| path).collect();
    assert!(asked[0].ends_with(COMMIT), "what is in use is completed, not replaced: {asked:?}");
    assert!(!asked.iter().any(|path| path.ends_with("model.safetensors")), "{asked:?}");
    resolve(Some(ID), None, &caches).unwrap();
    assert_eq!(hub.asked(), [], "asked once");

    // What is not as large as the hub says is brought again by who asks for it.
    fs::write(snapshot.join("model.safetensors"), &weights()[..5000]).unwrap();
    pull(ID, None, &caches).unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), weights());
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    caches.hub.offline = true;
    let error = resolve(Some(ID), None, &caches).unwrap_err().to_string();
    assert!(error.contains("it lacks weights") && error.contains("HF_HUB_OFFLINE is set"), "{error}");
}

#[test]
fn two_downloads_at_once_bring_one_file_once() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(Manners::default());
    let caches = caches(root.path(), &hub);
    let together = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                together.wait();
                pull(ID, None, &caches).unwrap();
            });
        }
    });
    assert_eq!(asked_for_weights(&hub), [0]);
    assert_eq!(fs::read(repo(root.path(), "snapshots").join(COMMIT).join("model.safetensors")).unwrap(), weights());
}

#[test]
fn who_downloads_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(Manners::default());
    let caches = caches(root.path(), &hub);
    let locks = root.path().join("hub/.locks/models--openai-community--gpt2");
    fs::create_dir_all(&locks).unwrap();
    let other = File::create(locks.join(format!("{}.lock", sha256(&weights())))).unwrap();
    other.lock().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pull(ID, None, &caches));
        // Everything else has come when it waits; the other one brings the blob meanwhile.
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let vocabulary = repo(root.path(), "snapshots").join(COMMIT).join("vocab.json");
        while !vocabulary.exists() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let blobs = repo(root.path(), "blobs");
        fs::write(blobs.join("fresh"), weights()).unwrap();
        fs::rename(blobs.join("fresh"), blobs.join(sha256(&weights()))).unwrap();
        drop(other);
        waiting.join().unwrap().unwrap();
    });
    assert!(asked_for_weights(&hub).is_empty());
}

#[test]
fn a_cache_that_cannot_be_written_is_named_and_one_that_is_complete_serves() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(Manners::default());
    let caches = caches(root.path(), &hub);
    fs::create_dir(root.path().join("hub")).unwrap();
    // A file where a folder has to be stops root, too.
    fs::write(root.path().join("hub/.locks"), "").unwrap();
    let error = pull(ID, None, &caches).unwrap_err().to_string();
    assert!(error.contains("cannot write to the cache") && error.contains("HF_HOME"), "{error}");
    fs::remove_file(root.path().join("hub/.locks")).unwrap();
    pull(ID, None, &caches).unwrap();
    fs::remove_dir_all(root.path().join("hub/.locks")).unwrap();
    for folder in ["hub/.locks", "hub/models--openai-community--gpt2/refs/other"] {
        fs::write(root.path().join(folder), "").unwrap();
    }
    pull(ID, None, &caches).unwrap();
}

#[test]
fn weights_of_torch_are_taken_where_there_are_no_others() {
    let root = tempfile::tempdir().unwrap();
    let mut torch = files();
    torch.remove("model.safetensors");
    torch.insert("config.json", golden("formats/legacy/config.json"));
    torch.insert("pytorch_model.bin", golden("formats/legacy/pytorch_model.bin"));
    let hub = FakeHub::start(ID, torch, Manners::default());
    let model = resolve(Some(ID), None, &caches(root.path(), &hub)).unwrap();
    assert_eq!(model.weights, [model.folder.join("pytorch_model.bin")]);
}

#[test]
fn a_split_checkpoint_comes_with_all_its_parts() {
    let root = tempfile::tempdir().unwrap();
    let mut parts = files();
    parts.remove("model.safetensors");
    for file in ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    {
        parts.insert(file, golden(&format!("formats/split-safetensors/{file}")));
    }
    parts.insert("config.json", golden("formats/split-safetensors/config.json"));
    let hub = FakeHub::start(ID, parts, Manners::default());
    let caches = caches(root.path(), &hub);
    let model = resolve(Some(ID), None, &caches).unwrap();
    let checkpoint = Checkpoint::open(&model.weights).unwrap();
    let names: Vec<_> = checkpoint.files().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
    let index = model.folder.join("model.safetensors.index.json").display().to_string();
    assert_eq!(resolve_weights(&index, None, &caches).unwrap(), model.weights);
}

#[test]
fn what_the_hub_does_not_have_is_said_with_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let mut empty = files();
    empty.remove("model.safetensors");
    empty.remove("pytorch_model.bin");
    let hub = FakeHub::start("org/empty", empty, Manners::default());
    let mut caches = caches(root.path(), &hub);
    let say = |name: &str, caches: &Caches| resolve(Some(name), None, caches).unwrap_err().to_string();

    let message = say("org/empty", &caches);
    assert!(message.contains("model.safetensors") && message.contains("hint: "), "{message}");
    let message = say("org/other", &caches);
    assert!(message.contains("404") && message.contains("HF_TOKEN"), "{message}");

    caches.hub.offline = true;
    let message = say("gpt2", &caches);
    assert!(message.contains("HF_HUB_OFFLINE") && message.contains("hub"), "{message}");

    // Port 9 of loopback: nobody listens.
    caches.hub = HubAccess { offline: false, endpoint: "http://127.0.0.1:9".into(), ..caches.hub };
    let message = say("gpt2-xl", &caches);
    for part in ["http://127.0.0.1:9/api/models/openai-community/gpt2-xl", "--model /path", "/hub"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    caches.hub.endpoint = "hf-mirror.com".into();
    let message = say("gpt2-xl", &caches);
    assert!(message.contains("HF_ENDPOINT is \"hf-mirror.com\""), "{message}");
    // No way there but a proxy that there is not: the environment's proxies are asked.
    caches.hub.endpoint = "http://hub.invalid".into();
    caches.hub.proxies = Proxies::new(&|name| (name == "HTTP_PROXY").then(|| "::".into()));
    let message = say("gpt2-xl", &caches);
    assert!(message.contains("HTTP_PROXY"), "{message}");
}

#[test]
fn a_hub_elsewhere_is_asked_through_its_proxy() {
    let root = tempfile::tempdir().unwrap();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    let asked = thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(proxy.accept().unwrap().0).read_line(&mut line).unwrap();
        line
    });
    let proxies = Proxies::new(&|name| (name == "HTTP_PROXY").then(|| format!("http://{address}")));
    let endpoint = "http://hub.invalid".to_owned();
    let hub = HubAccess { offline: false, endpoint, proxies, ..HubAccess::offline(root.path().join("hub")) };
    resolve(Some(ID), None, &Caches { demo: Vec::new(), hub }).unwrap_err();
    let asked = asked.join().unwrap();
    assert!(asked.starts_with("CONNECT hub.invalid:80 "), "{asked}");
}
