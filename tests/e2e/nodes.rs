//! Nodes: one process a host, over TCP with a secret. Here all are of one machine, which counts as several hosts.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    handshake::{self, Identity},
    link::Socket,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    recovery::{BUDGET, assert_undisturbed, choices, metric, requests, wait_for_restarts},
    server::{Server, golden_folder, is_alive, launcher, run_to_end, send_signal, through, wait_until},
};

/// A secret, and where it lies as long as the folder is there.
pub(crate) fn secret() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "a long enough shared secret\n").unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

/// Node 0 of two with `heads5`, before the other is there, and where that is to come.
pub(crate) fn node_zero(secret: &str, options: &[&str]) -> (Server, String) {
    node_zero_of(golden_folder("heads5").to_str().unwrap(), secret, options, |_| {})
}

/// The same with another model, and what else there is to say of the command.
pub(crate) fn node_zero_of(
    model: &str,
    secret: &str,
    options: &[&str],
    more: impl FnOnce(&mut Command),
) -> (Server, String) {
    let arguments = ["node", "--nodes", "2", "--listen", "127.0.0.1:0", "--secret-file", secret, "--port", "0"];
    let mut command = launcher(&[&arguments[..], &["--model", model], options].concat());
    more(&mut command);
    let server = Server::spawn(command);
    let line = server.await_line("waiting at");
    let address = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap().to_owned();
    (server, address)
}

pub(crate) fn node(address: &str, secret: &str) -> Command {
    launcher(&["node", "--connect", address, "--secret-file", secret])
}

/// Both of two nodes, ready.
pub(crate) fn two_nodes(secret: &str, options: &[&str]) -> (Server, Server, String) {
    let (mut server, address) = node_zero(secret, options);
    let other = Server::spawn(node(&address, secret));
    server.await_ready();
    (server, other, address)
}

/// The process of a rank of a node.
pub(crate) fn rank_of(node: &Server, rank: usize) -> u32 {
    let ranks = Server::ranks_of(node.pid());
    ranks.iter().find(|(number, _)| *number == rank).unwrap_or_else(|| panic!("no rank {rank} in {ranks:?}")).1
}

