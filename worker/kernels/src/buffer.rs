//! Memory for weights: mapped, zeroed, aligned to huge pages, and resident only as it is filled.
//!
//! Weights are read front to back once a step, hundreds of megabytes: with pages of 4 KiB the walk for addresses costs part of
//! the bandwidth. The kernel is asked for huge pages; where it has none, or they are switched off, nothing else changes.
//! Does not know what the bytes mean.

use std::{ops::Range, slice};

#[cfg(target_os = "linux")]
use rustix::mm::Advice;
use rustix::mm::{MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Alignment of what is large enough: a huge page of x86-64.
const HUGE_PAGE: usize = 2 << 20;

/// Plain numbers of which all-zero bytes are a valid value.
///
/// # Safety
/// Implementors have no padding, no invalid bit patterns and no destructor.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: numbers.
unsafe impl Plain for i8 {}

/// A fixed number of elements in a mapping of its own.
pub(crate) struct Buffer<T> {
    mapping: *mut u8,
    mapped: usize,
    start: *mut T,
    len: usize,
}

// SAFETY: the mapping is owned like a Vec's; `T` is plain numbers.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no address space left, as a Vec does.
    pub(crate) fn zeros(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).expect("the size of a matrix fits an address");
        if bytes == 0 {
            let dangling = std::ptr::NonNull::<T>::dangling().as_ptr();
            return Self { mapping: dangling.cast(), mapped: 0, start: dangling, len };
        }
        // Room to move the start to a huge page's; the rest is never touched and costs no memory.
        let slack = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let mapped = bytes + slack;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let mapping = unsafe {
            mmap_anonymous(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let mapping =
            mapping.unwrap_or_else(|error| panic!("no memory for {mapped} bytes of weights: {error}")).cast::<u8>();
        let skip = if slack > 0 { mapping.align_offset(HUGE_PAGE) } else { 0 };
        // SAFETY: `skip` is below `slack`, so the start and all `bytes` behind it lie in the mapping.
        let start = unsafe { mapping.add(skip) };
        #[cfg(target_os = "linux")]
        if slack > 0 {
            // Only whole huge pages, so that no memory beyond the weights becomes resident. A wish: a refusal changes nothing.
            // SAFETY: the range lies in the mapping; the advice changes no contents.
            let _ = unsafe { madvise(start.cast(), bytes / HUGE_PAGE * HUGE_PAGE, Advice::LinuxHugepage) };
        }
        Self { mapping, mapped, start: start.cast(), len }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `len` elements from `start` lie in the mapping, were zeroed by the kernel, and any bits are a valid `T`.
        unsafe { slice::from_raw_parts(self.start, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and `&mut self` excludes every other access.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }

    pub(crate) fn get(&self, range: Range<usize>) -> &[T] {
        &self.as_slice()[range]
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.mapped > 0 {
            // SAFETY: the mapping is ours, and nobody borrows from it any more.
            // An error would mean that it is not, which `zeros` excludes.
            let _ = unsafe { munmap(self.mapping.cast(), self.mapped) };
        }
    }
}

impl<T: Plain> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl<T: Plain + std::fmt::Debug> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_slice().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zero_aligned_when_large_and_keeps_what_is_written() {
        for len in [0, 1, 1000, HUGE_PAGE / 4, HUGE_PAGE + 3] {
            let mut buffer = Buffer::<f32>::zeros(len);
            assert!(buffer.as_slice().iter().all(|&x| x == 0.0) && buffer.as_slice().len() == len);
            if size_of_val(buffer.as_slice()) >= HUGE_PAGE {
                assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(HUGE_PAGE));
            }
            buffer.as_mut_slice().iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
            let copy = buffer.clone();
            drop(buffer);
            assert!(copy.as_slice().iter().enumerate().all(|(i, &x)| x == i as f32));
        }
    }
}
