//! The protocol of the shared-memory reduction, apart from the memory: the same code runs over a mapped segment between processes
//! and, in its tests, over `loom`'s model of memory, which tries every order in which the ranks' accesses can be seen.
//!
//! ```text
//! beat           p              p + 1            p + 2             a chunk is of up to a slot's elements
//! chunk i        given          added up         taken             given to slot p mod 4 of every rank
//! chunk i + 1                   given            added up  taken
//! ```
//! A long message has owners: each rank adds up one range of every chunk and leaves the sum in its own slot, where the others take it
//! from. Of a short one, for which a beat more costs more than adding, each rank adds up all. A beat is done by the threads of a rank
//! together, published by one counter, and begun when everybody has published the one before.
//! Invariant: so in beat p all are in beat p, where slot p is written with contributions and slot p − 1 with sums, by its own rank only
//! and in that rank's range, which nobody else reads; what is read besides lies in slots p − 1 and p − 2. What ends a message is read
//! within its last beat, which is the first of the next. Contributions are added in rank order, for every size.
//!
//! Does not know where its memory lies, nor how a thread sleeps.

use std::{
    hint,
    marker::PhantomData,
    ops::Range,
    sync::atomic::Ordering::{self, Acquire, Relaxed, Release},
    time::{Duration, Instant},
};

use super::{CommError, REDUCE_DEADLINE, ReduceSite, Threads, add_in_rank_order};

/// Slots of each rank: three are in use, and four divide the numbers that a counter has.
pub(super) const SLOTS: usize = 4;
/// Elements for which another thread pays.
const PIECE: usize = 4096;
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
pub(super) trait Segment: Sync {
    /// Elements that a slot holds.
    const SLOT_ELEMENTS: usize;
    /// Elements that are best left to one thread: ranges begin at multiples of so many.
    const LINE_ELEMENTS: usize;
    type Word: Word;

    /// Elements of a message between `world` ranks from which on ranges have owners.
    fn owned_from(world: usize) -> usize;

    /// Beats that a rank has published; wraps.
    fn published(&self, rank: usize) -> &Self::Word;
    /// Threads that sleep until `published` of this rank changes.
    fn sleepers(&self, rank: usize) -> &Self::Word;
    /// Elements of the message in a rank's slot.
    fn brought(&self, rank: usize, slot: usize) -> &Self::Word;
    /// Not 0 when a rank has given up.
    fn aborted(&self) -> &Self::Word;

    /// Copies `data` into a slot, from element `start` on.
    ///
    /// # Safety
    /// The slot is this rank's, nobody else uses these elements during the call, and `data` fits.
    unsafe fn write(&self, rank: usize, slot: usize, start: usize, data: &[f32]);

    /// Hands a range of a slot's elements on to `reader`.
    ///
    /// # Safety
    /// Nobody writes these elements during the call, and they lie in the slot.
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
    /// The beat under way; wraps.
    beat: u32,
    spin: bool,
}

