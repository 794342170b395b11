//! The last few hundred steps, as the live view replays them: who took part, which blocks each got, who left, which ranks were lost.
//!
//! Told by the engine's threads, read by anyone. Does not know why anything happened, nor who looks.
//! Invariant: `before`, changed by all entries in their order, is `now`.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nanoinfer_shared::protocol::BlockId;
use serde::Serialize;
use tokio::sync::watch;

/// Most entries that are kept, and most numbers in all of them: a step of many long prompts is large.
const MAX_ENTRIES: usize = 600;
const MAX_NUMBERS: usize = 1 << 16;

/// What happened lately, and who holds which blocks now.
#[derive(Debug, Default)]
pub struct StepHistory {
    /// A mutex, as an entry and what it changes belong together; held for as long as one is made or all are listed.
    ring: Mutex<Ring>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Ring {
    before: LiveBlocks,
    now: LiveBlocks,
    entries: VecDeque<Arc<Entry>>,
    /// Number of the first entry that is kept: how many are not any more.
    first: u64,
    numbers: usize,
}

/// The KV blocks in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveBlocks {
    /// The sequences that hold some, by their numbers.
    pub sequences: BTreeMap<u64, LiveSequence>,
    /// Those that nobody holds and that a prompt may find again.
    pub idle: BTreeSet<u32>,
}

/// A sequence as of its last step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LiveSequence {
    /// Its number, in order of arrival.
    pub id: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Prompt and generated tokens.
    pub tokens: usize,
    /// How many of them are in the KV pool.
    pub computed: usize,
    /// The blocks that hold them; a block of several sequences is shared.
    pub blocks: Vec<u32>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// The ranks took a step.
    Step {
        /// Its number.
        step: u64,
        /// From the plan's way out until all had answered, in milliseconds.
        ms: f64,
        /// What each sequence did in it.
        parts: Vec<Part>,
    },
    /// Sequences ended, hung up or gave way.
    Left {
        /// Their numbers.
        sequences: Vec<u64>,
        /// Those of their blocks that are idle now: free, and known by their content.
        idle: Vec<u32>,
    },
    /// Ranks were lost.
    Lost {
        /// Which.
        ranks: Vec<usize>,
    },
    /// Others took their places.
    Back {
        /// Seconds since the loss.
        after_s: f64,
    },
    /// The pools of the ranks are blank: all that was in them is computed again.
    Blank,
}

/// One sequence in a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Its number.
    pub id: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// The step computed the positions from here …
    pub start: usize,
    /// … to here.
    pub end: usize,
    /// Its tokens after the step, the one that was drawn included.
    pub tokens: usize,
    /// Blocks that it did not hold in its last step, in the order of its positions.
    pub blocks: Vec<u32>,
}

/// Entries from a number on.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Who held what before the first entry, where that is the first of all that are kept.
    pub before: Option<LiveBlocks>,
    /// In their order.
    pub entries: Vec<Arc<Entry>>,
    /// Number of the entry that comes next.
    pub next: u64,
}

impl StepHistory {
    /// Who holds what, as of the last step.
    pub fn now(&self) -> LiveBlocks {
        self.ring().now.clone()
    }

    /// Told at each entry.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Entries from number `next` on, or all that are kept where some of those are not.
    pub fn since(&self, next: u64) -> Replay {
        let ring = self.ring();
        let all = ring.first + ring.entries.len() as u64;
        let is_kept = (ring.first.max(1)..=all).contains(&next);
        let skipped = if is_kept { (next - ring.first) as usize } else { 0 };
        Replay {
            before: (!is_kept).then(|| ring.before.clone()),
            entries: ring.entries.iter().skip(skipped).cloned().collect(),
            next: all,
        }
    }

    /// Notes a step. `parts` hold all of their blocks; `is_idle` tells of one that nobody holds whether its content is known.
    pub(crate) fn step(&self, step: u64, elapsed: Duration, mut parts: Vec<Part>, is_idle: impl Fn(BlockId) -> bool) {
        let mut ring = self.ring();
        let held = |part: &Part| ring.now.sequences.get(&part.id);
        // Who gave way and came back since has other blocks.
        let is_other = |part: &&Part| held(part).is_some_and(|held| !part.blocks.starts_with(&held.blocks));
        let left: Vec<u64> = parts.iter().filter(is_other).map(|part| part.id).collect();
        ring.leave(left, is_idle);
        for part in &mut parts {
            let known = ring.now.sequences.get(&part.id).map_or(0, |held| held.blocks.len());
            part.blocks.drain(..known);
        }
        ring.add(Entry::Step { step, ms: elapsed.as_secs_f64() * 1e3, parts });
        self.changed.send_replace(());
    }

    /// Notes who left since the last step: those that are not `running` any more.
    pub(crate) fn leave(&self, running: impl Iterator<Item = u64>, is_idle: impl Fn(BlockId) -> bool) {
        let mut ring = self.ring();
        let running: HashSet<u64> = running.collect();
        let left: Vec<u64> = ring.now.sequences.keys().copied().filter(|id| !running.contains(id)).collect();
        if !left.is_empty() {
            ring.leave(left, is_idle);
            self.changed.send_replace(());
        }
    }

