//! The engine over fake ranks: what comes out does not depend on what else runs, and every end is reported.

use std::{
    collections::VecDeque,
    sync::{Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nanoinfer_shared::protocol::TokenMask;

use super::*;
use crate::engine::{
    fake_rank::{self, Behaviour, Forcing, Shaping},
    handle::{Door, Events, SubmitError},
    history::{LiveBlocks, Replay},
    next::Next,
    ranks::LinkedRanks,
    request::{FinishReason, PromptLogprobs, Request, SamplingParams, TokenLogprobs},
};

/// Far more than any of this takes.
const DEADLINE: Duration = Duration::from_secs(20);

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request::greedy(prompt.to_vec(), max_tokens)
}

fn prompt(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (seed * 31 + i * 17) % 149).collect()
}

pub(super) fn engine(config: EngineConfig, behaviours: Vec<Behaviour>) -> (EngineHandle, Vec<JoinHandle<()>>) {
    let (links, ranks) = fake_rank::spawn(&config, behaviours);
    (start(links, None, config).unwrap(), ranks)
}

pub(super) fn well_behaved(world: usize) -> Vec<Behaviour> {
    (0..world).map(|_| Behaviour::default()).collect()
}

/// A rank that takes a step for each message, and any once the sender is dropped.
fn held() -> (mpsc::Sender<()>, Vec<Behaviour>) {
    let (release, permits) = mpsc::channel();
    (release, vec![Behaviour { permits: Some(permits), ..Behaviour::default() }])
}

pub(super) fn all(mut events: Events) -> Vec<Event> {
    std::iter::from_fn(|| events.blocking_next()).collect()
}

