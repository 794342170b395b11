//! Reduction between processes of one host through one memory segment, by the protocol of [`ring`](super::ring), also where other
//! hosts take part: the segment has slots for their ranks too, which this host's first rank fills.
//!
//! ```text
//! segment   [ abort ][ rank 0's words ]…[ rank N−1's words ]   one cache line each
//!           [ rank 0: slot 0 … slot 3 ]…[ rank N−1: slot 0 … slot 3 ]
//! ```
//! The segment is a memfd handed over as a descriptor: it has no name and vanishes with its last holder.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{
            AtomicU32,
            Ordering::{self, SeqCst},
            fence,
        },
    },
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
    thread::futex,
    time::Timespec,
};

use super::{
    Abort, CommDType, CommError, Communicator, Hosts, ReduceSite, Threads,
    beat::SLOTS,
    ring::{self, Ring, Segment, Word},
};

/// Elements of 4 bytes that move in one beat.
const SLOT_ELEMENTS: usize = 128 << 10;
const SLOT_BYTES: usize = SLOT_ELEMENTS * 4;
const LINE_BYTES: usize = 64;
/// A sleeper looks up this often: a peer that was killed wakes nobody.
const NAP: Duration = Duration::from_millis(50);

/// The memory of one cluster's data link, before anyone joined.
#[derive(Debug)]
pub struct ShmSegment(OwnedFd);

impl ShmSegment {
    /// A fresh segment for `world` ranks: `4 · world` slots of 512 KiB, resident only as used.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn create(world: usize) -> io::Result<Self> {
        let fd = memfd_create("nanoinfer-reduce", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, segment_bytes(world) as u64)?;
        // No peer can cut it off below the others.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self(fd))
    }

    /// Takes over a descriptor that was handed to this process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Another handle to the same memory.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Bytes that a segment for `world` ranks can come to hold.
    pub fn bytes(world: usize) -> usize {
        segment_bytes(world)
    }
}

impl AsFd for ShmSegment {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn slots_offset(world: usize) -> usize {
    ((1 + world) * LINE_BYTES).next_multiple_of(4096)
}

fn segment_bytes(world: usize) -> usize {
    slots_offset(world) + world * SLOTS * SLOT_BYTES
}

/// One rank of a ring in shared memory.
#[derive(Debug)]
pub struct Shm(pub(super) Ring<Arc<Mapping>>);

impl Shm {
    /// Joins the segment of its host as `rank`. `spin` allows busy waiting: only where every rank's threads have a core.
    ///
    /// # Errors
    /// When the segment is smaller than the ranks of all hosts need, or cannot be mapped.
    pub fn open(
        segment: ShmSegment,
        rank: usize,
        hosts: Hosts,
        dtype: CommDType,
        spin: bool,
        abort: &Abort,
    ) -> Result<Self, CommError> {
        let world = hosts.world();
        let mapping = Mapping::new(&segment, world).map_err(|source| CommError::Setup { rank, source })?;
        let mapping = Arc::new(mapping);
        let shared = mapping.clone();
        abort.on_pull(move || ring::abort(&shared, world));
        Ok(Self(Ring::new(mapping, rank, hosts, dtype, spin)))
    }
}

impl Communicator for Shm {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world(&self) -> usize {
        self.0.hosts().world()
    }

    fn all_reduce(
        &mut self,
        data: &mut [f32],
        site: ReduceSite,
        threads: &mut dyn Threads,
    ) -> Result<Duration, CommError> {
        self.0.all_reduce(data, site, threads, None)
    }
}

/// The segment, mapped into this process.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    world: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread; other processes' access is ordered by
// the counters in it.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
// SAFETY: shared access is to atomics, and to slots by the promises of [`Segment`].
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

/// One rank's cache line.
#[repr(C, align(64))]
struct Words {
    published: AtomicU32,
    sleepers: AtomicU32,
    brought: [AtomicU32; SLOTS],
}

impl Mapping {
    #[allow(unsafe_code)]
    fn new(segment: &ShmSegment, world: usize) -> io::Result<Self> {
        let (size, bytes) = (rustix::fs::fstat(&segment.0)?.st_size, segment_bytes(world));
        if (size as u64) < bytes as u64 {
            return Err(io::Error::other(format!("a segment of {size} bytes does not serve {world} ranks")));
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, protection, flags, &segment.0, 0) }?;
        Ok(Self { base: NonNull::new(base.cast()).expect("the kernel maps nothing at address 0"), world })
    }

