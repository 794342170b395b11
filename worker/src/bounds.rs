//! Whether a step plan fits a rank: every number that will be an index is checked here, whatever the rank computes on.

use nanoinfer_shared::{
    ModelShape,
    protocol::{BLOCK_TOKENS, BlockId, SequenceStep, StepPlan, TokenMask, Wants},
};

use crate::{WorkerError, error::PlanFault, runner::MaskSource};

/// What a rank has buffers for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most new tokens in one step.
    pub(crate) max_batched_tokens: usize,
    /// Most rows of candidates.
    pub(crate) max_seqs: usize,
    /// Blocks of the KV pool.
    pub(crate) kv_blocks: usize,
}

impl Bounds {
    /// The block tables of the plan's sequences as indices.
    ///
    /// # Errors
    /// Says what does not fit.
    pub(crate) fn check(&self, plan: &StepPlan, shape: &ModelShape) -> Result<Vec<Vec<u32>>, WorkerError> {
        self.fits(plan, shape).map_err(|fault| WorkerError::Plan { step: plan.step, fault })
    }

    /// The masks of the plan's masked rows, over a slice of `width` tokens; waits for them, if there are such rows.
    ///
    /// # Errors
    /// When they do not come, or are not theirs.
    pub(crate) fn masks(
        &self,
        plan: &StepPlan,
        masks: MaskSource<'_>,
        width: usize,
    ) -> Result<Vec<TokenMask>, WorkerError> {
        let rows = plan.masked_rows();
        if rows == 0 {
            return Ok(Vec::new());
        }
        let masks = masks()?;
        if masks.len() != rows || !masks.iter().all(|mask| mask.is_of(width)) {
            let fault = PlanFault::Masks { masks: masks.len(), rows };
            return Err(WorkerError::Plan { step: plan.step, fault });
        }
        Ok(masks)
    }

    fn fits(&self, plan: &StepPlan, shape: &ModelShape) -> Result<Vec<Vec<u32>>, PlanFault> {
        let tokens = plan.sequences.iter().map(|s| s.tokens.len()).sum();
        if tokens > self.max_batched_tokens {
            return Err(PlanFault::TooManyTokens { tokens, limit: self.max_batched_tokens });
        }
        let outputs = plan.sequences.iter().flat_map(|s| &s.outputs);
        let rows = outputs.filter(|output| matches!(output.wants, Wants::Candidates { .. })).count();
        if rows > self.max_seqs {
            return Err(PlanFault::TooManyRows { rows, limit: self.max_seqs });
        }
        let check = |s| check_sequence(s, shape, self.kv_blocks);
        let tables = plan.sequences.iter().map(check).collect::<Result<_, _>>()?;
        check_written(plan)?;
        Ok(tables)
    }
}

fn check_sequence(sequence: &SequenceStep, shape: &ModelShape, kv_blocks: usize) -> Result<Vec<u32>, PlanFault> {
    let (tokens, start) = (sequence.tokens.len(), sequence.start as usize);
    if tokens == 0 {
        return Err(PlanFault::NoTokens);
    }
    let (before, stream) = (sequence.before, &shape.stream);
    if stream.smear.is_some() && before.is_some() != (start > 0) {
        return Err(PlanFault::Before { start });
    }
    if let Some(&token) = sequence.tokens.iter().chain(&before).find(|&&token| token as usize >= shape.vocab_size) {
        return Err(PlanFault::Token { token, vocab_size: shape.vocab_size });
    }
    let positions = start + tokens;
    if positions > shape.context {
        return Err(PlanFault::Position { position: positions - 1, n_positions: shape.context });
    }
    if sequence.blocks.len() * BLOCK_TOKENS < positions {
        return Err(PlanFault::Table { blocks: sequence.blocks.len(), positions });
    }
    if let Some(output) = sequence.outputs.iter().find(|output| output.row as usize >= tokens) {
        return Err(PlanFault::Row { row: output.row, tokens });
    }
    let index = |block: &BlockId| match block.0 {
        index if (index as usize) < kv_blocks => Ok(index),
        _ => Err(PlanFault::Block(*block)),
    };
    sequence.blocks.iter().map(index).collect()
}

/// Blocks are shared only when full: whoever writes to one has it alone.
fn check_written(plan: &StepPlan) -> Result<(), PlanFault> {
    let mut written: Vec<_> = plan.sequences.iter().flat_map(written_by).collect();
    written.sort_unstable_by_key(|block| block.0);
    match written.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(PlanFault::WrittenTwice(*pair[0])),
        None => Ok(()),
    }
}

fn written_by(sequence: &SequenceStep) -> &[BlockId] {
    let (first, end) = (sequence.start as usize, sequence.start as usize + sequence.tokens.len());
    &sequence.blocks[first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)]
}
