//! The protocol of every reduction, apart from memory and sockets: the same code runs over a mapped segment between processes
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
//! Between hosts the segment of each has slots for the ranks of all: those of others are written, and published, by the first rank of
//! the host, as they come over a bridge. So a beat is the same to every rank, wherever its peers are.
//!
//! Does not know where its memory lies, nor how a thread sleeps, nor what a bridge is.

use std::{
    hint,
    ops::Range,
    sync::atomic::Ordering::{self, Acquire, Relaxed, Release},
    time::{Duration, Instant},
};

use super::{
    CommDType, CommError, Hosts, REDUCE_DEADLINE, ReduceSite, Threads, add_in_rank_order,
    beat::{Beat, Message, Owners, slot},
    dtype::{bf16_bits, from_bf16_bits},
};

/// Elements for which another thread pays.
const PIECE: usize = 4096;
/// Of how many a slot is one is what crosses between hosts at once: with more, and with less, long messages take longer (benches/links.rs).
const CROSSING: usize = 2;
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

/// The way from a host to the others, which its first rank goes.
pub(super) trait Bridge<S> {
    /// Brings what the ranks of this host have given and added up to the other hosts, and theirs here, into their slots. Returns how
    /// long it waited.
    fn cross(&mut self, segment: &S, beat: &Beat<'_>, site: ReduceSite) -> Result<Duration, CommError>;
}

/// One rank's place in the ring.
#[derive(Debug)]
pub(super) struct Ring<S> {
    segment: S,
    rank: usize,
    hosts: Hosts,
    /// The ranks of this host, which share the segment.
    here: Range<usize>,
    dtype: CommDType,
    /// The beat under way; wraps.
    beat: u32,
    spin: bool,
}

impl<S: Segment> Ring<S> {
    pub(super) fn new(segment: S, rank: usize, hosts: Hosts, dtype: CommDType, spin: bool) -> Self {
        let here = hosts.ranks(hosts.of(rank));
        Self { segment, rank, hosts, here, dtype, beat: 0, spin }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    pub(super) fn dtype(&self) -> CommDType {
        self.dtype
    }

    /// Replaces `data` by the sum over all ranks; returns how long it waited for them. A host's first rank has the bridge to others.
    pub(super) fn all_reduce(
        &mut self,
        data: &mut [f32],
        site: ReduceSite,
        threads: &mut dyn Threads,
        mut bridge: Option<&mut dyn Bridge<S>>,
    ) -> Result<Duration, CommError> {
        let len = data.len();
        if len == 0 {
            return Ok(Duration::ZERO);
        }
        let world = self.hosts.world();
        let owned_from = if self.hosts.count() == 1 { S::owned_from(world) } else { self.hosts.owned_from() };
        let owners = if len < owned_from { Owners::Everyone } else { Owners::EachOne };
        let chunk = if self.hosts.count() == 1 { S::SLOT_ELEMENTS } else { S::SLOT_ELEMENTS / CROSSING };
        let message = Message::new(data, chunk, S::LINE_ELEMENTS);
        let last = message.chunks() + usize::from(owners == Owners::EachOne);
        let tasks = threads.count().min(len.min(S::SLOT_ELEMENTS) / PIECE).max(1);
        let mut waited = Duration::ZERO;
        for index in 0..=last {
            let beat = Beat { number: self.beat, index, message: &message, owners, world };
            threads.run(tasks, &|task| self.work(&beat, (task, tasks)));
            if index < last {
                self.publish(self.rank, len);
                for peer in self.here.clone().filter(|&peer| peer != self.rank) {
                    waited += self.wait_for(peer, len, site)?;
                }
                if let Some(bridge) = &mut bridge {
                    waited += bridge.cross(&self.segment, &beat, site)?;
                    self.elsewhere().for_each(|peer| self.publish(peer, len));
                } else {
                    for peer in self.elsewhere() {
                        waited += self.wait_for(peer, len, site)?;
                    }
                }
                self.beat = self.beat.wrapping_add(1);
            }
        }
        Ok(waited)
    }

    /// Ranks of other hosts.
    fn elsewhere(&self) -> impl Iterator<Item = usize> {
        (0..self.here.start).chain(self.here.end..self.hosts.world())
    }

    /// A task's part of a beat: of the chunk that is given, of the one that is added up and of the one that is taken. A rank that is
    /// alone on its host gives nothing: others take it out of the message itself.
    #[allow(unsafe_code)]
    fn work(&self, beat: &Beat<'_>, task: (usize, usize)) {
        let Self { segment, rank, here, .. } = self;
        let part = |beats_ago: usize, owner: usize| {
            beat.part(beats_ago, &(owner..owner + 1)).map(|part| beat.piece(&part, task))
        };
        let (is_alone, has_owners) = (here.len() == 1, beat.owners == Owners::EachOne);
        let others = || (0..beat.world).filter(|other| other != rank);
        // SAFETY: of the message, a beat's chunks are three, and the pieces of tasks disjoint. Of the slots, this rank writes its own:
        // with contributions where nobody reads before the next beat, and with sums where nobody else ever does before; it reads what
        // all have published (see the header).
        unsafe {
            let given = |owner: usize| {
                let Some(part) = part(0, owner) else { return };
                let elements = beat.elements(&part);
                if self.dtype == CommDType::Bf16 {
                    elements.iter_mut().for_each(|x| *x = from_bf16_bits(bf16_bits(*x)));
                }
                let is_left = is_alone || has_owners && owner == *rank;
                if !is_left {
                    segment.write(*rank, part.slot, part.range.start, elements);
                }
            };
            match beat.owners {
                Owners::Everyone => given(*rank),
                Owners::EachOne => (0..beat.world).for_each(given),
            }
            if let Some(part) = part(1, *rank) {
                let sums = beat.elements(&part);
                let start = part.range.start;
                add_in_rank_order(sums, *rank, beat.world, |peer, range, reader| {
                    segment.read(peer, part.slot, start + range.start..start + range.end, reader);
                });
                if has_owners && !is_alone {
                    segment.write(*rank, part.slot, start, sums);
                }
            }
            if has_owners {
                for part in others().filter_map(|owner| part(2, owner).map(|part| (owner, part))) {
                    let (owner, part) = part;
                    let to = beat.elements(&part);
                    segment.read(owner, part.slot, part.range, &mut |sums| to.copy_from_slice(sums));
                }
            }
        }
    }

    /// Says that a rank's part of the beat is there.
    fn publish(&self, rank: usize, len: usize) {
        self.segment.brought(rank, slot(self.beat)).store(len as u32, Relaxed);
        self.segment.published(rank).store(self.beat.wrapping_add(1), Release);
        // With the sleeper's fence: either it sees this beat, or we see it.
        S::fence();
        if self.segment.sleepers(rank).load(Relaxed) > 0 {
            self.segment.wake(rank);
        }
    }

    /// Waits for a peer's part of a message of `len` elements.
    fn wait_for(&self, peer: usize, len: usize, site: ReduceSite) -> Result<Duration, CommError> {
        let waited = self.await_beat(peer, site)?;
        match self.segment.brought(peer, slot(self.beat)).load(Relaxed) {
            brought if brought == len as u32 => Ok(waited),
            _ => Err(CommError::OutOfStep { rank: self.rank, peer, site }),
        }
    }

    fn await_beat(&self, peer: usize, site: ReduceSite) -> Result<Duration, CommError> {
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

#[cfg(test)]
mod tests {
    use loom::{
        cell::UnsafeCell,
        sync::{Arc, Condvar, Mutex, atomic::AtomicU32, atomic::fence},
        thread,
    };

    use super::*;
    use crate::comm::{OneThread, beat::SLOTS, tests::SITE};

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
                let mut ring = Ring::new(model.clone(), rank, Hosts::new(&[world]), CommDType::F32, false);
                thread::spawn(move || reduce_all(&mut ring, lengths))
            });
            let others: Vec<_> = others.collect();
            reduce_all(&mut Ring::new(model, 0, Hosts::new(&[world]), CommDType::F32, false), lengths);
            others.into_iter().for_each(|rank| rank.join().unwrap());
        });
    }

    fn reduce_all<S: Segment>(ring: &mut Ring<S>, lengths: &[usize]) {
        for (i, &len) in lengths.iter().enumerate() {
            let part = |rank: usize, j: usize| (100 * i + 10 * j + rank) as f32;
            let mut data: Vec<_> = (0..len).map(|j| part(ring.rank(), j)).collect();
            ring.all_reduce(&mut data, SITE, &mut OneThread, None).unwrap();
            let expected: Vec<f32> =
                (0..len).map(|j| (0..ring.hosts().world()).map(|rank| part(rank, j)).sum()).collect();
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
