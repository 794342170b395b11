//! Properties of the scheduler under random arrivals, ends and cancellations, without any rank.

use std::collections::{HashMap, HashSet};

use nanoinfer_shared::protocol::{BLOCK_TOKENS, TokenId, Wants};
use proptest::prelude::*;

use super::*;
use crate::{
    handle::{self, Command, Door, Events},
    request::{Event, PromptLogprobs, Request},
    sampler::Drawn,
};

const N_POSITIONS: usize = 64;

fn geometry() -> Geometry {
    Geometry::from_config_json(&format!(r#"{{"n_positions":{N_POSITIONS},"vocab_size":100}}"#)).unwrap()
}

fn scheduler(kv_blocks: usize, max_seqs: usize, max_batched_tokens: usize) -> Scheduler {
    Scheduler::new(geometry(), SchedulerLimits { kv_blocks, max_seqs, max_batched_tokens, prefix_cache: true })
}

/// A prompt that no other of these shares.
fn own_prompt(id: u64, length: usize) -> Vec<TokenId> {
    (0..length as TokenId).map(|i| (i + 7 * id as TokenId) % 100).collect()
}

fn sequence(id: u64, prompt: Vec<TokenId>, max_tokens: usize, scored: bool) -> (Sequence, Events) {
    let (handle, mut commands) =
        handle::channel(Door { vocab_size: 100, n_positions: N_POSITIONS, max_queue: 1, max_queue_tokens: 100 });
    let prompt_logprobs = scored.then_some(PromptLogprobs { top: 0, from: 0 });
    let request = Request { prompt_logprobs, ..Request::greedy(prompt, max_tokens) };
    let events = handle.submit(request).unwrap();
    let Ok(Command::Submit(mut submissions)) = commands.try_recv() else { panic!("it was just submitted") };
    (Sequence::new(SeqId(id), submissions.remove(0)), events)
}

fn received(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).collect()
}

impl Scheduler {
    /// The next step as the engine takes it where nothing is under way.
    fn next(&mut self) -> Option<PlannedStep> {
        let step = self.schedule(false)?;
        self.plan(step)
    }

    /// Takes a step as the engine would, drawing `drawn` each time.
    fn take(&mut self, step: &PlannedStep, drawn: TokenId) {
        self.complete(step);
        for part in &step.parts {
            for row in &part.uses {
                match row {
                    RowUse::Draw(_) => {
                        self.get_mut(part.id).append(Drawn { id: drawn, logprobs: None, narrowing: None }, None);
                    }
                    RowUse::Score { .. } => self.get_mut(part.id).record_score(None),
                }
            }
            self.get_mut(part.id).deliver();
            if self.get_mut(part.id).finish_reason(&[]).is_some() {
                self.remove(part.id);
            }
        }
    }
}

fn rows(step: &PlannedStep) -> Vec<(u32, Option<TokenId>)> {
    let outputs = step.plan.sequences.iter().flat_map(|s| &s.outputs);
    let target = |wants: &Wants| match wants {
        Wants::Targets { ids, .. } => Some(ids[0]),
        Wants::Candidates { .. } => None,
    };
    outputs.map(|output| (output.row, target(&output.wants))).collect()
}

#[test]
fn decodes_come_before_chunks_of_prefill() {
    let mut scheduler = scheduler(16, 4, 8);
    let (short, _short_events) = sequence(0, own_prompt(0, 3), 4, false);
    let (long, _long_events) = sequence(1, own_prompt(1, 20), 4, false);
    scheduler.add(short);
    scheduler.add(long);
    let mut chunks = Vec::new();
    for _ in 0..4 {
        let step = scheduler.next().unwrap();
        chunks.push(step.plan.sequences.iter().map(|s| (s.start, s.tokens.len())).collect::<Vec<_>>());
        scheduler.take(&step, 7);
    }
    assert_eq!(chunks[0], [(0, 3), (0, 5)]);
    assert_eq!(chunks[1], [(3, 1), (5, 7)]);
    assert_eq!(chunks[2], [(4, 1), (12, 7)]);
    assert_eq!(chunks[3], [(5, 1), (19, 1)]);
}

#[test]
fn rows_are_asked_for_once_and_only_where_they_are_used() {
    let mut scheduler = scheduler(16, 4, 3);
    for (max_tokens, scored, expected) in [
        (0, false, vec![vec![], vec![]]),
        (0, true, vec![vec![(0, Some(1)), (1, Some(2)), (2, Some(3))], vec![(0, Some(4))]]),
        (1, true, vec![vec![(0, Some(1)), (1, Some(2)), (2, Some(3))], vec![(0, Some(4)), (1, None)]]),
        (1, false, vec![vec![], vec![(1, None)]]),
    ] {
        let (sequence, mut events) = sequence(0, own_prompt(0, 5), max_tokens, scored);
        scheduler.add(sequence);
        let mut asked = Vec::new();
        while let Some(step) = scheduler.next() {
            asked.push(rows(&step));
            scheduler.take(&step, 7);
        }
        assert_eq!(asked, expected, "max_tokens {max_tokens}, scored {scored}");
        let prompt = received(&mut events).into_iter().find(|event| matches!(event, Event::Prompt(_)));
        assert_eq!(prompt, scored.then(|| Event::Prompt(vec![None; 5])));
        assert!(scheduler.is_idle());
    }
}

#[test]
fn the_youngest_gives_way_and_keeps_its_tokens_and_scores() {
    // Four blocks: two sequences of 30 tokens fill them and both go on to 40.
    let mut scheduler = scheduler(4, 4, 100);
    let mut events = Vec::new();
    for id in 0..2 {
        let (sequence, receiver) = sequence(id, own_prompt(id, 30), 10, true);
        scheduler.add(sequence);
        events.push(receiver);
    }
    // How far each piece of more than a token reaches.
    let mut prefills = HashMap::<u64, Vec<usize>>::new();
    let mut scores = 0;
    while let Some(step) = scheduler.next() {
        scheduler.check().unwrap();
        for (part, planned) in step.parts.iter().zip(&step.plan.sequences) {
            if planned.tokens.len() > 1 {
                prefills.entry(part.id.0).or_default().push(planned.start as usize + planned.tokens.len());
            }
        }
        scores += rows(&step).iter().filter(|(_, target)| target.is_some()).count();
        scheduler.take(&step, 7);
    }
    assert_eq!(prefills[&0], [30], "the oldest is never preempted");
    assert_eq!(prefills[&1], [30, 33], "what was generated is computed again, not drawn again");
    assert_eq!(scores, 2 * 29, "scores are not asked for again");
    assert_eq!(scheduler.counters().preemptions, 1);
    for mut receiver in events {
        let tokens = received(&mut receiver).into_iter().filter(|event| matches!(event, Event::Token { .. }));
        assert_eq!(tokens.count(), 10);
    }
}

#[test]
fn choices_share_the_full_blocks_of_their_prompt_and_compute_its_tail_each() {
    let mut scheduler = scheduler(16, 8, 64);
    let mut events = Vec::new();
    for id in 0..4 {
        let (sequence, receiver) = sequence(id, own_prompt(0, 40), 3, false);
        scheduler.add(sequence);
        events.push(receiver);
    }
    let first = scheduler.next().unwrap();
    assert_eq!(first.plan.sequences.len(), 1, "the others wait for what the first computes");
    scheduler.take(&first, 7);
    let second = scheduler.next().unwrap();
    let starts: Vec<_> = second.plan.sequences.iter().map(|s| (s.start, s.tokens.len())).collect();
    assert_eq!(starts, [(40, 1), (32, 8), (32, 8), (32, 8)]);
    let tables: Vec<_> = second.plan.sequences.iter().map(|s| s.blocks.clone()).collect();
    assert!(tables.iter().all(|table| table[..2] == tables[0][..2]), "the full blocks are the same");
    let tails: HashSet<_> = tables.iter().map(|table| table[2]).collect();
    assert_eq!(tails.len(), 4, "the partial block is everybody's own");
    assert_eq!(scheduler.blocks().free(), 16 - 2 - 4);
    let Counters { prefix_queries, prefix_hits, .. } = scheduler.counters();
    assert_eq!((prefix_queries, prefix_hits), (160, 96));
    scheduler.check().unwrap();
}

#[test]
fn a_hit_leaves_one_token_to_compute_and_scored_prompts_take_none() {
    let mut scheduler = scheduler(16, 8, 64);
    let mut starts = Vec::new();
    for (id, scored) in [(0, false), (1, false), (2, true)] {
        let (sequence, _events) = sequence(id, own_prompt(0, 32), 2, scored);
        scheduler.add(sequence);
        let step = scheduler.next().unwrap();
        starts.push(step.plan.sequences[0].start);
        scheduler.take(&step, 7);
        while let Some(step) = scheduler.next() {
            scheduler.take(&step, 7);
        }
    }
    assert_eq!(starts, [0, 16, 0], "a hit of the whole prompt would leave nothing to draw from");
}

#[test]
fn the_next_step_is_chosen_while_one_is_under_way_and_follows_what_it_brought() {
    let mut scheduler = scheduler(16, 8, 64);
    let mut events = Vec::new();
    for id in 0..3 {
        let (sequence, receiver) = sequence(id, own_prompt(id, 15), 5, false);
        scheduler.add(sequence);
        events.push(receiver);
    }
    let first = scheduler.next().unwrap();
    let mut chosen = scheduler.schedule(true).unwrap();
    assert_eq!(scheduler.blocks().free(), 16 - 3, "position 15 still lies in the first block");
    scheduler.take(&first, 9);
    let (late, _late_events) = sequence(3, own_prompt(3, 4), 5, false);
    scheduler.add(late);
    assert!(scheduler.holds(&chosen));
    scheduler.admit(&mut chosen);
    let second = scheduler.plan(chosen).unwrap();
    let tokens: Vec<_> = second.plan.sequences.iter().map(|s| (s.start, s.tokens.clone())).collect();
    let expected = [(15, vec![9]), (15, vec![9]), (15, vec![9]), (0, own_prompt(3, 4))];
    assert_eq!(tokens, expected, "the drawn token is patched in");
    let chosen = scheduler.schedule(true).unwrap();
    scheduler.take(&second, 9);
    events.remove(1);
    assert_eq!(scheduler.remove_where(Sequence::is_cancelled).len(), 1);
    assert!(!scheduler.holds(&chosen), "one has gone: its room is for others");
}

#[test]
fn who_waits_is_not_looked_at_while_nobody_hangs_up() {
    let mut scheduler = scheduler(8, 1, 100);
    let mut events = Vec::new();
    for id in 0..50 {
        let (sequence, receiver) = sequence(id, own_prompt(id, 4), 9, false);
        scheduler.add(sequence);
        events.push(receiver);
    }
    let looks = std::cell::Cell::new(0);
    let mut remove = |hang_ups| {
        let step = scheduler.next().unwrap();
        scheduler.take(&step, 9);
        looks.set(0);
        let gone = |sequence: &Sequence| {
            looks.set(looks.get() + 1);
            sequence.is_cancelled()
        };
        (scheduler.remove_hung_up(hang_ups, gone).len(), looks.get())
    };
    assert_eq!((remove(0), remove(0)), ((0, 0), (0, 0)));
    events.remove(30);
    let (removed, looked) = remove(1);
    assert!(removed == 1 && looked <= 100, "{removed} {looked}");
    assert_eq!(remove(1), (0, 0));
}

#[test]
fn nobody_is_preempted_before_it_is_known_who_ends() {
    // Both fill two of the four blocks and need a third for their next token.
    let mut scheduler = scheduler(4, 4, 100);
    let mut events = Vec::new();
    for id in 0..2 {
        let (sequence, receiver) = sequence(id, own_prompt(id, 32), 2, false);
        scheduler.add(sequence);
        events.push(receiver);
    }
    let first = scheduler.next().unwrap();
    assert!(scheduler.schedule(true).is_none());
    events.pop();
    scheduler.take(&first, 9);
    scheduler.remove_where(Sequence::is_cancelled);
    assert_eq!(scheduler.next().unwrap().plan.sequences.len(), 1);
    assert_eq!(scheduler.counters().preemptions, 0);
}

#[derive(Clone, Debug)]
enum Action {
    Arrive { text: u64, prompt: usize, max_tokens: usize, scored: bool },
    Cancel(usize),
    Step,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (0u64..3, 1usize..=N_POSITIONS, 0usize..=N_POSITIONS, any::<bool>())
            .prop_map(|(text, prompt, max_tokens, scored)| {
                Action::Arrive { text, prompt, max_tokens: max_tokens.min(N_POSITIONS - prompt), scored }
            }),
        1 => any::<usize>().prop_map(Action::Cancel),
        6 => Just(Action::Step),
    ]
}

