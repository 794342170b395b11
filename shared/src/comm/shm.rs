//! Reduction between processes of one host through one memory segment.
//!
//! ```text
//! segment   [ abort ][ rank 0's flags ]…[ rank N−1's flags ]   one cache line each
//!           [ even rounds: slot of rank 0 … slot of rank N−1 ]
//!           [ odd rounds:  slot of rank 0 … slot of rank N−1 ]
//! ```
//! A round moves up to [`SLOT_ELEMENTS`]: each rank copies its part into its slot, raises its `arrived` counter, waits
//! for the others', and adds up all slots in rank order. Slots alternate between rounds, so one barrier suffices: whoever
//! is two rounds ahead has seen everyone arrive one round ago, hence finish reading the slot it now overwrites.
//!
//! The segment is a memfd handed over as a descriptor: it has no name and vanishes with its last holder.

use std::{
    hint, io,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
    thread::futex,
    time::Timespec,
};

use super::{CommError, Communicator, Elements, REDUCE_DEADLINE, ReduceSite};

/// Elements of 4 bytes that move in one round.
const SLOT_ELEMENTS: usize = 64 << 10;
const SLOT_BYTES: usize = SLOT_ELEMENTS * 4;
const LINE_BYTES: usize = 64;
/// Polls before the thread sleeps, where spinning is allowed: about as long as a small reduction takes.
const SPINS: u32 = 20_000;
/// A sleeper looks up this often, so that an abort between its check and its sleep is not lost.
const NAP: Duration = Duration::from_millis(50);

/// The memory of one cluster's data link, before anyone joined.
#[derive(Debug)]
pub struct ShmSegment(OwnedFd);

impl ShmSegment {
    /// A fresh segment for `world` ranks: `2 · world` slots of 256 KiB, resident only as used.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn create(world: usize) -> io::Result<Self> {
        let fd = memfd_create("nanoinfer-reduce", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, segment_bytes(world) as u64)?;
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
    slots_offset(world) + 2 * world * SLOT_BYTES
}

/// One rank's view of the segment.
#[derive(Debug)]
pub struct Shm {
    base: NonNull<u8>,
    rank: usize,
    world: usize,
    /// Rounds done; wraps.
    round: u32,
    spin: bool,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread; other processes' access is ordered by
// the counters in it.
#[allow(unsafe_code)]
unsafe impl Send for Shm {}

/// One rank's cache line.
#[repr(C, align(64))]
struct Flags {
    /// Rounds this rank has arrived in.
    arrived: AtomicU32,
    /// Threads that sleep until `arrived` changes.
    sleepers: AtomicU32,
    /// Elements this rank brought in the last even and odd round.
    brought: [AtomicU32; 2],
}

impl Shm {
    /// Joins the segment as `rank` of `world`. `spin` allows busy waiting: only where every rank's threads have a core.
    ///
    /// # Errors
    /// When the segment is smaller than `world` needs, or cannot be mapped.
    #[allow(unsafe_code)]
    pub fn open(segment: ShmSegment, rank: usize, world: usize, spin: bool) -> Result<Self, CommError> {
        let setup = |source| CommError::Setup { rank, source };
        let stat = rustix::fs::fstat(&segment.0).map_err(|e| setup(e.into()))?;
        let bytes = segment_bytes(world);
        if rank >= world || (stat.st_size as u64) < bytes as u64 {
            return Err(setup(io::Error::other(format!(
                "a segment of {} bytes does not serve {world} ranks",
                stat.st_size
            ))));
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, protection, flags, &segment.0, 0) }
            .map_err(|e| setup(e.into()))?;
        let base = NonNull::new(base.cast()).expect("the kernel maps nothing at address 0");
        Ok(Self { base, rank, world, round: 0, spin })
    }

    #[allow(unsafe_code)]
    fn aborted(&self) -> &AtomicU32 {
        // SAFETY: the first line of the mapping, aligned, alive as long as self, only ever accessed as an atomic.
        unsafe { self.base.cast::<AtomicU32>().as_ref() }
    }

    #[allow(unsafe_code)]
    fn flags(&self, rank: usize) -> &Flags {
        assert!(rank < self.world);
        // SAFETY: line `1 + rank` is inside the mapping, aligned to 64, alive as long as self, and all atomics.
        unsafe { self.base.byte_add((1 + rank) * LINE_BYTES).cast::<Flags>().as_ref() }
    }

