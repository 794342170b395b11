//! What is seen of the engine from outside, beside its answers: the history of its steps, its counts, and whether all is as it must be.
//!
//! Decides nothing.

use std::time::Duration;

use nanoinfer_shared::protocol::SequenceStep;

use super::{
    Engine,
    history::Part,
    ranks::Ranks,
    scheduler::{PlannedPart, PlannedStep},
};

impl<R: Ranks> Engine<R> {
    /// For the live view, while those who end with the step are still there.
    pub(super) fn record(&mut self, step: &PlannedStep, elapsed: Duration) {
        let part = |(part, planned): (&PlannedPart, &SequenceStep)| {
            let sequence = self.scheduler.get_mut(part.ticket);
            Part {
                id: sequence.id.0,
                prompt_tokens: sequence.request.prompt.len(),
                start: planned.start as usize,
                end: part.end,
                tokens: sequence.tokens.len(),
                blocks: planned.blocks.iter().map(|block| block.0).collect(),
            }
        };
        let parts = step.parts.iter().zip(&step.plan.sequences).map(part).collect();
        let blocks = self.scheduler.blocks();
        self.status.history().step(step.plan.step, elapsed, parts, |block| blocks.is_idle(block));
    }

    pub(super) fn record_who_left(&self) {
        let running = self.scheduler.sequences().map(|sequence| sequence.id.0);
        self.status.history().leave(running, |block| self.scheduler.blocks().is_idle(block));
    }

    /// Looks whether all is as it must be while nothing runs, so that a leak is seen in production too.
    pub(super) fn check_invariants(&self) {
        let leaked = || match self.scheduler.blocks().total() - self.scheduler.blocks().free() {
            0 => Ok(()),
            held => Err(format!("{held} KV blocks are held although nothing runs")),
        };
        if let Err(broken) = self.scheduler.check().and_then(|()| leaked()) {
            tracing::error!("an invariant of the scheduler is broken, which is a bug: {broken}");
            self.status.metrics().scheduler_invariants_hold.set(0);
        }
    }

    pub(super) fn report(&self) {
        let (metrics, blocks) = (self.status.metrics(), self.scheduler.blocks());
        metrics.num_requests_running.set(self.scheduler.running() as i64);
        metrics.num_requests_waiting.set(self.scheduler.waiting() as i64);
        metrics.set_blocks(blocks.total(), blocks.free(), blocks.cached());
    }
}
