//! Thousands of days in the life of an engine, each from a seed: the real engine, scheduler, block manager and queue on
//! one thread, with ranks that answer when a clock that only counts says so.
//!
//! ```text
//! engine.turn() ─► begin_step ─► finish_step: the clock advances by as long as the slowest rank takes, and
//!                                             who arrives, hangs up or runs out of time until then does so
//! ```
//! Every answer must be, event for event, what the same request gets alone, uncut, without a cache and with all the memory
//! it wants. On some days masks are late. On some ranks die, at any moment, with their pool or without: nobody must notice. On some a request kills whatever
//! computes it: it alone must fail. On some a rank dies that no other takes the place of: then everybody must be told once.
//! A day that fails names its seed; `NANOINFER_SIMULATION_SEED=n cargo test -p nanoinfer-coordinator simulation` lives it again.
//! Reference: FoundationDB's and TigerBeetle's simulators.

mod world;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    rc::Rc,
    sync::Mutex,
};

use nanoinfer_shared::{
    link::LinkError,
    protocol::{FailureKind, LogitSlice, StepOutput, StepPlan, TokenMask},
};

use self::world::{Dice, Happening, POISON, POISONED, REQUESTS, World, a_request, received};
use super::*;
use crate::engine::{
    awaited_mask::Job,
    fake_rank::{self, FakeRank},
    handle::Door,
    request::Request,
};

/// Days to live through.
const DAYS: u64 = 2000;
/// More turns than any day takes.
const MAX_TURNS: usize = 50_000;

#[test]
fn every_answer_is_as_if_alone_whatever_the_day_brings() {
    let mut solo = Solo::default();
    let seeds = match std::env::var("NANOINFER_SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..DAYS).collect(),
    };
    let mut sum = Tally::default();
    for &seed in &seeds {
        let _names = NamesSeed(seed);
        sum.add(&Day::new(seed).live(&mut solo));
    }
    println!("{} days: {sum:?}", seeds.len());
    if seeds.len() > 1 {
        // Days on which nothing happens prove nothing.
        let Tally { finished, forced, hung_up, late, refused, died, recovered, poisoned, .. } = sum;
        let Tally { preemptions, prefix_hits, masks_late, .. } = sum;
        assert!(finished > DAYS && forced > DAYS && hung_up > DAYS / 4 && late > DAYS / 8, "{sum:?}");
        assert!(recovered > DAYS && poisoned > DAYS / 100, "{sum:?}");
        assert!(masks_late > DAYS, "{sum:?}");
        assert!(refused > 0 && died > 0 && preemptions > DAYS / 4 && prefix_hits > DAYS, "{sum:?}");
    }
}

#[test]
fn a_seed_repeats_its_day() {
    let mut solo = Solo::default();
    for seed in 0..20 {
        let [first, again] = [(); 2].map(|()| Day::new(seed).live(&mut solo).digest);
        assert_eq!(first, again, "seed {seed}");
    }
    assert_ne!(Day::new(1).live(&mut solo).digest, Day::new(2).live(&mut solo).digest);
}

/// Says which day it was when a test fails.
struct NamesSeed(u64);

impl Drop for NamesSeed {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("NANOINFER_SIMULATION_SEED={} lives this day again", self.0);
        }
    }
}

/// What each request gets alone, by ranks, number and choice.
#[derive(Default)]
struct Solo(HashMap<(usize, u64, u32), Vec<Event>>);

impl Solo {
    fn events(&mut self, world: usize, number: u64, choice: u32) -> &[Event] {
        self.0.entry((world, number, choice)).or_insert_with(|| {
            let config = EngineConfig { prefix_cache: false, ..fake_rank::config(world, 100).with_steps_of(1, 96) };
            let mut day = Day::of(config, 100, Dice::new(number), Deaths::default(), 0);
            let request = Request { choice, ..a_request(number) };
            let mut events = day.world.borrow().handle.submit(request).unwrap();
            day.world.borrow().handle.stop();
            while day.engine.turn().unwrap() != Turn::Over {}
            received(&mut events)
        })
    }
}

/// What happened, over one day or many.
#[derive(Debug, Default)]
struct Tally {
    finished: u64,
    /// Tokens that were not drawn.
    forced: u64,
    hung_up: u64,
    late: u64,
    refused: u64,
    died: u64,
    recovered: u64,
    poisoned: u64,
    steps: u64,
    preemptions: u64,
    prefix_hits: u64,
    masks_late: u64,
    /// Of every plan and when it was carried out.
    digest: u64,
}

