//! Bytes that a thread asks its allocator for: a measure of work that no other thread and no clock disturbs.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    /// Held now, the most since the last question, and asked for in all.
    static BYTES: Cell<[usize; 3]> = const { Cell::new([0; 3]) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(new: usize, old: usize) {
    let [held, most, total] = BYTES.get();
    // What another thread made may be given back here.
    let held = (held + new).saturating_sub(old);
    BYTES.set([held, most.max(held), total + new]);
}

// SAFETY: every call is the system allocator's own; the counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// What `run` returns, the most bytes that it held at once, and the bytes that it asked for in all.
pub(crate) fn counted<T>(run: impl FnOnce() -> T) -> (T, usize, usize) {
    let [held, _, total] = BYTES.get();
    BYTES.set([held, held, total]);
    let result = run();
    let [_, most, all] = BYTES.get();
    (result, most - held, all - total)
}
