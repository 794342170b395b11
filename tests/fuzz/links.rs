//! What comes out of a socket: frames, introductions, and orders to a rank.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    ModelShape, Partition,
    comm::CommDType,
    handshake::{self, Admission, Identity},
    link::{ControlLink, MAX_FRAME_BYTES, Receiver, Socket},
    protocol::{
        BlockId, Category, CommKind, DType, FailureKind, FromRank, LoadOrder, LoadReport, LogSumExp, Masks, OnHost,
        Place, RowRequest, RowSlice, SequenceStep, Stage, StartOrder, StepOutput, StepPlan, StepTimes, ToRank,
        TokenMask, Wants,
    },
};
use nanoinfer_worker::rank::{OnLost, RankSetup, run};
use serde::{Serialize, de::DeserializeOwned};

use crate::{bound_memory, counting::counted, mutate::Mutator, root};

const ROUNDS: u64 = 20_000;
const EPOCH: u32 = 7;
/// Bytes held for each that came: the least of a list is one byte, and an empty list in memory is 24 of them, in a list that has
/// room for twice as many.
const BYTES_HELD: usize = 100;
/// The same however little came: a megabyte is set aside for a list of as many as are announced, in each of the lists around it.
const LEAST_BYTES: usize = 6 << 20;
/// Announced lengths, and numbers in the protocol's own spelling.
const WORDS: [&[u8]; 8] = [
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\0\0\0\x10",
    b"\x80\x80\x80\x80\x08",
    b"\0\0\0\0\0\0\0\0",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01",
];

/// A link over a socket, and its other end as bytes.
fn raw_end<Out: Serialize, In: DeserializeOwned>() -> (ControlLink<Out, In>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ControlLink::over(Socket::Unix(ours), EPOCH).unwrap(), theirs)
}

/// The frame of a message.
fn frame<T: Serialize>(message: T) -> Vec<u8> {
    let (link, mut raw) = raw_end::<T, ()>();
    let ControlLink { mut sender, receiver } = link;
    sender.send(message).unwrap();
    drop((sender, receiver));
    let mut bytes = Vec::new();
    raw.read_to_end(&mut bytes).unwrap();
    bytes
}

fn load_order() -> LoadOrder {
    let folder = root().join("tests/golden/tiny");
    let weights = vec![folder.join("model.safetensors")];
    let checkpoint = Checkpoint::open(&weights).unwrap();
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let shape = checkpoint.refine(ModelShape::from_config_json(&config).unwrap());
    LoadOrder {
        partition: Partition::new(&shape, 1).unwrap(),
        shape,
        fingerprint: checkpoint.fingerprint(),
        weights,
        dtype: DType::F32,
        kv_dtype: DType::F32,
        isa: None,
        comm: CommKind::Local,
        hosts: vec![1],
        comm_dtype: CommDType::F32,
        link_encryption: true,
        max_batched_tokens: 32,
        max_seqs: 4,
        trace: None,
        on_host: OnHost::cpu(1),
    }
}

fn start_order() -> StartOrder {
    StartOrder { group: 0, kv_blocks: 8, peers: vec!["127.0.0.1:9".into()], nccl_id: None, link_key: [3; 32] }
}

fn plan() -> StepPlan {
    let outputs = vec![
        RowRequest { row: 0, wants: Wants::Targets { ids: vec![1, 5], top: 3 } },
        RowRequest { row: 2, wants: Wants::Candidates { k: 4, temperature: 0.7, adjusted: vec![2], masked: Some(2) } },
    ];
    let sequence = |block| SequenceStep {
        tokens: vec![1, 2, 3],
        start: 0,
        before: None,
        blocks: vec![BlockId(block)],
        outputs: outputs.clone(),
    };
    StepPlan { step: 1, sequences: vec![sequence(0), sequence(3)], timed: true }
}

/// Of its two masked rows.
fn masks() -> Masks {
    let words = load_order().shape.vocab_size.div_ceil(32);
    Masks { step: 1, rows: vec![TokenMask::new(&vec![0x5555_5555; words]); 2] }
}