/// What the blocks of the pool hold, as a rank would see it.
#[derive(Default)]
struct Pool(HashMap<(u32, usize), TokenId>);

impl Pool {
    /// Writes a step's tokens, and reads every sequence back through its table.
    fn run(&mut self, step: &PlannedStep, scheduler: &Scheduler) {
        let sequences = &step.plan.sequences;
        for (part, planned) in step.parts.iter().zip(sequences) {
            let start = planned.start as usize;
            for (position, &token) in (start..).zip(&planned.tokens) {
                let block = planned.blocks[position / BLOCK_TOKENS];
                let holders = sequences.iter().filter(|s| s.blocks.contains(&block)).count();
                assert_eq!(holders, 1, "block {} is written although shared", block.0);
                self.0.insert((block.0, position % BLOCK_TOKENS), token);
            }
            assert_eq!(part.end, start + planned.tokens.len());
            assert_eq!(planned.blocks.len(), part.end.div_ceil(BLOCK_TOKENS));
        }
        for (part, planned) in step.parts.iter().zip(sequences) {
            let own = &scheduler.running[scheduler.running_at(part.id)].tokens;
            let at = |position: usize| self.0[&(planned.blocks[position / BLOCK_TOKENS].0, position % BLOCK_TOKENS)];
            assert!((0..part.end).all(|position| at(position) == own[position]), "{:?} reads another's text", part.id);
        }
    }
}

