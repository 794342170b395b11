//! Properties of the scheduler under random arrivals, ends and cancellations, without any rank.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use nanoinfer_shared::protocol::{BLOCK_TOKENS, TokenId, Wants};
use proptest::prelude::*;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::{
    handle::Submission,
    metrics::SequenceMeter,
    request::{Event, Limits, Request, SamplingParams},
    sampler::Drawn,
};

const N_POSITIONS: usize = 64;

fn geometry() -> Geometry {
    Geometry::from_config_json(&format!(r#"{{"n_positions":{N_POSITIONS},"vocab_size":100}}"#)).unwrap()
}

fn sequence(id: u64, prompt: usize, max_tokens: usize, scored: bool) -> (Sequence, mpsc::Receiver<Event>) {
    let request = Request {
        prompt: (0..prompt as TokenId).collect(),
        sampling: SamplingParams::greedy(),
        limits: Limits { max_tokens, min_tokens: 0, ignore_eos: true, stop_token_ids: Vec::new() },
        logprobs: None,
        prompt_logprobs: scored.then_some(0),
        prompt_index: 0,
        choice: 0,
    };
    let (events, receiver) = mpsc::channel(max_tokens + 2);
    let place = Arc::new(Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap());
    let meter = SequenceMeter::new(Default::default(), request.prompt.len());
    (Sequence::new(SeqId(id), Submission { request, events, place, meter }), receiver)
}

impl Scheduler {
    fn check(&self) {
        self.blocks.check(self.running.iter().chain(&self.waiting).map(|sequence| &sequence.blocks));
        let ids: Vec<_> = self.running.iter().chain(&self.waiting).map(|sequence| sequence.id).collect();
        assert!(ids.is_sorted(), "in order of arrival, the running ones first");
        assert!(self.waiting.iter().all(|sequence| sequence.computed == 0));
    }

    /// Takes a step as the engine would, drawing `drawn` each time.
    fn take(&mut self, step: &Step, drawn: TokenId) {
        self.advance(step);
        for part in &step.parts {
            for row in &part.uses {
                match row {
                    RowUse::Draw(_) => self.get_mut(part.id).append(Drawn { id: drawn, logprobs: None }),
                    RowUse::Score { .. } => self.get_mut(part.id).record_score(None),
                }
            }
            if self.get_mut(part.id).finish_reason(&[]).is_some() {
                self.remove(part.id);
            }
        }
    }
}

fn rows(step: &Step) -> Vec<(u32, Option<TokenId>)> {
    let outputs = step.plan.sequences.iter().flat_map(|s| &s.outputs);
    let target = |wants: &Wants| match wants {
        Wants::Targets { ids, .. } => Some(ids[0]),
        Wants::Candidates { .. } => None,
    };
    outputs.map(|output| (output.row, target(&output.wants))).collect()
}

#[test]
fn decodes_come_before_chunks_of_prefill() {
    let mut scheduler = Scheduler::new(geometry(), 16, 4, 8);
    let (short, _short_events) = sequence(0, 3, 4, false);
    let (long, _long_events) = sequence(1, 20, 4, false);
    scheduler.add(short);
    scheduler.add(long);
    let mut chunks = Vec::new();
    for _ in 0..4 {
        let step = scheduler.schedule().unwrap();
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
    let mut scheduler = Scheduler::new(geometry(), 16, 4, 3);
    for (max_tokens, scored, expected) in [
        (0, false, vec![vec![], vec![]]),
        (0, true, vec![vec![(0, Some(1)), (1, Some(2)), (2, Some(3))], vec![(0, Some(4))]]),
        (1, true, vec![vec![(0, Some(1)), (1, Some(2)), (2, Some(3))], vec![(0, Some(4)), (1, None)]]),
        (1, false, vec![vec![], vec![(1, None)]]),
    ] {
        let (sequence, mut events) = sequence(0, 5, max_tokens, scored);
        scheduler.add(sequence);
        let mut asked = Vec::new();
        while let Some(step) = scheduler.schedule() {
            asked.push(rows(&step));
            scheduler.take(&step, 7);
        }
        assert_eq!(asked, expected, "max_tokens {max_tokens}, scored {scored}");
        let prompt = std::iter::from_fn(|| events.try_recv().ok()).find(|e| matches!(e, Event::Prompt(_)));
        assert_eq!(prompt, scored.then(|| Event::Prompt(vec![None; 5])));
        assert!(scheduler.is_idle());
    }
}

#[test]
fn the_youngest_gives_way_and_keeps_its_tokens_and_scores() {
    // Four blocks: two sequences of 30 tokens fill them and both go on to 40.
    let mut scheduler = Scheduler::new(geometry(), 4, 4, 100);
    let mut events = Vec::new();
    for id in 0..2 {
        let (sequence, receiver) = sequence(id, 30, 10, true);
        scheduler.add(sequence);
        events.push(receiver);
    }
    let mut prefills = HashMap::<u64, Vec<usize>>::new();
    let mut scores = 0;
    while let Some(step) = scheduler.schedule() {
        scheduler.check();
        for (part, planned) in step.parts.iter().zip(&step.plan.sequences) {
            if planned.start == 0 {
                prefills.entry(part.id.0).or_default().push(planned.tokens.len());
            }
        }
        scores += rows(&step).iter().filter(|(_, target)| target.is_some()).count();
        scheduler.take(&step, 7);
    }
    assert_eq!(prefills[&0], [30], "the oldest is never preempted");
    assert_eq!(prefills[&1], [30, 33], "what was generated is computed again, not drawn again");
    assert_eq!(scores, 2 * 29, "scores are not asked for again");
    for mut receiver in events {
        let tokens = std::iter::from_fn(|| receiver.try_recv().ok()).filter(|e| matches!(e, Event::Token { .. }));
        assert_eq!(tokens.count(), 10);
    }
}

#[derive(Clone, Debug)]
enum Action {
    Arrive { prompt: usize, max_tokens: usize, scored: bool },
    Cancel(usize),
    Step,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (1usize..=N_POSITIONS, 0usize..=N_POSITIONS, any::<bool>()).prop_map(|(prompt, max_tokens, scored)| {
            Action::Arrive { prompt, max_tokens: max_tokens.min(N_POSITIONS - prompt), scored }
        }),
        1 => any::<usize>().prop_map(Action::Cancel),
        6 => Just(Action::Step),
    ]
}

proptest! {
    #[test]
    fn everyone_finishes_within_the_bounds(
        extra_blocks in 0usize..8,
        max_seqs in 1usize..6,
        max_batched_tokens in 1usize..50,
        actions in prop::collection::vec(action(), 1..80),
    ) {
        let mut scheduler =
            Scheduler::new(geometry(), N_POSITIONS / BLOCK_TOKENS + extra_blocks, max_seqs, max_batched_tokens);
        let mut receivers = HashMap::new();
        let mut computed = HashMap::<SeqId, usize>::new();
        let mut arrived = 0;
        let drain = std::iter::repeat_n(Action::Step, 20_000);
        for action in actions.into_iter().chain(drain) {
            match action {
                Action::Arrive { prompt, max_tokens, scored } => {
                    let (sequence, receiver) = sequence(arrived, prompt, max_tokens, scored);
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
                    scheduler.remove_where(Sequence::is_cancelled);
                }
                Action::Step => {
                    let oldest = scheduler.running.first().or(scheduler.waiting.front()).map(|s| s.id);
                    let Some(step) = scheduler.schedule() else {
                        prop_assert!(scheduler.is_idle(), "work is never left lying");
                        continue;
                    };
                    prop_assert_eq!(step.parts.first().map(|part| part.id), oldest, "the oldest always progresses");
                    let tokens: usize = step.parts.iter().map(|part| part.count).sum();
                    prop_assert!(tokens <= max_batched_tokens && step.parts.len() <= max_seqs);
                    let mut written = HashSet::new();
                    for (part, planned) in step.parts.iter().zip(&step.plan.sequences) {
                        let start = planned.start as usize;
                        let done = computed.entry(part.id).or_default();
                        prop_assert!(start == *done || start == 0, "contiguous, or from the start again");
                        *done = start + planned.tokens.len();
                        prop_assert_eq!(planned.blocks.len(), done.div_ceil(BLOCK_TOKENS));
                        prop_assert!(planned.blocks.iter().all(|block| written.insert(*block)), "no block is shared");
                    }
                    scheduler.take(&step, 7);
                }
            }
            scheduler.check();
        }
        prop_assert!(scheduler.is_idle());
        prop_assert_eq!(scheduler.blocks().free(), scheduler.blocks().total());
        for (mut receiver, max_tokens) in receivers.into_values() {
            let events = std::iter::from_fn(|| receiver.try_recv().ok());
            prop_assert_eq!(events.filter(|e| matches!(e, Event::Token { .. })).count(), max_tokens);
        }
    }
}
