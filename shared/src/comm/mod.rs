//! The data link between ranks: adding up partial sums.
//!
//! Invariant: every layout over hosts, algorithm and message size adds the contributions in rank order 0 … N−1, starting from
//! rank 0's, so all ranks leave with identical bits, which are the same wherever ranks are.
//! Does not know what is added, nor why; [`ReduceSite`] is carried only to name a stuck operation.

mod abort;
mod dtype;
mod hosts;
mod local;
mod beat;
mod ring;
mod shm;
mod meet;
mod tcp;
mod threads;

use std::{fmt, io, ops::Range, time::Duration};

pub use abort::Abort;
pub use dtype::CommDType;
pub use hosts::Hosts;
pub use local::Local;
pub use meet::{Meeting, TcpListenerForPeers};
pub use shm::{Shm, ShmSegment};
pub use tcp::Tcp;
pub use threads::{OneThread, Threads};

/// How long a rank waits for its peers in one reduction: far above any step, so that only a lost peer meets it.
pub const REDUCE_DEADLINE: Duration = Duration::from_secs(60);

/// The ranks of one cluster, seen from one of them. Left by dropping it, and from another thread by its [`Abort`].
pub trait Communicator: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Replaces `data` by the sum over all ranks, in rank order. Collective: every rank calls it with the same length
    /// in the same order. `threads` share the adding. Returns how long it waited for the others.
    ///
    /// # Errors
    /// When a peer is gone, late past the deadline, or out of step; the communicator is then of no further use.
    fn all_reduce(
        &mut self,
        data: &mut [f32],
        site: ReduceSite,
        threads: &mut dyn Threads,
    ) -> Result<Duration, CommError>;
}

/// Elements added up at a time: so few that they stay in the nearest cache.
const BLOCK: usize = 256;

/// Replaces `data`, which is `own`'s part, by the sum over all ranks, in rank order from rank 0's on. `read` hands a range of a
/// peer's part on.
fn add_in_rank_order(
    data: &mut [f32],
    own: usize,
    world: usize,
    read: impl Fn(usize, Range<usize>, &mut dyn FnMut(&[f32])),
) {
    let mut sums = [0.0; BLOCK];
    for (i, block) in data.chunks_mut(BLOCK).enumerate() {
        let sums = &mut sums[..block.len()];
        for rank in 0..world {
            let mut add = |part: &[f32]| match rank {
                0 => sums.copy_from_slice(part),
                _ => sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
            };
            if rank == own {
                add(block);
            } else {
                read(rank, i * BLOCK..i * BLOCK + block.len(), &mut add);
            }
        }
        block.copy_from_slice(sums);
    }
}

/// Where in a step a reduction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReduceSite {
    /// Step of the plan.
    pub step: u64,
    /// Layer from 0; none for the embedding.
    pub layer: Option<usize>,
    /// What is added up.
    pub operation: &'static str,
}

impl fmt::Display for ReduceSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of step {}", self.operation, self.step)?;
        self.layer.map_or(Ok(()), |layer| write!(f, ", layer {layer}"))
    }
}

