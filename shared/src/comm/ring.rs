//! The protocol of the shared-memory reduction, apart from the memory: the same code runs over a mapped segment between processes
//! and, in its tests, over `loom`'s model of memory, which tries every order in which the ranks' accesses can be seen.
//!
//! ```text
//! round        0   1   2   3   4   5 …      a round moves up to a slot's elements
//! slot         0   1   2   3   0   1 …      of every rank
//! rank 0    published = 5 ─────┘            wrote its part of rounds 0 … 4
//! rank 1    published = 4 ─┘                may still read round 2, 3: not 0, whose slot round 4 takes
//! ```
//! A rank publishes its part of round r + 1, then waits for everybody's round r and adds it up: copying overlaps with waiting.
//! Invariant: who publishes round p has waited for round p − 2, so everybody has published that, hence finished round p − 4:
//! [`SLOTS`] = 4 are enough, and no barrier but the counters is needed. Contributions are added in rank order, for every size.
//!
//! Does not know where its memory lies, nor how a thread sleeps.

use std::{
    hint,
    ops::Range,
    sync::atomic::Ordering::{self, Acquire, Relaxed, Release},
    time::{Duration, Instant},
};

use super::{CommError, REDUCE_DEADLINE, ReduceSite, add_in_rank_order};

/// Slots of each rank.
pub(super) const SLOTS: usize = 4;
/// Polls before a thread sleeps, where spinning is allowed: longer than ranks drift apart within a step.
const SPINS: u32 = 20_000;

/// A counter that ranks share.
pub(super) trait Word {
    fn load(&self, order: Ordering) -> u32;
    fn store(&self, value: u32, order: Ordering);
    fn fetch_add(&self, value: u32, order: Ordering) -> u32;
    fn fetch_sub(&self, value: u32, order: Ordering) -> u32;
}

/// What ranks share.
#[allow(unsafe_code)]
pub(super) trait Segment {
    /// Elements that a slot holds.
    const SLOT_ELEMENTS: usize;
    type Word: Word;

    /// Rounds that a rank has published; wraps.
    fn published(&self, rank: usize) -> &Self::Word;
    /// Threads that sleep until `published` of this rank changes.
    fn sleepers(&self, rank: usize) -> &Self::Word;
    /// Elements in a rank's slot.
    fn brought(&self, rank: usize, slot: usize) -> &Self::Word;
    /// Not 0 when a rank has given up.
    fn aborted(&self) -> &Self::Word;

    /// Copies `data` to the start of a slot.
    ///
    /// # Safety
    /// The slot is this rank's, nobody reads it during the call, and `data` fits.
    unsafe fn write(&self, rank: usize, slot: usize, data: &[f32]);

    /// Hands a range of a slot's elements on to `reader`.
    ///
    /// # Safety
    /// Nobody writes the slot during the call, and these elements lie in it.
    unsafe fn read(&self, rank: usize, slot: usize, range: Range<usize>, reader: &mut dyn FnMut(&[f32]));

    /// A fence that all ranks agree on the order of.
    fn fence();
    /// Sleeps while `published` of `rank` is `seen`, or for a while; may return at any time.
    fn sleep(&self, rank: usize, seen: u32);
    /// Wakes all that sleep for `rank`.
    fn wake(&self, rank: usize);
}

/// Makes the pending and later waits of all `world` ranks fail.
pub(super) fn abort<S: Segment>(segment: &S, world: usize) {
    segment.aborted().store(1, Release);
    S::fence();
    (0..world).for_each(|rank| segment.wake(rank));
}

/// One rank's place in the ring.
#[derive(Debug)]
pub(super) struct Ring<S> {
    segment: S,
    rank: usize,
    world: usize,
    /// The next round to finish; wraps.
    round: u32,
    spin: bool,
}

