//! How many losses are borne, and how long to wait after each.
//!
//! Does not know what is lost.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Between the first failed try and the next; twice as long after each. Tests do not wait.
const FIRST_PAUSE: Duration = if cfg!(test) { Duration::from_micros(1) } else { Duration::from_millis(500) };
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How many recoveries are borne, so that a fault that comes back does not go on for ever.
#[derive(Clone, Copy, Debug)]
pub struct RestartLimit {
    /// So many,
    pub most: usize,
    /// within so long.
    pub within: Duration,
}

/// The recoveries of late.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) limit: RestartLimit,
    taken: VecDeque<Instant>,
    /// Since the last step that succeeded.
    in_a_row: u32,
}

impl Budget {
    pub(super) fn new(limit: RestartLimit) -> Self {
        Self { limit, taken: VecDeque::new(), in_a_row: 0 }
    }

    /// One more, and how long to wait before it; none where there were enough.
    pub(super) fn take(&mut self, now: Instant) -> Option<Duration> {
        self.taken.retain(|&then| now.duration_since(then) < self.limit.within);
        if self.taken.len() >= self.limit.most {
            return None;
        }
        self.taken.push_back(now);
        self.in_a_row += 1;
        let doublings = self.in_a_row.checked_sub(2);
        Some(doublings.map_or(Duration::ZERO, |n| (FIRST_PAUSE * 2u32.saturating_pow(n)).min(LONGEST_PAUSE)))
    }

    /// A step succeeded.
    pub(super) fn succeeded(&mut self) {
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_recoveries_are_borne_within_so_long_and_the_pauses_grow_until_a_step_succeeds() {
        let limit = RestartLimit { most: 4, within: Duration::from_secs(10) };
        let (mut budget, begun) = (Budget::new(limit), Instant::now());
        let take = |budget: &mut Budget, at| budget.take(begun + Duration::from_secs(at));
        assert_eq!(take(&mut budget, 0), Some(Duration::ZERO));
        assert_eq!(take(&mut budget, 1), Some(FIRST_PAUSE));
        assert_eq!(take(&mut budget, 2), Some(FIRST_PAUSE * 2));
        budget.succeeded();
        assert_eq!(take(&mut budget, 3), Some(Duration::ZERO));
        assert_eq!(take(&mut budget, 9), None);
        assert_eq!(take(&mut budget, 10), Some(FIRST_PAUSE), "the first is forgotten");
        assert_eq!(take(&mut budget, 10), None);
        let mut endless = Budget::new(RestartLimit { most: 1000, ..limit });
        assert!((0..1000).filter_map(|_| take(&mut endless, 0)).all(|pause| pause <= LONGEST_PAUSE));
    }
}
