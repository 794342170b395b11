//! The engine over fake ranks that are lost: no answer changes, whatever a rank says last and when.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use nanoinfer_shared::{
    link::ControlLink,
    protocol::{FromRank, ToRank},
};

use super::{
    tests::{all, engine, mixed, well_behaved},
    *,
};
use crate::engine::{
    fake_rank::{self, Behaviour, LastWord},
    request::Request,
};

/// Fake ranks in the place of others that were lost. For a while each is lost too, at a message that a seed decides: loading, at its
/// start, in a step, when rows are fetched, or when it is to leave; it falls silent, or says what is no answer.
#[derive(Debug)]
struct FakeSource {
    config: EngineConfig,
    pools: Vec<fake_rank::Pool>,
    seed: u64,
    deaths: usize,
    /// Whether what was lost said something that no sane rank says.
    corrupt: Arc<AtomicUsize>,
}

impl FakeSource {
    fn new(config: &EngineConfig, seed: u64, deaths: usize) -> Self {
        let pools = config.load.partition.shares().iter().map(|_| fake_rank::Pool::default()).collect();
        Self { config: config.clone(), pools, seed, deaths, corrupt: Arc::default() }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % sides
    }

    /// A rank that is lost in place of taking the order of this number.
    fn rank(&mut self, rank: usize, life: u64) -> ControlLink<ToRank, FromRank> {
        let last_word = match self.roll(3) {
            0 => LastWord::Silence,
            1 => LastWord::Noise(self.roll(100)),
            _ => LastWord::OutOfPlace(self.roll(100)),
        };
        let ends_after = (self.deaths > 0).then_some((life as usize, last_word));
        self.deaths = self.deaths.saturating_sub(1);
        let behaviour = Behaviour { ends_after, ..Behaviour::default() };
        fake_rank::spawn_one(&self.config, rank, behaviour, self.pools[rank].clone()).0
    }
}

impl RankSource for FakeSource {
    fn replace(
        &mut self,
        _group: u32,
        lost: &[Lost],
        _given_up: &dyn Fn() -> bool,
    ) -> Result<Vec<ControlLink<ToRank, FromRank>>, SourceError> {
        for lost in lost {
            self.corrupt.fetch_add(usize::from(lost.is_corrupt), Relaxed);
            if lost.is_corrupt || self.roll(3) == 0 {
                self.pools[lost.rank] = fake_rank::Pool::default();
            }
        }
        if self.roll(10) == 0 {
            return Err("the system has no process to give".into());
        }
        // A request that loses three steps in a row would be taken for the cause: hence no lives of a few steps.
        let mut life = || if self.roll(2) == 0 { self.roll(2) } else { 60 + self.roll(40) };
        let lives: Vec<u64> = lost.iter().map(|_| life()).collect();
        Ok(lost.iter().zip(lives).map(|(lost, life)| self.rank(lost.rank, life)).collect())
    }
}

#[test]
fn ranks_that_are_lost_at_any_message_recovery_included_change_no_answer() {
    let (mut restarts, mut corrupt, mut taken_for_the_cause) = (0, 0, 0);
    for seed in 0..60 {
        let world = 2 + seed as usize % 2;
        let config = fake_rank::config(world, 12).with_steps_of(8, 16);
        let alone: Vec<_> = {
            let (handle, _ranks) = engine(config.clone(), well_behaved(world));
            mixed().into_iter().map(|request| all(handle.submit(request).unwrap())).collect()
        };
        let mut source = FakeSource::new(&config, seed, 12);
        let corrupt_here = source.corrupt.clone();
        let mut first = |rank: usize| {
            let life = source.roll(25);
            source.rank(rank, 25 * rank as u64 + life)
        };
        let links = (0..world).map(&mut first).collect();
        let handle = start(links, Some(Box::new(source)), config).unwrap();
        let events: Vec<_> = mixed().into_iter().map(|request| handle.submit(request).unwrap()).collect();
        for (events, alone) in events.into_iter().zip(&alone) {
            let mut events = all(events);
            if let Some(Event::Failed(reason)) = events.last()
                && reason.contains("third time in a row")
            {
                taken_for_the_cause += 1;
                events.pop();
                assert_eq!(events, alone[..events.len()], "seed {seed}: what came before");
            } else {
                assert_eq!(&events, alone, "seed {seed}");
            }
        }
        restarts += handle.status().metrics().rank_restarts.get();
        corrupt += corrupt_here.load(Relaxed);
    }
    assert!(restarts > 200 && corrupt > 100, "{restarts} {corrupt}");
    // One or two of 480 lose three steps in a row by chance.
    assert!(taken_for_the_cause <= 3, "{taken_for_the_cause}");
}

#[test]
fn peers_that_are_missed_at_the_very_first_start_are_a_loss_like_any_other() {
    let begin = |first: Behaviour, misses_peers: usize, most: usize| {
        let config = EngineConfig {
            restarts: RestartLimit { most, within: Duration::from_secs(600) },
            ..fake_rank::config(2, 12)
        };
        let (links, _ranks) =
            fake_rank::spawn(&config, vec![first, Behaviour { misses_peers, ..Behaviour::default() }]);
        start(links, Some(Box::new(FakeSource::new(&config, 0, 0))), config)
    };
    let gone = Behaviour { ends_after: Some((1, LastWord::Silence)), ..Behaviour::default() };
    for (first, restarts) in [(Behaviour::default(), 0), (gone, 1)] {
        let handle = begin(first, 1, 3).unwrap();
        assert_eq!(handle.status().metrics().rank_restarts.get(), restarts);
        let answer = all(handle.submit(Request::greedy(vec![1, 2, 3], 4)).unwrap());
        assert!(matches!(answer.last(), Some(Event::Finished(_))), "{answer:?}");
    }
    let error = begin(Behaviour::default(), 4, 3).unwrap_err().to_string();
    assert!(error.contains("rank 1 failed: a peer is not there"), "{error}");
}
