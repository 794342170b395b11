//! Computes the masks of a step while the ranks compute it: which tokens may come in the rows whose sequences have a grammar.
//!
//! Does not know grammars, which are [`Next`]s, nor ranks. Invariant: a mask depends on the tokens of its sequence only, so that
//! threads change nothing, and a step that was lost has the same masks when it is taken again.

use std::{sync::Arc, thread, time::Instant};

use nanoinfer_shared::protocol::TokenMask;

use super::{
    metrics::Metrics,
    next::Next,
    scheduler::{PlannedStep, Scheduler},
    sequence::RowUse,
};

/// Below so many masks, a thread takes longer to start than it saves.
const MIN_MASKS_A_THREAD: usize = 4;

/// Does so on some threads.
pub(super) struct Masker {
    threads: usize,
    metrics: Arc<Metrics>,
}

impl Masker {
    pub(super) fn new(threads: usize, metrics: Arc<Metrics>) -> Self {
        Self { threads, metrics }
    }

    /// The masks of the masked rows of a step, in their order; its draws know them from here on. Where there is none, nothing may
    /// come.
    pub(super) fn masks(&self, step: &mut PlannedStep, scheduler: &mut Scheduler) -> Vec<TokenMask> {
        let begun = Instant::now();
        let mut draws: Vec<_> = Vec::new();
        for part in &mut step.parts {
            let ticket = part.ticket;
            for row in &mut part.uses {
                if let RowUse::Draw(draw) = row
                    && draw.is_masked()
                {
                    // Borrowed for as long as it takes: all of them are asked at once.
                    let next = scheduler.get_mut(ticket).request.next.take();
                    draws.push((ticket, draw, next.expect("what masks is there")));
                }
            }
        }
        if draws.is_empty() {
            return Vec::new();
        }
        let mut nexts: Vec<&mut Box<dyn Next>> = draws.iter_mut().map(|(_, _, next)| next).collect();
        let computed = self.compute(&mut nexts);
        let mut masks = Vec::with_capacity(computed.len());
        for ((ticket, draw, next), mask) in draws.into_iter().zip(computed) {
            scheduler.get_mut(ticket).request.next = Some(next);
            masks.push(mask.clone().unwrap_or_default());
            draw.set_mask(mask);
        }
        self.metrics.mask_seconds.inc_by(begun.elapsed().as_secs_f64());
        masks
    }

    fn compute(&self, nexts: &mut [&mut Box<dyn Next>]) -> Vec<Result<TokenMask, String>> {
        let each = nexts.len().div_ceil(self.threads).max(MIN_MASKS_A_THREAD);
        let of = |nexts: &mut [&mut Box<dyn Next>]| -> Vec<_> { nexts.iter_mut().map(|next| next.mask()).collect() };
        let mut parts = nexts.chunks_mut(each);
        let Some(first) = parts.next() else { return Vec::new() };
        thread::scope(|scope| {
            let others: Vec<_> = parts.map(|part| scope.spawn(move || of(part))).collect();
            let mut all = of(first);
            for part in others {
                all.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            all
        })
    }
}