fn ids(events: &[Event]) -> Vec<u32> {
    events.iter().filter_map(|event| if let Event::Token { id, .. } = event { Some(*id) } else { None }).collect()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

fn wait_for_end(handle: &EngineHandle, ranks: Vec<JoinHandle<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(handle.ended());
    for rank in ranks {
        rank.join().unwrap();
    }
}

/// The tokens after `prompt` by the model itself.
fn greedy(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let logits = fake_rank::logits(&tokens, 0..150);
        let best = (0..150).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

/// Requests of every kind of draw.
pub(super) fn mixed() -> Vec<Request> {
    let sampled = |seed, length, change: &dyn Fn(&mut Request)| {
        let mut request = request(&prompt(seed, length), 30);
        request.sampling = SamplingParams { ignore_eos: true, ..SamplingParams::neutral(seed.into()) };
        change(&mut request);
        request
    };
    vec![
        request(&prompt(1, 3), 60),
        sampled(2, 40, &|r| r.sampling.top_p = 0.8),
        sampled(3, 1, &|r| r.sampling.logprobs = Some(4)),
        sampled(4, 50, &|r| {
            r.sampling.prompt_logprobs = Some(PromptLogprobs { top: 2, from: 0 });
            r.sampling.repetition_penalty = 1.3;
            r.sampling.top_k = 7;
        }),
        sampled(5, 17, &|r| r.sampling.typical_p = 0.6),
        sampled(6, 33, &|r| {
            r.sampling.presence_penalty = 0.7;
            r.sampling.min_p = 0.02;
            r.sampling.min_tokens = 10;
            r.sampling.ignore_eos = false;
        }),
        request(&prompt(7, 96), 0),
        Request { next: Some(Forcing(7).boxed()), ..request(&prompt(8, 20), 60) },
        Request { next: Some(Shaping(Forcing(9)).boxed()), ..request(&prompt(9, 20), 60) },
    ]
}

fn assert_same(a: &[Event], b: &[Event]) {
    let close = |a: &TokenLogprobs, b: &TokenLogprobs| {
        // Ranks' log-sum-exps merge in another order: the last bits differ.
        let near = |a: f32, b: f32| (a - b).abs() < 1e-5;
        let top = a.top.iter().zip(&b.top).all(|(a, b)| a.0 == b.0 && near(a.1, b.1));
        a.id == b.id && near(a.logprob, b.logprob) && top && a.top.len() == b.top.len()
    };
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        match (a, b) {
            (Event::Token { id: a, logprobs: Some(x), .. }, Event::Token { id: b, logprobs: Some(y), .. }) => {
                assert!(a == b && close(x, y), "{x:?} {y:?}");
            }
            (Event::Prompt(a), Event::Prompt(b)) => {
                assert!(a.len() == b.len() && a[0].is_none() && b[0].is_none());
                let pairs = a.iter().flatten().zip(b.iter().flatten());
                assert!(pairs.clone().count() == a.len() - 1 && pairs.clone().all(|(a, b)| close(a, b)));
            }
            _ => assert_eq!(a, b),
        }
    }
}

#[test]
fn a_sequence_is_the_same_alone_and_beside_others_chunked_preempted_and_split() {
    let (handle, _ranks) = engine(fake_rank::config(1, 100), well_behaved(1));
    let alone: Vec<_> = mixed().into_iter().map(|request| all(handle.submit(request).unwrap())).collect();
    assert_eq!(ids(&alone[0]), greedy(&prompt(1, 3), 60));
    assert!(alone.iter().all(|events| matches!(events.last(), Some(Event::Finished(_)))));
    assert_eq!(alone[6], [Event::Finished(FinishReason::Length)]);
    for world in 1..=3 {
        for (kv_blocks, max_batched_tokens) in [(100, 64), (100, 5), (6, 64), (7, 9)] {
            let config = fake_rank::config(world, kv_blocks).with_steps_of(8, max_batched_tokens);
            let (handle, ranks) = engine(config, well_behaved(world));
            let events: Vec<_> = mixed().into_iter().map(|request| handle.submit(request).unwrap()).collect();
            for (events, alone) in events.into_iter().zip(&alone) {
                assert_same(&all(events), alone);
            }
            wait_until("every block is free when idle", || {
                handle.status().blocks_free() == kv_blocks && handle.status().running() == 0
            });
            handle.stop();
            wait_for_end(&handle, ranks);
            assert_eq!(handle.status().failure(), None);
        }
    }
}

#[test]
fn forced_tokens_stand_in_an_answer_as_if_they_had_been_drawn_and_end_it_where_drawn_ones_would() {
    let (asked, mut hook) = (prompt(8, 20), Forcing(7));
    let (mut tokens, mut queue, mut expected) = (asked.clone(), VecDeque::new(), Vec::new());
    while expected.len() < 60 {
        let (id, forced) = queue.pop_front().map_or_else(|| (greedy(&tokens, 1)[0], false), |id| (id, true));
        tokens.push(id);
        queue.extend(hook.after(id));
        expected.push((id, forced));
    }
    let (handle, _ranks) = engine(fake_rank::config(2, 20), well_behaved(2));
    let answer = |max_tokens, stop_token_ids: &[u32]| {
        let mut request = Request { next: Some(Forcing(7).boxed()), ..request(&asked, max_tokens) };
        request.sampling.stop_token_ids = stop_token_ids.iter().copied().collect();
        let events = all(handle.submit(request).unwrap());
        let token =
            |event: &Event| if let Event::Token { id, forced, .. } = event { Some((*id, *forced)) } else { None };
        (events.iter().filter_map(token).collect::<Vec<_>>(), events.last().cloned().unwrap())
    };
    assert_eq!(answer(60, &[]), (expected.clone(), Event::Finished(FinishReason::Length)));
    let is_new = |at: usize| expected[..at].iter().all(|&(id, _)| id != expected[at].0);
    let inner = |at: &usize| expected[*at].1 && expected[at + 1].1;
    let cut = (0..59).filter(inner).find(|&at| is_new(at)).expect("some are forced");
    assert_eq!(answer(cut + 1, &[]), (expected[..=cut].to_vec(), Event::Finished(FinishReason::Length)));
    assert_eq!(answer(60, &[expected[cut].0]), (expected[..=cut].to_vec(), Event::Finished(FinishReason::Stop)));
}

/// Lets any token come, each of them once a gate has opened: for each message, and always once the sender is gone.
#[derive(Clone, Debug)]
struct Gated {
    gate: Arc<Mutex<mpsc::Receiver<()>>>,
    is_open: bool,
}

impl Gated {
    fn shut() -> (mpsc::Sender<()>, Box<dyn Next>) {
        let (open, gate) = mpsc::channel();
        (open, Box::new(Self { gate: Arc::new(Mutex::new(gate)), is_open: false }))
    }
}

impl Next for Gated {
    fn after(&mut self, _: u32) -> Vec<u32> {
        self.is_open = false;
        Vec::new()
    }

    fn is_masking(&self) -> bool {
        true
    }

    fn mask(&mut self) -> Result<TokenMask, String> {
        if !self.is_open {
            let _ = self.gate.lock().unwrap().recv();
            self.is_open = true;
        }
        Ok((0..150).collect())
    }

    fn boxed(&self) -> Box<dyn Next> {
        Box::new(self.clone())
    }
}

#[test]
fn a_sequence_whose_mask_is_late_sits_out_and_gets_the_same_answer() {
    // A prompt that ends with a block, and one that does not.
    for length in [16, 19] {
        let (handle, _ranks) = engine(fake_rank::config(2, 20), well_behaved(2));
        let (open, gated) = Gated::shut();
        let asked = prompt(1, length);
        let mut late = handle.submit(Request { next: Some(gated), ..request(&asked, 40) }).unwrap();
        for other in [&asked, &prompt(2, 30)] {
            assert_eq!(ids(&all(handle.submit(request(other, 60)).unwrap())), greedy(other, 60), "others go on");
        }
        assert_eq!(late.try_next(), None);
        open.send(()).unwrap();
        let first = late.blocking_next();
        assert!(matches!(first, Some(Event::Token { id, .. }) if id == greedy(&asked, 1)[0]), "{first:?}");
        assert_eq!(ids(&all(handle.submit(request(&asked, 60)).unwrap())), greedy(&asked, 60));
        drop(open);
        assert_eq!(ids(&all(late)), greedy(&asked, 40)[1..]);
        assert!(handle.status().metrics().masks_late.get() > 0);
        wait_until("every block is free when idle", || handle.status().blocks_free() == 20);
    }
}

#[test]
fn a_mask_that_never_comes_ends_its_own_sequence() {
    let (handle, _ranks) = engine(fake_rank::config(1, 20), well_behaved(1));
    let (_shut, gated) = Gated::shut();
    let mut late = handle.submit(Request { next: Some(gated), ..request(&prompt(1, 3), 9) }).unwrap();
    let last = loop {
        match late.try_next() {
            Some(event) => break event,
            None => drop(all(handle.submit(request(&prompt(2, 3), 90)).unwrap())),
        }
    };
    assert!(matches!(&last, Event::Stuck(reason) if reason.contains("within 1000 steps")), "{last:?}");
    assert_eq!(ids(&all(handle.submit(request(&prompt(1, 3), 9)).unwrap())), greedy(&prompt(1, 3), 9));
    wait_until("every block is free when idle", || handle.status().blocks_free() == 20);
}

#[test]
fn a_grammar_that_panics_ends_its_own_sequence() {
    #[derive(Clone, Debug)]
    struct Broken;
    impl Next for Broken {
        fn after(&mut self, _: u32) -> Vec<u32> {
            Vec::new()
        }
        fn is_masking(&self) -> bool {
            true
        }
        fn mask(&mut self) -> Result<TokenMask, String> {
            panic!("as a bug would")
        }
        fn boxed(&self) -> Box<dyn Next> {
            Box::new(self.clone())
        }
    }
    let (handle, _ranks) = engine(fake_rank::config(1, 20), well_behaved(1));
    let events = all(handle.submit(Request { next: Some(Box::new(Broken)), ..request(&prompt(1, 3), 9) }).unwrap());
    assert!(matches!(&events[..], [Event::Stuck(reason)] if reason.contains("as a bug would")), "{events:?}");
    assert_eq!(ids(&all(handle.submit(request(&prompt(1, 3), 9)).unwrap())), greedy(&prompt(1, 3), 9));
}

#[test]
fn who_waits_for_a_mask_may_go_and_what_is_stopped_waits_for_it() {
    let (handle, ranks) = engine(fake_rank::config(1, 20), well_behaved(1));
    let late = |length| {
        let (open, gated) = Gated::shut();
        (open, handle.submit(Request { next: Some(gated), ..request(&prompt(1, length), 9) }).unwrap())
    };
    let sits_out = |count| wait_until("it sits out", || handle.status().metrics().masks_late.get() == count);
    let (shut, gone) = late(3);
    sits_out(1);
    drop(gone);
    assert_eq!(ids(&all(handle.submit(request(&prompt(2, 3), 9)).unwrap())), greedy(&prompt(2, 3), 9));
    wait_until("who has gone holds nothing", || handle.status().blocks_free() == 20);
    drop(shut);
    let (open, stays) = late(5);
    sits_out(2);
    handle.stop();
    drop(open);
    assert_eq!(ids(&all(stays)), greedy(&prompt(1, 5), 9));
    wait_for_end(&handle, ranks);
}

#[test]
fn a_prompt_is_scored_with_nothing_generated() {
    let (handle, _ranks) = engine(fake_rank::config(2, 100), well_behaved(2));
    let tokens = prompt(9, 70);
    let mut scored = request(&tokens, 0);
    scored.sampling.prompt_logprobs = Some(PromptLogprobs { top: 3, from: 0 });
    let events = all(handle.submit(scored).unwrap());
    assert_eq!(events.len(), 2);
    assert_eq!(events[1], Event::Finished(FinishReason::Length));
    let Event::Prompt(scores) = &events[0] else { panic!("{events:?}") };
    assert_eq!((scores.len(), &scores[0]), (70, &None));
    for (at, score) in scores.iter().enumerate().skip(1) {
        let score = score.as_ref().unwrap();
        let logits = fake_rank::logits(&tokens[..at], 0..150);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let expected = f64::from(logits[tokens[at] as usize]) - sum.ln();
        assert_eq!(score.id, tokens[at]);
        assert!((f64::from(score.logprob) - expected).abs() < 1e-5, "{at}");
        assert!(score.top.len() == 3 && score.top[0].1 >= score.top[2].1);
    }
}

#[test]
fn what_leads_up_to_the_first_score_comes_from_the_cache() {
    let (handle, _ranks) = engine(fake_rank::config(2, 100), well_behaved(2));
    let tokens = prompt(9, 70);
    let scores = |from| {
        let mut scored = request(&tokens, 0);
        scored.sampling.prompt_logprobs = Some(PromptLogprobs { top: 1, from });
        let Some(Event::Prompt(scores)) = all(handle.submit(scored).unwrap()).into_iter().next() else {
            panic!("no scores")
        };
        scores
    };
    let whole = scores(0);
    assert_eq!(handle.status().metrics().prefix_cache_hits.get(), 0, "all of them are wanted");
    for from in [1, 17, 33, 34, 64, 65, 69, 70, 1000] {
        let before = handle.status().metrics().prefix_cache_hits.get();
        let some = scores(from);
        let first = from.min(70);
        assert!(some[..first].iter().all(Option::is_none) && some[first..] == whole[first..], "{from}");
        let hits = handle.status().metrics().prefix_cache_hits.get() - before;
        assert_eq!(hits, ((first - 1) / 16 * 16) as u64, "{from}");
    }
}

#[test]
fn end_of_text_and_stop_tokens_end_a_sequence_after_being_reported() {
    let expected = greedy(&prompt(1, 3), 10);
    let at = (3..10).find(|&at| !expected[..at].contains(&expected[at])).unwrap();
    let mut config = fake_rank::config(1, 20);
    config.shape.eos_token_ids = vec![expected[at]];
    let (handle, _ranks) = engine(config, well_behaved(1));
    let run = |change: &dyn Fn(&mut SamplingParams)| {
        let mut request = request(&prompt(1, 3), 10);
        request.sampling.ignore_eos = false;
        change(&mut request.sampling);
        let events = all(handle.submit(request).unwrap());
        (ids(&events), events.last().cloned().unwrap())
    };
    assert_eq!(run(&|_| ()), (expected[..=at].to_vec(), Event::Finished(FinishReason::Stop)));
    assert_eq!(run(&|l| l.ignore_eos = true), (expected.clone(), Event::Finished(FinishReason::Length)));
    let stopped = run(&|l| {
        l.ignore_eos = true;
        l.stop_token_ids = [expected[0]].into_iter().collect();
    });
    assert_eq!(stopped, (expected[..1].to_vec(), Event::Finished(FinishReason::Stop)));
    let (longer, _) = run(&|l| l.min_tokens = at + 2);
    assert!(longer.len() >= at + 2 && longer[..at] == expected[..at] && longer[at] != expected[at]);
}

#[test]
fn dropping_the_events_frees_the_blocks() {
    let (release, behaviours) = held();
    let (handle, _ranks) = engine(fake_rank::config(1, 20), behaviours);
    let mut cancelled = handle.submit(request(&prompt(1, 20), 60)).unwrap();
    release.send(()).unwrap();
    assert!(matches!(cancelled.blocking_next(), Some(Event::Token { .. })));
    assert_eq!(handle.status().blocks_free(), 18);
    drop(cancelled);
    // The step that was under way, and none after it.
    release.send(()).unwrap();
    wait_until("the blocks come back", || handle.status().blocks_free() == 20);
    drop(release);
    assert_eq!(ids(&all(handle.submit(request(&prompt(1, 3), 5)).unwrap())), greedy(&prompt(1, 3), 5));
}

#[test]
fn the_queue_counts_what_waits_for_its_first_step() {
    let (release, behaviours) = held();
    let config = EngineConfig { max_queue: 2, ..fake_rank::config(1, 20).with_steps_of(1, 64) };
    let (handle, _ranks) = engine(config, behaviours);
    let submit = || handle.submit(request(&prompt(1, 3), 4));
    let mut accepted = vec![submit().unwrap()];
    wait_until("the first one runs", || handle.status().running() == 1);
    accepted.extend([submit().unwrap(), submit().unwrap()]);
    assert_eq!(submit().unwrap_err(), SubmitError::QueueFull { limit: 2 });
    drop(accepted.pop());
    release.send(()).unwrap();
    wait_until("who hangs up gives the place back", || submit().is_ok());
    drop(release);
    for events in accepted {
        assert_eq!(ids(&all(events)), greedy(&prompt(1, 3), 4));
    }
}

#[test]
fn a_request_of_many_sequences_keeps_one_place_until_the_last_began_or_went() {
    let (release, behaviours) = held();
    let config = EngineConfig { max_queue: 1, ..fake_rank::config(1, 20).with_steps_of(1, 64) };
    let (handle, _ranks) = engine(config, behaviours);
    let mut group = handle.submit_all(vec![request(&prompt(1, 3), 4); 6]).unwrap();
    wait_until("the first one runs", || handle.status().running() == 1);
    let submit = || handle.submit(request(&prompt(2, 3), 4));
    assert_eq!(submit().unwrap_err(), SubmitError::QueueFull { limit: 1 });
    // Only the one that runs is left, and nobody reads what it says.
    group.truncate(1);
    release.send(()).unwrap();
    let mut next = None;
    wait_until("who never reads keeps nobody out", || {
        next = submit().ok();
        next.is_some()
    });
    drop(release);
    assert_eq!(ids(&all(next.unwrap())), greedy(&prompt(2, 3), 4));
    assert_eq!(ids(&all(group.remove(0))), greedy(&prompt(1, 3), 4));
}

#[test]
fn a_lost_rank_fails_everything_and_is_named() {
    let fails = Behaviour { fails_at: Some(2), ..Behaviour::default() };
    let closes = Behaviour { closes_at: Some(2), ..Behaviour::default() };
    for (behaviour, words) in [(fails, "rank 1 failed: the fake rank was told to"), (closes, "rank 1 is gone")] {
        let config = fake_rank::config(3, 20).with_steps_of(2, 64);
        let (handle, ranks) = engine(config, vec![Behaviour::default(), behaviour, Behaviour::default()]);
        let events: Vec<_> = (0..4).map(|seed| handle.submit(request(&prompt(seed, 5), 20)).unwrap()).collect();
        for events in events {
            let last = all(events).pop().unwrap();
            assert!(matches!(&last, Event::Failed(reason) if reason.contains(words)), "{last:?}");
        }
        wait_for_end(&handle, ranks);
        assert!(handle.status().failure().unwrap().contains(words));
        assert!(!handle.status().is_ready());
        let refused = handle.submit(request(&[1], 1)).unwrap_err();
        assert!(matches!(&refused, SubmitError::Ended(reason) if reason.contains(words)), "{refused:?}");
    }
}

#[test]
fn a_rank_lost_while_idle_ends_the_engine() {
    let closes = Behaviour { closes_when_pinged: true, ..Behaviour::default() };
    let (handle, ranks) = engine(fake_rank::config(2, 20), vec![Behaviour::default(), closes]);
    wait_for_end(&handle, ranks);
    assert!(handle.status().failure().unwrap().contains("rank 1 is gone"));
    assert!(!handle.status().is_ready());
}

#[test]
fn a_silent_rank_is_not_ready_within_two_seconds_and_ready_again_when_it_answers() {
    let (release, behaviours) = held();
    let (handle, _ranks) = engine(fake_rank::config(1, 20), behaviours);
    assert!(handle.status().is_ready());
    let events = handle.submit(request(&prompt(1, 3), 2)).unwrap();
    wait_until("the step began", || handle.status().running() == 1);
    let since = Instant::now();
    wait_until("a silent rank is not ready", || !handle.status().is_ready());
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    drop(release);
    assert_eq!(ids(&all(events)).len(), 2);
    wait_until("it answers again", || handle.status().is_ready());
}

#[test]
fn stopping_finishes_what_was_taken() {
    let (release, behaviours) = held();
    let config = fake_rank::config(1, 20).with_steps_of(1, 64);
    let (handle, ranks) = engine(config, behaviours);
    let events: Vec<_> = (0..3).map(|seed| handle.submit(request(&prompt(seed, 5), 6)).unwrap()).collect();
    handle.stop();
    assert_eq!(handle.submit(request(&[1], 1)).unwrap_err(), SubmitError::Stopping);
    drop(release);
    for (seed, events) in (0..).zip(events) {
        assert_eq!(ids(&all(events)), greedy(&prompt(seed, 5), 6));
    }
    wait_for_end(&handle, ranks);
    assert_eq!(handle.status().failure(), None);
    assert!(!handle.status().is_ready());
}

#[test]
fn the_engine_ends_with_the_last_handle_or_on_stop_while_idle() {
    let (handle, ranks) = engine(fake_rank::config(2, 20), well_behaved(2));
    let events = handle.submit(request(&prompt(1, 5), 6)).unwrap();
    drop(handle);
    assert_eq!(ids(&all(events)).len(), 6);
    ranks.into_iter().for_each(|rank| rank.join().unwrap());

    let (handle, ranks) = engine(fake_rank::config(2, 20), well_behaved(2));
    handle.stop();
    wait_for_end(&handle, ranks);
}

#[test]
fn what_cannot_start_says_why() {
    let refused = |config: EngineConfig, ranks: usize| {
        let (mut links, _ranks) = fake_rank::spawn(&config, well_behaved(config.load.partition.world()));
        links.truncate(ranks);
        start(links, None, config).unwrap_err().to_string()
    };
    assert!(refused(fake_rank::config(2, 20), 1).contains("split over 2 ranks, but there are links to 1"));
    let message = refused(fake_rank::config(2, 5), 2);
    assert!(message.contains("rank 0: a sequence of 96 tokens") && message.contains("--kv-memory"), "{message}");
    assert!(refused(fake_rank::config(1, 20).with_steps_of(0, 64), 1).contains("--max-seqs"));
}

#[test]
fn a_wall_before_the_models_bounds_requests_and_what_the_pool_must_hold() {
    let mut config = fake_rank::config(1, 2);
    config.shape.context = 32;
    let (handle, _ranks) = engine(config, well_behaved(1));
    assert_eq!(ids(&all(handle.submit(request(&prompt(1, 30), 2)).unwrap())), greedy(&prompt(1, 30), 2));
    let refused = handle.submit(request(&prompt(1, 30), 3)).unwrap_err();
    assert_eq!(refused, SubmitError::TooLong { prompt: 30, max_tokens: 3, n_positions: 32 });
}

#[test]
fn a_panic_of_the_engine_is_no_clean_stop() {
    let (handle, _commands) =
        handle::channel(Door { vocab_size: 1, n_positions: 1, max_queue: 1, max_queue_tokens: 1 });
    let report = PanicReport(handle.status.clone());
    let ended = thread::spawn(move || {
        let _report = report;
        panic!("as a bug would");
    });
    assert!(ended.join().is_err());
    assert!(handle.status().failure().unwrap().contains("panicked"));
}

#[test]
fn an_engine_that_is_cut_off_fails_what_runs_and_what_waits() {
    let (release, behaviours) = held();
    let (handle, ranks) = engine(fake_rank::config(1, 100).with_steps_of(1, 64), behaviours);
    let running = handle.submit(request(&prompt(1, 3), 60)).unwrap();
    let waiting = handle.submit(request(&prompt(2, 3), 60)).unwrap();
    wait_until("one runs", || handle.status().running() == 1);
    handle.cut_off();
    drop(release);
    for events in [running, waiting] {
        assert_eq!(all(events).last(), Some(&Event::Failed("the server is shutting down".into())));
    }
    assert!(handle.status().failure().is_none());
    assert_eq!(handle.submit(request(&[1], 1)).unwrap_err(), SubmitError::Stopping);
    wait_for_end(&handle, ranks);
}

#[test]
fn every_step_is_in_the_history_with_who_held_what() {
    let config = fake_rank::config(1, 20);
    let (handle, commands) = handle::channel(Door::of(&config));
    let (links, _ranks) = fake_rank::spawn(&config, well_behaved(1));
    let (status, wake) = (handle.status.clone(), Arc::new(handle.waker()));
    let masker = Masker::start(1, wake.clone(), status.metrics().clone()).unwrap();
    let (ranks, kv_blocks) = LinkedRanks::start(links, None, &config, status, wake, Box::new(|| false)).unwrap();
    let mut engine = Engine::new(config, kv_blocks, ranks, masker, commands, &handle);
    let history = handle.status().history();
    let mut changes = history.changes();
    let events = handle.submit(request(&prompt(1, 5), 20)).unwrap();
    let hung_up = handle.submit(request(&prompt(2, 5), 20)).unwrap();
    // The first turn begins a step, each further one ends it.
    (0..4).for_each(|_| assert_eq!(engine.turn().unwrap(), Turn::Busy));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let now = history.now();
    let told: Vec<_> = now.sequences.values().map(|s| (s.id, s.tokens, s.computed, s.blocks.len())).collect();
    assert_eq!(told, [(0, 8, 7, 1), (1, 8, 7, 1)]);
    drop(hung_up);
    while engine.turn().unwrap() == Turn::Busy {}
    assert!(changes.has_changed().unwrap());
    let Replay { before, entries, next } = history.since(0);
    assert_eq!((before, next), (Some(LiveBlocks::default()), entries.len() as u64));
    let is_step = |entry: &&Arc<Entry>| matches!(***entry, Entry::Step { .. });
    assert_eq!(entries.iter().filter(is_step).count(), 20, "one for each token");
    let last = entries.last().unwrap();
    assert!(matches!(&**last, Entry::Left { sequences, idle } if *sequences == [0] && !idle.is_empty()), "{last:?}");
    // 5 + 19 positions: the first block is full, and found by whoever begins alike.
    assert!(history.now().sequences.is_empty() && history.now().idle.len() == 1);
    drop(events);
}

#[test]
fn explained_tokens_tell_of_their_step_on_every_rank_and_others_do_not() {
    let (handle, ranks) = engine(fake_rank::config(2, 20), well_behaved(2));
    let mut explained = request(&prompt(1, 20), 4);
    explained.sampling.explain = true;
    let (explained, plain) = (handle.submit(explained).unwrap(), handle.submit(request(&prompt(2, 20), 4)).unwrap());
    let (explained, plain) = (all(explained), all(plain));
    let told = |events: &[Event]| -> Vec<_> {
        let token =
            |event: &Event| if let Event::Token { explanation, .. } = event { explanation.clone() } else { None };
        events.iter().filter_map(token).collect()
    };
    let tokens = told(&explained);
    assert!(tokens.len() == 4 && told(&plain).is_empty());
    for token in &tokens {
        assert!(token.step.ranks.len() == 2 && (1..=2).contains(&token.step.sequences), "{token:?}");
        assert!(token.narrowing.alternatives.len() == 8 && token.narrowing.chain[0].processor == "temperature");
    }
    assert!(tokens[0].step.tokens >= 20 && tokens.windows(2).all(|pair| pair[0].step.step < pair[1].step.step));
    let alone = all(handle.submit(request(&prompt(1, 20), 4)).unwrap());
    assert_eq!(ids(&alone), ids(&explained));
    drop(handle);
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}
