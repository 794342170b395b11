//! Two hosts and a cable between them that is cut: network namespaces of this machine, made here and removed again.
//!
//! Needs root and iproute2: only root makes namespaces and cables, and not in every container.

use std::{fs, process::Command};

use crate::server::{Server, golden_folder, launcher, through};

/// Two namespaces, joined by a pair of virtual interfaces.
struct TwoHosts {
    names: [String; 2],
}

const ADDRESSES: [&str; 2] = ["10.231.77.1", "10.231.77.2"];

impl TwoHosts {
    /// The error says why this machine has no namespaces to give.
    fn new() -> Result<Self, String> {
        let hosts = Self { names: ["a", "b"].map(|host| format!("nanoinfer-{}-{host}", std::process::id())) };
        for name in &hosts.names {
            let made = Command::new("ip").args(["netns", "add", name]).output().map_err(|e| format!("ip: {e}"))?;
            if !made.status.success() {
                return Err(String::from_utf8_lossy(&made.stderr).into_owned());
            }
        }
        let [a, b] = &hosts.names;
        ip(&format!("-n {a} link add cable type veth peer name cable netns {b}"));
        for (name, address) in hosts.names.iter().zip(ADDRESSES) {
            ip(&format!("-n {name} address add {address}/24 dev cable"));
            ip(&format!("-n {name} link set cable up"));
            ip(&format!("-n {name} link set lo up"));
        }
        Ok(hosts)
    }

    /// The same command on one of them.
    fn on(&self, host: usize, command: &Command) -> Command {
        through(&["ip", "netns", "exec", &self.names[host]], command)
    }

    fn cut(&self) {
        ip(&format!("-n {} link set cable down", self.names[0]));
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for name in &self.names {
            // Where one was not made there is none to remove.
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_cut_cable_is_noticed_at_both_ends() {
    let hosts = match TwoHosts::new() {
        Ok(hosts) => hosts,
        Err(reason) => return eprintln!("left out: no network namespaces here: {reason}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "a long enough shared secret\n").unwrap();
    let secret = secret.to_str().unwrap();
    let (model, listen) = (golden_folder("heads5"), format!("{}:0", ADDRESSES[0]));
    let first = ["node", "--nodes", "2", "--listen", &listen, "--secret-file", secret, "--port", "0", "--nproc", "2"];
    let exit = ["--on-rank-loss", "exit"];
    let first = launcher(&[&first[..], &exit, &["--model", model.to_str().unwrap()]].concat());
    let mut first = Server::spawn(hosts.on(0, &first));
    let line = first.await_line("waiting at");
    let address = line.split_whitespace().find(|word| word.starts_with(ADDRESSES[0])).unwrap();
    let second = launcher(&["node", "--connect", address, "--secret-file", secret]);
    let mut second = Server::spawn(hosts.on(1, &second));
    first.await_ready();

    // Nobody says goodbye: no process ends, no connection is closed.
    hosts.cut();
    assert_eq!(first.wait().code(), Some(1), "{}", first.log());
    assert!(first.log().contains("rank 1 is gone"), "{}", first.log());
    assert!(!second.wait().success(), "{}", second.log());
    assert!(second.log().contains("is gone"), "{}", second.log());
}
