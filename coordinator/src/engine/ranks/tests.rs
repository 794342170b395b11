use std::{
    os::unix::net::UnixStream,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::{
    link::{ControlLink, Socket},
    protocol::{LoadReport, Place, SequenceStep},
};

use super::*;
use crate::engine::fake_rank;

/// The next order; pings on the way are answered.
fn order(link: &mut ControlLink<FromRank, ToRank>) -> ToRank {
    loop {
        match link.receiver.receive().unwrap() {
            ToRank::Ping(count) => {
                let place = Place { step: 7, passed: 15 };
                link.sender.send(FromRank::Pong { count, place }).unwrap();
            }
            order => return order,
        }
    }
}

fn report() -> LoadReport {
    LoadReport {
        weight_bytes: 0,
        kv_block_bytes: 1000,
        free_bytes: 0,
        data_address: Some("here".into()),
        nccl_id: None,
    }
}

/// Of one rank, in whose place there is no other.
fn start(
    link: ControlLink<ToRank, FromRank>,
    config: &EngineConfig,
    status: Arc<Status>,
) -> Result<(LinkedRanks, usize), RanksError> {
    LinkedRanks::start(vec![link], None, config, status, Arc::new(|| ()), Box::new(|| false))
}

fn less_patience(ranks: &mut LinkedRanks) {
    ranks.patience = Patience {
        lost: Duration::from_secs(20),
        stuck: Duration::from_millis(700),
        leave: Duration::from_millis(100),
        look: Duration::from_millis(20),
    };
}

#[test]
fn a_rank_that_answers_but_does_not_go_on_is_told_from_one_that_works() {
    let (ours, mut theirs) = nanoinfer_shared::link::in_memory();
    let rank = thread::spawn(move || {
        assert!(matches!(order(&mut theirs), ToRank::Load(_)));
        theirs.sender.send(FromRank::Loaded(report())).unwrap();
        assert!(matches!(order(&mut theirs), ToRank::Start(_)));
        theirs.sender.send(FromRank::Ready { pool_kept: false }).unwrap();
        assert!(matches!(order(&mut theirs), ToRank::Step(_)));
        // Heartbeats only, and always from the same place, until the coordinator has enough.
        while let Ok(ToRank::Ping(count)) = theirs.receiver.receive() {
            let place = Place { step: 7, passed: 15 };
            let _ = theirs.sender.send(FromRank::Pong { count, place });
        }
    });
    let config = fake_rank::config(1, 6);
    let (mut ranks, _) = start(ours, &config, Arc::default()).unwrap();
    less_patience(&mut ranks);
    ranks.begin_step(&StepPlan { step: 7, sequences: Vec::new(), timed: false }).unwrap();
    let error = ranks.finish_step().unwrap_err().to_string();
    assert!(error.contains("rank 0 has not gone on") && error.contains("step 7, layer 3, waiting"), "{error}");
    drop(ranks);
    rank.join().unwrap();
}

#[test]
fn a_rank_that_falls_silent_while_it_loads_is_named() {
    let (ours, mut theirs) = nanoinfer_shared::link::in_memory::<ToRank, FromRank>();
    let (go_on, stopped) = mpsc::channel::<()>();
    let rank = thread::spawn(move || {
        assert!(matches!(order(&mut theirs), ToRank::Load(_)));
        stopped.recv().unwrap_err();
    });
    let config = fake_rank::config(1, 6);
    let mut ranks =
        LinkedRanks::connect(vec![ours], None, &config, Arc::default(), Arc::new(|| ()), Box::new(|| false)).unwrap();
    less_patience(&mut ranks);
    ranks.patience.lost = Duration::from_millis(100);
    let error = ranks.load(&[0]).unwrap_err().to_string();
    assert!(error.contains("rank 0 has not answered"), "{error}");
    drop(go_on);
    rank.join().unwrap();
}

/// What `kill -STOP` does to a rank, in the worst moment: its socket is full and the order half written.
#[test]
fn a_rank_that_stops_reading_does_not_hold_up_the_heartbeat() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let link = ControlLink::over(Socket::Unix(ours), 1).unwrap();
    let (go_on, stopped) = mpsc::channel::<()>();
    let rank = thread::spawn(move || {
        let mut link: ControlLink<FromRank, ToRank> = ControlLink::over(Socket::Unix(theirs), 1).unwrap();
        assert!(matches!(order(&mut link), ToRank::Load(_)));
        link.sender.send(FromRank::Loaded(report())).unwrap();
        assert!(matches!(order(&mut link), ToRank::Start(_)));
        link.sender.send(FromRank::Ready { pool_kept: false }).unwrap();
        stopped.recv().unwrap_err();
    });
    let status = Arc::new(Status::default());
    let config = fake_rank::config(1, 6);
    let (mut ranks, kv_blocks) = start(link, &config, status.clone()).unwrap();
    assert_eq!(kv_blocks, 6);
    assert!(status.is_ready());

    let tokens = vec![1 << 20; 1 << 20];
    let sequences = vec![SequenceStep { tokens, start: 0, before: None, blocks: Vec::new(), outputs: Vec::new() }];
    let step = thread::spawn(move || {
        let plan = StepPlan { step: 0, sequences, timed: false };
        ranks.begin_step(&plan).and_then(|()| ranks.finish_step().map(drop)).unwrap_err().to_string()
    });
    let since = Instant::now();
    while status.is_ready() {
        assert!(since.elapsed() < Duration::from_secs(2));
        thread::yield_now();
    }
    drop(go_on);
    rank.join().unwrap();
    assert!(step.join().unwrap().contains("rank 0 is gone"));
    assert!(!status.is_ready());
}

#[test]
fn who_still_loads_when_another_is_lost_is_waited_for() {
    let (first, gone) = nanoinfer_shared::link::in_memory::<ToRank, FromRank>();
    let (second, mut theirs) = nanoinfer_shared::link::in_memory();
    let survivor = thread::spawn(move || {
        assert!(matches!(order(&mut theirs), ToRank::Load(_)));
        // Far longer than one that has loaded may take to leave.
        thread::sleep(Duration::from_millis(600));
        theirs.sender.send(FromRank::Loaded(report())).unwrap();
        let ToRank::Leave { group } = order(&mut theirs) else { panic!("it is told to leave") };
        theirs.sender.send(FromRank::Left { group, data_address: None }).unwrap();
        theirs
    });
    let config = fake_rank::config(2, 6);
    let links = vec![first, second];
    let mut ranks =
        LinkedRanks::connect(links, None, &config, Arc::default(), Arc::new(|| ()), Box::new(|| false)).unwrap();
    less_patience(&mut ranks);
    let loss = thread::scope(|scope| {
        scope.spawn(|| drop(gone));
        ranks.load(&[0, 1]).unwrap_err()
    });
    let mut lost = Vec::new();
    assert!(loss.can_be_mended(&mut lost));
    ranks.leave(&mut lost).unwrap();
    assert_eq!(lost.iter().map(|lost| lost.rank).collect::<Vec<_>>(), [0]);
    assert!(ranks.reports[1].is_some());
    drop(survivor.join().unwrap());
}