impl<S: Segment> Ring<S> {
    pub(super) fn new(segment: S, rank: usize, world: usize, spin: bool) -> Self {
        assert!(rank < world, "rank {rank} of {world}");
        Self { segment, rank, world, round: 0, spin }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn world(&self) -> usize {
        self.world
    }

    /// Replaces `data` by the sum over all ranks; returns how long it waited for them.
    pub(super) fn all_reduce(&mut self, data: &mut [f32], site: ReduceSite) -> Result<Duration, CommError> {
        let len = data.len();
        let chunk = |i: usize| (i * S::SLOT_ELEMENTS).min(len)..((i + 1) * S::SLOT_ELEMENTS).min(len);
        let mut waited = Duration::ZERO;
        for i in 0..len.div_ceil(S::SLOT_ELEMENTS) {
            if i == 0 {
                self.publish(self.round, &data[chunk(0)]);
            }
            if !chunk(i + 1).is_empty() {
                self.publish(self.round.wrapping_add(1), &data[chunk(i + 1)]);
            }
            waited += self.wait_for_all(chunk(i).len(), site)?;
            self.add(&mut data[chunk(i)]);
            self.round = self.round.wrapping_add(1);
        }
        Ok(waited)
    }

    #[allow(unsafe_code)]
    fn publish(&self, round: u32, data: &[f32]) {
        let slot = slot(round);
        // SAFETY: the slot is ours, `data` fits, and whoever read it four rounds ago has finished (see the header).
        unsafe { self.segment.write(self.rank, slot, data) };
        self.segment.brought(self.rank, slot).store(data.len() as u32, Relaxed);
        self.segment.published(self.rank).store(round.wrapping_add(1), Release);
        // With the sleeper's fence: either it sees this round, or we see it.
        S::fence();
        if self.segment.sleepers(self.rank).load(Relaxed) > 0 {
            self.segment.wake(self.rank);
        }
    }

    fn wait_for_all(&self, elements: usize, site: ReduceSite) -> Result<Duration, CommError> {
        let mut waited = Duration::ZERO;
        for peer in (0..self.world).filter(|&peer| peer != self.rank) {
            waited += self.wait_for(peer, site)?;
            if self.segment.brought(peer, slot(self.round)).load(Relaxed) != elements as u32 {
                return Err(CommError::OutOfStep { rank: self.rank, peer, site });
            }
        }
        Ok(waited)
    }

    fn wait_for(&self, peer: usize, site: ReduceSite) -> Result<Duration, CommError> {
        let word = self.segment.published(peer);
        // A peer can be a few rounds ahead; a wrapping difference of 0 or less means that it has not published this one.
        let is_there = |published: u32| published.wrapping_sub(self.round) as i32 > 0;
        if is_there(word.load(Acquire)) {
            return Ok(Duration::ZERO);
        }
        let begun = Instant::now();
        if self.spin {
            for _ in 0..SPINS {
                hint::spin_loop();
                if is_there(word.load(Acquire)) {
                    return Ok(begun.elapsed());
                }
            }
        }
        let sleepers = self.segment.sleepers(peer);
        loop {
            sleepers.fetch_add(1, Relaxed);
            // With the publisher's fence: either we see its round, or it sees us.
            S::fence();
            let seen = word.load(Acquire);
            let aborted = self.segment.aborted().load(Acquire) != 0;
            let waited = begun.elapsed();
            if !is_there(seen) && !aborted && waited < REDUCE_DEADLINE {
                self.segment.sleep(peer, seen);
            }
            sleepers.fetch_sub(1, Relaxed);
            if is_there(seen) {
                return Ok(waited);
            }
            if aborted {
                return Err(CommError::Aborted { rank: self.rank, site });
            }
            if waited >= REDUCE_DEADLINE {
                return Err(CommError::Deadline { rank: self.rank, peer, waited, site });
            }
        }
    }

    /// Adds up the current round in rank order; our own part is still in `data`.
    #[allow(unsafe_code)]
    fn add(&self, data: &mut [f32]) {
        let slot = slot(self.round);
        add_in_rank_order(data, self.rank, self.world, |peer, range, reader| {
            // SAFETY: the peer has published this round with this length, and writes its slot again four rounds later, when
            // we have published what follows this one.
            unsafe { self.segment.read(peer, slot, range, reader) };
        });
    }
}

fn slot(round: u32) -> usize {
    round as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use loom::{
        cell::UnsafeCell,
        sync::{Arc, Condvar, Mutex, atomic::AtomicU32, atomic::fence},
        thread,
    };

    use super::*;
    use crate::comm::tests::SITE;

    impl Word for AtomicU32 {
        fn load(&self, order: Ordering) -> u32 {
            self.load(order)
        }
        fn store(&self, value: u32, order: Ordering) {
            self.store(value, order);
        }
        fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
            self.fetch_add(value, order)
        }
        fn fetch_sub(&self, value: u32, order: Ordering) -> u32 {
            self.fetch_sub(value, order)
        }
    }

