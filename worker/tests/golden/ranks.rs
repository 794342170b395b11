//! Real ranks on threads, driven by the coordinator's messages: what every test of this folder talks to.

use std::{path::PathBuf, thread::JoinHandle};

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    ModelShape, Partition,
    comm::{CommDType, Hosts, ShmSegment},
    handshake::Identity,
    link::{ControlLink, in_memory},
    protocol::*,
};
use nanoinfer_worker::{
    WorkerError,
    rank::{HostMemory, OnLost, RankSetup, run},
};

/// The golden logits' own error is about 5e-6 (see golden.json); the contract is 1e-4, relative to the largest logit.
pub(crate) const TOLERANCE: f32 = 2e-5;
pub(crate) const KV_BLOCKS: usize = 40;
const MAX_TOKENS: usize = 256;
const MAX_SEQS: usize = 96;

/// A text, and what transformers makes of it.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) prompt: Vec<TokenId>,
    /// `[T][V]`, or of the last tokens.
    pub(crate) logits: Vec<Vec<f32>>,
    pub(crate) greedy: Vec<TokenId>,
    pub(crate) margins: Vec<f32>,
}

/// A checkpoint, and what transformers makes of it.
pub(crate) struct Golden {
    pub(crate) weights: Vec<PathBuf>,
    pub(crate) shape: ModelShape,
    /// Ids that are drawn from: rows of the vocabulary behind them are padding.
    pub(crate) drawable: usize,
    pub(crate) cases: Vec<Case>,
}

/// An order with who holds what, and where.
fn sent_to(order: LoadOrder, world: usize) -> LoadOrder {
    LoadOrder { hosts: hosts(&order, world), partition: Partition::new(&order.shape, world).unwrap(), ..order }
}

/// As ordered, or with TCP one rank a host, else all on one.
fn hosts(order: &LoadOrder, world: usize) -> Vec<usize> {
    match order.comm {
        _ if !order.hosts.is_empty() => order.hosts.clone(),
        CommKind::Tcp => vec![1; world],
        _ => vec![world],
    }
}

/// What a launcher would hand over.
fn memory(segment: &ShmSegment) -> HostMemory {
    let segment = segment.try_clone().unwrap();
    HostMemory { pool: tempfile::tempfile().unwrap(), segments: Box::new(move |_| segment.try_clone()) }
}

/// Ranks on threads, and the coordinator's side of their links.
pub(crate) struct Ranks {
    links: Vec<ControlLink<ToRank, FromRank>>,
    pub(crate) threads: Vec<JoinHandle<Result<(), WorkerError>>>,
    step: u64,
}

impl Ranks {
    pub(crate) fn start(golden: &Golden, world: usize, comm: CommKind, dtype: DType) -> Self {
        Self::start_on(None, golden, world, comm, dtype)
    }

    pub(crate) fn start_on(isa: Option<&str>, golden: &Golden, world: usize, comm: CommKind, dtype: DType) -> Self {
        Self::start_with(load_order(golden, isa, comm, dtype), world)
    }

    pub(crate) fn start_with(order: LoadOrder, world: usize) -> Self {
        Self::start_sized(order, world, KV_BLOCKS)
    }

    pub(crate) fn start_sized(order: LoadOrder, world: usize, kv_blocks: usize) -> Self {
        let order = sent_to(order, world);
        let mut ranks = Self::join(&order, &vec![None; world]);
        ranks.send(&ToRank::Load(Box::new(order)));
        let addresses = ranks.receive(|message| match message {
            FromRank::Loaded(report) => report.data_address,
            other => panic!("{other:?}"),
        });
        let peers = addresses.into_iter().flatten().collect();
        ranks.send(&ToRank::Start(StartOrder { group: 0, kv_blocks, peers, nccl_id: None, link_key: [3; 32] }));
        ranks.receive(|message| assert!(matches!(message, FromRank::Ready { pool_kept: false }), "{message:?}"));
        ranks
    }

    /// Ranks that wait for their order, each with a copy of the checkpoint of its own where one is given.
    fn join(order: &LoadOrder, copies: &[Option<PathBuf>]) -> Self {
        let world = copies.len();
        let hosts = Hosts::new(&hosts(order, world));
        let segments: Vec<_> = (0..hosts.count()).map(|_| ShmSegment::create(world).unwrap()).collect();
        let (mut links, mut threads) = (Vec::new(), Vec::new());
        for (rank, copy) in copies.iter().enumerate() {
            let (ours, theirs) = in_memory();
            links.push(ours);
            let setup = RankSetup {
                link: theirs,
                identity: Identity { build_id: "test".into(), world, rank },
                epoch: 0,
                memory: Some(memory(&segments[hosts.of(rank)])),
                weights: copy.clone().map(|path| vec![path]),
                data_host: "127.0.0.1".into(),
                data_ports: None,
                on_lost: OnLost::Return,
            };
            threads.push(std::thread::spawn(move || run(setup)));
        }
        Self { links, threads, step: 0 }
    }

