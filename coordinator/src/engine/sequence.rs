//! One sequence while the engine holds it: its tokens, how far they are computed, and the way back to who asked.
//!
//! ```text
//! tokens   prompt ─────────────── generated, drawn or forced ──── (being drawn)
//! computed ────────────────────────────►│ pending
//! ```
//! Does not know when it runs or what else does.
//! Invariant: `tokens` begins with the prompt and only grows; something is pending until it ends, as the last token drawn
//! is never in the KV pool.

use std::{collections::VecDeque, sync::Arc};

use nanoinfer_shared::{
    ModelShape,
    protocol::{BLOCK_TOKENS, RowRequest, TokenId, TokenMask, Wants},
};
use tokio::sync::mpsc;

use crate::engine::{
    awaited_mask::AwaitedMask,
    block_hash::PrefixHashes,
    block_manager::BlockTable,
    explanation::{Explanation, StepReport},
    metrics::SequenceMeter,
    owner::Owner,
    queue_room::Place,
    request::{Event, FinishReason, PromptLogprobs, Request, TokenLogprobs},
    sampler::{Draw, Drawn},
    submission::Submission,
};

/// Identity of a sequence, in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SeqId(pub(crate) u64);

/// A sequence's place in the order of admission: a new one each time that it is let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// A request being served.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) owner: Owner,
    /// While it runs.
    pub(crate) ticket: Ticket,
    pub(crate) request: Request,
    /// The prompt, then what was generated.
    pub(crate) tokens: Vec<TokenId>,
    /// How many of the tokens are in the KV pool once the step under way is done.
    pub(crate) computed: usize,
    /// The step under way draws the token that follows `tokens`.
    pub(crate) drawing: bool,
    /// Steps in a row that it was in when a rank was lost.
    pub(crate) lost_steps: u32,
    /// Its mask, where that is late; what computes it is its request's `next`, which is not there meanwhile.
    late_mask: Option<AwaitedMask>,
    /// The mask of its next draw, which was late and has come.
    pub(crate) come_mask: Option<Result<TokenMask, String>>,
    /// Steps that were taken without it for that.
    pub(crate) sat_out: u32,
    pub(crate) blocks: BlockTable,
    /// Names of its full blocks.
    pub(crate) hashes: PrefixHashes,
    /// Its share of its request's place in the queue, until its first step.
    pub(crate) place: Option<Place>,
    events: mpsc::Sender<Event>,
    pub(crate) meter: SequenceMeter,
    /// What happened and was not told yet.
    outbox: Vec<Event>,
    /// Scores of the first tokens of the prompt; stays empty unless asked for.
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    /// How many entries `prompt_logprobs` has had: survives a preemption and the delivery.
    scored: usize,
}

/// What becomes of the answer to one row of a step.
#[derive(Debug)]
pub(crate) enum RowUse {
    /// The next token is drawn from it.
    Draw(Box<Draw>),
    /// It scores this token of the prompt, with so many alternatives.
    Score { target: TokenId, top: u32 },
}

impl Sequence {
    /// A sequence with nothing computed.
    pub(crate) fn new(id: SeqId, owner: Owner, submission: Submission) -> Self {
        let Submission { request, events, place, meter } = submission;
        let mut sequence = Self {
            id,
            owner,
            ticket: Ticket::default(),
            tokens: request.prompt.clone(),
            computed: 0,
            drawing: false,
            lost_steps: 0,
            late_mask: None,
            come_mask: None,
            sat_out: 0,
            blocks: BlockTable::default(),
            hashes: PrefixHashes::salted(request.cache_salt.as_deref()),
            place: Some(place),
            events,
            meter,
            outbox: Vec::new(),
            prompt_logprobs: Vec::new(),
            scored: 0,
            request,
        };
        if let Some(PromptLogprobs { from, .. }) = sequence.request.sampling.prompt_logprobs {
            // Nothing predicts the first token, and nobody asks for those before `from`.
            (0..from.clamp(1, sequence.tokens.len())).for_each(|_| sequence.record_score(None));
        }
        sequence
    }

    /// Tokens that the next step can compute, the one being drawn included; none while its mask is late.
    pub(crate) fn pending(&self) -> usize {
        if self.is_sitting_out() {
            return 0;
        }
        if self.drawing && self.generated().len() + 1 >= self.request.max_tokens {
            // Its last token: nothing follows from it.
            return 0;
        }
        self.tokens.len() + usize::from(self.drawing) - self.computed
    }

    /// Draws nothing in the step under way, nor takes part in another until its mask is there. The last token is computed again then, to
    /// be drawn from.
    pub(crate) fn sit_out(&mut self, late_mask: AwaitedMask) {
        self.computed -= 1;
        self.drawing = false;
        self.late_mask = Some(late_mask);
    }

    /// Whether its mask is late.
    pub(crate) fn is_sitting_out(&self) -> bool {
        self.late_mask.is_some()
    }

    /// Takes part again if its mask is there by now.
    pub(crate) fn rejoin(&mut self) -> bool {
        let Some((next, mask)) = self.late_mask.as_ref().and_then(AwaitedMask::take) else { return false };
        self.request.next = Some(next);
        self.come_mask = Some(mask);
        self.late_mask = None;
        self.sat_out = 0;
        true
    }