    /// Notes what happened to the ranks.
    pub(crate) fn add(&self, entry: Entry) {
        self.ring().add(entry);
        self.changed.send_replace(());
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn leave(&mut self, sequences: Vec<u64>, is_idle: impl Fn(BlockId) -> bool) {
        if sequences.is_empty() {
            return;
        }
        let blocks = sequences.iter().flat_map(|id| self.now.sequences.get(id)).flat_map(|sequence| &sequence.blocks);
        let idle = blocks.copied().filter(|&block| is_idle(BlockId(block))).collect();
        self.add(Entry::Left { sequences, idle });
    }

    fn add(&mut self, entry: Entry) {
        self.now.apply(&entry);
        self.numbers += entry.numbers();
        self.entries.push_back(Arc::new(entry));
        while self.entries.len() > MAX_ENTRIES || (self.numbers > MAX_NUMBERS && self.entries.len() > 1) {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.before.apply(&oldest);
            self.numbers -= oldest.numbers();
            self.first += 1;
        }
    }
}

impl LiveBlocks {
    fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Step { parts, .. } => {
                for Part { id, prompt_tokens, end, tokens, blocks, .. } in parts {
                    let sequence = self.sequences.entry(*id).or_default();
                    (sequence.id, sequence.prompt_tokens) = (*id, *prompt_tokens);
                    (sequence.tokens, sequence.computed) = (*tokens, *end);
                    sequence.blocks.extend(blocks);
                    blocks.iter().for_each(|block| {
                        self.idle.remove(block);
                    });
                }
            }
            Entry::Left { sequences, idle } => {
                sequences.iter().for_each(|id| {
                    self.sequences.remove(id);
                });
                self.idle.extend(idle);
            }
            Entry::Blank => *self = Self::default(),
            Entry::Lost { .. } | Entry::Back { .. } => {}
        }
    }
}

impl Entry {
    fn numbers(&self) -> usize {
        match self {
            Self::Step { parts, .. } => parts.iter().map(|part| 5 + part.blocks.len()).sum(),
            Self::Left { sequences, idle } => sequences.len() + idle.len(),
            Self::Lost { .. } | Self::Back { .. } | Self::Blank => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(id: u64, (start, end): (usize, usize), blocks: &[u32]) -> Part {
        Part { id, prompt_tokens: 20, start, end, tokens: end + 1, blocks: blocks.to_vec() }
    }

    const STEP: Duration = Duration::from_millis(3);

    #[test]
    fn what_is_told_at_once_is_kept_as_changes() {
        let history = StepHistory::default();
        let idle = |block: BlockId| block.0 == 7;
        history.step(0, STEP, vec![part(1, (0, 20), &[7, 8])], idle);
        history.step(1, STEP, vec![part(1, (20, 33), &[7, 8, 9]), part(2, (16, 20), &[7, 3])], idle);
        history.leave([2].into_iter(), |_| false);
        history.leave([].into_iter(), idle);
        history.add(Entry::Lost { ranks: vec![1] });
        let Replay { before, entries, next } = history.since(0);
        assert_eq!((before, next), (Some(LiveBlocks::default()), 5));
        let blocks = |entry: &Entry| match entry {
            Entry::Step { parts, .. } => parts.iter().map(|part| part.blocks.clone()).collect(),
            Entry::Left { sequences, idle } => vec![sequences.iter().map(|&id| id as u32).collect(), idle.clone()],
            _ => vec![],
        };
        let told: Vec<Vec<Vec<u32>>> = entries.iter().map(|entry| blocks(entry)).collect();
        let expected =
            [vec![vec![7, 8]], vec![vec![9], vec![7, 3]], vec![vec![1], vec![]], vec![vec![2], vec![7]], vec![]];
        assert_eq!(told, expected);
        let now = history.now();
        assert!(now.sequences.is_empty() && now.idle == [7].into());
        // A prompt that begins alike finds the idle block.
        history.step(2, STEP, vec![part(3, (16, 20), &[7, 8])], idle);
        assert!(history.now().idle.is_empty());
        let rest = history.since(5);
        assert!(rest.before.is_none() && rest.entries.len() == 1 && rest.next == 6);
        history.add(Entry::Blank);
        assert_eq!(history.now(), LiveBlocks::default());
    }

    #[test]
    fn who_gave_way_and_came_back_left_first() {
        let history = StepHistory::default();
        history.step(0, STEP, vec![part(1, (0, 20), &[1, 2])], |_| true);
        history.step(1, STEP, vec![part(1, (0, 20), &[5, 6])], |_| true);
        let entries = history.since(0).entries;
        assert!(matches!(&*entries[1], Entry::Left { sequences, idle } if *sequences == [1] && *idle == [1, 2]));
        assert_eq!(history.now().sequences[&1].blocks, [5, 6]);
    }

    #[test]
    fn the_oldest_are_forgotten_and_what_they_changed_is_not() {
        let history = StepHistory::default();
        for step in 0..2000 {
            let id = step / 50;
            history.step(step, STEP, vec![part(id, (0, 20), &[step as u32 / 50, 1000])], |_| true);
            history.leave(std::iter::once(id), |block| block.0 < 1000);
        }
        let Replay { before, entries, next } = history.since(3);
        assert_eq!((entries.len(), next), (MAX_ENTRIES, 2000 + 39));
        let mut now = before.expect("what was asked for is not kept");
        entries.iter().for_each(|entry| now.apply(entry));
        assert_eq!(now, history.now());
        // A step of huge prompts leaves room for few others.
        let blocks: Vec<u32> = (0..40_000).collect();
        history.step(2000, STEP, vec![part(90, (0, 640_000), &blocks)], |_| true);
        history.step(2001, STEP, vec![part(91, (0, 640_000), &blocks)], |_| true);
        assert_eq!(history.since(0).entries.len(), 1);
    }
}
