//! Step 10. Texts come and go between steps: who is done leaves at once, who waits takes the place, long prompts go in pieces.
//!
//! Chooses only which rows are computed next; knows no matrix and no clock.
//! Invariant: who came first never gives way, so something always gets done.

use std::collections::VecDeque;

use crate::{
    blocks::Blocks,
    model::Model,
    pass::{Row, alone, pass, unseen},
    sampling::Sampling,
};

/// Something to go on with.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its number.
    pub id: usize,
    /// Its prompt and, behind it, what was drawn.
    pub tokens: Vec<u32>,
    /// How many of these are the prompt.
    pub prompt: usize,
    /// Tokens to draw at most.
    pub most: usize,
    /// How.
    pub sampling: Sampling,
    /// How many of its tokens are in the pool.
    computed: usize,
}

/// What is computed together.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// Tokens with their texts and positions.
    pub rows: Vec<Row>,
}

/// What a step brought to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// Whose.
    pub id: usize,
    /// The token.
    pub token: u32,
    /// Whether it is the last.
    pub is_last: bool,
}

/// Who waits, who runs, and what they hold.
pub struct Scheduler {
    waiting: VecDeque<Request>,
    running: Vec<Request>,
    blocks: Blocks,
    /// Most rows of a step.
    budget: usize,
    /// Most texts that run.
    places: usize,
}

impl Scheduler {
    /// With a pool of blocks, and so many rows and texts a step.
    pub fn new(blocks: Blocks, budget: usize, places: usize) -> Self {
        Self { waiting: VecDeque::new(), running: Vec::new(), blocks, budget, places }
    }

    /// Queues a request.
    pub fn add(&mut self, id: usize, prompt: Vec<u32>, most: usize, sampling: Sampling) {
        let length = prompt.len();
        self.waiting.push_back(Request { id, tokens: prompt, prompt: length, most, sampling, computed: 0 });
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Texts that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whose rows come next: a token of each that is being written, then as much of prompts as there is room for.
    pub fn plan(&mut self) -> StepPlan {
        while self.running.len() < self.places
            && let Some(mut request) = self.waiting.pop_front()
        {
            request.computed = self.blocks.begin(request.id, &request.tokens);
            if !self.blocks.grow(request.id, request.tokens.len() + 1) {
                self.blocks.end(request.id);
                request.computed = 0;
                self.waiting.push_front(request);
                break;
            }
            self.running.push(request);
        }
        let mut at = 0;
        while at < self.running.len() {
            let (id, length) = (self.running[at].id, self.running[at].tokens.len());
            if self.blocks.grow(id, length) {
                at += 1;
                continue;
            }
            // The youngest computes its tokens again when there is room.
            let mut youngest = self.running.pop().expect("there is one");
            self.blocks.end(youngest.id);
            youngest.computed = 0;
            self.waiting.push_front(youngest);
        }
        let mut plan = StepPlan::default();
        let pending = |request: &Request| request.tokens.len() - request.computed;
        let (decodes, prompts): (Vec<_>, Vec<_>) = self.running.iter_mut().partition(|request| pending(request) == 1);
        for request in decodes.into_iter().chain(prompts) {
            let count = pending(request).min(self.budget - plan.rows.len());
            let rows = (request.computed..request.computed + count).map(|position| Row {
                text: request.id,
                position,
                token: request.tokens[position],
            });
            plan.rows.extend(rows);
            request.computed += count;
        }
        plan
    }

    /// Computes a plan, draws for whoever has all of its tokens computed, and lets go who is done.
    pub fn step(&mut self, model: &Model, plan: &StepPlan, end: u32) -> Vec<Drawn> {
        let logits = pass(model, &plan.rows, &mut self.blocks, &mut alone, &mut unseen);
        let mut drawn = Vec::new();
        for (row, logits) in plan.rows.iter().zip(logits.chunks_exact(model.sizes.vocab)) {
            let request = self.running.iter_mut().find(|request| request.id == row.text).expect("who is planned runs");
            if row.position + 1 < request.tokens.len() {
                continue;
            }
            self.blocks.publish(request.id, &request.tokens);
            let token = request.sampling.draw(logits, request.tokens.len());
            request.tokens.push(token);
            let is_last = token == end
                || request.tokens.len() - request.prompt >= request.most
                || request.tokens.len() >= model.sizes.positions;
            drawn.push(Drawn { id: request.id, token, is_last });
        }
        for done in drawn.iter().filter(|drawn| drawn.is_last) {
            self.blocks.end(done.id);
            self.running.retain(|request| request.id != done.id);
        }
        drawn
    }
}
