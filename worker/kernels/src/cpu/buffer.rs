//! Memory for weights: mapped, zeroed, in huge pages where the system has them, and resident only as it is
//! filled. Memory for a KV pool: the same in small pages, and in a file where others hold it too.
//!
//! Weights are read front to back once a step, hundreds of megabytes: with pages of 4 KiB the walk for addresses costs a third
//! of the bandwidth. Matrices are smaller than a few huge pages, so buffers lie one behind the other in large regions; a region
//! is given back with its last buffer. Where the kernel has no huge pages, nothing else changes.
//! Does not know what the bytes mean.

use std::{
    fs::File,
    io,
    ops::Range,
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use memmap2::{MmapMut, MmapOptions, MmapRaw};

/// Alignment of a region: a huge page of x86-64.
const HUGE_PAGE: usize = 2 << 20;
/// Address space of a region; larger buffers have one of their own.
const REGION: usize = 64 << 20;
/// Alignment of a buffer: a cache line.
const LINE: usize = 64;

/// Hands out memory for many matrices, side by side. A mutex, as several threads load a model; it is held to add two numbers, or
/// to map a region.
#[derive(Debug, Default)]
pub struct Arena {
    /// The region that has room, and how much of it is given away.
    current: Mutex<Option<(Arc<Region>, usize)>>,
}

impl Arena {
    /// A region, and where in it `bytes` are the caller's.
    fn take(&self, bytes: usize) -> (Arc<Region>, usize) {
        if bytes > REGION / 2 {
            return (Arc::new(Region::new(bytes)), 0);
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, used) = match current.take() {
            Some((region, used)) if used + bytes <= REGION => (region, used),
            _ => (Arc::new(Region::new(REGION)), 0),
        };
        *current = Some((Arc::clone(&region), used + bytes));
        (region, used)
    }
}

/// A mapping, and where in it the first huge page begins.
#[derive(Debug)]
struct Region {
    mapping: MmapRaw,
    start: usize,
}

impl Region {
    fn new(bytes: usize) -> Self {
        // Room to move the start to a huge page's; the rest is never touched and costs no memory.
        let mapped = bytes + HUGE_PAGE;
        let mapping = MmapMut::map_anon(mapped).map(MmapRaw::from);
        let mapping = mapping.unwrap_or_else(|error| panic!("no memory for {mapped} bytes: {error}"));
        let start = mapping.as_ptr().align_offset(HUGE_PAGE);
        // A wish: a refusal changes nothing.
        #[cfg(target_os = "linux")]
        let _ = mapping.advise_range(memmap2::Advice::HugePage, start, bytes);
        Self { mapping, start }
    }
}

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

/// A fixed number of elements in a region that it keeps alive.
pub(crate) struct Buffer<T> {
    start: *mut T,
    len: usize,
    _region: Option<Arc<Region>>,
}

// SAFETY: its bytes of the region are owned like a Vec's; `T` is plain numbers.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no address space left, as a Vec does.
    pub(crate) fn zeros(arena: &Arena, len: usize) -> Self {
        let bytes = Self::bytes(len);
        if bytes == 0 {
            return Self { start: std::ptr::NonNull::<T>::dangling().as_ptr(), len, _region: None };
        }
        let (region, at) = arena.take(bytes);
        Self::of(region, at, len)
    }

    /// Bytes that `len` elements take of a region.
    pub(crate) fn bytes(len: usize) -> usize {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_next_multiple_of(LINE));
        bytes.expect("the size of a matrix fits an address")
    }

    /// Elements from byte `at` of a region on, which lie in it and are given to no other buffer.
    fn of(region: Arc<Region>, at: usize, len: usize) -> Self {
        // SAFETY: `at` lies in the region, or is its end where there are no elements.
        let start = unsafe { region.mapping.as_mut_ptr().add(region.start + at) };
        Self { start: start.cast(), len, _region: Some(region) }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `len` elements from `start` are this buffer's, were zeroed by the kernel, and any bits are a valid `T`. A file's
        // are written by one process at a time: whoever hands it on has waited for the end of the one before.
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

impl<T: Plain> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(&Arena::default(), self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl<T: Plain + std::fmt::Debug> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_slice().fmt(f)
    }
}

/// Memory for all layers of a KV pool: of zeros, resident as it is written, in small pages: it is written here and there, a little
/// at a time, and clearing a huge page takes longer than a step.
#[derive(Debug)]
pub struct KvMemory {
    region: Arc<Region>,
    used: usize,
}

impl KvMemory {
    /// `bytes` that end with this process.
    ///
    /// # Panics
    /// When the system has no address space left, as a Vec does.
    pub fn of_process(bytes: usize) -> Self {
        let mapping = MmapMut::map_anon(bytes).map(MmapRaw::from);
        Self::over(mapping.unwrap_or_else(|error| panic!("no memory for {bytes} bytes: {error}")))
    }

