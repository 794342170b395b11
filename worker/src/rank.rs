//! The life of a rank, message by message: load, start, then steps until told to stop. When a peer is lost it leaves the data link,
//! keeps its weights and its KV pool, and starts again.
//!
//! Two threads: this one computes; another reads the control link, answers heartbeats during a step, breaks off a wait for peers,
//! and ends the process (or, within the coordinator's own process, this function) when it is told to or the link closes: compute
//! does not read the link.

use std::{
    fmt,
    fs::File,
    io,
    mem::ManuallyDrop,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    time::Instant,
};

use nanoinfer_shared::{
    comm::{Abort, CommError, Communicator, Hosts, Local, Meeting, Shm, ShmSegment, Tcp, TcpListenerForPeers},
    handshake::Identity,
    link::{ControlLink, LinkError, Receiver, Sender},
    protocol::{CommKind, Device, FailureKind, FromRank, LoadOrder, LoadReport, StartOrder, ToRank, TokenMask},
};

use crate::{
    WorkerError, backend, cuda,
    progress::{Progress, Watched},
    runner::{Link, Loaded, Runner},
    trace::Trace,
};
use nanoinfer_checkpoint::Checkpoint;

/// Orders that may wait for the compute thread; the coordinator has one under way at a time.
const ORDER_BOUND: usize = 4;

/// What a rank needs to begin.
#[derive(Debug)]
pub struct RankSetup {
    /// To the coordinator, past its handshake.
    pub link: ControlLink<FromRank, ToRank>,
    /// Who this rank is.
    pub identity: Identity,
    /// The cluster's epoch, from the handshake.
    pub epoch: u32,
    /// Memory that the launcher holds too, where it started this rank as a process.
    pub memory: Option<HostMemory>,
    /// Where this host keeps the checkpoint, if not where the coordinator does.
    pub weights: Option<Vec<PathBuf>>,
    /// Address of this host that peers can reach, for the TCP data link.
    pub data_host: String,
    /// Ports of this host for it; any free one where none are named.
    pub data_ports: Option<RangeInclusive<u16>>,
    /// What to do when the coordinator is gone.
    pub on_lost: OnLost,
}

/// Memory that outlives a rank.
pub struct HostMemory {
    /// Where a KV pool of the CPU lies.
    pub pool: File,
    /// The data link's memory for the start of this number.
    pub segments: Box<dyn FnMut(u32) -> io::Result<ShmSegment> + Send>,
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// What to do when the coordinator is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLost {
    /// End the function: the rank is a thread of the coordinator's process.
    Return,
    /// End the process, also in the middle of a step.
    Exit,
}

/// Runs a rank until it is told to stop or loses its coordinator.
///
/// # Errors
/// Whatever ends it early; the coordinator has been told, and the peers freed.
pub fn run(setup: RankSetup) -> Result<(), WorkerError> {
    let ControlLink { sender, receiver } = setup.link;
    // Two threads answer on one link: this one, and the reader with its heartbeats. A message is written whole or not at all.
    let sender = Arc::new(Mutex::new(sender));
    let (orders_in, orders) = mpsc::sync_channel(ORDER_BOUND);
    let pongs = Arc::clone(&sender);
    let on_lost = setup.on_lost;
    let failing = Arc::new(AtomicBool::new(false));
    let failed = Arc::clone(&failing);
    let telling = Arc::new(Mutex::new(()));
    let told = Arc::clone(&telling);
    let progress = Progress::default();
    let seen = progress.clone();
    let reader = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || read_control(receiver, &pongs, &orders_in, on_lost, &failed, &told, &seen));
    if let Err(source) = reader {
        let error = WorkerError::Threads { rank: setup.identity.rank, wanted: 2, source };
        // The coordinator may be the one that is gone.
        let _ = send(&sender, FromRank::Failed { kind: error.kind(), reason: error.to_string() });
        return Err(error);
    }
    let rank = Rank {
        identity: setup.identity,
        epoch: setup.epoch,
        sender,
        orders,
        memory: setup.memory,
        listener: None,
        weights: setup.weights,
        data_host: setup.data_host,
        data_ports: setup.data_ports,
        failing,
        telling,
        progress,
    };
    let (sender, failing) = (Arc::clone(&rank.sender), Arc::clone(&rank.failing));
    match catch_unwind(AssertUnwindSafe(|| rank.live())) {
        Ok(ended) => ended,
        Err(panic) => {
            // The control thread keeps the link open, so that without a word the coordinator would wait for ever.
            failing.store(true, SeqCst);
            let reason = "it panicked, which is a bug; its log says where".into();
            let _ = send(&sender, FromRank::Failed { kind: FailureKind::Rank, reason });
            match on_lost {
                OnLost::Return => resume_unwind(panic),
                // As Rust ends what panicked.
                OnLost::Exit => end_process(101),
            }
        }
    }
}