impl Tally {
    fn add(&mut self, day: &Tally) {
        self.finished += day.finished;
        self.forced += day.forced;
        self.hung_up += day.hung_up;
        self.late += day.late;
        self.refused += day.refused;
        self.died += day.died;
        self.recovered += day.recovered;
        self.poisoned += day.poisoned;
        self.steps += day.steps;
        self.preemptions += day.preemptions;
        self.prefix_hits += day.prefix_hits;
        self.masks_late += day.masks_late;
    }
}

/// Ranks that compute at once and answer when their time has come.
struct SimulatedRanks {
    world: Rc<RefCell<World>>,
    solo: bool,
    ranks: Vec<FakeRank>,
    /// Which of them takes how many times as long.
    slow: (usize, u64),
    deaths: Deaths,
    under_way: Option<StepPlan>,
    masks: Vec<TokenMask>,
    late_masks: Arc<Mutex<LateMasks>>,
    /// Sequences of the last step that was begun.
    width: usize,
}

/// Masks that take longer than their step waits: of a hundred so many, and of those a third is there after each step.
struct LateMasks {
    dice: Dice,
    percent: u64,
    jobs: Vec<Job>,
}

impl LateMasks {
    fn spawn(&mut self, job: Job) {
        if self.percent > 0 && self.dice.percent(self.percent) { self.jobs.push(job) } else { job() }
    }

    /// Some are there, or `all` of them; whether any is.
    fn come(&mut self, all: bool) -> bool {
        let coming: Vec<Job> = self.jobs.extract_if(.., |_| all || self.dice.percent(33)).collect();
        let is_any = !coming.is_empty();
        coming.into_iter().for_each(|job| job());
        is_any
    }
}

/// How ranks die on a day.
#[derive(Clone, Copy, Default)]
struct Deaths {
    /// Of a hundred moments at which one may, so many.
    percent: u64,
    /// The step at which one dies in whose place there is no other.
    last_step: Option<u64>,
    /// All of the day.
    recovered: u64,
}

impl SimulatedRanks {
    /// A rank dies now, which would end a step of so many sequences, or none does. One alone is killed by chance only where nothing
    /// died before, or it would be taken for the cause.
    fn chance(&mut self, sequences: usize) -> Result<(), RanksError> {
        let may = self.deaths.percent > 0 && (sequences != 1 || self.deaths.recovered == 0);
        if may && self.world.borrow_mut().dice.percent(self.deaths.percent) {
            return Err(RanksError::Gone { rank: 0, source: LinkError::Closed });
        }
        Ok(())
    }

    /// One of them came as far as it came.
    fn leave_half_done(&mut self, plan: &StepPlan) {
        let dice = &mut self.world.borrow_mut().dice;
        for rank in &mut self.ranks {
            let written = dice.roll(0, plan.sequences.len() as u64) as usize;
            plan.sequences[..written].iter().for_each(|sequence| rank.write(sequence));
        }
    }
}

impl Ranks for SimulatedRanks {
    fn begin_step(&mut self, plan: &StepPlan) -> Result<(), RanksError> {
        self.chance(plan.sequences.len())?;
        self.width = plan.sequences.len();
        assert!(self.under_way.replace(plan.clone()).is_none(), "one step at a time");
        Ok(())
    }

    fn send_masks(&mut self, masks: &[TokenMask]) -> Result<(), RanksError> {
        self.chance(self.width)?;
        self.masks = masks.to_vec();
        Ok(())
    }

    fn finish_step(&mut self) -> Result<Vec<StepOutput>, RanksError> {
        let plan = self.under_way.take().expect("a step was begun");
        let tokens: usize = plan.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        if !self.solo {
            let world = &mut *self.world.borrow_mut();
            let durations = (0..self.ranks.len()).map(|rank| {
                let factor = if rank == self.slow.0 { self.slow.1 } else { 1 };
                factor * (1000 + 30 * tokens as u64 + world.dice.roll(0, 500))
            });
            let slowest = durations.max().expect("there is a rank");
            world.advance(slowest);
            self.late_masks.lock().unwrap().come(false);
            world.now_us.hash(&mut world.digest);
            for sequence in &plan.sequences {
                (sequence.start, &sequence.tokens, &sequence.blocks).hash(&mut world.digest);
            }
        }
        if self.deaths.last_step.is_some_and(|last| plan.step >= last) {
            return Err(RanksError::Failed { rank: 0, kind: FailureKind::Order, reason: "it died".into() });
        }
        let is_poisoned = plan.sequences.iter().any(|sequence| sequence.start == 0 && sequence.tokens[0] == POISON);
        let dies = if is_poisoned {
            Err(RanksError::Gone { rank: 0, source: LinkError::Closed })
        } else {
            self.chance(self.width)
        };
        if let Err(error) = dies {
            self.leave_half_done(&plan);
            return Err(error);
        }
        let masks = std::mem::take(&mut self.masks);
        let step = |rank: &mut FakeRank| {
            let masks: Vec<TokenMask> = masks.iter().map(|mask| mask.slice(&rank.vocab)).collect();
            rank.step(&plan, &masks)
        };
        Ok(self.ranks.iter_mut().map(step).collect())
    }

