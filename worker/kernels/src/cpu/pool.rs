//! The threads of one rank.
//!
//! A step is a few dozen short phases; between two of them a thread that may spin polls for the next, and parks when none
//! comes soon. Each phase is a number of tasks, of which every thread has a range: it takes them one by one, so that what
//! the next will read can be fetched ahead, then helps others with theirs. Which thread runs a task never changes its result.
//!
//! ```text
//! 0 ─┬─ 1 ─┬─ 5     the threads are a tree: each tells the phase to those below it, and is done when they are,
//!    │     └─ …     so that no line is written by more than a few, and a phase of many threads begins and ends
//!    ├─ 2 ─── …     after as many messages as the tree is high; few threads all hang on the first
//! ```

use std::{
    cell::UnsafeCell,
    hint, io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle, Thread},
};

/// Polls for the next phase before a thread parks: some tens of microseconds, longer than any gap within a step.
const SPINS: u32 = 10_000;

/// Threads that all hang on the first: above, a line that everybody writes costs more than two levels do.
const FLAT: usize = 16;
/// Threads below one, where there are more.
const FAN: usize = 4;

/// A fixed set of threads that run one phase at a time.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The phase under way; written only while no helper runs.
    phase: UnsafeCell<Option<Phase>>,
    /// By thread.
    nodes: Box<[Node]>,
    /// Threads below one.
    fan: usize,
    panicked: AtomicBool,
    stop: AtomicBool,
    spin: bool,
}

/// A thread in the tree.
#[derive(Default)]
struct Node {
    /// The next task of its range.
    next: Line<AtomicUsize>,
    /// Counts phases; a change tells the threads below that `phase` is fresh.
    generation: Line<AtomicU32>,
    /// Threads below that have not finished the phase.
    active: Line<AtomicUsize>,
    /// The helper; none of the caller, who may change, and before it was started.
    helper: OnceLock<Thread>,
}

/// On a cache line of its own, with the one that is fetched along with it.
#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

#[derive(Clone)]
struct Phase {
    /// Borrowed from the caller of `run`, which does not return before its `active` is 0.
    body: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    caller: Thread,
}

// SAFETY: `phase` is written by the caller of `run` before it raises its `generation` (release) and read by helpers after they
// see that (acquire), or what a helper above them raised then; it is not written again before every helper has lowered the
// `active` above it (release, acquired there), each after those below it.
// The pointer in it is to a `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it is tied to a thread.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("generation", &self.nodes[0].generation.0).finish_non_exhaustive()
    }
}

impl Shared {
    /// Polls while it may, then parks.
    fn wait_while(&self, waiting: impl Fn() -> bool) {
        let mut polls = 0;
        while waiting() {
            if self.spin && polls < SPINS {
                polls += 1;
                hint::spin_loop();
            } else {
                thread::park();
            }
        }
    }

    /// The tasks that are a thread's own.
    fn range(&self, tasks: usize, thread: usize) -> Range<usize> {
        range(self.nodes.len(), tasks, thread)
    }

    /// The thread that tells this helper.
    fn above(&self, helper: usize) -> usize {
        (helper - 1) / self.fan
    }

    /// Tells the threads below this one that there is news.
    fn tell(&self, thread: usize) {
        let node = &self.nodes[thread];
        let first = (thread * self.fan + 1).min(self.nodes.len());
        let below = &self.nodes[first..(first + self.fan).min(self.nodes.len())];
        node.active.0.store(below.len(), Relaxed);
        node.generation.0.fetch_add(1, Release);
        below.iter().filter_map(|node| node.helper.get()).for_each(Thread::unpark);
    }

    /// Waits until the threads below this one have finished the phase.
    fn wait_below(&self, thread: usize) {
        self.wait_while(|| self.nodes[thread].active.0.load(Acquire) > 0);
    }
}

/// The tasks that are a thread's own, of so many threads.
fn range(threads: usize, tasks: usize, thread: usize) -> Range<usize> {
    thread * tasks / threads..(thread + 1) * tasks / threads
}

/// Of `then` tasks the first of the thread whose own of `tasks` end with `task`; none where another follows.
pub(crate) fn first_behind(threads: usize, task: usize, tasks: usize, then: usize) -> Option<usize> {
    let thread = (task * threads + threads - 1) / tasks;
    (range(threads, tasks, thread).end == task + 1).then(|| range(threads, then, thread).start)
}