/// Ends the process at once, without the exit handlers of its libraries: those of CUDA and NCCL are not for a process with another
/// thread inside the driver. Logs and traces are written without buffers, so that nothing is lost.
#[allow(unsafe_code)]
pub fn end_process(code: i32) -> ! {
    unsafe extern "C" {
        safe fn _exit(code: i32) -> !;
    }
    _exit(code)
}

/// An order, and the way out of the data link that it concerns, which the reader of orders can pull.
struct Ordered {
    order: ToRank,
    abort: Abort,
}

type SharedSender = Arc<Mutex<Sender<FromRank>>>;

fn send(sender: &SharedSender, message: FromRank) -> Result<(), LinkError> {
    // A thread that panicked while sending leaves a broken link, which the next send reports.
    sender.lock().unwrap_or_else(PoisonError::into_inner).send(message)
}

fn read_control(
    mut receiver: Receiver<ToRank>,
    pongs: &SharedSender,
    orders: &mpsc::SyncSender<Ordered>,
    on_lost: OnLost,
    failing: &AtomicBool,
    telling: &Mutex<()>,
    progress: &Progress,
) {
    // A rank that has said why it fails ends by itself, when its user has been told too.
    let exit = |code| {
        if !failing.load(SeqCst) {
            let _told = telling.lock().unwrap_or_else(PoisonError::into_inner);
            end_process(code);
        }
    };
    let (mut abort, mut can_leave) = (Abort::default(), true);
    let forward = |order, abort: &Abort| orders.send(Ordered { order, abort: abort.clone() }).is_ok();
    loop {
        let delivered = match receiver.receive() {
            Ok(ToRank::Ping(count)) => send(pongs, FromRank::Pong { count, place: progress.place() }).is_ok(),
            Ok(ToRank::Shutdown) => match on_lost {
                OnLost::Return => {
                    // The compute thread may have ended by itself.
                    let _ = forward(ToRank::Shutdown, &abort);
                    return;
                }
                // At once: a step that is still under way waits for a peer that is gone, and nobody waits for it.
                OnLost::Exit => return exit(0),
            },
            // A step on a GPU that waits for a peer cannot be broken off.
            Ok(ToRank::Leave { .. }) if !can_leave && on_lost == OnLost::Exit => return exit(1),
            Ok(order) => {
                match &order {
                    ToRank::Load(order) => can_leave = order.on_host.device == Device::Cpu,
                    ToRank::Start(_) => abort = Abort::default(),
                    ToRank::Leave { .. } => abort.pull(),
                    _ => {}
                }
                forward(order, &abort)
            }
            Err(error) => {
                tracing::debug!(%error, "control link ended");
                false
            }
        };
        if !delivered {
            match on_lost {
                OnLost::Return => return,
                OnLost::Exit => return exit(1),
            }
        }
    }
}

struct Rank {
    identity: Identity,
    epoch: u32,
    sender: SharedSender,
    orders: mpsc::Receiver<Ordered>,
    memory: Option<HostMemory>,
    /// Where its peers are to come, until they have.
    listener: Option<TcpListenerForPeers>,
    weights: Option<Vec<PathBuf>>,
    data_host: String,
    data_ports: Option<RangeInclusive<u16>>,
    /// Set before the coordinator hears of a failure, which it answers by closing the link.
    failing: Arc<AtomicBool>,
    /// Held while a step is told of: its answer and then its events, which the end of the process must not cut in two.
    telling: Arc<Mutex<()>>,
    progress: Progress,
}

/// What a rank has come to.
enum Stage {
    Loaded(Box<dyn Loaded>),
    /// Dropped in peace only: a GPU gives memory back when it has done what is queued, which may wait for a peer for ever.
    Running(ManuallyDrop<Box<dyn Runner>>),
}