    fn fetch_rows(&mut self, rows: &[u32]) -> Result<Vec<Vec<LogitSlice>>, RanksError> {
        assert!(self.under_way.is_none(), "rows are those of the last step");
        self.chance(self.width)?;
        Ok(self.ranks.iter().map(|rank| rank.fetch(rows)).collect())
    }

    fn check(&mut self) -> Result<(), RanksError> {
        self.chance(0)
    }

    fn recover(&mut self, loss: RanksError) -> Result<Pools, RanksError> {
        if let RanksError::Failed { .. } = loss {
            return Err(loss);
        }
        (self.under_way, self.masks) = (None, Vec::new());
        self.deaths.recovered += 1;
        let world = &mut *self.world.borrow_mut();
        let (takes_us, keeps) = (world.dice.roll(100, 20_000), world.dice.percent(60));
        world.advance(takes_us);
        if keeps {
            return Ok(Pools::Kept);
        }
        let lost = world.dice.roll(0, self.ranks.len() as u64 - 1) as usize;
        self.ranks[lost].lose_pool();
        Ok(Pools::Blank)
    }

    fn shut_down(&self) {}
}

struct Day {
    engine: Engine<SimulatedRanks>,
    world: Rc<RefCell<World>>,
    ranks: usize,
    room: (usize, usize),
}

