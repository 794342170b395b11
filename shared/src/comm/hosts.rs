//! Which ranks share a host, and with it memory. Does not know where hosts are, nor what is between them.

use std::ops::Range;

/// What a message must save each host of sending, in elements, so that sums of ranges by owners pay, which cross twice: as measured by
/// benches/links.rs.
const SAVED_ELEMENTS: usize = 32 << 10;

/// The ranks of each host, which lie side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts(Vec<Range<usize>>);

impl Hosts {
    /// Hosts with so many ranks each.
    ///
    /// # Panics
    /// When one has none.
    pub fn new(ranks: &[usize]) -> Self {
        assert!(ranks.iter().all(|&ranks| ranks > 0), "every host has a rank: {ranks:?}");
        let ends = ranks.iter().scan(0, |end, ranks| {
            *end += ranks;
            Some(*end)
        });
        Self(ends.zip(ranks).map(|(end, ranks)| end - ranks..end).collect())
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Ranks of all.
    pub fn world(&self) -> usize {
        self.0.last().map_or(0, |last| last.end)
    }

    /// The ranks of one.
    pub fn ranks(&self, host: usize) -> Range<usize> {
        self.0[host].clone()
    }

    /// Where a rank is.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn of(&self, rank: usize) -> usize {
        self.0.iter().position(|ranks| ranks.contains(&rank)).expect("every rank is on a host")
    }

    /// Whether a rank is its host's first, which other hosts are reached by.
    pub fn is_front(&self, rank: usize) -> bool {
        self.0.iter().any(|ranks| ranks.start == rank)
    }

    /// Elements of a message between several hosts from which on its ranges have owners.
    ///
    /// Without, a host of r ranks sends r · len to each of H − 1 others; with them r · len · (world − r) / world of contributions, and
    /// the sums of its ranges, r · len / world, to each other.
    pub(super) fn owned_from(&self) -> usize {
        let (world, others) = (self.world(), self.count() - 1);
        let contributions: usize = self.0.iter().map(|ranks| ranks.len() * (world - ranks.len())).sum();
        // In elements of `world` messages, over all hosts.
        let saved = (world * world * others).saturating_sub(contributions + world * others);
        (SAVED_ELEMENTS * self.count() * world).checked_div(saved).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_pay_where_a_host_sends_less_with_them() {
        let from = |ranks: &[usize]| Hosts::new(ranks).owned_from();
        // Two ranks send the same either way.
        assert_eq!(from(&[1, 1]), usize::MAX);
        // Four messages cross without owners; with them three: of each host two ranks' halves, and a half of sums.
        assert_eq!(from(&[2, 2]), 2 * SAVED_ELEMENTS);
        assert!(from(&[1; 8]) < from(&[1; 3]));
        let hosts = Hosts::new(&[2, 1]);
        assert_eq!((hosts.world(), hosts.of(1), hosts.of(2), hosts.ranks(1)), (3, 0, 1, 2..3));
        assert_eq!([0, 1, 2].map(|rank| hosts.is_front(rank)), [true, false, true]);
    }
}