impl<S: Segment> Ring<S> {
    pub(super) fn new(segment: S, rank: usize, world: usize, spin: bool) -> Self {
        assert!(rank < world, "rank {rank} of {world}");
        Self { segment, rank, world, beat: 0, spin }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn world(&self) -> usize {
        self.world
    }

    /// Replaces `data` by the sum over all ranks; returns how long it waited for them.
    pub(super) fn all_reduce(
        &mut self,
        data: &mut [f32],
        site: ReduceSite,
        threads: &mut dyn Threads,
    ) -> Result<Duration, CommError> {
        let len = data.len();
        if len == 0 {
            return Ok(Duration::ZERO);
        }
        let owners = if len < S::owned_from(self.world) { Owners::Everyone } else { Owners::EachOne };
        let data = Message::new(data, S::SLOT_ELEMENTS);
        let last = data.chunks() + usize::from(owners == Owners::EachOne);
        let tasks = threads.count().min(len.min(S::SLOT_ELEMENTS) / PIECE).max(1);
        let mut waited = Duration::ZERO;
        for i in 0..=last {
            threads.run(tasks, &|task| self.work(i, owners, &data, (task, tasks)));
            if i < last {
                self.publish(len);
                waited += self.wait_for_all(len, site)?;
                self.beat = self.beat.wrapping_add(1);
            }
        }
        Ok(waited)
    }

    /// A task's part of beat `i` of a message: of the chunk that is given, of the one that is added up and of the one that is taken.
    #[allow(unsafe_code)]
    fn work(&self, i: usize, owners: Owners, data: &Message<'_>, part: (usize, usize)) {
        let Self { segment, rank, world, beat, .. } = self;
        let slot = |beats_ago: u32| beat.wrapping_sub(beats_ago) as usize % SLOTS;
        let range = |owner: usize, len: usize| match owners {
            Owners::Everyone => 0..len,
            Owners::EachOne => share::<S>(0..len, (owner, *world)),
        };
        let piece = |owner: usize, len: usize| share::<S>(range(owner, len), part);
        let others = || (0..*world).filter(|other| other != rank);
        // SAFETY: of `data`, a beat's chunks are three, and the pieces of tasks disjoint. Of the slots, this rank writes its own: with
        // contributions where nobody reads before the next beat, and with sums where nobody else ever does before; it reads what all
        // have published (see the header).
        unsafe {
            if let Some(chunk) = data.chunk(i) {
                let given = |owner: usize| {
                    let piece = piece(owner, chunk.len());
                    segment.write(*rank, slot(0), piece.start, data.piece(&chunk, &piece));
                };
                match owners {
                    Owners::Everyone => given(*rank),
                    Owners::EachOne => others().for_each(given),
                }
            }
            if let Some(chunk) = i.checked_sub(1).and_then(|i| data.chunk(i)) {
                let piece = piece(*rank, chunk.len());
                let sums = data.piece(&chunk, &piece);
                add_in_rank_order(sums, *rank, *world, |peer, range, reader| {
                    segment.read(peer, slot(1), piece.start + range.start..piece.start + range.end, reader);
                });
                if owners == Owners::EachOne {
                    segment.write(*rank, slot(1), piece.start, sums);
                }
            }
            if owners == Owners::EachOne
                && let Some(chunk) = i.checked_sub(2).and_then(|i| data.chunk(i))
            {
                for owner in others() {
                    let piece = piece(owner, chunk.len());
                    let to = data.piece(&chunk, &piece);
                    segment.read(owner, slot(2), piece, &mut |sums| to.copy_from_slice(sums));
                }
            }
        }
    }

    /// Says that this rank's part of the beat is there.
    fn publish(&self, len: usize) {
        self.segment.brought(self.rank, slot(self.beat)).store(len as u32, Relaxed);
        self.segment.published(self.rank).store(self.beat.wrapping_add(1), Release);
        // With the sleeper's fence: either it sees this beat, or we see it.
        S::fence();
        if self.segment.sleepers(self.rank).load(Relaxed) > 0 {
            self.segment.wake(self.rank);
        }
    }

    fn wait_for_all(&self, len: usize, site: ReduceSite) -> Result<Duration, CommError> {
        let mut waited = Duration::ZERO;
        for peer in (0..self.world).filter(|&peer| peer != self.rank) {
            waited += self.wait_for(peer, site)?;
            if self.segment.brought(peer, slot(self.beat)).load(Relaxed) != len as u32 {
                return Err(CommError::OutOfStep { rank: self.rank, peer, site });
            }
        }
        Ok(waited)
    }

    fn wait_for(&self, peer: usize, site: ReduceSite) -> Result<Duration, CommError> {
        let word = self.segment.published(peer);
        // A peer can be a beat ahead; a wrapping difference of 0 or less means that it has not published this one.
        let is_there = |published: u32| published.wrapping_sub(self.beat) as i32 > 0;
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
            // With the publisher's fence: either we see its beat, or it sees us.
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
}

/// Who adds up a range of a chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owners {
    /// Every rank, each for itself.
    Everyone,
    /// One rank, for all.
    EachOne,
}

fn slot(beat: u32) -> usize {
    beat as usize % SLOTS
}

/// One of `count` shares of a range, in whole lines.
fn share<S: Segment>(range: Range<usize>, (index, count): (usize, usize)) -> Range<usize> {
    let cut = |index: usize| match index {
        _ if index == count => range.end,
        _ => range.start + range.len() * index / count / S::LINE_ELEMENTS * S::LINE_ELEMENTS,
    };
    cut(index)..cut(index + 1)
}

/// What is reduced, in chunks that several tasks write, each its own elements.
struct Message<'a> {
    base: *mut f32,
    len: usize,
    chunk: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a `&mut [f32]` that outlives this value; tasks use disjoint elements (see `piece`).
#[allow(unsafe_code)]
unsafe impl Sync for Message<'_> {}

impl<'a> Message<'a> {
    fn new(data: &'a mut [f32], chunk: usize) -> Self {
        Self { base: data.as_mut_ptr(), len: data.len(), chunk, borrowed: PhantomData }
    }