    /// What ranks answer to an order to load: nothing, or why they do not.
    pub(crate) fn load(order: LoadOrder, copies: &[Option<PathBuf>]) -> Vec<Option<String>> {
        let order = sent_to(order, copies.len());
        let mut ranks = Self::join(&order, copies);
        ranks.send(&ToRank::Load(Box::new(order)));
        let answers = ranks.receive(|message| match message {
            FromRank::Loaded(_) => None,
            FromRank::Failed { reason, .. } => Some(reason),
            other => panic!("{other:?}"),
        });
        drop(ranks.links);
        ranks.threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
        answers
    }

    pub(crate) fn send(&mut self, message: &ToRank) {
        self.links.iter_mut().for_each(|link| link.sender.send(message.clone()).unwrap());
    }

    pub(crate) fn receive<T>(&mut self, mut take: impl FnMut(FromRank) -> T) -> Vec<T> {
        self.links.iter_mut().map(|link| take(link.receiver.receive().unwrap())).collect()
    }

    pub(crate) fn step(&mut self, sequences: Vec<SequenceStep>) -> Vec<StepOutput> {
        self.step += 1;
        self.send(&ToRank::Step(StepPlan { step: self.step, sequences, timed: false }));
        self.receive(|message| match message {
            FromRank::Done(output) => output,
            other => panic!("{other:?}"),
        })
    }

    /// Full rows of logits of candidate rows of the last step.
    pub(crate) fn fetch(&mut self, rows: Vec<u32>) -> Vec<Vec<f32>> {
        self.send(&ToRank::FetchRows(rows));
        let slices = self.receive(|message| match message {
            FromRank::Rows(rows) => rows,
            other => panic!("{other:?}"),
        });
        (0..slices[0].len()).map(|row| slices.iter().flat_map(|slice| slice[row].to_vec()).collect()).collect()
    }

    /// Logits after every one of the new tokens.
    pub(crate) fn full_rows(&mut self, sequences: Vec<SequenceStep>) -> Vec<Vec<f32>> {
        let rows = sequences.iter().map(|s| s.tokens.len() as u32).sum();
        let ask = |mut sequence: SequenceStep| {
            sequence.outputs =
                (0..sequence.tokens.len() as u32).map(|row| RowRequest { row, wants: greedy() }).collect();
            sequence
        };
        self.step(sequences.into_iter().map(ask).collect());
        self.fetch((0..rows).collect())
    }

    pub(crate) fn stop(mut self) {
        self.send(&ToRank::Shutdown);
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
    }
}

pub(crate) fn load_order(golden: &Golden, isa: Option<&str>, comm: CommKind, dtype: DType) -> LoadOrder {
    let weights = golden.weights.clone();
    LoadOrder {
        shape: golden.shape.clone(),
        // Of the ranks that it is sent to.
        partition: Partition::new(&golden.shape, 1).unwrap(),
        fingerprint: Checkpoint::open(&weights).unwrap().fingerprint(),
        weights,
        dtype,
        kv_dtype: DType::F32,
        isa: isa.map(str::to_owned),
        comm,
        hosts: Vec::new(),
        comm_dtype: CommDType::F32,
        link_encryption: true,
        max_batched_tokens: MAX_TOKENS,
        max_seqs: MAX_SEQS,
        trace: None,
        on_host: OnHost::cpu(1),
    }
}

pub(crate) fn greedy() -> Wants {
    Wants::Candidates { k: 1, temperature: 1.0, adjusted: Vec::new(), masked: None }
}

/// New tokens of a sequence whose blocks are `first`, `first + 3`, … (never in order of position for two sequences).
pub(crate) fn sequence(tokens: &[TokenId], start: usize, first: u32) -> SequenceStep {
    let blocks = (start + tokens.len()).div_ceil(BLOCK_TOKENS) as u32;
    SequenceStep {
        tokens: tokens.to_vec(),
        start: start as u32,
        before: None,
        blocks: (0..blocks).map(|i| BlockId((first + 7 * i) % KV_BLOCKS as u32)).collect(),
        outputs: Vec::new(),
    }
}

/// The links that a world can have.
pub(crate) fn links(world: usize) -> Vec<CommKind> {
    if world == 1 { vec![CommKind::Local] } else { vec![CommKind::Shm, CommKind::Tcp] }
}

pub(crate) fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

pub(crate) fn assert_close(got: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().flatten().fold(1f32, |a, b| a.max(b.abs()));
    let difference = got.iter().flatten().zip(expected.iter().flatten()).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
    assert!(difference <= TOLERANCE * largest, "{what}: differs by {difference}, largest logit {largest}");
}
