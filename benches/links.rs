//! Reductions between ranks, each beside the bare exchange that it cannot beat: a cache line that goes to and fro between
//! two cores, and a message that goes to and fro over a loopback socket.
//!
//! `cargo bench --workspace --bench links`. The sizes are those of one row, a batch and a chunk of a prompt in GPT-2
//! 124M, and of a chunk in gpt2-xl. All ends run on threads of this process, each on a core of its own where there are so many.

use std::{
    hint,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Barrier,
        atomic::{
            AtomicU32,
            Ordering::{Acquire, Release},
        },
    },
    thread,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nanoinfer_shared::{
    comm::{
        Abort, CommDType, Communicator, Hosts, Meeting, OneThread, ReduceSite, Shm, ShmSegment, Tcp,
        TcpListenerForPeers,
    },
    handshake::Identity,
};

const SITE: ReduceSite = ReduceSite { step: 0, layer: None, operation: "bench" };
/// Elements: a row of width 768, 32 rows, 512 rows; 512 rows of width 1600.
const SIZES: [usize; 4] = [768, 32 * 768, 512 * 768, 512 * 1600];

const PLAIN: (CommDType, bool) = (CommDType::F32, false);

/// Runs `rank(r)` on threads at once, each on its core, and returns the time that rank 0 took.
fn timed<T: Send>(ends: Vec<T>, rank: impl Fn(usize, &mut T) + Sync) -> Duration {
    let start = Barrier::new(ends.len());
    let (rank, start) = (&rank, &start);
    thread::scope(|scope| {
        let times = ends.into_iter().enumerate().map(|(r, mut end)| {
            scope.spawn(move || {
                pin_to(r);
                start.wait();
                let begun = Instant::now();
                rank(r, &mut end);
                begun.elapsed()
            })
        });
        let handles: Vec<_> = times.collect();
        let times: Vec<_> = handles.into_iter().map(|handle| handle.join().expect("no rank panics")).collect();
        times[0]
    })
}

/// Keeps the thread on one core; where that is refused it runs as it may.
fn pin_to(core: usize) {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut set = rustix::thread::CpuSet::new();
    set.set(core % cores);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// A counter alone on its cache line.
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU32);

/// One line for each way, as a reduction has.
fn line_ping_pong(rounds: u64) -> Duration {
    let lines = [Line::default(), Line::default()];
    timed(vec![(), ()], |rank, ()| {
        for round in 1..=rounds as u32 {
            if rank == 0 {
                lines[0].0.store(round, Release);
            }
            while lines[1 - rank].0.load(Acquire) != round {
                hint::spin_loop();
            }
            if rank == 1 {
                lines[1].0.store(round, Release);
            }
        }
    })
}

fn socket_ping_pong(bytes: usize, rounds: u64) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let there = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let ends = vec![there, listener.accept().expect("it was called").0];
    for end in &ends {
        end.set_nodelay(true).expect("a socket takes options");
    }
    timed(ends, |rank, socket| {
        let mut message = vec![0; bytes];
        for _ in 0..rounds {
            if rank == 0 {
                socket.write_all(&message).expect("the peer reads");
                socket.read_exact(&mut message).expect("the peer writes");
            } else {
                socket.read_exact(&mut message).expect("the peer writes");
                socket.write_all(&message).expect("the peer reads");
            }
        }
    })
}

fn reduce(ends: Vec<Box<dyn Communicator>>, elements: usize, rounds: u64) -> Duration {
    timed(ends, |_, comm| {
        let mut data = vec![0.0_f32; elements];
        for _ in 0..rounds {
            comm.all_reduce(&mut data, SITE, &mut OneThread).expect("both ranks are there");
        }
    })
}

/// Ranks of hosts with so many each.
fn on_hosts(ranks: &[usize], (dtype, is_sealed): (CommDType, bool), spin: bool) -> Vec<Box<dyn Communicator>> {
    let hosts = Hosts::new(ranks);
    let world = hosts.world();
    let segments = ranks.iter().map(|_| ShmSegment::create(world).expect("there is memory")).collect::<Vec<_>>();
    let listeners = ranks.iter().map(|_| TcpListenerForPeers::bind("127.0.0.1", None).expect("loopback has ports"));
    let listeners: Vec<_> = listeners.collect();
    let addresses: &Vec<_> = &listeners.iter().map(|listener| listener.address().to_string()).collect();
    thread::scope(|scope| {
        let joining = (0..world).map(|rank| {
            let (host, identity) = (hosts.of(rank), Identity { build_id: "bench".into(), world, rank });
            let segment = segments[host].try_clone().expect("there are descriptors");
            let abort = Abort::default();
            let shm = Shm::open(segment, rank, hosts.clone(), dtype, spin, &abort).expect("it fits");
            let listener = (hosts.count() > 1 && hosts.is_front(rank)).then(|| &listeners[host]);
            scope.spawn(move || match listener {
                Some(listener) => {
                    let meeting = Meeting { identity: &identity, addresses, key: &[7; 32], epoch: 0, is_sealed };
                    Box::new(Tcp::connect(shm, listener, meeting, &abort).expect("the peers come"))
                        as Box<dyn Communicator>
                }
                None => Box::new(shm),
            })
        });
        let joining: Vec<_> = joining.collect();
        joining.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    })
}

fn links(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("links");
    group.measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300)).sample_size(20);
    group.bench_function("limit: cache line to and fro", |b| b.iter_custom(line_ping_pong));
    for elements in SIZES {
        let bytes = elements * size_of::<f32>();
        group.throughput(Throughput::Bytes(bytes as u64));
        let name = |what: &str| BenchmarkId::new(what, format!("{} KB", bytes >> 10));
        group.bench_function(name("limit: loopback to and fro"), |b| {
            b.iter_custom(|rounds| socket_ping_pong(bytes, rounds));
        });
        for world in [2, 4] {
            let name = |what: &str| name(&format!("{what}, {world} ranks"));
            // Where ranks share cores, who spins keeps others from theirs.
            if thread::available_parallelism().is_ok_and(|cores| world <= cores.get()) {
                group.bench_function(name("shm"), |b| {
                    b.iter_custom(|n| reduce(on_hosts(&[world], PLAIN, true), elements, n))
                });
            }
            group.bench_function(name("shm, sleeping"), |b| {
                b.iter_custom(|n| reduce(on_hosts(&[world], PLAIN, false), elements, n))
            });
            let apart = vec![1; world];
            for (what, as_sent) in [
                ("tcp", PLAIN),
                ("tcp, sealed", (CommDType::F32, true)),
                ("tcp, sealed, bf16", (CommDType::Bf16, true)),
            ] {
                group.bench_function(name(what), |b| {
                    b.iter_custom(|n| reduce(on_hosts(&apart, as_sent, false), elements, n))
                });
            }
            if world == 4 {
                group.bench_function(name("tcp, 2 + 2"), |b| {
                    b.iter_custom(|n| reduce(on_hosts(&[2, 2], PLAIN, false), elements, n))
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, links);
criterion_main!(benches);