proptest! {
    #[test]
    fn everyone_finishes_within_the_bounds_and_reads_its_own_text(
        extra_blocks in 0usize..8,
        max_seqs in 1usize..6,
        max_batched_tokens in 1usize..50,
        prefix_cache: bool,
        actions in prop::collection::vec(action(), 1..80),
    ) {
        let kv_blocks = N_POSITIONS / BLOCK_TOKENS + extra_blocks;
        let limits = SchedulerLimits { kv_blocks, max_seqs, max_batched_tokens, prefix_cache };
        let mut scheduler = Scheduler::new(geometry(), limits);
        let mut pool = Pool::default();
        let mut under_way: Option<PlannedStep> = None;
        let mut receivers = HashMap::new();
        let mut computed = HashMap::<SeqId, usize>::new();
        let (mut arrived, mut begun) = (0, None);
        let drain = std::iter::repeat_n(Action::Step, 20_000);
        for action in actions.into_iter().chain(drain) {
            match action {
                Action::Arrive { text, prompt, max_tokens, scored } => {
                    let (sequence, receiver) = sequence(arrived, own_prompt(text, prompt), max_tokens, scored);
                    receivers.insert(sequence.id, (receiver, max_tokens));
                    scheduler.add(sequence);
                    arrived += 1;
                }
                Action::Cancel(pick) => {
                    let mut ids: Vec<_> = receivers.keys().copied().collect();
                    ids.sort();
                    if let Some(id) = ids.get(pick % ids.len().max(1)) {
                        receivers.remove(id);
                    }
                }
                Action::Step => {
                    let mut chosen = None;
                    if let Some(step) = under_way.take() {
                        chosen = scheduler.schedule(true);
                        prop_assert_eq!(scheduler.check(), Ok(()));
                        // What is drawn depends on the step, so that texts part and meet again.
                        scheduler.take(&step, (step.plan.step % 3) as TokenId);
                    }
                    scheduler.remove_where(Sequence::is_cancelled);
                    let oldest = scheduler.running.first().or(scheduler.waiting.front()).map(|s| s.id);
                    let step = match chosen.filter(|step| scheduler.holds(step)) {
                        Some(mut step) => {
                            scheduler.admit(&mut step);
                            scheduler.plan(step)
                        }
                        None => scheduler.next(),
                    };
                    let Some(step) = step else {
                        prop_assert!(scheduler.is_idle(), "work is never left lying");
                        continue;
                    };
                    prop_assert_eq!(step.parts.first().map(|part| part.id), oldest, "the oldest always progresses");
                    let tokens: usize = step.plan.sequences.iter().map(|s| s.tokens.len()).sum();
                    prop_assert!(tokens <= max_batched_tokens && step.parts.len() <= max_seqs);
                    pool.run(&step, &scheduler);
                    for (part, planned) in step.parts.iter().zip(&step.plan.sequences) {
                        let start = planned.start as usize;
                        match computed.insert(part.id, part.end) {
                            // Preempted: it begins again, perhaps with blocks that are there by now.
                            Some(done) => prop_assert!(start == done || start.is_multiple_of(BLOCK_TOKENS)),
                            None => {
                                prop_assert!(begun < Some(part.id), "first come, first served");
                                begun = Some(part.id);
                            }
                        }
                    }
                    let left_out = scheduler.running.iter().filter(|s| step.parts.iter().all(|part| part.id != s.id));
                    for sequence in left_out {
                        prop_assert!(sequence.tokens.len() - sequence.computed > 1, "a decode never waits for prefill");
                    }
                    under_way = Some(step);
                }
            }
            prop_assert_eq!(scheduler.check(), Ok(()));
        }
        prop_assert!(scheduler.is_idle());
        prop_assert_eq!(scheduler.blocks().free(), scheduler.blocks().total());
        for (mut receiver, max_tokens) in receivers.into_values() {
            let events = received(&mut receiver).into_iter();
            prop_assert_eq!(events.filter(|e| matches!(e, Event::Token { .. })).count(), max_tokens);
        }
    }
}