    /// `bytes` of a file in memory that others may hold too, as a process before this one left them where it took as many.
    ///
    /// # Errors
    /// When the system does not give so much.
    pub fn in_file(file: &File, bytes: usize) -> io::Result<Self> {
        if file.metadata()?.len() != bytes as u64 {
            file.set_len(0)?;
            file.set_len(bytes as u64)?;
        }
        Ok(Self::over(MmapOptions::new().len(bytes).map_raw(file)?))
    }

    fn over(mapping: MmapRaw) -> Self {
        // A wish: a refusal changes nothing.
        #[cfg(target_os = "linux")]
        let _ = mapping.advise(memmap2::Advice::NoHugePage);
        Self { region: Arc::new(Region { mapping, start: 0 }), used: 0 }
    }

    /// A mark, after everything else.
    pub fn mark(&mut self) -> KvMark {
        KvMark(self.take(1))
    }

    /// The next `len` elements.
    pub(crate) fn take<T: Plain>(&mut self, len: usize) -> Buffer<T> {
        let (at, bytes) = (self.used, Buffer::<T>::bytes(len));
        self.used += bytes;
        assert!(self.used <= self.region.mapping.len(), "the memory was made for the pool's size");
        Buffer::of(Arc::clone(&self.region), at, len)
    }
}

/// Says whether anything was ever written to the memory that it lies in, also to a process that comes later.
#[derive(Debug)]
pub struct KvMark(Buffer<u16>);

impl KvMark {
    /// Bytes that it takes.
    pub const BYTES: usize = LINE;

    /// Whether something was written.
    pub fn is_set(&self) -> bool {
        self.0.as_slice()[0] != 0
    }

    /// Something is about to be.
    pub fn set(&mut self) {
        self.0.as_mut_slice()[0] = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_to_stay_in_small_pages_is_marked_so() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return eprintln!("left out: this kernel has no huge pages to keep away");
        }
        let mut memory = KvMemory::of_process(64 << 20);
        let values = memory.take::<f32>(16 << 20);
        let middle = values.as_slice()[8 << 20..].as_ptr().addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let flags = smaps.lines().find_map(|line| {
            let range = line
                .split(' ')
                .next()?
                .split_once('-')
                .map(|(from, to)| [from, to].map(|x| usize::from_str_radix(x, 16)));
            if let Some([Ok(from), Ok(to)]) = range {
                inside = (from..to).contains(&middle);
            }
            line.strip_prefix("VmFlags:").filter(|_| inside)
        });
        assert!(flags.unwrap().split_whitespace().any(|flag| flag == "nh"), "{flags:?}");
    }

    #[test]
    fn what_a_process_left_in_a_file_is_there_for_the_next_and_another_size_begins_with_zeros() {
        let file = tempfile::tempfile().unwrap();
        let life = |cells: usize, fill: i8| {
            let mut memory = KvMemory::in_file(&file, cells + KvMark::BYTES).unwrap();
            let (mut buffer, mut mark) = (memory.take::<i8>(cells), memory.mark());
            let found = (mark.is_set(), buffer.as_slice().iter().map(|&x| i64::from(x)).sum::<i64>());
            buffer.as_mut_slice().fill(fill);
            mark.set();
            found
        };
        assert_eq!(
            [life(4096, 2), life(4096, 3), life(8192, 1), life(8192, 0)],
            [(false, 0), (true, 8192), (false, 0), (true, 8192)]
        );
    }

    #[test]
    fn buffers_are_zero_aligned_and_apart_and_keep_what_is_written() {
        let lens = [0, 1, 1000, HUGE_PAGE / 4, HUGE_PAGE + 3, REGION / 4 + 1];
        let arena = Arena::default();
        let mut buffers = lens.map(|len| Buffer::<f32>::zeros(&arena, len));
        drop(arena);
        for (buffer, len) in buffers.iter_mut().zip(lens) {
            assert!(buffer.as_slice().len() == len && buffer.as_slice().iter().all(|&x| x == 0.0));
            assert!(buffer.as_slice().is_empty() || buffer.as_slice().as_ptr().addr().is_multiple_of(LINE));
            buffer.as_mut_slice().iter_mut().enumerate().for_each(|(i, x)| *x = (i + len) as f32);
        }
        let copies = buffers.clone();
        drop(buffers);
        for (copy, len) in copies.into_iter().zip(lens) {
            assert!(copy.as_slice().iter().enumerate().all(|(i, &x)| x == (i + len) as f32));
        }
    }
}