impl ThreadPool {
    /// A pool of `threads`, the caller of [`ThreadPool::run`] being one of them.
    ///
    /// # Errors
    /// When the system does not give them.
    pub fn new(threads: usize, spin: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            phase: UnsafeCell::new(None),
            nodes: (0..threads.max(1)).map(|_| Node::default()).collect(),
            fan: if threads <= FLAT { FLAT } else { FAN },
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            spin,
        });
        // Dropped, it ends the helpers that were already given.
        let mut pool = Self { shared, helpers: Vec::new() };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("compute-{i}"));
            let helper = builder.spawn(move || help(&shared, i))?;
            pool.shared.nodes[i].helper.get_or_init(|| helper.thread().clone());
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `body(0)` … `body(tasks − 1)`, each once, on all threads; returns when all are done.
    ///
    /// # Panics
    /// When a task panics.
    pub fn run(&mut self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(body);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; this function does not return before every helper is done with it.
        let body: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(std::ptr::from_ref(body)) };
        // SAFETY: no helper reads `phase` now: the last phase ended with all `active` 0, and `&mut self` excludes another caller.
        unsafe { *shared.phase.get() = Some(Phase { body, tasks, caller: thread::current() }) };
        for (thread, node) in shared.nodes.iter().enumerate() {
            node.next.0.store(shared.range(tasks, thread).start, Relaxed);
        }
        shared.tell(0);
        // A panic here must still wait for the helpers, which hold a pointer into the caller's frame.
        let own = catch_unwind(AssertUnwindSafe(|| take_tasks(shared, 0, body, tasks)));
        shared.wait_below(0);
        let helper_panicked = shared.panicked.swap(false, Relaxed);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!helper_panicked, "a compute thread panicked");
    }

    /// Keeps each thread on the CPU of its number, the caller on the first. A wish, where the system does not grant it.
    pub(crate) fn pin(&mut self, cpus: &[u32]) {
        assert!(cpus.len() >= self.threads(), "there is a CPU for each thread");
        // Nobody finishes before all have begun, so that every thread takes one task.
        let (threads, barrier) = (self.threads(), Barrier::new(self.threads()));
        self.run(threads, &|i| {
            keep_on(&cpus[i..=i]);
            barrier.wait();
        });
    }

    /// `[f(0), …, f(count − 1)]`, computed on all threads.
    pub fn map<T: Send>(&mut self, count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
        let slots = Shards::new(&mut results);
        // SAFETY: each task writes its own slot.
        self.run(count, &|i| unsafe { slots.slice(i, 1) }[0] = Some(f(i)));
        results.into_iter().map(|result| result.expect("every task ran")).collect()
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.tell(0);
        for helper in self.helpers.drain(..) {
            helper.join().expect("helpers catch their panics");
        }
    }
}

/// Keeps this thread, and those that it starts from now on, on some CPUs. A wish, where the system does not grant it.
pub fn keep_on(cpus: &[u32]) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        let known = cpus.iter().map(|&cpu| cpu as usize).filter(|&cpu| cpu < rustix::thread::CpuSet::MAX_CPU);
        known.for_each(|cpu| set.set(cpu));
        // A refusal leaves the thread where the system puts it.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

fn take_tasks(shared: &Shared, thread: usize, body: *const (dyn Fn(usize) + Sync), tasks: usize) {
    let threads = shared.nodes.len();
    for owner in (thread..thread + threads).map(|owner| owner % threads) {
        let end = shared.range(tasks, owner).end;
        loop {
            let task = shared.nodes[owner].next.0.fetch_add(1, Relaxed);
            if task >= end {
                break;
            }
            // SAFETY: the closure lives until the caller of `run` has seen this thread finish the phase.
            unsafe { (*body)(task) };
        }
    }
}