fn orders() -> Vec<ToRank> {
    vec![
        ToRank::Load(Box::new(load_order())),
        ToRank::Start(start_order()),
        ToRank::Step(plan()),
        ToRank::Masks(masks()),
        ToRank::FetchRows(vec![1, 3]),
        ToRank::Leave { group: 1 },
        ToRank::Ping(3),
        ToRank::Shutdown,
    ]
}

fn answers() -> Vec<FromRank> {
    let all = LogSumExp { max: 1.0, sum: 2.0 };
    let row = RowSlice { all, rest: all, top: vec![(3, 1.0), (9, 0.5)], likeliest: Vec::new(), listed: vec![(2, 0.1)] };
    let stages = vec![Stage { category: Category::Product, name: "QKV".into(), time: Duration::from_micros(3) }];
    let times = Some(StepTimes { whole: Duration::from_millis(1), stages });
    let report = LoadReport {
        weight_bytes: 1 << 30,
        kv_block_bytes: 1 << 20,
        free_bytes: 1 << 33,
        data_address: Some("127.0.0.1:9".into()),
        nccl_id: Some(vec![7; 128]),
    };
    vec![
        FromRank::Loaded(report),
        FromRank::Ready { pool_kept: true },
        FromRank::Done(StepOutput { step: 1, rows: vec![row; 4], reducing: Duration::from_micros(7), times }),
        FromRank::Rows(vec![vec![0.5; 40].into(); 2]),
        FromRank::Pong { count: 3, place: Place { step: 1, passed: 2 } },
        FromRank::Left { group: 1, data_address: Some("127.0.0.1:9".into()) },
        FromRank::Failed { kind: FailureKind::Peer, reason: "no".into() },
    ]
}

/// What a reader makes of `bytes` and the end of its link after them: so many messages.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> usize {
    let (link, mut raw) = raw_end::<(), T>();
    raw.write_all(bytes).unwrap();
    raw.shutdown(Shutdown::Both).unwrap();
    let mut receiver: Receiver<T> = link.receiver;
    let (messages, held, _) = counted(|| {
        let mut messages = 0;
        loop {
            match receiver.receive() {
                Ok(_) => messages += 1,
                Err(error) => break (messages, error.to_string()),
            }
        }
    });
    assert!(!messages.1.is_empty() && messages.1.len() < 200, "{}", messages.1);
    assert!(held <= LEAST_BYTES + BYTES_HELD * bytes.len(), "{held} B held for {} B: {}", bytes.len(), messages.1);
    messages.0
}

#[test]
fn mutated_frames_are_messages_or_errors_at_both_ends_and_cost_what_came() {
    bound_memory();
    let frames: Vec<Vec<u8>> = orders().into_iter().map(frame).chain(answers().into_iter().map(frame)).collect();
    let orders = orders().len();
    for (number, frame) in frames.iter().enumerate() {
        let of_its_end = if number < orders { read::<ToRank>(frame) } else { read::<FromRank>(frame) };
        assert_eq!(of_its_end, 1, "frame {number} itself is good");
    }
    let mut mutator = Mutator::new(11);
    let mut messages = 0;
    for _ in 0..ROUNDS {
        // Two in a row, so that what one claims may be taken from the other.
        let [first, second] = [(); 2].map(|()| frames[mutator.below(frames.len())].clone());
        let bytes = mutator.mutated(&[first, second].concat(), &WORDS);
        messages += read::<ToRank>(&bytes) + read::<FromRank>(&bytes);
    }
    assert!(messages > 1000, "{messages}: noise alone is refused by its length");
    // A length that is announced is not set aside.
    let announced =
        [&(MAX_FRAME_BYTES as u32).to_le_bytes()[..], &EPOCH.to_le_bytes(), b"\x03\xff\xff\xff\x7f"].concat();
    assert_eq!(read::<FromRank>(&announced), 0);
}

/// Hands on all that comes, and returns it.
fn handed_on(mut from: UnixStream, mut to: UnixStream) -> Vec<u8> {
    let (mut said, mut part) = (Vec::new(), [0; 512]);
    while let Ok(length @ 1..) = from.read(&mut part) {
        said.extend(&part[..length]);
        // Whoever has heard enough has hung up.
        let _ = to.write_all(&part[..length]);
    }
    let _ = to.shutdown(Shutdown::Both);
    said
}

