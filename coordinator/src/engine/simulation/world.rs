//! What is outside of the engine on a simulated day: clients, what they ask for, and when they come and go.
//!
//! Knows a clock that only counts; does not know what the engine does, nor what an answer should be.

use std::{collections::BTreeMap, hash::DefaultHasher};

use nanoinfer_shared::protocol::TokenId;

use crate::engine::{
    fake_rank::{Forcing, Shaping},
    handle::{EngineHandle, Events, SubmitError},
    next::Next,
    random,
    request::{self, BadWords, Event, PromptLogprobs, Request, SamplingParams, TokenSet},
};

/// Different requests that clients make.
pub(super) const REQUESTS: u64 = 60;

/// The number of one more, which begins with a token that kills whatever computes it.
pub(super) const POISONED: u64 = REQUESTS;
/// That token: no other request begins with it.
pub(super) const POISON: TokenId = 149;

/// All that is outside of the engine.
pub(super) struct World {
    pub(super) now_us: u64,
    pub(super) dice: Dice,
    pub(super) handle: EngineHandle,
    /// What is to come, by time; the second number keeps apart what happens at once.
    pub(super) agenda: BTreeMap<(u64, usize), Happening>,
    pub(super) clients: Vec<Client>,
    pub(super) refused: u64,
    pub(super) hung_up: u64,
    pub(super) late: u64,
    pub(super) digest: DefaultHasher,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    Arrival { request: u64, choices: u32, patience_us: Option<u64>, hangs_up_us: Option<u64> },
    HangUp(usize),
    Deadline(usize),
}

pub(super) struct Client {
    pub(super) request: u64,
    /// None once it has gone.
    pub(super) choices: Option<Vec<Events>>,
    /// What each choice had told it when it went, until that was looked at.
    pub(super) left_with: Option<Vec<Vec<Event>>>,
}

impl World {
    /// Lets time pass, and what it brings happen.
    pub(super) fn advance(&mut self, duration_us: u64) {
        self.now_us += duration_us;
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= self.now_us
        {
            let (time_us, _) = *entry.key();
            let happening = entry.remove();
            self.happen(time_us, happening);
        }
    }

    pub(super) fn note(&mut self, time_us: u64, happening: Happening) {
        self.agenda.insert((time_us, self.agenda.len() + self.clients.len() * 1000), happening);
    }

    fn happen(&mut self, now_us: u64, happening: Happening) {
        match happening {
            Happening::Arrival { request, choices, patience_us, hangs_up_us } => {
                let sequences = (0..choices).map(|choice| Request { choice, ..a_request(request) }).collect();
                // Some share an address, some are strangers on loopback.
                let client = match request % 3 {
                    0 => request::Client::Local,
                    host => request::Client::Address([10, 0, 0, host as u8].into()),
                };
                let submitted = self.handle.enter().and_then(|place| self.handle.submit_in(place, client, sequences));
                if let Err(error) = &submitted {
                    let full = matches!(error, SubmitError::QueueFull { .. } | SubmitError::QueueTokensFull { .. });
                    assert!(full || matches!(error, SubmitError::Ended(_)), "{error}");
                    self.refused += 1;
                    return;
                }
                let client = self.clients.len();
                self.clients.push(Client { request, choices: submitted.ok(), left_with: None });
                if let Some(after_us) = patience_us {
                    self.note(now_us + after_us, Happening::Deadline(client));
                }
                if let Some(after_us) = hangs_up_us {
                    self.note(now_us + after_us, Happening::HangUp(client));
                }
            }
            Happening::HangUp(client) | Happening::Deadline(client) => {
                let client = &mut self.clients[client];
                let Some(mut choices) = client.choices.take() else { return };
                client.left_with = Some(choices.iter_mut().map(received).collect());
                let late = matches!(happening, Happening::Deadline(_));
                *if late { &mut self.late } else { &mut self.hung_up } += 1;
            }
        }
    }
}

/// Numbers that a seed decides.
pub(super) struct Dice {
    seed: u64,
    thrown: u32,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, thrown: 0 }
    }

    /// From `from` to `to`, both included.
    pub(super) fn roll(&mut self, from: u64, to: u64) -> u64 {
        self.thrown += 1;
        from + (random::uniform(self.seed, 0, 0, self.thrown) * (to - from + 1) as f64) as u64
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.roll(1, 100) <= chance
    }
}

/// One of the requests that clients make. Many begin alike.
pub(super) fn a_request(number: u64) -> Request {
    if number == POISONED {
        return Request::greedy(vec![POISON; 3], 3);
    }
    let dice = &mut Dice::new(1 << 40 | number);
    let (text, shared) = (dice.roll(0, 3), dice.roll(0, 80) as usize);
    let length = dice.roll(1, 90) as usize;
    let token = |at: usize| (at as u64 * 17 + text * 31 + if at < shared { 0 } else { number }) % 149;
    let sampling = SamplingParams {
        temperature: if dice.percent(30) { 0.0 } else { 1.0 },
        top_k: if dice.percent(30) { 7 } else { 0 },
        top_p: if dice.percent(40) { 0.8 } else { 1.0 },
        min_p: if dice.percent(10) { 0.02 } else { 0.0 },
        typical_p: if dice.percent(10) { 0.6 } else { 1.0 },
        repetition_penalty: if dice.percent(20) { 1.3 } else { 1.0 },
        presence_penalty: if dice.percent(10) { 0.7 } else { 0.0 },
        allowed_token_ids: dice.percent(10).then(|| (0..150).step_by(3).collect()),
        bad_words: if dice.percent(10) { (0..40).map(|id| vec![id]).collect() } else { BadWords::default() },
        ..SamplingParams::neutral(number)
    };
    let max_tokens = dice.roll(0, 40.min(96 - length as u64)) as usize;
    let sampling = SamplingParams {
        min_tokens: dice.roll(0, 3).min(max_tokens as u64) as usize,
        ignore_eos: dice.percent(50),
        stop_token_ids: if dice.percent(20) { [77, 3, 50].into_iter().collect() } else { TokenSet::default() },
        logprobs: dice.percent(20).then_some(3),
        prompt_logprobs: dice.percent(15).then(|| PromptLogprobs { top: 2, from: dice.roll(0, 40) as usize }),
        ..sampling
    };
    let next = dice.percent(40).then(|| Shaping(Forcing(number)).boxed());
    Request { sampling, next, ..Request::greedy((0..length).map(|at| token(at) as TokenId).collect(), max_tokens) }
}

pub(super) fn received(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).collect()
}
