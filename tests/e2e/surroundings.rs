//! What shells, containers and other users of the machine do to us.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
    os::unix::fs::{DirBuilderExt, chown},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::server::{Server, launcher, run_to_end, send_signal};

#[test]
fn a_reader_that_has_left_is_no_failure_and_a_full_disk_is_one() {
    for arguments in [&["--plan"][..], &["--help"], &["--version"], &["worker", "--help"]] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut command = launcher(arguments);
        command.stdout(writer);
        let (status, said) = run_to_end(command);
        assert_eq!(status.code(), Some(0), "{arguments:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("error"), "{arguments:?}: {said}");

        let mut command = launcher(arguments);
        command.stdout(File::options().write(true).open("/dev/full").unwrap());
        let (status, said) = run_to_end(command);
        assert_eq!(status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("error: cannot write to standard output: No space left"), "{arguments:?}: {said}");
    }
    // An error has its exit code also where nobody reads it.
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let status = launcher(&["--model", "./no/such/folder"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_server_whose_log_nobody_reads_any_more_serves_on() {
    let mut child = launcher(&["--nproc", "2", "--port", "0", "--log", "debug"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.strip_prefix("ready on http://")?.to_owned())).unwrap();
    drop(lines);
    let body = json!({ "prompt": "Hello!", "max_tokens": 3 }).to_string();
    for _ in 0..3 {
        let mut socket = TcpStream::connect(&address).unwrap();
        write!(socket, "POST /api/chat HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let reply = io::read_to_string(socket).unwrap();
        assert!(reply.starts_with("HTTP/1.0 200"), "{reply}");
    }
    send_signal(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn addresses_that_kubernetes_leaves_are_no_options() {
    let links = [
        ("NANOINFER_PORT", "tcp://10.96.0.7:8000"),
        ("NANOINFER_PORT_8000_TCP", "tcp://10.96.0.7:8000"),
        ("NANOINFER_PORT_8000_TCP_ADDR", "10.96.0.7"),
        ("NANOINFER_SERVICE_HOST", "10.96.0.7"),
        ("NANOINFER_SERVICE_PORT", "8000"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::write(&file, "max-seqs = 4\n").unwrap();
    let mut command = launcher(&["--port", "0", "--config", file.to_str().unwrap()]);
    command.envs(links);
    let mut server = Server::spawn(command);
    server.await_ready();
    let note = server.await_line("NANOINFER_PORT_8000_TCP_ADDR");
    assert!(links.iter().all(|(name, _)| note.contains(name)), "{note}");
    server.signal(Signal::TERM);
    server.wait();
    assert_eq!(server.log().matches("NANOINFER_").count(), links.len(), "one line: {}", server.log());
    assert!(!server.log().contains("did you mean"), "{}", server.log());

    // A slip is one all the same.
    let mut command = launcher(&["--plan"]);
    command.envs(links[1..].iter().copied()).env("NANOINFER_PORT", "80x0");
    let (status, said) = run_to_end(command);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("'80x0' for '--port") && said.contains("that of NANOINFER_PORT"), "{said}");
}

#[test]
fn a_folder_of_somebody_elses_is_neither_served_nor_written_into() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give a folder away.
        return;
    }
    let shared = tempfile::tempdir().unwrap();
    let ours = shared.path().join("nanoinfer-0");
    fs::DirBuilder::new().mode(0o777).create(&ours).unwrap();
    chown(&ours, Some(65534), None).unwrap();
    let homeless = |arguments: &[&str]| {
        let mut command = launcher(arguments);
        command.env("TMPDIR", shared.path()).env("HF_HUB_OFFLINE", "1");
        for name in ["HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"] {
            command.env_remove(name);
        }
        run_to_end(command)
    };
    for (arguments, hint) in [(&["--plan"][..], "XDG_CACHE_HOME"), (&["--plan", "--model", "gpt2"], "HF_HOME")] {
        let (status, said) = homeless(arguments);
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("belongs to user 65534") && said.contains(hint), "{said}");
    }
    assert_eq!(fs::read_dir(&ours).unwrap().count(), 0);
    fs::remove_dir(&ours).unwrap();
    let (status, said) = homeless(&["--plan"]);
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(fs::read_dir(&ours).unwrap().count(), 1, "the demo model");
}

#[test]
fn a_log_for_programs_is_an_object_a_line_whoever_writes_it() {
    let mut server =
        Server::spawn(launcher(&["--nproc", "2", "--port", "0", "--log", "debug", "--log-format", "json"]));
    server.await_line("ready on http://");
    let pids = server.rank_pids();
    send_signal(pids[1], Signal::KILL);
    server.await_line("signal 9");
    server.await_line("ready again");
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    let log = server.log();
    let events: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    assert!(events.iter().all(|event| event["level"].is_string() && event["message"].is_string()), "{log}");
    let plan = events.iter().find(|event| event["message"] == "plan").unwrap();
    assert_eq!((&plan["model"], &plan["ranks"], &plan["dtype"]), (&json!("nano-chat"), &json!(2), &json!("f32")));
    let ranks: Vec<_> = events.iter().filter(|event| event["message"] == "plan of a rank").collect();
    assert!(ranks.len() == 2 && ranks[1]["heads"] == "4..8" && ranks[1]["bytes"].as_u64() > Some(1 << 20), "{ranks:?}");
    assert!(
        events.iter().any(|event| event["rank"] == 1 && event["target"].as_str().unwrap().contains("worker")),
        "{log}"
    );
    for wrong in [&["--host", "no.such.host.invalid"][..], &["--trace", "/no/such/folder/out.json"]] {
        let (status, said) = run_to_end(launcher(&[wrong, &["--log-format", "json"]].concat()));
        let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!((status.code(), &last["level"]), (Some(2), &json!("ERROR")), "{said}");
        assert!(last["message"].as_str().unwrap().contains(wrong[1]) && !said.contains("\"plan\""), "{said}");
    }
}