impl Day {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let ranks = dice.roll(1, 3) as usize;
        let kv_blocks = dice.roll(6, 14) as usize;
        let max_seqs = dice.roll(1, 8) as usize;
        let max_batched_tokens = dice.roll(1, 40) as usize;
        let config = EngineConfig {
            prefix_cache: dice.percent(85),
            max_queue: dice.roll(1, 20) as usize,
            max_queue_tokens: dice.roll(50, 2000) as usize,
            ..fake_rank::config(ranks, kv_blocks).with_steps_of(max_seqs, max_batched_tokens)
        };
        let is_poisoned = dice.percent(5);
        let deaths = Deaths {
            // A step has three or four such moments, and many a text needs sixty steps between two pools that are blank.
            percent: if is_poisoned || dice.percent(60) { 0 } else { dice.roll(1, 6) },
            last_step: dice.percent(4).then(|| dice.roll(0, 60)),
            ..Deaths::default()
        };
        let late_percent = if dice.percent(60) { 0 } else { dice.roll(1, 60) };
        let day = Self::of(config, kv_blocks, dice, deaths, late_percent);
        let mut world = day.world.borrow_mut();
        let mut time_us = 0;
        if is_poisoned {
            let at_us = world.dice.roll(0, 30_000);
            world.note(
                at_us,
                Happening::Arrival { request: POISONED, choices: 1, patience_us: None, hangs_up_us: None },
            );
        }
        for _ in 0..world.dice.roll(2, 14) {
            let dice = &mut world.dice;
            // Bursts, and times of silence.
            time_us += if dice.percent(50) { dice.roll(0, 500) } else { dice.roll(1000, 30_000) };
            let arrival = Happening::Arrival {
                request: dice.roll(0, REQUESTS - 1),
                choices: if dice.percent(25) { dice.roll(2, 4) as u32 } else { 1 },
                patience_us: dice.percent(20).then(|| dice.roll(100, 60_000)),
                hangs_up_us: dice.percent(25).then(|| dice.roll(0, 60_000)),
            };
            world.note(time_us, arrival);
        }
        drop(world);
        day
    }

    fn of(config: EngineConfig, kv_blocks: usize, mut dice: Dice, deaths: Deaths, late_percent: u64) -> Self {
        let (handle, commands) = handle::channel(Door::of(&config));
        let new_rank = |share: &nanoinfer_shared::Share| {
            let mut rank = FakeRank::new(share.vocab.clone(), config.load.max_batched_tokens);
            rank.allocate(kv_blocks);
            rank
        };
        let ranks: Vec<_> = config.load.partition.shares().iter().map(new_rank).collect();
        let slow = (dice.roll(0, ranks.len() as u64 - 1) as usize, if dice.percent(20) { 20 } else { 1 });
        let late_masks = LateMasks { dice: Dice::new(dice.roll(0, 1 << 40)), percent: late_percent, jobs: Vec::new() };
        let late_masks = Arc::new(Mutex::new(late_masks));
        let spawn = {
            let late_masks = late_masks.clone();
            Box::new(move |job| late_masks.lock().unwrap().spawn(job))
        };
        // What is not there at once is late.
        let metrics = handle.status.metrics().clone();
        let masker = Masker::new(spawn, Duration::ZERO, Arc::new(handle.waker()), metrics);
        let (room, world_size) = (handle.room(), ranks.len());
        let to_engine = handle.clone();
        let world = Rc::new(RefCell::new(World {
            now_us: 0,
            dice,
            handle,
            agenda: BTreeMap::new(),
            clients: Vec::new(),
            refused: 0,
            hung_up: 0,
            late: 0,
            digest: DefaultHasher::new(),
        }));
        let solo = !config.prefix_cache && config.load.max_seqs == 1 && config.load.max_batched_tokens == 96;
        let ranks = SimulatedRanks {
            world: world.clone(),
            solo,
            ranks,
            slow,
            deaths,
            under_way: None,
            masks: Vec::new(),
            late_masks,
            width: 0,
        };
        let engine = Engine::new(config, kv_blocks, ranks, masker, commands, &to_engine);
        Self { engine, world, ranks: world_size, room }
    }

    /// From the first arrival to the last answer.
    fn live(mut self, solo: &mut Solo) -> Tally {
        let mut tally = Tally::default();
        let mut failure = None;
        for turn in 0.. {
            assert!(turn < MAX_TURNS, "somebody waits for ever");
            match self.engine.turn() {
                Ok(Turn::Busy) => {}
                Ok(Turn::Idle) if self.engine.ranks.late_masks.lock().unwrap().come(true) => {}
                Ok(Turn::Idle) => {
                    let mut world = self.world.borrow_mut();
                    let Some((&(next_us, _), _)) = world.agenda.first_key_value() else { break };
                    let wait_us = next_us.saturating_sub(world.now_us);
                    world.advance(wait_us);
                }
                Ok(Turn::Over) => panic!("nobody asked it to end"),
                Err(error) => {
                    if let Err(error) = self.engine.recover(error) {
                        failure = Some(error);
                        break;
                    }
                    // Who hung up meanwhile is seen at the next turn.
                    continue;
                }
            }
            self.engine.scheduler.check().unwrap();
            assert!(
                self.engine.scheduler.begun_mut().all(|s| !s.is_cancelled()),
                "a hang-up takes effect within a step"
            );
            self.see_off(solo);
        }
        let Self { engine, world, room, .. } = self;
        let status = world.borrow().handle.status.clone();
        let died = failure.is_some();
        if !died {
            assert_eq!(engine.scheduler.blocks().free(), engine.scheduler.blocks().total(), "every block is free");
            assert_eq!(world.borrow().handle.room(), room, "every place in the queue is free");
        }
        assert_eq!(status.metrics().scheduler_invariants_hold.get(), 1);
        tally.recovered = engine.ranks.deaths.recovered;
        tally.steps = engine.scheduler.steps();
        tally.preemptions = status.metrics().num_preemptions.get();
        tally.prefix_hits = status.metrics().prefix_cache_hits.get();
        tally.masks_late = status.metrics().masks_late.get();
        engine.end(failure);
        let mut world = world.borrow_mut();
        (tally.refused, tally.hung_up, tally.late) = (world.refused, world.hung_up, world.late);
        tally.died = u64::from(died);
        tally.digest = world.digest.finish();
        for client in &mut world.clients {
            for (choice, events) in (0..).zip(client.choices.iter_mut().flatten()) {
                let mut events = received(events);
                if client.request == POISONED {
                    assert!(matches!(&events[..], [Event::Failed(_)]), "{events:?}");
                    tally.poisoned += u64::from(!died);
                    continue;
                }
                let expected = solo.events(self.ranks, client.request, choice);
                if died && matches!(events.last(), Some(Event::Failed(_))) {
                    events.pop();
                    assert_eq!(events, expected[..events.len()], "what came before the failure");
                } else {
                    assert_eq!(events, expected, "request {} choice {choice}", client.request);
                    tally.finished += 1;
                    let forced = |event: &&Event| matches!(event, Event::Token { forced: true, .. });
                    tally.forced += events.iter().filter(forced).count() as u64;
                }
            }
        }
        tally
    }

    /// Looks at what those had who went: the beginning of what they would have got.
    fn see_off(&self, solo: &mut Solo) {
        let mut world = self.world.borrow_mut();
        for client in &mut world.clients {
            for (choice, events) in (0..).zip(client.left_with.take().into_iter().flatten()) {
                let expected = solo.events(self.ranks, client.request, choice);
                assert!(expected.starts_with(&events), "request {} choice {choice}: {events:?}", client.request);
            }
        }
    }
}