    fn chunks(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    fn chunk(&self, index: usize) -> Option<Range<usize>> {
        (index < self.chunks()).then(|| index * self.chunk..((index + 1) * self.chunk).min(self.len))
    }

    /// A piece of a chunk.
    ///
    /// # Safety
    /// No other task may use these elements as long as they are borrowed.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn piece(&self, chunk: &Range<usize>, piece: &Range<usize>) -> &mut [f32] {
        let start = chunk.start + piece.start;
        assert!(start + piece.len() <= self.len, "a piece stays within the message");
        // SAFETY: inside the message by the check above, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), piece.len()) }
    }
}

#[cfg(test)]
mod tests {
    use loom::{
        cell::UnsafeCell,
        sync::{Arc, Condvar, Mutex, atomic::AtomicU32, atomic::fence},
        thread,
    };

    use super::*;
    use crate::comm::{OneThread, tests::SITE};

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

    /// Slots of two elements, in which loom finds every read that a write could meet.
    struct Model {
        ranks: Vec<ModelRank>,
        aborted: AtomicU32,
    }

    #[derive(Default)]
    struct ModelRank {
        published: AtomicU32,
        sleepers: AtomicU32,
        brought: [AtomicU32; SLOTS],
        slots: [[UnsafeCell<f32>; 2]; SLOTS],
        /// As the kernel looks at a futex's word and enqueues the thread: under one lock. No timeout: a lost wake-up is a deadlock.
        futex: Mutex<()>,
        woken: Condvar,
    }

    // SAFETY: loom runs one thread at a time, and fails the test where two meet.
    #[allow(unsafe_code)]
    unsafe impl Sync for Model {}

    #[allow(unsafe_code)]
    impl Segment for Arc<Model> {
        const SLOT_ELEMENTS: usize = 2;
        const LINE_ELEMENTS: usize = 1;
        type Word = AtomicU32;

        fn owned_from(_: usize) -> usize {
            3
        }

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
        unsafe fn write(&self, rank: usize, slot: usize, start: usize, data: &[f32]) {
            for (cell, x) in self.ranks[rank].slots[slot][start..].iter().zip(data) {
                // SAFETY: loom fails the test where this meets another access.
                cell.with_mut(|to| unsafe { *to = *x });
            }
        }
        unsafe fn read(&self, rank: usize, slot: usize, range: Range<usize>, reader: &mut dyn FnMut(&[f32])) {
            // SAFETY: as above.
            let read = |cell: &UnsafeCell<f32>| cell.with(|from| unsafe { *from });
            reader(&self.ranks[rank].slots[slot][range].iter().map(read).collect::<Vec<_>>());
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
            ring.all_reduce(&mut data, SITE, &mut OneThread).unwrap();
            let expected: Vec<f32> = (0..len).map(|j| (0..ring.world()).map(|rank| part(rank, j)).sum()).collect();
            assert_eq!(data, expected);
        }
    }

    // Lengths of one and two are added up by everyone, those above by owners.

    #[test]
    fn no_order_of_two_ranks_accesses_breaks_the_ring() {
        // Seven beats: every slot is taken again, within a reduction and from one to the next.
        check(2, &[1, 5, 2, 4], 2);
    }

    #[test]
    fn no_order_of_three_ranks_accesses_breaks_the_ring() {
        check(3, &[1, 3], 1);
    }
}