impl Rank {
    fn live(mut self) -> Result<(), WorkerError> {
        let load = match self.orders.recv() {
            Ok(Ordered { order: ToRank::Load(order), .. }) => order,
            Ok(Ordered { order: ToRank::Shutdown, .. }) | Err(_) => return Ok(()),
            Ok(Ordered { order, .. }) => return Err(self.report(self.out_of_turn("Load", &order))),
        };
        let loaded = self.load(&load).map_err(|error| self.report(error))?;
        let mut stage = Some(Stage::Loaded(loaded));
        // What came while masks were waited for.
        let mut held = None;
        while let Some(Ordered { order, abort }) = held.take().or_else(|| self.orders.recv().ok()) {
            let step = if let ToRank::Step(plan) = &order { Some(plan.step) } else { None };
            let answer = match (order, &mut stage) {
                (ToRank::Start(order), stage) => self.start(&load, &order, &abort, stage),
                (ToRank::Leave { group }, _) => self.leave(group, &load),
                (ToRank::Step(plan), Some(Stage::Running(runner))) => {
                    self.progress.begin(plan.step);
                    runner.run(&plan, &mut || self.masks(plan.step, &mut held)).map(FromRank::Done)
                }
                (ToRank::FetchRows(rows), Some(Stage::Running(runner))) => runner.fetch(&rows).map(FromRank::Rows),
                (ToRank::Shutdown, _) => break,
                (other, Some(Stage::Running(_))) => Err(self.out_of_turn("Step", &other)),
                (other, _) => Err(self.out_of_turn("Start", &other)),
            };
            match answer {
                Ok(answer) => {
                    let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
                    send(&self.sender, answer)?;
                    // Where nobody waits for it.
                    if let (Some(step), Some(Stage::Running(runner))) = (step, &mut stage) {
                        runner.write_trace(step);
                    }
                }
                // An effect: this rank is whole, and waits to be told.
                Err(error) if error.kind() == FailureKind::Peer => {
                    tracing::debug!("{error}");
                    send(&self.sender, FromRank::Failed { kind: FailureKind::Peer, reason: error.to_string() })?;
                }
                Err(error) => {
                    let error = self.report(error);
                    abort.pull();
                    return Err(error);
                }
            }
        }
        if let Some(Stage::Running(runner)) = stage {
            drop(ManuallyDrop::into_inner(runner));
        }
        Ok(())
    }

    /// Waits for the masks of a step. What comes in their place is `held`: it is the next order.
    fn masks(&self, step: u64, held: &mut Option<Ordered>) -> Result<Vec<TokenMask>, WorkerError> {
        let got = match self.orders.recv() {
            Ok(Ordered { order: ToRank::Masks(masks), .. }) if masks.step == step => return Ok(masks.rows),
            Ok(ordered) => name_of(&held.insert(ordered).order),
            Err(_) => "the end of the link",
        };
        Err(WorkerError::Interrupted { rank: self.identity.rank, step, got })
    }

    /// Loads this rank's share.
    fn load(&mut self, load: &LoadOrder) -> Result<Box<dyn Loaded>, WorkerError> {
        let rank = self.identity.rank;
        let share = load.partition.share(rank).clone();
        let data_address = self.listen(load)?;
        let begun = Instant::now();
        let loaded = backend::load(load, rank, &share, || self.open(load))?;
        let weight_bytes = loaded.weight_bytes();
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        tracing::info!(rank, weight_bytes, elapsed_ms, "weights loaded");
        let report = LoadReport {
            weight_bytes,
            kv_block_bytes: loaded.kv_block_bytes(),
            // A system that does not say gets no default pool beyond what is asked for explicitly.
            free_bytes: loaded.free_bytes().unwrap_or(0),
            data_address,
            nccl_id: if rank == 0 && load.comm == CommKind::Nccl { Some(cuda::new_nccl_id()?) } else { None },
        };
        send(&self.sender, FromRank::Loaded(report))?;
        Ok(loaded)
    }

    /// Joins the peers, and makes ready for steps.
    fn start(
        &mut self,
        load: &LoadOrder,
        order: &StartOrder,
        abort: &Abort,
        stage: &mut Option<Stage>,
    ) -> Result<FromRank, WorkerError> {
        let link = self.join_peers(load, order, abort)?;
        let pool = self.memory.as_ref().map(|memory| &memory.pool);
        let runner = match stage.take() {
            Some(Stage::Running(mut runner)) => {
                runner.join_again(link)?;
                runner
            }
            Some(Stage::Loaded(loaded)) => {
                let trace = self.trace(load)?;
                ManuallyDrop::new(loaded.start(order.kv_blocks, pool, link, trace)?)
            }
            None => unreachable!("a start that failed in its middle ended the rank"),
        };
        let pool_kept = runner.pool_is_kept();
        *stage = Some(Stage::Running(runner));
        Ok(FromRank::Ready { pool_kept })
    }

    /// Is out of the data link: the reader of orders has seen to that.
    fn leave(&mut self, group: u32, load: &LoadOrder) -> Result<FromRank, WorkerError> {
        Ok(FromRank::Left { group, data_address: self.listen(load)? })
    }

