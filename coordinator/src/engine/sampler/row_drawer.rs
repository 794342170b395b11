//! Draws from whole rows, several at a time: the ranks wait for their next step meanwhile, so their cores are free.
//!
//! Does not know how a row becomes a token: that is [`Draw::by_row`].

use std::thread;

use nanoinfer_shared::protocol::RowSlice;

use super::{Draw, Drawn, RowScratch};

/// Below so many draws, a thread takes longer to start than it saves.
const MIN_DRAWS_A_THREAD: usize = 4;

/// A draw, and all that it is made from.
pub(crate) struct RowDraw<'a> {
    pub(crate) draw: &'a Draw,
    /// The ranks' answers, in their order.
    pub(crate) slices: Vec<&'a RowSlice>,
    /// Their slices of the whole row.
    pub(crate) logits: Vec<&'a [f32]>,
}

/// Threads' memory, kept from step to step.
pub(crate) struct RowDrawer {
    scratch: Vec<RowScratch>,
}

impl RowDrawer {
    pub(crate) fn new(threads: usize) -> Self {
        Self { scratch: (0..threads).map(|_| RowScratch::default()).collect() }
    }

    /// The token of each; none where nothing may come.
    pub(crate) fn draw(&mut self, draws: &[RowDraw<'_>]) -> Vec<Option<Drawn>> {
        let each = draws.len().div_ceil(self.scratch.len()).max(MIN_DRAWS_A_THREAD);
        let mut parts = draws.chunks(each).zip(&mut self.scratch);
        let Some((first, scratch)) = parts.next() else {
            return Vec::new();
        };
        let of = |draws: &[RowDraw<'_>], scratch: &mut RowScratch| -> Vec<Option<Drawn>> {
            draws.iter().map(|draw| draw.draw.by_row(&draw.slices, &draw.logits, scratch)).collect()
        };
        thread::scope(|scope| {
            let others: Vec<_> = parts.map(|(part, scratch)| scope.spawn(move || of(part, scratch))).collect();
            let mut all = of(first, scratch);
            for part in others {
                all.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            all
        })
    }
}