    /// Blocks that it lacks to hold all of its tokens.
    pub(crate) fn blocks_lacking(&self) -> usize {
        self.tokens.len().div_ceil(BLOCK_TOKENS).saturating_sub(self.blocks.len())
    }

    /// Whether what it may still generate needs more than so many blocks. The last token drawn is never in the pool.
    pub(crate) fn grows_beyond(&self, blocks: usize) -> bool {
        let longest = self.request.prompt.len() + self.request.max_tokens.saturating_sub(1);
        longest > blocks * BLOCK_TOKENS
    }

    /// How many of its first blocks it may take over from others: at least one token must be computed, to draw from, or the one
    /// before the first that is to be scored.
    pub(crate) fn reusable_blocks(&self) -> usize {
        let scores = self.request.sampling.prompt_logprobs.is_some() && self.scored < self.request.prompt.len();
        let first_computed = if scores { self.scored - 1 } else { self.tokens.len() - 1 };
        first_computed / BLOCK_TOKENS
    }

    /// Nobody waits for its events any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// What is wanted of the next `count` tokens, all of them known, and what for.
    pub(crate) fn outputs(&self, count: usize, shape: &ModelShape) -> (Vec<RowRequest>, Vec<RowUse>) {
        let (start, end) = (self.computed, self.computed + count);
        let mut rows = Vec::new();
        let mut uses = Vec::new();
        if let Some(PromptLogprobs { top, .. }) = self.request.sampling.prompt_logprobs {
            // The row of position i scores token i + 1; those scored before a preemption are not asked for again.
            for next in (start + 1).max(self.scored)..(end + 1).min(self.request.prompt.len()) {
                let target = self.request.prompt[next];
                let wants = Wants::Targets { ids: vec![target], top };
                rows.push(RowRequest { row: (next - 1 - start) as u32, wants });
                uses.push(RowUse::Score { target, top });
            }
        }
        if end == self.tokens.len() && self.generated().len() < self.request.max_tokens {
            let draw = Draw::new(&self.request, &self.tokens, shape);
            rows.push(RowRequest { row: (count - 1) as u32, wants: draw.wants() });
            uses.push(RowUse::Draw(draw.into()));
        }
        (rows, uses)
    }

    /// Takes the score of the prompt's next token; delivers all once they are there.
    pub(crate) fn record_score(&mut self, score: Option<TokenLogprobs>) {
        self.prompt_logprobs.push(score);
        self.scored += 1;
        if self.scored == self.request.prompt.len() {
            let scores = std::mem::take(&mut self.prompt_logprobs);
            self.outbox.push(Event::Prompt(scores));
        }
    }

    /// Appends the token that was being drawn, and those that it forces; `step` is there where it is to be explained.
    pub(crate) fn append(&mut self, drawn: Drawn, step: Option<&Arc<StepReport>>, eos_token_ids: &[TokenId]) {
        self.drawing = false;
        let explained =
            |(narrowing, step): (_, &Arc<StepReport>)| Box::new(Explanation { narrowing, step: step.clone() });
        let explanation = drawn.narrowing.zip(step).map(explained);
        self.outbox.push(Event::Token { id: drawn.id, forced: false, logprobs: drawn.logprobs, explanation });
        let mut forced = VecDeque::from(self.push(drawn.id));
        while self.finish_reason(eos_token_ids).is_none()
            && let Some(id) = forced.pop_front()
        {
            self.outbox.push(Event::Token { id, forced: true, logprobs: None, explanation: None });
            forced.extend(self.push(id));
        }
    }

    /// The answer's next token. Returns what it forces.
    fn push(&mut self, id: TokenId) -> Vec<TokenId> {
        self.tokens.push(id);
        self.request.next.as_mut().map_or_else(Vec::new, |next| next.after(id))
    }

    /// Notes how it ended; nothing may follow.
    pub(crate) fn end(&mut self, last: Event) {
        self.outbox.push(last);
    }

    /// Tells what happened. The channel holds every event that a sequence can have.
    pub(crate) fn deliver(&mut self) {
        for event in self.outbox.drain(..) {
            self.meter.reported(&event);
            if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
                unreachable!("the channel of {:?} has no room for {event:?}", self.id);
            }
        }
    }

    /// Whether it is over, after a step.
    pub(crate) fn finish_reason(&self, eos_token_ids: &[TokenId]) -> Option<FinishReason> {
        let Request { max_tokens, sampling, .. } = &self.request;
        let generated = self.generated();
        let ends = |id: &TokenId| !sampling.ignore_eos && eos_token_ids.contains(id);
        let stops = |id: &TokenId| sampling.stop_token_ids.contains(*id) || ends(id);
        let is_whole = self.request.next.as_ref().is_some_and(|next| next.is_over());
        if is_whole || generated.last().is_some_and(stops) {
            return Some(FinishReason::Stop);
        }
        // A request that generates nothing is over once its prompt is computed.
        let complete = generated.len() >= *max_tokens && (*max_tokens > 0 || self.computed == self.tokens.len());
        complete.then_some(FinishReason::Length)
    }

    fn generated(&self) -> &[TokenId] {
        &self.tokens[self.request.prompt.len()..]
    }
}