    /// Slots of one element, in which loom finds every read that a write could meet.
    struct Model {
        ranks: Vec<ModelRank>,
        aborted: AtomicU32,
    }

    #[derive(Default)]
    struct ModelRank {
        published: AtomicU32,
        sleepers: AtomicU32,
        brought: [AtomicU32; SLOTS],
        slots: [UnsafeCell<f32>; SLOTS],
        /// As the kernel looks at a futex's word and enqueues the thread: under one lock. No timeout: a lost wake-up is a deadlock.
        futex: Mutex<()>,
        woken: Condvar,
    }

    #[allow(unsafe_code)]
    impl Segment for Arc<Model> {
        const SLOT_ELEMENTS: usize = 1;
        type Word = AtomicU32;

        fn published(&self, rank: usize) -> &AtomicU32 {
            &self.ranks[rank].published
        }
        fn sleepers(&self, rank: usize) -> &AtomicU32 {
            &self.ranks[rank].sleepers
        }
        fn brought(&self, rank: usize, slot: usize) -> &AtomicU32 {
            &self.ranks[rank].brought[slot]
        }
        fn aborted(&self) -> &AtomicU32 {
            &self.aborted
        }
        unsafe fn write(&self, rank: usize, slot: usize, data: &[f32]) {
            // SAFETY: loom fails the test where this meets another access.
            self.ranks[rank].slots[slot].with_mut(|to| unsafe { *to = data[0] });
        }
        unsafe fn read(&self, rank: usize, slot: usize, _: Range<usize>, reader: &mut dyn FnMut(&[f32])) {
            // SAFETY: as above.
            self.ranks[rank].slots[slot].with(|from| reader(&[unsafe { *from }]));
        }
        fn fence() {
            fence(Ordering::SeqCst);
        }
        fn sleep(&self, rank: usize, seen: u32) {
            let ModelRank { published, futex, woken, .. } = &self.ranks[rank];
            let lock = futex.lock().unwrap();
            if published.load(Relaxed) == seen {
                drop(woken.wait(lock).unwrap());
            }
        }
        fn wake(&self, rank: usize) {
            let _lock = self.ranks[rank].futex.lock().unwrap();
            self.ranks[rank].woken.notify_all();
        }
    }

    /// Every rank reduces `reductions` of these lengths, in every order that memory allows with so many preemptions.
    fn check(world: usize, lengths: &'static [usize], preemptions: usize) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(move || {
            let ranks = (0..world).map(|_| ModelRank::default()).collect();
            let model = Arc::new(Model { ranks, aborted: AtomicU32::new(0) });
            let others = (1..world).map(|rank| {
                let mut ring = Ring::new(model.clone(), rank, world, false);
                thread::spawn(move || reduce_all(&mut ring, lengths))
            });
            let others: Vec<_> = others.collect();
            reduce_all(&mut Ring::new(model, 0, world, false), lengths);
            others.into_iter().for_each(|rank| rank.join().unwrap());
        });
    }

    fn reduce_all<S: Segment>(ring: &mut Ring<S>, lengths: &[usize]) {
        for (i, &len) in lengths.iter().enumerate() {
            let part = |rank: usize, j: usize| (100 * i + 10 * j + rank) as f32;
            let mut data: Vec<_> = (0..len).map(|j| part(ring.rank(), j)).collect();
            ring.all_reduce(&mut data, SITE).unwrap();
            let expected: Vec<f32> = (0..len).map(|j| (0..ring.world()).map(|rank| part(rank, j)).sum()).collect();
            assert_eq!(data, expected);
        }
    }

    #[test]
    fn no_order_of_two_ranks_accesses_breaks_the_ring() {
        // Six rounds: every slot is taken again, within a reduction and from one to the next.
        check(2, &[4, 2], 2);
    }

    #[test]
    fn no_order_of_three_ranks_accesses_breaks_the_ring() {
        check(3, &[1, 1], 1);
    }
}