    fn slot(&self, round: u32, rank: usize) -> NonNull<f32> {
        assert!(rank < self.world);
        let index = (round & 1) as usize * self.world + rank;
        // SAFETY: the slot lies inside the mapping by `segment_bytes`.
        #[allow(unsafe_code)]
        unsafe {
            self.base.byte_add(slots_offset(self.world) + index * SLOT_BYTES).cast()
        }
    }

    #[allow(unsafe_code)]
    fn reduce_round(&mut self, data: &mut [f32], site: ReduceSite) -> Result<(), CommError> {
        let round = self.round;
        let parity = (round & 1) as usize;
        // SAFETY: `data` fits a slot; the slot is ours to write: nobody reads it before our counter rises, and every
        // reader of two rounds ago has arrived in the last round (see the header).
        unsafe { self.slot(round, self.rank).as_ptr().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        let flags = self.flags(self.rank);
        flags.brought[parity].store(data.len() as u32, SeqCst);
        flags.arrived.store(round.wrapping_add(1), SeqCst);
        if flags.sleepers.load(SeqCst) > 0 {
            // Waking nobody is no error.
            let _ = futex::wake(&flags.arrived, futex::Flags::empty(), i32::MAX as u32);
        }
        for peer in (0..self.world).filter(|&peer| peer != self.rank) {
            self.wait_for(peer, round, site)?;
            if self.flags(peer).brought[parity].load(SeqCst) != data.len() as u32 {
                return Err(CommError::OutOfStep { rank: self.rank, peer, site });
            }
        }
        for rank in 0..self.world {
            // SAFETY: every rank has arrived, so its slot holds `data.len()` floats that nobody writes before all of us
            // arrive in the next round; the counters order its writes before this read.
            let slot = unsafe { std::slice::from_raw_parts(self.slot(round, rank).as_ptr(), data.len()) };
            if rank == 0 {
                data.copy_from_slice(slot);
            } else {
                data.iter_mut().zip(slot).for_each(|(sum, x)| *sum += x);
            }
        }
        self.round = round.wrapping_add(1);
        Ok(())
    }

    fn wait_for(&self, peer: usize, round: u32, site: ReduceSite) -> Result<(), CommError> {
        let flags = self.flags(peer);
        // A peer can be at most one round ahead; wrapping difference 0 means it has not arrived.
        let behind = |arrived: u32| arrived.wrapping_sub(round) as i32 <= 0;
        if self.spin {
            for _ in 0..SPINS {
                if !behind(flags.arrived.load(SeqCst)) {
                    return Ok(());
                }
                hint::spin_loop();
            }
        }
        let start = Instant::now();
        loop {
            let arrived = flags.arrived.load(SeqCst);
            if !behind(arrived) {
                return Ok(());
            }
            if self.aborted().load(SeqCst) != 0 {
                return Err(CommError::Aborted { rank: self.rank, site });
            }
            let waited = start.elapsed();
            if waited >= REDUCE_DEADLINE {
                return Err(CommError::Deadline { rank: self.rank, peer, waited, site });
            }
            flags.sleepers.fetch_add(1, SeqCst);
            let nap = Timespec { tv_sec: 0, tv_nsec: NAP.as_nanos() as i64 };
            // Any outcome leads to another look: woken, changed before sleeping, timed out, interrupted.
            let _ = futex::wait(&flags.arrived, futex::Flags::empty(), arrived, Some(&nap));
            flags.sleepers.fetch_sub(1, SeqCst);
        }
    }
}

impl Communicator for Shm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_reduce(&mut self, data: Elements<'_>, site: ReduceSite) -> Result<(), CommError> {
        let Elements::F32(data) = data;
        data.chunks_mut(SLOT_ELEMENTS).try_for_each(|chunk| self.reduce_round(chunk, site))
    }

    fn abort(&self) {
        self.aborted().store(1, SeqCst);
        for rank in 0..self.world {
            // Waking nobody is no error.
            let _ = futex::wake(&self.flags(rank).arrived, futex::Flags::empty(), i32::MAX as u32);
        }
    }
}

impl Drop for Shm {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: this value made the mapping with this size and hands out no borrow that outlives it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), segment_bytes(self.world)) };
        debug_assert!(unmapped.is_ok());
    }
}