    #[allow(unsafe_code)]
    fn words(&self, rank: usize) -> &Words {
        assert!(rank < self.world);
        // SAFETY: line `1 + rank` is inside the mapping, aligned to 64, alive as long as self, and all atomics.
        unsafe { self.base.byte_add((1 + rank) * LINE_BYTES).cast::<Words>().as_ref() }
    }

    /// Elements of a slot, for who carries them to other hosts.
    ///
    /// # Safety
    /// Nobody writes them as long as they are borrowed.
    #[allow(unsafe_code)]
    pub(super) unsafe fn elements(&self, rank: usize, slot: usize, range: Range<usize>) -> &[f32] {
        assert!(range.start <= range.end && range.end <= SLOT_ELEMENTS);
        // SAFETY: inside the slot, whose elements nobody writes now by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.slot(rank, slot).as_ptr().add(range.start), range.len()) }
    }

    /// The same, to be filled.
    ///
    /// # Safety
    /// Nobody else uses them as long as they are borrowed.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(super) unsafe fn elements_mut(&self, rank: usize, slot: usize, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= SLOT_ELEMENTS);
        // SAFETY: inside the slot, whose elements nobody else touches by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.slot(rank, slot).as_ptr().add(range.start), range.len()) }
    }

    fn slot(&self, rank: usize, slot: usize) -> NonNull<f32> {
        assert!(rank < self.world && slot < SLOTS);
        // SAFETY: the slot lies inside the mapping by `segment_bytes`.
        #[allow(unsafe_code)]
        unsafe {
            self.base.byte_add(slots_offset(self.world) + (rank * SLOTS + slot) * SLOT_BYTES).cast()
        }
    }
}

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

impl Segment for Arc<Mapping> {
    const SLOT_ELEMENTS: usize = SLOT_ELEMENTS;
    const LINE_ELEMENTS: usize = LINE_BYTES / size_of::<f32>();
    type Word = AtomicU32;

    fn owned_from(world: usize) -> usize {
        // As measured by benches/links.rs: a beat more costs a microsecond, or a waking where threads sleep; what is saved grows
        // with the ranks whose parts each would read.
        if world <= 2 { 64 << 10 } else { 16 << 10 }
    }

    fn published(&self, rank: usize) -> &AtomicU32 {
        &self.words(rank).published
    }

    fn sleepers(&self, rank: usize) -> &AtomicU32 {
        &self.words(rank).sleepers
    }

    fn brought(&self, rank: usize, slot: usize) -> &AtomicU32 {
        &self.words(rank).brought[slot]
    }

    #[allow(unsafe_code)]
    fn aborted(&self) -> &AtomicU32 {
        // SAFETY: the first line of the mapping, aligned, alive as long as self, only ever accessed as an atomic.
        unsafe { self.base.cast::<AtomicU32>().as_ref() }
    }

    #[allow(unsafe_code)]
    unsafe fn write(&self, rank: usize, slot: usize, start: usize, data: &[f32]) {
        // SAFETY: by the caller's promise.
        unsafe { self.elements_mut(rank, slot, start..start + data.len()) }.copy_from_slice(data);
    }

    #[allow(unsafe_code)]
    unsafe fn read(&self, rank: usize, slot: usize, range: Range<usize>, reader: &mut dyn FnMut(&[f32])) {
        // SAFETY: by the caller's promise.
        reader(unsafe { self.elements(rank, slot, range) });
    }

    fn fence() {
        fence(SeqCst);
    }

    fn sleep(&self, rank: usize, seen: u32) {
        let nap = Timespec { tv_sec: 0, tv_nsec: NAP.as_nanos() as i64 };
        // Any outcome leads to another look: woken, changed before sleeping, timed out, interrupted.
        let _ = futex::wait(self.published(rank), futex::Flags::empty(), seen, Some(&nap));
    }

    fn wake(&self, rank: usize) {
        // Waking nobody is no error.
        let _ = futex::wake(self.published(rank), futex::Flags::empty(), i32::MAX as u32);
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: this value made the mapping with this size and hands out no borrow that outlives it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), segment_bytes(self.world)) };
        debug_assert!(unmapped.is_ok());
    }
}
