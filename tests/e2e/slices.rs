//! A node whose host has no checkpoint: how much it is sent, that its ranks answer as others do, and what becomes of a wire that breaks.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use rustix::process::Signal;
use serde_json::json;

use crate::{
    nodes::{node, node_zero_of, rank_of, secret},
    recovery::{BUDGET, assert_undisturbed, choices, requests, wait_for_restarts},
    server::{Server, golden_folder, root, send_signal},
};

/// A way to node 0, which counts what comes from there and breaks after so many bytes of a connection.
struct Wire {
    address: String,
    crossed: Arc<AtomicUsize>,
}

impl Wire {
    fn to(far: &str, breaks_after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, far) = (listener.local_addr().unwrap().to_string(), far.to_owned());
        let crossed = Arc::new(AtomicUsize::new(0));
        let count = crossed.clone();
        // It ends with the test's process.
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(&far) else { continue };
                let (from_near, to_far, count) = (near.try_clone().unwrap(), far.try_clone().unwrap(), count.clone());
                thread::spawn(move || carry(from_near, to_far, usize::MAX, &AtomicUsize::new(0)));
                thread::spawn(move || carry(far, near, breaks_after, &count));
            }
        });
        Self { address, crossed }
    }

    fn crossed(&self) -> usize {
        self.crossed.load(SeqCst)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, most: usize, count: &AtomicUsize) {
    let (mut buffer, mut carried) = ([0; 8192], 0);
    let mut next = || -> io::Result<bool> {
        let read = from.read(&mut buffer)?;
        carried += read;
        count.fetch_add(read, SeqCst);
        to.write_all(&buffer[..read])?;
        Ok(read > 0 && carried <= most)
    };
    while next().unwrap_or(false) {}
    // Both ways, as a cut cable does.
    for end in [from, to] {
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// Node 0 of two with the model in a folder of `parent`, whose path is of no use elsewhere.
fn with_a_path_of_its_own(parent: &Path, model: &str, secret: &str, options: &[&str]) -> (Server, String) {
    node_zero_of(&format!("./{model}"), secret, options, |command| {
        command.current_dir(parent);
    })
}

/// A node that may keep what it is sent in `cache`.
fn keeping(cache: &Path, mut node: Command) -> Server {
    node.env("XDG_CACHE_HOME", cache);
    Server::spawn(node)
}

/// Folders of slices in a cache.
fn kept(cache: &Path) -> usize {
    fs::read_dir(cache.join("nanoinfer")).unwrap().count()
}

#[test]
fn a_node_without_the_checkpoint_is_sent_what_its_ranks_read_and_answers_as_one_host_does() {
    let ((_folder, secret), cache) = (secret(), tempfile::tempdir().unwrap());
    let options = [&["--nproc", "3"][..], &BUDGET].concat();
    let golden = golden_folder("heads5");
    let (mut server, address) = with_a_path_of_its_own(golden.parent().unwrap(), "heads5", &secret, &options);
    let wire = Wire::to(&address, usize::MAX);
    let mut other = keeping(cache.path(), node(&wire.address, &secret));
    server.await_ready();
    let (crossed, all) = (wire.crossed(), fs::metadata(golden.join("model.safetensors")).unwrap().len() as usize);
    let line = server.await_line("sent to node 1");
    let sent = line.split_once("bytes=").unwrap().1.split_whitespace().next().unwrap().parse::<usize>().unwrap();
    // One of three ranks, whose share are one head of five, and the positions; beside it handshake and orders.
    assert!(sent < all / 2 && (sent..sent + 4096).contains(&crossed), "{crossed} for {sent} of {all} bytes");

    let one = Server::start(&["--nproc", "3", "--model", golden.to_str().unwrap()]);
    for body in requests(4) {
        assert_eq!(choices(&server, &body), choices(&one, &body), "{body}");
    }
    // What a rank loads is still there when it comes again.
    assert_undisturbed(&server, &requests(4), || {
        send_signal(rank_of(&other, 2), Signal::KILL);
        wait_for_restarts(&server, 1.0);
    });
    assert!(wire.crossed() < crossed + 4096 && kept(cache.path()) == 1, "{}", other.log());
    server.signal(Signal::TERM);
    assert_eq!((server.wait().code(), other.wait().code()), (Some(0), Some(0)), "{}", other.log());
    assert_eq!(kept(cache.path()), 0);
}

#[test]
fn a_wire_that_breaks_is_told_with_file_and_byte_and_another_node_begins_anew() {
    let ((_folder, secret), cache) = (secret(), tempfile::tempdir().unwrap());
    let demo = root().join("launcher/demo");
    let (mut server, address) = with_a_path_of_its_own(&demo, "nano-chat", &secret, &["--nproc", "2"]);
    let wire = Wire::to(&address, 2 << 20);
    let mut first = keeping(cache.path(), node(&wire.address, &secret));
    assert_eq!(first.wait().code(), Some(1), "{}", first.log());
    let line = first.await_line("up to byte");
    assert!(line.contains("received from node 0: 1.") && line.contains("model.safetensors"), "{line}");
    assert_eq!(kept(cache.path()), 0);

    server.await_line("node 1 is gone with its ranks");
    let own_copy = ["--model", "/nowhere/nano-chat"];
    let mut again = node(&address, &secret);
    again.args(own_copy);
    let again = keeping(cache.path(), again);
    again.await_line("--model is not on this host");
    server.await_ready();
    // One that is killed leaves behind what the next one removes.
    send_signal(again.pid(), Signal::KILL);
    let _last = keeping(cache.path(), node(&address, &secret));
    wait_for_restarts(&server, 1.0);
    server.ask("/api/chat", &json!({ "prompt": "What is a cat?", "temperature": 0 }));
    assert_eq!(kept(cache.path()), 1);
}