/// Why a reduction or the setting up of a data link failed.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// A peer did not arrive.
    #[error("rank {rank} waited {waited:?} for rank {peer} in the {site}")]
    Deadline {
        /// Who waited.
        rank: usize,
        /// For whom.
        peer: usize,
        /// How long.
        waited: Duration,
        /// In what.
        site: ReduceSite,
    },
    /// A peer gave up.
    #[error("rank {rank}: a peer aborted during the {site}")]
    Aborted {
        /// Who found out.
        rank: usize,
        /// In what.
        site: ReduceSite,
    },
    /// A peer's socket failed.
    #[error("rank {rank}: the link to rank {peer} failed in the {site}: {source}")]
    Link {
        /// Who found out.
        rank: usize,
        /// Whose link.
        peer: usize,
        /// In what.
        site: ReduceSite,
        /// How.
        source: io::Error,
    },
    /// A peer is in another reduction: a bug.
    #[error("rank {rank} and rank {peer} are out of step in the {site}")]
    OutOfStep {
        /// Who found out.
        rank: usize,
        /// With whom.
        peer: usize,
        /// In what.
        site: ReduceSite,
    },
    /// A peer could not be reached at the start.
    #[error(
        "rank {rank} cannot reach rank {peer} at {address}: {reason}\n  hint: ranks on different hosts need --data-host set to an address that the others can reach"
    )]
    Unreachable {
        /// Who tried.
        rank: usize,
        /// Whom.
        peer: usize,
        /// Where.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The operating system refused memory or sockets.
    #[error("rank {rank}: cannot set up the data link: {source}")]
    Setup {
        /// Who tried.
        rank: usize,
        /// Why not.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::{
        dtype::{bf16_bits, from_bf16_bits},
        *,
    };
    use crate::handshake::Identity;

    pub(super) const SITE: ReduceSite = ReduceSite { step: 0, layer: None, operation: "test" };

    /// Runs `body` as every rank of hosts with so many ranks each.
    fn on_every_rank<T: Send>(
        layout: &[usize],
        dtype: CommDType,
        body: impl Fn(Box<dyn Communicator>, &Abort) -> T + Sync,
    ) -> Vec<T> {
        let hosts = Hosts::new(layout);
        let world = hosts.world();
        let segments: Vec<_> = layout.iter().map(|_| ShmSegment::create(world).unwrap()).collect();
        let listeners: Vec<_> = layout.iter().map(|_| TcpListenerForPeers::bind("127.0.0.1", None).unwrap()).collect();
        let peers: Vec<_> = listeners.iter().map(|l| l.address().to_string()).collect();
        let (body, peers, hosts, listeners) = (&body, &peers, &hosts, &listeners);
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..world)
                .map(|rank| {
                    let host = hosts.of(rank);
                    let memory = segments[host].try_clone().unwrap();
                    scope.spawn(move || {
                        let identity = Identity { build_id: "test".into(), world, rank };
                        let abort = Abort::default();
                        let shm = Shm::open(memory, rank, hosts.clone(), dtype, rank % 2 == 0, &abort).unwrap();
                        let comm: Box<dyn Communicator> = if hosts.count() > 1 && hosts.is_front(rank) {
                            let meeting = Meeting {
                                identity: &identity,
                                addresses: peers,
                                key: &[7; 32],
                                epoch: 0,
                                is_sealed: rank % 2 == 0,
                            };
                            Box::new(Tcp::connect(shm, &listeners[host], meeting, &abort).unwrap())
                        } else {
                            Box::new(shm)
                        };
                        body(comm, &abort)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// As many threads as that, for each phase anew.
    struct AtOnce(usize);

    impl Threads for AtOnce {
        fn count(&self) -> usize {
            self.0
        }

        fn run(&mut self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            std::thread::scope(|scope| (0..tasks).for_each(|i| drop(scope.spawn(move || task(i)))));
        }
    }

    /// Values whose float sum depends on the order of addition.
    fn contribution(rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + rank * 104_729) as f32).sin() * 10f32.powi((rank as i32 * 3) % 7 - 3)).collect()
    }

    fn sum_in_rank_order(world: usize, len: usize, dtype: CommDType) -> Vec<f32> {
        let rounded = |x: f32| if dtype == CommDType::Bf16 { from_bf16_bits(bf16_bits(x)) } else { x };
        let mut sum: Vec<f32> = contribution(0, len).into_iter().map(rounded).collect();
        for rank in 1..world {
            sum.iter_mut().zip(contribution(rank, len)).for_each(|(sum, x)| *sum += rounded(x));
        }
        sum
    }

    #[test]
    fn every_layout_adds_in_rank_order_to_the_last_bit() {
        // Without owners and with, also such that have no element, within a slot and beyond.
        let lengths = [0, 1, 3, 1000, 16_384, 16_385, 65_537, 300_000];
        let layouts: [&[usize]; 9] = [&[2], &[3], &[5], &[1, 1], &[1, 1, 1, 1], &[2, 2], &[2, 1], &[1, 3], &[2, 1, 2]];
        for (threads, dtype) in [(1, CommDType::F32), (3, CommDType::F32), (2, CommDType::Bf16)] {
            for layout in layouts {
                let world = layout.iter().sum();
                let results = on_every_rank(layout, dtype, |mut comm, _| {
                    lengths.map(|len| {
                        let mut data = contribution(comm.rank(), len);
                        comm.all_reduce(&mut data, SITE, &mut AtOnce(threads)).unwrap();
                        data
                    })
                });
                for (i, &len) in lengths.iter().enumerate() {
                    let expected = sum_in_rank_order(world, len, dtype);
                    for result in &results {
                        let same = result[i].iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(
                            same && result[i].len() == len,
                            "{layout:?} ranks of {threads} threads, {len} elements in {dtype}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn many_small_reductions_in_a_row_stay_in_step() {
        for layout in [&[3][..], &[1, 1, 1], &[2, 1]] {
            let sums = on_every_rank(layout, CommDType::F32, |mut comm, _| {
                let mut total = 0.0;
                for round in 0..500 {
                    let mut data = [comm.rank() as f32 + round as f32];
                    comm.all_reduce(&mut data, SITE, &mut OneThread).unwrap();
                    total += data[0];
                }
                total
            });
            let expected: f32 = (0..500).map(|round| 3.0 + 3.0 * round as f32).sum();
            assert_eq!(sums, [expected; 3], "{layout:?}");
        }
    }

    #[test]
    fn a_peer_that_is_not_there_is_named_with_its_address() {
        let listener = TcpListenerForPeers::bind("127.0.0.1", None).unwrap();
        // Port 9 of loopback: nobody listens there.
        let peers = ["127.0.0.1:9".to_owned(), listener.address().to_string()];
        let identity = Identity { build_id: "test".into(), world: 2, rank: 1 };
        let meeting = Meeting { identity: &identity, addresses: &peers, key: &[7; 32], epoch: 0, is_sealed: true };
        let met = meet::meet(&listener, meeting, &Hosts::new(&[1, 1]), &Abort::default());
        let error = met.unwrap_err().to_string();
        assert!(error.starts_with("rank 1 cannot reach rank 0 at 127.0.0.1:9"), "{error}");
        assert!(error.contains("--data-host"), "{error}");
    }

    #[test]
    fn a_stranger_at_the_data_link_does_not_keep_the_peers_out() {
        let listeners = [0, 1].map(|_| TcpListenerForPeers::bind("127.0.0.1", None).unwrap());
        let peers = listeners.each_ref().map(|l| l.address().to_string());
        let _silent = std::net::TcpStream::connect(&peers[0]).unwrap();
        let mut stranger = std::net::TcpStream::connect(&peers[0]).unwrap();
        std::io::Write::write_all(&mut stranger, b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let (peers, hosts) = (&peers, &Hosts::new(&[1, 1]));
        std::thread::scope(|scope| {
            for (rank, listener) in listeners.into_iter().enumerate() {
                let identity = Identity { build_id: "test".into(), world: 2, rank };
                scope.spawn(move || {
                    let meeting = Meeting {
                        identity: &identity,
                        addresses: peers,
                        key: &[7; 32],
                        epoch: 0,
                        is_sealed: rank % 2 == 0,
                    };
                    let sockets = meet::meet(&listener, meeting, hosts, &Abort::default());
                    assert_eq!(sockets.unwrap().len(), 1);
                });
            }
        });
    }

    #[test]
    fn an_abort_frees_the_waiting() {
        // All of one host, and the first ranks of several: whom a bridge that fails leaves waiting is told to leave.
        for layout in [&[3][..], &[1, 1, 1]] {
            let failures = on_every_rank(layout, CommDType::F32, |mut comm, abort| {
                if comm.rank() == 1 {
                    abort.pull();
                    return true;
                }
                comm.all_reduce(&mut [1.0], SITE, &mut OneThread).is_err()
            });
            assert_eq!(failures, [true; 3], "{layout:?}");
        }
    }
}