    /// Where other hosts can come from now on, if this rank is the way to its own.
    fn listen(&mut self, load: &LoadOrder) -> Result<Option<String>, WorkerError> {
        let rank = self.identity.rank;
        self.listener = match load.comm {
            CommKind::Tcp if Hosts::new(&load.hosts).is_front(rank) => {
                let bound = TcpListenerForPeers::bind(&self.data_host, self.data_ports.as_ref());
                Some(bound.map_err(|source| CommError::Setup { rank, source })?)
            }
            CommKind::Local | CommKind::Shm | CommKind::Tcp | CommKind::Nccl => None,
        };
        Ok(self.listener.as_ref().map(|listener| listener.address().to_string()))
    }

    fn trace(&self, load: &LoadOrder) -> Result<Trace, WorkerError> {
        let rank = self.identity.rank;
        match &load.trace {
            Some(order) => {
                let failed = |source| WorkerError::Trace { rank, path: order.path.clone(), source };
                Trace::append_to(order, rank).map_err(failed)
            }
            None => Ok(Trace::default()),
        }
    }

    /// The checkpoint as this host has it, which must be the coordinator's.
    fn open(&self, load: &LoadOrder) -> Result<Checkpoint, WorkerError> {
        let files = self.weights.as_ref().unwrap_or(&load.weights);
        let checkpoint = Checkpoint::open(files)?;
        let file = || files.first().cloned().unwrap_or_default();
        if self.weights.is_none() && load.on_host.files.is_some_and(|meant| checkpoint.identity() != meant) {
            return Err(WorkerError::Replaced { rank: self.identity.rank, file: file() });
        }
        checkpoint.check(&load.shape)?;
        let got = checkpoint.fingerprint();
        if got != load.fingerprint {
            let (rank, expected) = (self.identity.rank, load.fingerprint);
            return Err(WorkerError::Fingerprint { rank, file: file(), expected, got });
        }
        Ok(checkpoint)
    }

    fn join_peers(&mut self, load: &LoadOrder, start: &StartOrder, abort: &Abort) -> Result<Link, WorkerError> {
        let Identity { rank, world, .. } = self.identity;
        let shm = match load.comm {
            CommKind::Nccl => {
                let id = start.nccl_id.clone().ok_or(WorkerError::NoNcclId { rank })?;
                return Ok(Link::Nccl { rank, world, id });
            }
            CommKind::Local => None,
            CommKind::Shm | CommKind::Tcp => {
                let hosts = Hosts::new(&load.hosts);
                let segment = if hosts.ranks(hosts.of(rank)).len() == 1 {
                    ShmSegment::create(world)
                } else {
                    let memory = self.memory.as_mut().ok_or(WorkerError::NoSegment { rank })?;
                    (memory.segments)(start.group)
                };
                let segment = segment.map_err(|source| CommError::Setup { rank, source })?;
                Some(Shm::open(segment, rank, hosts, load.comm_dtype, load.on_host.cores.may_spin(), abort)?)
            }
        };
        let comm: Box<dyn Communicator> = match (shm, self.listener.take()) {
            (None, _) => Box::new(Local),
            (Some(shm), None) => Box::new(shm),
            (Some(shm), Some(listener)) => {
                let (identity, addresses, key) = (&self.identity, &start.peers[..], &start.link_key[..]);
                let (epoch, is_sealed) = (self.epoch, load.link_encryption);
                let meeting = Meeting { identity, addresses, key, epoch, is_sealed };
                Box::new(Tcp::connect(shm, &listener, meeting, abort)?)
            }
        };
        Ok(Link::Host(Box::new(Watched::new(comm, self.progress.clone()))))
    }

    /// Tells the coordinator why this rank ends.
    fn report(&self, error: WorkerError) -> WorkerError {
        self.failing.store(true, SeqCst);
        // The coordinator may be the one that is gone.
        let _ = send(&self.sender, FromRank::Failed { kind: error.kind(), reason: error.to_string() });
        error
    }

    fn out_of_turn(&self, expected: &'static str, got: &ToRank) -> WorkerError {
        WorkerError::OutOfTurn { rank: self.identity.rank, expected, got: name_of(got) }
    }
}

/// An order's name.
fn name_of(order: &ToRank) -> &'static str {
    match order {
        ToRank::Load(_) => "Load",
        ToRank::Start(_) => "Start",
        ToRank::Step(_) => "Step",
        ToRank::Masks(_) => "Masks",
        ToRank::FetchRows(_) => "FetchRows",
        ToRank::Leave { .. } => "Leave",
        ToRank::Ping(_) => "Ping",
        ToRank::Shutdown => "Shutdown",
    }
}