fn help(shared: &Shared, thread: usize) {
    let above = &shared.nodes[shared.above(thread)];
    let mut seen = 0;
    loop {
        shared.wait_while(|| above.generation.0.load(Acquire) == seen);
        seen = seen.wrapping_add(1);
        shared.tell(thread);
        if shared.stop.load(Relaxed) {
            return;
        }
        // SAFETY: the generation rose, so the caller has written the phase and will not again before `active` is lowered.
        let phase = unsafe { (*shared.phase.get()).clone() }.expect("a phase is written before the generation rises");
        if catch_unwind(AssertUnwindSafe(|| take_tasks(shared, thread, phase.body, phase.tasks))).is_err() {
            shared.panicked.store(true, Relaxed);
        }
        shared.wait_below(thread);
        if above.active.0.fetch_sub(1, Release) == 1 {
            above.helper.get().unwrap_or(&phase.caller).unpark();
        }
    }
}

/// A slice that several tasks write, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Shards<T>(*mut T, usize);

// SAFETY: the pointer comes from a `&mut [T]` that outlives the phase; tasks write disjoint elements (see `slice`).
unsafe impl<T: Send> Sync for Shards<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shards<T> {}

impl<T> Shards<T> {
    pub(crate) fn new(whole: &mut [T]) -> Self {
        Self(whole.as_mut_ptr(), whole.len())
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// No other task may touch these elements during the phase.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.1, "a task stays within its slice");
        // SAFETY: inside the slice by the check above, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// Where `height` rows of `width` elements, one every `stride`, begin: with element `start`.
    pub(crate) fn rows(&self, start: usize, height: usize, stride: usize, width: usize) -> *mut T {
        assert!(height > 0 && start + (height - 1) * stride + width <= self.1, "a task stays within its slice");
        self.0.wrapping_add(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_every_phase() {
        // On two cores: of 64 threads most wait, of 17 one is alone below another.
        for (threads, spin) in [(1, false), (2, true), (3, false), (5, true), (17, true), (64, false)] {
            let mut pool = ThreadPool::new(threads, spin).unwrap();
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Relaxed) == 50));
            }
        }
    }

    #[test]
    fn what_a_thread_does_next_is_known_at_the_end_of_its_own_tasks() {
        for (threads, tasks, then) in [(1, 1, 5), (2, 7, 4), (3, 12, 12), (5, 3, 9), (64, 100, 1)] {
            for task in 0..tasks {
                let owner = (0..threads).find(|&thread| range(threads, tasks, thread).contains(&task)).unwrap();
                let is_last = range(threads, tasks, owner).end == task + 1;
                let expected = is_last.then(|| range(threads, then, owner).start);
                assert_eq!(first_behind(threads, task, tasks, then), expected, "{task} of {tasks} on {threads}");
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn pinned_threads_stay_on_cores_of_their_own() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let cpus: Vec<u32> = (0..1024).filter(|&cpu| allowed.is_set(cpu as usize)).collect();
        let cores = cpus.len();
        // On a thread of its own, whose core no other test minds.
        let stayed = thread::spawn(move || {
            let mut pool = ThreadPool::new(cores, false).unwrap();
            pool.pin(&cpus);
            let barrier = Barrier::new(cores);
            pool.map(cores, |_| {
                barrier.wait();
                rustix::thread::sched_getaffinity(None).unwrap()
            })
        });
        let stayed = stayed.join().unwrap();
        let all = |set: &rustix::thread::CpuSet| {
            (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
        };
        let mut used: Vec<Vec<usize>> = stayed.iter().map(all).collect();
        assert!(used.iter().all(|cores| cores.len() == 1), "{used:?}");
        used.sort();
        used.dedup();
        assert_eq!(used.len(), cores);
    }

    #[test]
    fn what_tasks_write_is_there_when_the_phase_ends_and_when_the_next_begins() {
        let mut pool = ThreadPool::new(64, false).unwrap();
        let mut values: Vec<usize> = vec![0; 200];
        for phase in 0..100 {
            let before = values.clone();
            let slots = Shards::new(&mut values);
            // SAFETY: each task writes its own element.
            pool.run(200, &|i| unsafe { slots.slice(i, 1) }[0] = before[(i + 1) % 200].max(before[i]) + 1);
            assert_eq!(values, [phase + 1; 200]);
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        for threads in [2, 30] {
            let mut pool = ThreadPool::new(threads, false).unwrap();
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(80, &|i| assert!(i != 55, "one of them"))));
            assert!(caught.is_err());
            let ran = AtomicUsize::new(0);
            pool.run(80, &|_| {
                ran.fetch_add(1, Relaxed);
            });
            assert_eq!(ran.into_inner(), 80);
        }
    }
}