#[test]
fn two_nodes_answer_as_one_host_does_and_end_together() {
    let (_folder, secret) = secret();
    let (mut server, mut other, _) = two_nodes(&secret, &["--nproc", "3"]);
    let golden = fs::read_to_string(golden_folder("heads5").join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let case = &golden["cases"][1];
    let body = json!({ "prompt": case["prompt_ids"], "max_tokens": 16, "temperature": 0, "return_token_ids": true, "ignore_eos": true });
    assert_eq!(server.ask("/v1/completions", &body)["choices"][0]["token_ids"], case["greedy_ids"]);
    let ranks = |node: &Server| Server::ranks_of(node.pid()).iter().map(|(rank, _)| *rank).collect::<Vec<_>>();
    assert_eq!((ranks(&server), ranks(&other)), (vec![0, 1], vec![2]));
    assert!(
        server.log().contains("hosts=2 ")
            && server.log().contains(r#"link="shared memory within a host and TCP between""#),
        "{}",
        server.log()
    );

    // To the last bit of what is drawn from.
    let model = golden_folder("heads5");
    let one = Server::start(&["--nproc", "3", "--model", model.to_str().unwrap()]);
    for body in requests(4) {
        assert_eq!(choices(&server, &body), choices(&one, &body), "{body}");
    }
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert_eq!(other.wait().code(), Some(0), "{}", other.log());
    assert!(other.log().contains("node 0 ends the cluster"), "{}", other.log());
}

#[test]
fn a_rank_of_another_node_is_had_again_with_its_pool_and_its_last_words_are_heard() {
    let (_folder, secret) = secret();
    // Two ranks each: the first is the way between the hosts, and the second knows it through memory alone.
    let (server, other, _) = two_nodes(&secret, &[&["--nproc", "4"][..], &BUDGET].concat());
    assert_undisturbed(&server, &requests(4), || {
        for (restarts, signal) in [(1.0, Signal::KILL), (2.0, Signal::ABORT)] {
            send_signal(rank_of(&other, 2), signal);
            wait_for_restarts(&server, restarts);
        }
        send_signal(rank_of(&server, 1), Signal::KILL);
        wait_for_restarts(&server, 3.0);
    });
    assert_undisturbed(&server, &requests(4), || {
        for (restarts, node, rank) in [(4.0, &other, 3), (5.0, &server, 0)] {
            send_signal(rank_of(node, rank), Signal::KILL);
            wait_for_restarts(&server, restarts);
        }
    });
    let log = server.log();
    assert_eq!((log.matches("pools=Kept").count(), log.matches("pools=Blank").count()), (4, 1), "{log}");
    assert_eq!(metric(&server, "nanoinfer_scheduler_invariants_hold"), 1.0);
    assert!(other.log().contains("rank 2 was killed by signal 6"), "{}", other.log());
}

#[test]
fn a_node_that_is_lost_is_waited_for_and_a_server_without_it_can_be_stopped() {
    let (_folder, secret) = secret();
    let (mut server, other, address) = two_nodes(&secret, &["--nproc", "2", "--shutdown-timeout", "100ms"]);
    let mut again = None;
    assert_undisturbed(&server, &requests(4), || {
        let rank = rank_of(&other, 1);
        send_signal(other.pid(), Signal::KILL);
        wait_until("the end of its rank", || !is_alive(rank));
        server.await_line("node 1 is gone with its ranks; waiting up to 60 s");
        again = Some(Server::spawn(node(&address, &secret)));
        wait_for_restarts(&server, 1.0);
    });
    server.await_line("pools=Blank");
    send_signal(again.unwrap().pid(), Signal::KILL);
    wait_until("the second loss", || server.log().matches("is gone with its ranks").count() == 2);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn a_node_that_is_told_to_stop_alone_is_let_go_and_taken_back() {
    let (_folder, secret) = secret();
    let (mut server, mut other, address) = two_nodes(&secret, &["--nproc", "2"]);
    let mut again = None;
    assert_undisturbed(&server, &requests(4), || {
        other.signal(Signal::TERM);
        assert_eq!(other.wait().code(), Some(0), "{}", other.log());
        again = Some(Server::spawn(node(&address, &secret)));
        wait_for_restarts(&server, 1.0);
    });
    assert!(other.log().contains("node 0 goes on without this node"), "{}", other.log());
    // Told together, it waits for the end.
    let mut again = again.unwrap();
    again.signal(Signal::TERM);
    server.signal(Signal::TERM);
    assert_eq!((server.wait().code(), again.wait().code()), (Some(0), Some(0)), "{}", server.log());
    assert!(again.log().contains("node 0 ends the cluster"), "{}", again.log());
}

#[test]
fn the_end_of_node_zero_is_the_end_of_all_and_said() {
    let (_folder, secret) = secret();
    let (mut server, mut other, address) = two_nodes(&secret, &["--nproc", "2"]);
    let ranks = [rank_of(&server, 0), rank_of(&other, 1)];
    server.signal(Signal::KILL);
    server.wait();
    assert_eq!(other.wait().code(), Some(1), "{}", other.log());
    assert!(other.log().contains(&format!("node 0 at {address} is gone")), "{}", other.log());
    wait_until("the end of all ranks", || !ranks.iter().any(|&rank| is_alive(rank)));

    // A loss that is not borne names its cause, which another node saw.
    let (mut server, mut other, _) = two_nodes(&secret, &["--nproc", "2", "--on-rank-loss", "exit"]);
    send_signal(rank_of(&other, 1), Signal::KILL);
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(server.log().contains("rank 1 was killed by signal 9 (SIGKILL)"), "{}", server.log());
    assert_eq!(other.wait().code(), Some(0), "{}", other.log());
}

#[test]
fn a_stranger_is_refused_and_told_why() {
    let (folder, right) = secret();
    let wrong = folder.path().join("wrong");
    fs::write(&wrong, "another secret, just as long").unwrap();
    fs::set_permissions(&right, fs::Permissions::from_mode(0o640)).unwrap();
    let (server, address) = node_zero(&right, &["--nproc", "2"]);
    server.await_line("can be read by others");
    let refused = |secret: &str, options: &[&str], words: &str| {
        let mut stranger = node(&address, secret);
        stranger.args(options);
        let (status, log) = run_to_end(stranger);
        assert!(!status.success() && log.contains(words), "{words}: {log}");
    };
    refused(wrong.to_str().unwrap(), &[], "does not hold this cluster's secret");
    refused(&right, &["--nodes", "3"], "it counts 3 nodes, and node 0 counts 2");
    refused(&right, &["--node-rank", "2"], "there is no node 2 among 2");
    // Another build.
    let identity = Identity { build_id: "x".into(), world: 1, rank: 0 };
    let mut socket = Socket::Tcp(TcpStream::connect(&address).unwrap());
    let until = Instant::now() + Duration::from_secs(60);
    let error = handshake::join(&mut socket, &identity, b"a long enough shared secret", until).unwrap_err().to_string();
    assert!(error.contains("build x cannot join build "), "{error}");
    server.await_line("build x cannot join");

    // One without a rank, a secret, or anybody at its address.
    let (status, log) = run_to_end(launcher(&["node", "--nodes", "4294967295", "--secret-file", &right]));
    assert!(status.code() == Some(2) && log.contains("--nproc 1 is less than the 4294967295 hosts"), "{log}");
    let (status, log) = run_to_end(launcher(&["node", "--connect", &address]));
    assert!(status.code() == Some(2) && log.contains("NANOINFER_SECRET"), "{log}");
    let (status, log) = run_to_end({
        let mut lost = node("127.0.0.1:9", &right);
        lost.args(["--join-timeout", "300ms"]);
        lost
    });
    assert!(!status.success() && log.contains("cannot join the coordinator at 127.0.0.1:9"), "{log}");
}

#[test]
fn nodes_of_one_machine_divide_its_cores_and_data_links_keep_to_their_ports() {
    let (_folder, secret) = secret();
    let ports = ["--data-ports", "23100-23199"];
    let (mut server, address) = node_zero(&secret, &[&["--nproc", "2"][..], &ports].concat());
    let mut other = node(&address, &secret);
    other.args(ports);
    let other = Server::spawn(other);
    server.await_ready();
    let cores = std::thread::available_parallelism().unwrap().get();
    for (node, rank) in [(&server, 0), (&other, 1)] {
        let threads = fs::read_dir(format!("/proc/{}/task", rank_of(node, rank))).unwrap().flatten();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let helpers = threads.map(name).filter(|name| name.starts_with("compute-")).count();
        assert_eq!(helpers + 1, (cores / 2).max(1), "{}", node.log());
    }
    // Of each rank, which are as many as there are links: the one between them, and rank 1's to node 0.
    let tcp = fs::read_to_string("/proc/net/tcp").unwrap();
    let in_range = |address: &str| {
        let port = u16::from_str_radix(address.rsplit_once(':').unwrap().1, 16).unwrap();
        (23100..=23199).contains(&port)
    };
    let established = tcp.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let links = established.filter(|fields| fields[3] == "01" && in_range(fields[1])).count();
    assert_eq!(links, 2, "{tcp}");
}

#[test]
fn what_started_a_node_is_read_and_told() {
    let mpirun = |size: &str, arguments: &[&str]| {
        let mut command = launcher(&[&["node", "--plan", "--connect", "127.0.0.1:9"], arguments].concat());
        command.env("OMPI_COMM_WORLD_RANK", "0").env("OMPI_COMM_WORLD_SIZE", size);
        command.env("OMPI_COMM_WORLD_LOCAL_SIZE", size);
        run_to_end(command)
    };
    let (status, log) = mpirun("4", &[]);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("Open MPI (OMPI_*) started 4 processes on this host"), "{log}");
    assert!(log.contains("hint: mpirun --map-by ppr:1:node"), "{log}");
    let (status, log) = mpirun("1", &[]);
    assert!(status.success() && log.contains("this is node 0 of 1, by Open MPI (OMPI_*)"), "{log}");

    // The plan is of what is there, and tells it; the others end.
    let (_folder, secret) = secret();
    let (mut server, address) = node_zero(&secret, &["--nproc", "2", "--plan"]);
    let (status, log) = run_to_end(node(&address, &secret));
    assert!(status.success() && log.contains("this is a node of those that node 0 counts, by what was said"), "{log}");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
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
    let (_folder, secret) = secret();
    let (mut server, address) = node_zero(&secret, &["--nproc", "2"]);
    // An address that no machine has: the data link cannot be there.
    let mut other = node(&address, &secret);
    other.args(["--data-host", "192.0.2.1"]);
    let mut other = Server::spawn(other);
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(server.log().contains("rank 1") && server.log().contains("link="), "{}", server.log());
    assert_eq!(other.wait().code(), Some(0), "{}", other.log());
}
