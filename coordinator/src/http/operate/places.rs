//! The places that there are for connections.
//!
//! ```text
//! full   served like any other, `most` of them
//! brief  beyond those, a few: only probes are answered, and soon they end
//! ```
//! Who waits for nothing but a request gives way to who comes new, the longest first; where all are at work, the newcomer gets
//! a brief place. Knows neither sockets nor HTTP.
//! Invariant: no more places are held than there are, and probes find one however many connections say nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::Notify;

/// Brief places.
const BRIEF: usize = 16;

/// In place of when a connection began to wait, where it does not.
const AT_WORK: u64 = 0;

/// What a connection may do in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All.
    Full,
    /// Ask how the server is.
    Brief,
}

/// All places.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    /// Locked for a look-up: connections are served on several threads.
    held: Mutex<Held>,
    /// A place was given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    full: usize,
    brief: usize,
    /// Those that wait for a request, since long ago first.
    idle: BTreeMap<u64, (Kind, Arc<Yield>)>,
    /// Those that were told to end and have not yet: their places go to the newcomer.
    leaving: usize,
    /// Orders those that begin to wait: the latest.
    last: u64,
}

/// One of them. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    pub(crate) kind: Kind,
    /// When it began to wait for a request, or [`AT_WORK`]. Changed while `held` is locked.
    since: AtomicU64,
    yields: Arc<Yield>,
}

/// How a connection is told to end.
#[derive(Debug, Default)]
struct Yield {
    told: AtomicBool,
    wake: Notify,
}

impl Places {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default(), freed: Notify::new() })
    }

    /// A place for a connection that says nothing yet; waits until there is one. For one caller at a time.
    pub(crate) async fn enter(self: &Arc<Self>) -> Place {
        loop {
            if let Some(kind) = self.try_enter() {
                let place = Place { places: self.clone(), kind, since: AT_WORK.into(), yields: Arc::default() };
                place.idle();
                return place;
            }
            self.freed.notified().await;
        }
    }

    /// The kind of place that was free; if none was, one that says nothing is told to end, if there is such.
    fn try_enter(&self) -> Option<Kind> {
        let mut held = self.lock();
        if held.full < self.most {
            held.full += 1;
            return Some(Kind::Full);
        }
        if held.leaving > 0 {
            return None;
        }
        let oldest = |of| held.idle.iter().find(|(_, (kind, _))| *kind == of).map(|(&since, _)| since);
        let yields = oldest(Kind::Full);
        if yields.is_none() && held.brief < BRIEF {
            held.brief += 1;
            return Some(Kind::Brief);
        }
        let yields = yields.or_else(|| oldest(Kind::Brief));
        if let Some((_, oldest)) = yields.and_then(|since| held.idle.remove(&since)) {
            held.leaving += 1;
            oldest.told.store(true, Relaxed);
            oldest.wake.notify_one();
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Its connection waits for a request.
    pub(crate) fn idle(&self) {
        let mut held = self.places.lock();
        // One that was told to end is about to, whatever it has just said.
        if self.since.load(Relaxed) == AT_WORK && !self.yields.told.load(Relaxed) {
            held.last += 1;
            let now = held.last;
            held.idle.insert(now, (self.kind, self.yields.clone()));
            self.since.store(now, Relaxed);
        }
    }

    /// Its connection has a request.
    pub(crate) fn busy(&self) {
        let mut held = self.places.lock();
        held.idle.remove(&self.since.swap(AT_WORK, Relaxed));
    }

    /// Returns when the place is wanted for another.
    pub(crate) async fn yields(&self) {
        self.yields.wake.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.busy();
        let mut held = self.places.lock();
        match self.kind {
            Kind::Full => held.full -= 1,
            Kind::Brief => held.brief -= 1,
        }
        held.leaving -= usize::from(self.yields.told.load(Relaxed));
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_says_nothing_yields_the_longest_first() {
        let places = Places::new(3);
        let mut held = vec![places.enter().await, places.enter().await, places.enter().await];
        held[0].busy();
        held[0].idle();
        held[1].busy();
        for yielding in [2, 0] {
            assert!(places.enter().now_or_never().is_none());
            let told: Vec<bool> = held.iter().map(|place| place.yields().now_or_never().is_some()).collect();
            assert_eq!(told.iter().position(|&told| told), Some(yielding), "{told:?}");
            assert!(places.enter().now_or_never().is_none(), "one is on its way out");
            drop(held.remove(yielding));
            let newcomer = places.enter().await;
            assert_eq!(newcomer.kind, Kind::Full);
            newcomer.busy();
            held.insert(yielding, newcomer);
        }
    }

    #[tokio::test]
    async fn where_all_are_at_work_a_few_get_brief_places_and_those_yield_too() {
        let places = Places::new(1);
        let full = places.enter().await;
        full.busy();
        let mut brief = Vec::new();
        for _ in 0..BRIEF {
            brief.push(places.enter().await);
        }
        assert!(brief.iter().all(|place| place.kind == Kind::Brief));
        assert!(places.enter().now_or_never().is_none());
        assert!(brief[0].yields().now_or_never().is_some() && full.yields().now_or_never().is_none());
        brief.iter().for_each(Place::busy);
        drop(brief.remove(0));
        assert_eq!(places.enter().await.kind, Kind::Brief);
        drop(full);
        assert_eq!(places.enter().await.kind, Kind::Full);
    }
}
