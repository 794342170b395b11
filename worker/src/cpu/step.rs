//! One step plan in, this rank's slices of the wanted rows out.
//!
//! Invariant: a step is a pure function of plan, weights and KV pool; the only thing kept between steps is the logits of the
//! last step's candidate rows, to be fetched.
//! Does not know which request a row belongs to.

use nanoinfer_shared::{
    Share,
    protocol::{LogitSlice, RowSlice, SequenceStep, StepOutput, StepPlan, TokenMask, Wants},
};

use super::pass::{Pass, Row};
use crate::{
    WorkerError,
    answer::answer,
    bounds::Bounds,
    error::PlanFault,
    runner::{Link, MaskSource, Runner, Wanted, wanted},
    trace::Category,
};

/// Rows of logits computed at once: bounds the buffer however long a scored prompt is.
const LOGIT_ROWS: usize = 32;

/// A rank's model with the buffers for its answers.
pub(crate) struct StepRunner {
    pass: Pass,
    bounds: Bounds,
    /// `[LOGIT_ROWS, V_local]`.
    logits: Vec<f32>,
    /// Rows of candidates of the last step, up to `max_seqs`; memory is taken as they come to be.
    kept: Vec<LogitSlice>,
    /// For each kept row its index among the step's rows.
    kept_rows: Vec<usize>,
    /// The last step.
    step: u64,
}

impl StepRunner {
    /// Bytes of the buffers that [`StepRunner::new`] makes.
    pub(crate) fn buffer_bytes(share: &Share, max_seqs: usize) -> u64 {
        ((LOGIT_ROWS + max_seqs) * share.vocab.len() * size_of::<f32>()) as u64
    }

    /// A runner for steps of up to `max_batched_tokens` tokens and `max_seqs` rows of candidates.
    pub(crate) fn new(pass: Pass, max_batched_tokens: usize, max_seqs: usize) -> Self {
        let width = pass.share.vocab.len();
        let (logits, kept) = (vec![0.0; LOGIT_ROWS * width], vec![LogitSlice::default(); max_seqs]);
        let bounds = Bounds { max_batched_tokens, max_seqs, kv_blocks: pass.kv.blocks };
        Self { pass, bounds, logits, kept, kept_rows: Vec::new(), step: 0 }
    }

    /// `masks` are those of the masked rows, in their order.
    fn answers(&mut self, wanted: &[Wanted<'_>], masks: &[TokenMask]) -> Vec<RowSlice> {
        let vocab = self.pass.share.vocab.clone();
        let width = vocab.len();
        let mut answers = Vec::with_capacity(wanted.len());
        self.kept_rows.clear();
        let mut masks = masks.iter();
        for tile in wanted.chunks(LOGIT_ROWS) {
            let rows: Vec<_> = tile.iter().map(|wanted| wanted.row).collect();
            let logits = &mut self.logits[..tile.len() * width];
            self.pass.logits(&rows, logits);
            for (i, wanted) in tile.iter().enumerate() {
                if let Wants::Candidates { .. } = wanted.wants {
                    self.kept[self.kept_rows.len()].refill(&logits[i * width..][..width]);
                    self.kept_rows.push(wanted.answer);
                }
            }
            let masks: Vec<_> =
                tile.iter().map(|wanted| wanted.wants.is_masked().then(|| masks.next()).flatten()).collect();
            let kernels = &mut self.pass.kernels;
            let isa = kernels.isa();
            answers.extend(
                kernels.map(tile.len(), |i| {
                    answer(isa, &logits[i * width..][..width], vocab.start, tile[i].wants, masks[i])
                }),
            );
            self.pass.trace.lap(Category::Rows, "candidates");
        }
        answers
    }
}

impl Runner for StepRunner {
    fn run(&mut self, plan: &StepPlan, masks: MaskSource<'_>) -> Result<StepOutput, WorkerError> {
        if plan.timed {
            self.pass.trace.time_step();
        }
        let begun = self.pass.trace.begin();
        self.step = plan.step;
        let blocks = self.bounds.check(plan, &self.pass.shape)?;
        let tables = plan.sequences.iter().zip(&blocks);
        let rows: Vec<_> = tables.flat_map(|(sequence, blocks)| sequence_rows(sequence, blocks)).collect();
        self.pass.forward(plan.step, &rows)?;
        let masks = self.bounds.masks(plan, masks, self.pass.share.vocab.len())?;
        let rows = self.answers(&wanted(plan), &masks);
        let reducing = self.pass.take_reducing();
        self.pass.trace.end("step", begun);
        let times = if plan.timed { self.pass.trace.times(begun) } else { None };
        Ok(StepOutput { step: plan.step, rows, reducing, times })
    }

    fn fetch(&mut self, rows: &[u32]) -> Result<Vec<LogitSlice>, WorkerError> {
        rows.iter()
            .map(|&row| {
                let kept = self.kept_rows.iter().position(|&kept| kept == row as usize);
                let fault = PlanFault::NotKept { row };
                Ok(self.kept[kept.ok_or(WorkerError::Plan { step: self.step, fault })?].clone())
            })
            .collect()
    }

    fn write_trace(&mut self, step: u64) {
        self.pass.trace.write(step);
    }

    fn pool_is_kept(&self) -> bool {
        self.pass.pool_is_written()
    }

    fn join_again(&mut self, link: Link) -> Result<(), WorkerError> {
        self.pass.join(link.through_host()?);
        Ok(())
    }
}

/// A sequence's new tokens with their places.
fn sequence_rows<'a>(sequence: &'a SequenceStep, blocks: &'a [u32]) -> impl Iterator<Item = Row<'a>> {
    let start = sequence.start as usize;
    let before = |i| sequence.before.filter(|_| i == 0);
    let row = move |(i, &token)| Row { token, before: before(i), position: start + i, blocks };
    sequence.tokens.iter().enumerate().map(row)
}
