//! Ranks started by hand, as Slurm, mpirun or Kubernetes would: over TCP, with a secret from a file.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::json;

use crate::server::{Server, golden_folder, launcher, run_to_end, through};

/// A coordinator waiting for two ranks of `heads5` on a free port, and that address.
fn coordinator(secret: &str) -> (Server, String) {
    coordinator_with(secret, &["--nproc", "2"])
}

pub(crate) fn coordinator_with(secret: &str, options: &[&str]) -> (Server, String) {
    let model = golden_folder("heads5");
    let arguments = ["coordinator", "--listen", "127.0.0.1:0", "--secret-file", secret, "--port", "0"];
    let model = ["--model", model.to_str().unwrap()];
    let mut server = Server::spawn(launcher(&[&arguments[..], &model, options].concat()));
    let line = server.await_line("waiting for");
    let address = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap();
    let address = address.trim_end_matches([',', ':', ';', '.']).to_owned();
    (server, address)
}

pub(crate) fn worker(rank: &str, world: &str, address: &str, secret: &str) -> std::process::Command {
    launcher(&["worker", "--rank", rank, "--world", world, "--connect", address, "--secret-file", secret])
}

#[test]
fn ranks_join_by_address_and_answer() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "a long enough shared secret\n").unwrap();
    let secret = secret.to_str().unwrap();
    let (mut server, address) = coordinator(secret);
    let mut ranks: Vec<_> = ["1", "0"].map(|rank| Server::spawn(worker(rank, "2", &address, secret))).into();
    server.await_ready();
    let golden = fs::read_to_string(golden_folder("heads5").join("golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let case = &golden["cases"][1];
    let body = json!({ "prompt": case["prompt_ids"], "max_tokens": 16, "temperature": 0, "return_token_ids": true, "ignore_eos": true });
    assert_eq!(server.ask("/v1/completions", &body)["choices"][0]["token_ids"], case["greedy_ids"]);

    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    for rank in &mut ranks {
        assert_eq!(rank.wait().code(), Some(0), "{}", rank.log());
    }
}

#[test]
fn a_stranger_is_refused_and_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (file("right", "a long enough shared secret"), file("wrong", "another secret, just as long"));
    fs::set_permissions(&right, fs::Permissions::from_mode(0o640)).unwrap();
    let (server, address) = coordinator(&right);
    assert!(server.log().contains("can be read by others"), "{}", server.log());

    let (status, log) = run_to_end(worker("0", "2", &address, &wrong));
    assert!(!status.success() && log.contains("secret"), "{log}");
    let (status, log) = run_to_end(worker("0", "3", &address, &right));
    assert!(!status.success() && log.contains("expects 3 ranks"), "{log}");
    let (status, log) = run_to_end(worker("2", "2", &address, &right));
    assert!(!status.success() && log.contains("rank 2"), "{log}");
}

#[test]
fn ranks_of_one_host_divide_its_cores_and_memory() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "a long enough shared secret").unwrap();
    let secret = secret.to_str().unwrap();
    let (mut server, address) = coordinator(secret);
    let ranks: Vec<_> = ["0", "1"].map(|rank| Server::spawn(worker(rank, "2", &address, secret))).into();
    server.await_ready();
    let cores = std::thread::available_parallelism().unwrap().get();
    for rank in &ranks {
        let threads = fs::read_dir(format!("/proc/{}/task", rank.pid())).unwrap().flatten();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let helpers = threads.map(name).filter(|name| name.starts_with("compute-")).count();
        assert_eq!(helpers + 1, (cores / 2).max(1), "{}", rank.log());
    }
}

#[test]
fn a_rank_that_has_not_the_memory_says_so_before_it_takes_any() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "a long enough shared secret").unwrap();
    let secret = secret.to_str().unwrap();
    let (mut server, address) = coordinator_with(secret, &["--nproc", "1", "--max-batched-tokens", "4294967295"]);
    let (status, log) = run_to_end(worker("0", "1", &address, secret));
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("steps of 4294967295 tokens") && log.contains("hint: --max-batched-tokens"), "{log}");
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(server.log().contains("rank 0 failed: rank 0 needs"), "{}", server.log());
}

#[test]
fn a_limit_on_address_space_is_memory_that_is_not_there() {
    let model = golden_folder("heads5");
    let served = launcher(&["--model", model.to_str().unwrap(), "--port", "0", "--kv-memory", "1GiB"]);
    let (status, log) = run_to_end(through(&["prlimit", "--as=1000000000"], &served));
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("the ranks need") && log.contains("hint: --kv-memory"), "{log}");
}

#[test]
fn a_rank_that_its_peers_cannot_reach_ends_the_cluster_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "a long enough shared secret").unwrap();
    let secret = secret.to_str().unwrap();
    let (mut server, address) = coordinator(secret);
    let mut other = Server::spawn(worker("1", "2", &address, secret));
    // An address that no machine has: the data link cannot be there.
    let mut lost = worker("0", "2", &address, secret);
    let (status, log) = run_to_end({
        lost.args(["--data-host", "192.0.2.1"]);
        lost
    });
    assert!(!status.success() && log.contains("rank 0") && log.contains("data link"), "{log}");
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(server.log().contains("rank 0") && server.log().contains("data link"), "{}", server.log());
    assert!(!other.wait().success());
}

#[test]
fn a_rank_that_cannot_reach_its_coordinator_says_where_it_tried() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "a long enough shared secret").unwrap();
    // Port 9 of loopback: nobody listens there.
    let (status, log) = run_to_end(worker("0", "2", "127.0.0.1:9", secret.to_str().unwrap()));
    assert!(!status.success() && log.contains("127.0.0.1:9"), "{log}");
}
