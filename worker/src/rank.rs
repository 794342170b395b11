//! The life of a rank, message by message: load, start, then steps until told to stop.
//!
//! Two threads: this one computes; another reads the control link, answers heartbeats during a step, and ends the process
//! (or, within the coordinator's own process, this function) when it is told to or the link closes: compute does not read the
//! link.

use std::{
    mem::ManuallyDrop,
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
    Partition,
    comm::{Communicator, Local, Shm, ShmSegment, Tcp, TcpListenerForPeers},
    handshake::Identity,
    link::{ControlLink, LinkError, Receiver, Sender},
    protocol::{CommKind, FromRank, LoadOrder, LoadReport, StartOrder, ToRank},
};

use crate::{
    WorkerError, backend, cuda,
    progress::{Progress, Watched},
    runner::{Link, Runner},
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
    /// The data link's memory, where the launcher handed it over.
    pub segment: Option<ShmSegment>,
    /// Where this host keeps the checkpoint, if not where the coordinator does.
    pub weights: Option<Vec<PathBuf>>,
    /// Address of this host that peers can reach, for the TCP data link.
    pub data_host: String,
    /// What to do when the coordinator is gone.
    pub on_lost: OnLost,
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
        let _ = send(&sender, FromRank::Failed(error.to_string()));
        return Err(error);
    }
    let rank = Rank {
        identity: setup.identity,
        epoch: setup.epoch,
        sender,
        orders,
        segment: setup.segment,
        weights: setup.weights,
        data_host: setup.data_host,
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
            let _ = send(&sender, FromRank::Failed("it panicked, which is a bug; its log says where".into()));
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

type SharedSender = Arc<Mutex<Sender<FromRank>>>;

fn send(sender: &SharedSender, message: FromRank) -> Result<(), LinkError> {
    // A thread that panicked while sending leaves a broken link, which the next send reports.
    sender.lock().unwrap_or_else(PoisonError::into_inner).send(message)
}

fn read_control(
    mut receiver: Receiver<ToRank>,
    pongs: &SharedSender,
    orders: &mpsc::SyncSender<ToRank>,
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
    loop {
        let delivered = match receiver.receive() {
            Ok(ToRank::Ping(count)) => send(pongs, FromRank::Pong { count, place: progress.place() }).is_ok(),
            Ok(ToRank::Shutdown) => match on_lost {
                OnLost::Return => {
                    // The compute thread may have ended by itself.
                    let _ = orders.send(ToRank::Shutdown);
                    return;
                }
                // At once: a step that is still under way waits for a peer that is gone, and nobody waits for it.
                OnLost::Exit => return exit(0),
            },
            Ok(order) => orders.send(order).is_ok(),
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
    orders: mpsc::Receiver<ToRank>,
    segment: Option<ShmSegment>,
    weights: Option<Vec<PathBuf>>,
    data_host: String,
    /// Set before the coordinator hears of a failure, which it answers by closing the link.
    failing: Arc<AtomicBool>,
    /// Held while a step is told of: its answer and then its events, which the end of the process must not cut in two.
    telling: Arc<Mutex<()>>,
    progress: Progress,
}

impl Rank {
    fn live(mut self) -> Result<(), WorkerError> {
        let Some(runner) = self.prepare().map_err(|error| self.report(error))? else { return Ok(()) };
        // Dropped in peace only: a GPU gives memory back when it has done what is queued, which may wait for a peer for ever.
        let mut runner = ManuallyDrop::new(runner);
        while let Ok(order) = self.orders.recv() {
            let step = if let ToRank::Step(plan) = &order { Some(plan.step) } else { None };
            let answer = match order {
                ToRank::Step(plan) => {
                    self.progress.begin(plan.step);
                    runner.run(&plan).map(FromRank::Done)
                }
                ToRank::FetchRows(rows) => runner.fetch(&rows).map(FromRank::Rows),
                ToRank::Shutdown => break,
                other => Err(self.out_of_turn("Step", &other)),
            };
            match answer {
                Ok(answer) => {
                    let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
                    send(&self.sender, answer)?;
                    // Where nobody waits for it.
                    if let Some(step) = step {
                        runner.write_trace(step);
                    }
                }
                Err(error) => {
                    let error = self.report(error);
                    runner.abort();
                    return Err(error);
                }
            }
        }
        drop(ManuallyDrop::into_inner(runner));
        Ok(())
    }

    /// Loads and starts; `None` when told to stop before that.
    fn prepare(&mut self) -> Result<Option<Box<dyn Runner>>, WorkerError> {
        let load = match self.orders.recv() {
            Ok(ToRank::Load(order)) => order,
            Ok(ToRank::Shutdown) | Err(_) => return Ok(None),
            Ok(other) => return Err(self.out_of_turn("Load", &other)),
        };
        let rank = self.identity.rank;
        let partition =
            Partition::new(&load.shape, self.identity.world).expect("the coordinator has dealt this partition");
        let share = partition.share(rank).clone();
        let listener = match load.comm {
            CommKind::Tcp => Some(
                TcpListenerForPeers::bind(&self.data_host)
                    .map_err(|source| nanoinfer_shared::comm::CommError::Setup { rank, source })?,
            ),
            CommKind::Local | CommKind::Shm | CommKind::Nccl => None,
        };
        let begun = Instant::now();
        let loaded = backend::load(&load, rank, &share, || self.open(&load))?;
        let weight_bytes = loaded.weight_bytes();
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        tracing::info!(rank, weight_bytes, elapsed_ms, "weights loaded");
        let report = LoadReport {
            weight_bytes,
            kv_block_bytes: loaded.kv_block_bytes(),
            // A system that does not say gets no default pool beyond what is asked for explicitly.
            free_bytes: loaded.free_bytes().unwrap_or(0),
            data_address: listener.as_ref().map(|l| l.address().to_string()),
            nccl_id: if rank == 0 && load.comm == CommKind::Nccl { Some(cuda::new_nccl_id()?) } else { None },
        };
        send(&self.sender, FromRank::Loaded(report))?;
        let start = match self.orders.recv() {
            Ok(ToRank::Start(order)) => order,
            Ok(ToRank::Shutdown) | Err(_) => return Ok(None),
            Ok(other) => return Err(self.out_of_turn("Start", &other)),
        };
        let link = self.join_peers(&load, &start, listener)?;
        let trace = match &load.trace {
            Some(path) => Trace::append_to(path, rank).map_err(|source| WorkerError::Trace {
                rank,
                path: path.clone(),
                source,
            })?,
            None => Trace::default(),
        };
        let runner = loaded.start(start.kv_blocks, link, trace)?;
        send(&self.sender, FromRank::Ready)?;
        Ok(Some(runner))
    }

    /// The checkpoint as this host has it, which must be the coordinator's.
    fn open(&self, load: &LoadOrder) -> Result<Checkpoint, WorkerError> {
        let files = self.weights.as_ref().unwrap_or(&load.weights);
        let checkpoint = Checkpoint::open(files)?;
        checkpoint.check(&load.shape)?;
        let got = checkpoint.fingerprint();
        if got != load.fingerprint {
            let (rank, expected) = (self.identity.rank, load.fingerprint);
            return Err(WorkerError::Fingerprint {
                rank,
                file: files.first().cloned().unwrap_or_default(),
                expected,
                got,
            });
        }
        Ok(checkpoint)
    }

    fn join_peers(
        &mut self,
        load: &LoadOrder,
        start: &StartOrder,
        listener: Option<TcpListenerForPeers>,
    ) -> Result<Link, WorkerError> {
        let Identity { rank, world, .. } = self.identity;
        if load.comm == CommKind::Nccl {
            let id = start.nccl_id.clone().ok_or(WorkerError::NoNcclId { rank })?;
            return Ok(Link::Nccl { rank, world, id });
        }
        let comm: Box<dyn Communicator> = match (load.comm, listener) {
            (CommKind::Shm, _) => {
                let segment = self.segment.take().ok_or(WorkerError::NoSegment { rank })?;
                Box::new(Shm::open(segment, rank, world, load.cores.may_spin())?)
            }
            (CommKind::Tcp, Some(listener)) => {
                Box::new(Tcp::connect(listener, &self.identity, &start.peers, &start.link_key, self.epoch)?)
            }
            _ => Box::new(Local),
        };
        Ok(Link::Host(Box::new(Watched::new(comm, self.progress.clone()))))
    }

    /// Tells the coordinator why this rank ends.
    fn report(&self, error: WorkerError) -> WorkerError {
        self.failing.store(true, SeqCst);
        // The coordinator may be the one that is gone.
        let _ = send(&self.sender, FromRank::Failed(error.to_string()));
        error
    }

    fn out_of_turn(&self, expected: &'static str, got: &ToRank) -> WorkerError {
        let got = match got {
            ToRank::Load(_) => "Load",
            ToRank::Start(_) => "Start",
            ToRank::Step(_) => "Step",
            ToRank::FetchRows(_) => "FetchRows",
            ToRank::Ping(_) => "Ping",
            ToRank::Shutdown => "Shutdown",
        };
        WorkerError::OutOfTurn { rank: self.identity.rank, expected, got }
    }
}