#[test]
fn introductions_that_are_mutated_or_said_again_let_nobody_in() {
    bound_memory();
    let identity = Identity { build_id: "test".into(), world: 2, rank: 1 };
    let until = Instant::now() + Duration::from_secs(600);
    let admission = Admission { expected: &identity, key: b"key", epoch: EPOCH, is_sealed: true, until };
    let join = |socket: UnixStream| handshake::join(&mut Socket::Unix(socket), &identity, b"key", until);
    let admit = |socket: UnixStream| handshake::admit(&mut Socket::Unix(socket), admission, |_| Ok(()));
    let (joiner, near) = UnixStream::pair().unwrap();
    let (far, admitter) = UnixStream::pair().unwrap();
    let (by_joiner, by_admitter) = thread::scope(|scope| {
        let joined = scope.spawn(|| join(joiner));
        let admitted = scope.spawn(|| admit(admitter));
        let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
        let (there, back) = (scope.spawn(|| handed_on(near, far)), scope.spawn(|| handed_on(back.0, back.1)));
        assert_eq!((joined.join().unwrap().unwrap().epoch, admitted.join().unwrap().unwrap().0.rank), (EPOCH, 1));
        (there.join().unwrap(), back.join().unwrap())
    });
    let mut mutator = Mutator::new(12);
    for round in 0..ROUNDS / 4 {
        for (said, to_admitter) in [(&by_joiner, true), (&by_admitter, false)] {
            let bytes = if round == 0 { said.clone() } else { mutator.mutated(said, &WORDS) };
            let (socket, mut raw) = UnixStream::pair().unwrap();
            raw.write_all(&bytes).unwrap();
            raw.shutdown(Shutdown::Write).unwrap();
            let (error, held, _) = counted(|| match to_admitter {
                true => admit(socket).map(drop).unwrap_err(),
                false => join(socket).map(drop).unwrap_err(),
            });
            assert!(!error.to_string().is_empty() && held < 1 << 20, "{held} B: {error}");
        }
    }
}

#[test]
fn a_rank_that_hears_nonsense_at_any_stage_of_its_life_ends_without_a_panic() {
    bound_memory();
    let mut mutator = Mutator::new(13);
    let (mut answered, mut failed) = (0, 0);
    for _ in 0..400 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let setup = RankSetup {
            link: ControlLink::over(Socket::Unix(theirs), EPOCH).unwrap(),
            identity: Identity { build_id: "test".into(), world: 1, rank: 0 },
            epoch: EPOCH,
            memory: None,
            weights: None,
            data_host: "127.0.0.1".into(),
            data_ports: None,
            on_lost: OnLost::Return,
        };
        let rank = thread::spawn(move || run(setup));
        let mut raw = ours.try_clone().unwrap();
        let mut link: ControlLink<ToRank, FromRank> = ControlLink::over(Socket::Unix(ours), EPOCH).unwrap();
        let (stage, orders) = (mutator.below(4), orders());
        for order in &orders[..stage] {
            link.sender.send(order.clone()).unwrap();
            if matches!(order, ToRank::Step(_)) {
                link.sender.send(ToRank::Masks(masks())).unwrap();
            }
            let answer = link.receiver.receive().unwrap();
            assert!(!matches!(answer, FromRank::Failed { .. }), "{answer:?}");
        }
        // What to load is for the files' own tests.
        let order = orders[1 + mutator.below(orders.len() - 1)].clone();
        // Whole, but perhaps out of turn, or with something changed.
        let whole = frame(order);
        let bytes = if mutator.below(4) == 0 { whole } else { mutator.mutated(&whole, &WORDS) };
        raw.write_all(&bytes).unwrap();
        raw.shutdown(Shutdown::Write).unwrap();
        while let Ok(answer) = link.receiver.receive() {
            answered += 1;
            failed += u32::from(matches!(answer, FromRank::Failed { .. }));
        }
        // An error is as good as a peaceful end.
        let _ended = rank.join().expect("no panic");
    }
    assert!(answered > 50 && failed > 20, "{answered} answers, {failed} of them failures, which is no test");
}
