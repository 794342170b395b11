//! Strangers at every door while ranks join, load, run and are lost, and noise within a rank's own link: nothing but that link ends.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    handshake::{self, Identity},
    link::Socket,
};
use rustix::process::Signal;

use crate::{
    ranks::{coordinator_with, worker},
    recovery::{assert_undisturbed, metric, requests, wait_for_restarts},
    server::{Server, send_signal, wait_until},
};

/// Losses of a test, and then none.
const OPTIONS: [&str; 6] = ["--nproc", "2", "--rank-restarts", "2/10m", "--shutdown-timeout", "100ms"];

/// A secret, and where it lies as long as the folder is there.
fn secret() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "a long enough shared secret\n").unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

/// Ports on which a process listens.
fn doors(pid: u32) -> Vec<u16> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let link = |entry: fs::DirEntry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok();
    let sockets: Vec<String> = descriptors.filter_map(link).collect();
    let of_line = |line: &str| -> Option<u16> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Its own address, its state and its inode.
        let is_ours = fields[3] == "0A" && sockets.contains(&format!("socket:[{}]", fields[9]));
        is_ours.then(|| u16::from_str_radix(fields[1].split_once(':').unwrap().1, 16).unwrap())
    };
    fs::read_to_string("/proc/net/tcp").unwrap().lines().skip(1).filter_map(of_line).collect()
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// The first message of a joiner that does not hold the key, as it goes over the wire.
fn introduction(rank: usize) -> Vec<u8> {
    let (joiner, mut raw) = UnixStream::pair().unwrap();
    let identity = Identity { build_id: "x".into(), world: 2, rank, host: "h".into() };
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
    let (mut server, address) = coordinator_with(&secret, &OPTIONS);
    let join = |rank: &str| Server::spawn(worker(rank, "2", &address, &secret));
    let mut crowd = visit(port_of(&address));
    let second = join("1");
    server.await_line("rank=1");
    // The other will have loaded before it, and waits with its door open.
    send_signal(second.pid(), Signal::STOP);
    let first = join("0");
    wait_until("the door of a rank that has loaded", || !doors(first.pid()).is_empty());
    doors(first.pid()).into_iter().for_each(|port| crowd.extend(visit(port)));
    send_signal(second.pid(), Signal::CONT);
    server.await_ready();

    let mut again = None;
    assert_undisturbed(&server, &requests(4), || {
        assert!(doors(first.pid()).is_empty(), "a data link that stands has no door");
        crowd.extend(visit(port_of(&address)));
        send_signal(second.pid(), Signal::KILL);
        wait_until("the door of a rank that waits for another", || !doors(first.pid()).is_empty());
        doors(first.pid()).into_iter().for_each(|port| crowd.extend(visit(port)));
        crowd.extend(visit(port_of(&address)));
        again = Some(join("1"));
        wait_for_restarts(&server, 1.0);
    });
    assert_eq!(metric(&server, "nanoinfer_rank_restarts_total"), 1.0, "{}", server.log());
    assert!(server.log().contains("was refused"), "{}", server.log());
    assert!(first.log().contains("a stranger was turned away"), "{}", first.log());
}

/// Between a rank and its coordinator: hands everything on, and says what neither of them said.
struct Relay {
    address: String,
    /// To the coordinator, and to the rank.
    ends: Arc<Mutex<Option<[TcpStream; 2]>>>,
}

impl Relay {
    fn before(coordinator: &str) -> Self {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = door.local_addr().unwrap().to_string();
        let (ends, coordinator) = (Arc::new(Mutex::new(None)), coordinator.to_owned());
        let latest = Arc::clone(&ends);
        thread::spawn(move || {
            for near in door.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(&coordinator) else { return };
                let again = |socket: &TcpStream| socket.try_clone().unwrap();
                *latest.lock().unwrap() = Some([again(&far), again(&near)]);
                for (mut from, mut to) in [(again(&near), again(&far)), (far, near)] {
                    thread::spawn(move || {
                        // Ends as either side does.
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, ends }
    }

    fn say(&self, end: usize, bytes: &[u8]) {
        self.ends.lock().unwrap().as_mut().unwrap()[end].write_all(bytes).unwrap();
    }
}

#[test]
fn noise_in_a_ranks_own_link_is_the_loss_of_that_rank_alone() {
    let (_folder, secret) = secret();
    let (mut server, address) = coordinator_with(&secret, &OPTIONS);
    let relay = Relay::before(&address);
    let mut first = Server::spawn(worker("0", "2", &address, &secret));
    let join = || Server::spawn(worker("1", "2", &relay.address, &secret));
    let mut second = join();
    server.await_ready();
    assert_undisturbed(&server, &requests(4), || {
        for end in 0..2 {
            thread::sleep(Duration::from_millis(100));
            relay.say(end, &[0xff; 100]);
            assert!(!second.wait().success(), "{}", second.log());
            second = join();
            wait_for_restarts(&server, 1.0 + end as f64);
        }
    });
    assert!(server.log().contains("is over the limit"), "{}", server.log());
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(first.wait().success(), "{}", first.log());
}
