//! Which elements of a message are given, added up and taken in one beat, and in which slots they lie: the same for the ranks of a host
//! and for what crosses between hosts. Does not know memory, nor how ranks wait.

use std::{marker::PhantomData, ops::Range};

/// Slots of each rank: three are in use, and four divide the numbers that a counter has.
pub(super) const SLOTS: usize = 4;

/// Who adds up a range of a chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    /// Every rank, each for itself.
    Everyone,
    /// One rank, for all.
    EachOne,
}

/// The beat of this number, which is one of a message's.
pub(super) struct Beat<'a> {
    /// Wraps.
    pub(super) number: u32,
    /// Of the message, from 0.
    pub(super) index: usize,
    pub(super) message: &'a Message<'a>,
    pub(super) owners: Owners,
    pub(super) world: usize,
}

/// Elements of a chunk.
pub(super) struct Part {
    /// Where they lie among each rank's.
    pub(super) slot: usize,
    /// Which, of the slot.
    pub(super) range: Range<usize>,
    /// Of the message, the slot's first.
    chunk: usize,
}

impl Beat<'_> {
    /// Of the chunk that was given so many beats ago, what these ranks add up; none where there is no such chunk.
    pub(super) fn part(&self, beats_ago: usize, owners: &Range<usize>) -> Option<Part> {
        let chunk = self.message.chunk(self.index.checked_sub(beats_ago)?)?;
        let of = |owner: usize| share(0..chunk.len(), (owner, self.world), self.message.line);
        let range = match self.owners {
            Owners::Everyone => 0..chunk.len(),
            Owners::EachOne => of(owners.start).start..of(owners.end - 1).end,
        };
        Some(Part { slot: slot(self.number.wrapping_sub(beats_ago as u32)), range, chunk: chunk.start })
    }

    /// One of `count` pieces of a part.
    pub(super) fn piece(&self, part: &Part, (index, count): (usize, usize)) -> Part {
        let range = share(part.range.clone(), (index, count), self.message.line);
        Part { range, ..*part }
    }

    /// These elements of the message itself.
    ///
    /// # Safety
    /// Nobody else may use them as long as they are borrowed.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(super) unsafe fn elements(&self, part: &Part) -> &mut [f32] {
        // SAFETY: by the caller's promise.
        unsafe { self.message.piece(part.chunk + part.range.start..part.chunk + part.range.end) }
    }
}

pub(super) fn slot(beat: u32) -> usize {
    beat as usize % SLOTS
}

/// One of `count` shares of a range, in whole lines.
fn share(range: Range<usize>, (index, count): (usize, usize), line: usize) -> Range<usize> {
    let cut = |index: usize| match index {
        _ if index == count => range.end,
        _ => range.start + range.len() * index / count / line * line,
    };
    cut(index)..cut(index + 1)
}

/// What is reduced, in chunks that several tasks write, each its own elements.
pub(super) struct Message<'a> {
    base: *mut f32,
    len: usize,
    chunk: usize,
    line: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a `&mut [f32]` that outlives this value; tasks use disjoint elements (see `piece`).
#[allow(unsafe_code)]
unsafe impl Sync for Message<'_> {}

impl<'a> Message<'a> {
    /// `data` in chunks of so many elements, of which shares begin at multiples of `line`.
    pub(super) fn new(data: &'a mut [f32], chunk: usize, line: usize) -> Self {
        Self { base: data.as_mut_ptr(), len: data.len(), chunk, line, borrowed: PhantomData }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn chunks(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    fn chunk(&self, index: usize) -> Option<Range<usize>> {
        (index < self.chunks()).then(|| index * self.chunk..((index + 1) * self.chunk).min(self.len))
    }

    /// A piece of it.
    ///
    /// # Safety
    /// No other task may use these elements as long as they are borrowed.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn piece(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "a piece stays within the message");
        // SAFETY: inside the message by the check above, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(range.start), range.len()) }
    }
}
