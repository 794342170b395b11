//! Strangers at every door while ranks join, load, run and are lost, and noise within a rank's own link: nothing but that link ends.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    handshake::{self, Identity},
    link::Socket,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};

use crate::{
    nodes::{node, node_zero, secret, two_nodes},
    recovery::{assert_undisturbed, metric, requests, wait_for_restarts},
    server::{Server, is_alive, send_signal, wait_until},
};

/// Losses of a test, and then none.
const OPTIONS: [&str; 6] = ["--nproc", "2", "--rank-restarts", "2/10m", "--shutdown-timeout", "100ms"];

/// Descriptors of a process that are TCP sockets in such a state, with the ports of both ends.
fn sockets(pid: u32, state: &str) -> Vec<(i32, u16, u16)> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let link = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse::<i32>().ok()?;
        Some((fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok()?, number))
    };
    let ours: Vec<(String, i32)> = descriptors.filter_map(link).collect();
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Its own address, the other's, its state and its inode.
        let (name, port) = (format!("socket:[{}]", fields[9]), |field: &str| {
            u16::from_str_radix(field.split_once(':').unwrap().1, 16).unwrap()
        });
        let &(_, number) = ours.iter().find(|(known, _)| fields[3] == state && *known == name)?;
        Some((number, port(fields[1]), port(fields[2])))
    };
    fs::read_to_string("/proc/net/tcp").unwrap().lines().skip(1).filter_map(of_line).collect()
}

/// Ports on which a process listens.
fn doors(pid: u32) -> Vec<u16> {
    sockets(pid, "0A").into_iter().map(|(_, own, _)| own).collect()
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// The first message of a joiner that does not hold the key, as it goes over the wire.
fn introduction(rank: usize) -> Vec<u8> {
    let (joiner, mut raw) = UnixStream::pair().unwrap();
    let identity = Identity { build_id: "x".into(), world: 2, rank };
    let joining = thread::spawn(move || {
        handshake::join(&mut Socket::Unix(joiner), &identity, b"no such key", Instant::now() + Duration::from_secs(60))
    });
    let mut length = [0; 4];
    raw.read_exact(&mut length).unwrap();
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    raw.read_exact(&mut body).unwrap();
    drop(raw);
    joining.join().unwrap().unwrap_err();
    [&length[..], &body].concat()
}

/// Strangers of every kind come to a door; those that say nothing, or not enough, stay as long as what is returned does.
fn visit(port: u16) -> Vec<TcpStream> {
    let noise: Vec<u8> = (0..3000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let words = [
        Vec::new(),
        noise,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 64],
        vec![200, 0, 0, 0, 1, 2, 3],
        introduction(0),
        introduction(1),
        // With a proof that is none.
        [introduction(1), vec![32, 0, 0, 0], vec![7; 32]].concat(),
    ];
    let mut stay = Vec::new();
    for word in words {
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // Who is turned away early cannot say all of it.
        let _ = stranger.write_all(&word);
        stay.push(stranger);
    }
    // And some that leave at once.
    (0..3).for_each(|_| drop(TcpStream::connect(("127.0.0.1", port)).unwrap()));
    stay
}

#[test]
fn strangers_at_any_door_at_any_time_change_no_answer_and_are_no_loss() {
    let (_folder, secret) = secret();
    let (mut server, address) = node_zero(&secret, &OPTIONS);
    let mut crowd = visit(port_of(&address));
    let other = Server::spawn(node(&address, &secret));
    server.await_ready();
    let [first, second] = [&server, &other].map(|node| Server::ranks_of(node.pid())[0].1);

    assert_undisturbed(&server, &requests(4), || {
        assert!(doors(first).is_empty(), "a data link that stands has no door");
        // The nodes' door, and the ranks'.
        let http = port_of(&server.url);
        let come = |crowd: &mut Vec<TcpStream>, pid| {
            doors(pid).into_iter().filter(|&port| port != http).for_each(|port| crowd.extend(visit(port)));
        };
        come(&mut crowd, server.pid());
        // Its node does not start it again for a while.
        send_signal(other.pid(), Signal::STOP);
        send_signal(second, Signal::KILL);
        wait_until("the door of a rank that waits for another", || !doors(first).is_empty());
        come(&mut crowd, first);
        come(&mut crowd, server.pid());
        send_signal(other.pid(), Signal::CONT);
        wait_for_restarts(&server, 1.0);
    });
    assert_eq!(metric(&server, "nanoinfer_rank_restarts_total"), 1.0, "{}", server.log());
    server.await_line("was refused");
    server.await_line("a stranger was turned away");
}

/// Says what neither end of the socket said, by a copy of the descriptor that a process has.
fn say(pid: u32, descriptor: i32, bytes: &[u8]) {
    let process = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
    let copy = pidfd_getfd(&process, descriptor, PidfdGetfdFlags::empty()).unwrap();
    fs::File::from(copy).write_all(bytes).unwrap();
}

#[test]
fn noise_in_a_ranks_own_link_is_the_loss_of_that_rank_alone() {
    let (_folder, secret) = secret();
    let (mut server, mut other, address) = two_nodes(&secret, &OPTIONS);
    let known = [port_of(&server.url), port_of(&address)];
    let door = doors(server.pid()).into_iter().find(|port| !known.contains(port)).expect("a door for ranks");
    let rank = || Server::ranks_of(other.pid())[0].1;
    assert_undisturbed(&server, &requests(4), || {
        for (restarts, from_the_rank) in [(1.0, true), (2.0, false)] {
            thread::sleep(Duration::from_millis(100));
            let lost = rank();
            let pid = if from_the_rank { lost } else { server.pid() };
            let links = sockets(pid, "01");
            let link = links.iter().find(|(_, own, far)| *(if from_the_rank { far } else { own }) == door);
            say(pid, link.expect("the link of the rank").0, &[0xff; 100]);
            wait_until("the end of the rank", || !is_alive(lost));
            wait_for_restarts(&server, restarts);
        }
    });
    server.await_line("is over the limit");
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(other.wait().success(), "{}", other.log());
}
