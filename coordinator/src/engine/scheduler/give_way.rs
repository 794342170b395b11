//! Who gives way to whom.
//!
//! Two things make a sequence give way, and both take the last admitted of whoever holds the most. A decode finds no block;
//! or somebody waits for whom no more was computed, and who would, after the exchange, still hold no more than the other
//! does: so shares become equal, and nothing swings back.
//!
//! Chooses only; blocks change hands in the scheduler. Invariant: never the sequence that was admitted first.

use std::{collections::HashMap, hash::Hash};

use nanoinfer_shared::protocol::BLOCK_TOKENS;

use super::Scheduler;
use crate::engine::sequence::{Sequence, Ticket};

impl Scheduler {
    /// Those who must give way for a sequence to run; nobody where there is room. `None` where that would be unjust, or not
    /// enough.
    pub(super) fn who_would_give_way(&self, sequence: &Sequence) -> Option<Vec<Ticket>> {
        let mut giving: Vec<Ticket> = Vec::new();
        let mut free = self.blocks.free();
        loop {
            let staying = || self.running.iter().filter(|other| !giving.contains(&other.ticket));
            let lacks_place = staying().count() >= self.limits.max_seqs;
            let lacks_blocks = sequence.blocks_lacking() + self.watermark(staying(), sequence) > free;
            if !lacks_place && !lacks_blocks {
                return Some(giving);
            }
            let weight = |other: &Sequence| if lacks_place { 1 } else { other.blocks.len() };
            let own = if lacks_place { 1 } else { sequence.tokens.len().div_ceil(BLOCK_TOKENS) };
            let may = |other: &Sequence| {
                other.ticket != self.running[0].ticket && self.queue.got_no_less(other.owner, sequence.owner)
            };
            // Parties compare what they hold; where that is even, the requests of one party do.
            let among_parties = exchange(staying(), sequence, own, weight, may, |other| other.owner.party);
            let among_requests = || {
                let of_party = staying().filter(|other| other.owner.party == sequence.owner.party);
                exchange(of_party, sequence, own, weight, may, |other| other.owner.request)
            };
            let ticket = among_parties.or_else(among_requests)?;
            free += self.blocks.held_alone(&self.running[self.running_at(ticket)].blocks);
            giving.push(ticket);
        }
    }

    /// Blocks that must stay free when a sequence is let in beside others: one for each that will need another. With fewer,
    /// the next tokens of those that run would send it back.
    fn watermark<'a>(&self, running: impl Iterator<Item = &'a Sequence>, sequence: &Sequence) -> usize {
        let growing = running.filter(|other| other.grows_beyond(other.blocks.len())).count();
        growing + usize::from(growing > 0 && sequence.grows_beyond(sequence.tokens.len().div_ceil(BLOCK_TOKENS)))
    }

    /// Whose blocks a decode gets that finds none: the last admitted of who holds the most, but not the first of all.
    pub(super) fn who_gives_way(&self) -> usize {
        let mut held = HashMap::new();
        for sequence in &self.running {
            *held.entry(sequence.owner.party).or_insert(0) += sequence.blocks.len();
        }
        (1..self.running.len())
            .max_by_key(|&at| (held[&self.running[at].owner.party], at))
            .expect("the pool holds the first sequence whatever its length")
    }
}

/// Who of those that `may` gives way to a `newcomer` that will hold `own`, by `weight` and in `groups`: the last admitted of the
/// heaviest other group, if that is still no lighter than the newcomer's group after the exchange.
fn exchange<'a, G: Copy + Eq + Hash>(
    running: impl Iterator<Item = &'a Sequence> + Clone,
    newcomer: &Sequence,
    own: usize,
    weight: impl Fn(&Sequence) -> usize,
    may: impl Fn(&Sequence) -> bool,
    group: impl Fn(&Sequence) -> G,
) -> Option<Ticket> {
    let mut held: HashMap<G, usize> = HashMap::new();
    running.clone().for_each(|sequence| *held.entry(group(sequence)).or_default() += weight(sequence));
    let home = group(newcomer);
    let after = held.get(&home).copied().unwrap_or(0) + own;
    let others = running.filter(|sequence| group(sequence) != home && may(sequence));
    let giving = others.max_by_key(|sequence| (held[&group(sequence)], sequence.ticket))?;
    (held[&group(giving)] - weight(giving) >= after).then_some(giving.ticket)
}
