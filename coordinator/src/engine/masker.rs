//! Has the masks of a step computed while the ranks compute it: which tokens may come in the rows whose sequences have a grammar.
//!
//! One that is late holds up its own sequence and nobody else: nothing is drawn for it, and it sits out the steps until its mask is there.
//! Does not know grammars, which are [`Next`](super::next::Next)s, nor ranks. Invariant: a mask depends on the tokens of its sequence only,
//! so that neither threads nor clocks change an answer, and a step that was lost has the same masks when it is taken again.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::protocol::TokenMask;

use super::{
    awaited_mask::{AwaitedMask, Job},
    metrics::Metrics,
    scheduler::{PlannedPart, PlannedStep, Scheduler},
    sequence::RowUse,
    submission::Wake,
};

/// How long a step waits for its masks. Most take far less than a millisecond; at the bounds of the library's work they take this long, which
/// would be felt by all others if it came with each token.
const PATIENCE: Duration = Duration::from_millis(20);

/// Has work done on other threads.
pub(super) type Spawn = Box<dyn Fn(Job) + Send>;

/// Does so.
pub(super) struct Masker {
    spawn: Spawn,
    patience: Duration,
    wake: Wake,
    metrics: Arc<Metrics>,
}

impl Masker {
    /// On threads of its own; `wake` is called when a mask is there that nobody waits for any more.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(super) fn start(threads: usize, wake: Wake, metrics: Arc<Metrics>) -> io::Result<Self> {
        Ok(Self::new(on_threads(threads)?, PATIENCE, wake, metrics))
    }

    /// Wherever `spawn` has it done.
    pub(super) fn new(spawn: Spawn, patience: Duration, wake: Wake, metrics: Arc<Metrics>) -> Self {
        Self { spawn, patience, wake, metrics }
    }

    /// The masks of the masked rows of a step, in their order; its draws know them from here on. Where there is none, nothing may
    /// come: for a sequence whose mask is late, nothing is drawn, and its last token counts as not computed.
    pub(super) fn masks(&self, step: &mut PlannedStep, scheduler: &mut Scheduler) -> Vec<TokenMask> {
        let begun = Instant::now();
        let mut awaited = Vec::new();
        for PlannedPart { ticket, end, uses } in &mut step.parts {
            // What is drawn is the last of a part.
            if let Some(RowUse::Draw(draw)) = uses.last_mut()
                && draw.is_masked()
            {
                let sequence = scheduler.get_mut(*ticket);
                // Lent for as long as it takes: all of them are asked at once.
                let next = sequence.request.next.take().expect("what masks is there");
                let mask = match sequence.come_mask.take() {
                    Some(mask) => AwaitedMask::done(next, mask),
                    None => {
                        let (mask, job) = AwaitedMask::begin(next, self.wake.clone());
                        (self.spawn)(job);
                        mask
                    }
                };
                awaited.push((*ticket, end, draw, mask));
            }
        }
        if awaited.is_empty() {
            return Vec::new();
        }
        let mut masks = Vec::with_capacity(awaited.len());
        for (ticket, end, draw, mask) in awaited {
            let sequence = scheduler.get_mut(ticket);
            let Some((next, mask)) = mask.wait(begun + self.patience) else {
                *end -= 1;
                sequence.sit_out(mask);
                self.metrics.masks_late.inc();
                masks.push(TokenMask::default());
                continue;
            };
            sequence.request.next = Some(next);
            masks.push(mask.clone().unwrap_or_default());
            draw.set_mask(mask);
        }
        self.metrics.mask_seconds.inc_by(begun.elapsed().as_secs_f64());
        masks
    }
}

/// Threads that do one job after another, until nobody can give them any.
fn on_threads(threads: usize) -> io::Result<Spawn> {
    let (jobs, queue) = mpsc::channel::<Job>();
    // Held by the one thread that waits for the next job.
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..threads {
        let queue = queue.clone();
        thread::Builder::new().name("masks".into()).spawn(move || {
            loop {
                let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = job else { return };
                job();
            }
        })?;
    }
    Ok(Box::new(move |job| jobs.send(job).expect("the threads are there as long as this is")))
}
