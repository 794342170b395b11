//! What is wanted of rows of logits, as the GPU takes it, and its answers as the coordinator takes them.
//!
//! ```text
//! up       rows [R] | RowWants [R] | listed ids
//! between  for each row: RowAnswer of each part, then as many pairs of each part
//! down     RowAnswer [R] | for each row: logits of its listed ids, then its largest as pairs (index, logit), in no order
//! ```
//! Invariant: answers are as long as what was asked for, so that a step brings back bytes, not rows.

use std::ops::Range;

use nanoinfer_kernels::cuda::{PART, RowAnswer, RowWants};
use nanoinfer_shared::protocol::{LogSumExp, RowSlice, TokenId, Wants};

use super::gpu::Pinned;
use crate::runner::Wanted;

/// Words of the head of an answer.
const HEAD_WORDS: usize = size_of::<RowAnswer>() / 4;
const WANTS_WORDS: usize = size_of::<RowWants>() / 4;
/// Words of answers a row that are provided for beside the longest single answer.
const COMMON_WORDS: usize = 512;
/// Pairs of each part of a row that are provided for likewise.
const COMMON_PAIRS: usize = 64;

/// Words of what goes up, lies between, and comes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) questions: usize,
    pub(crate) parts: usize,
    pub(crate) answers: usize,
}

/// Rows that are answered together.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    rows: Vec<u32>,
    wants: Vec<RowWants>,
    ids: Vec<u32>,
    /// Words of the answers.
    pub(crate) answer_words: usize,
    /// Words between.
    pub(crate) part_words: usize,
}

impl Words {
    /// Of up to `rows` rows of a slice of `width`.
    pub(crate) fn of(rows: usize, width: usize) -> Self {
        // One row may list every id, and want each of them as one of the largest. Each listed id has a word in the answers.
        let each = 3 * width + rows * COMMON_WORDS;
        let parts = width.div_ceil(PART);
        Self {
            questions: rows * (1 + WANTS_WORDS) + each,
            parts: rows * parts * (HEAD_WORDS + 2 * COMMON_PAIRS) + 2 * parts * PART.min(width),
            answers: rows * HEAD_WORDS + each,
        }
    }

    /// Without an end.
    pub(crate) const ENDLESS: Self = Self { questions: usize::MAX, parts: usize::MAX, answers: usize::MAX };
}

impl Questions {
    /// As many of `asked` as have room, at least one, in `rows` places.
    pub(crate) fn of(asked: &[Wanted<'_>], rows: usize, vocab: &Range<usize>, room: Words) -> Self {
        let mut questions = Self { answer_words: rows.min(asked.len()) * HEAD_WORDS, ..Self::default() };
        for asked in asked.iter().take(rows) {
            let (mut wants, ids) = question(asked.wants, vocab);
            let (words, part_words) = answer_words(&wants, vocab.len());
            let fits =
                questions.answer_words + words <= room.answers && questions.part_words + part_words <= room.parts;
            if !questions.rows.is_empty() && !fits {
                break;
            }
            questions.place(&mut wants, ids, vocab.len());
            questions.rows.push(asked.row as u32);
            questions.wants.push(wants);
        }
        questions
    }

    /// One place for each of `rows` rows of a batch, whatever is asked of them; `None` where there is no room.
    pub(crate) fn of_batch(asked: &[Wanted<'_>], rows: usize, vocab: &Range<usize>, room: Words) -> Option<Self> {
        let mut questions = Self {
            rows: (0..rows as u32).collect(),
            wants: vec![RowWants::default(); rows],
            answer_words: rows * HEAD_WORDS,
            ..Self::default()
        };
        for asked in asked {
            let (mut wants, ids) = question(asked.wants, vocab);
            questions.place(&mut wants, ids, vocab.len());
            questions.wants[asked.row] = wants;
        }
        let (_, ids_at) = Self::offsets(rows);
        let fits = questions.answer_words <= room.answers
            && questions.part_words <= room.parts
            && ids_at + questions.ids.len() <= room.questions;
        fits.then_some(questions)
    }

    /// Gives a question the next words, of the ids and of the answers.
    fn place(&mut self, wants: &mut RowWants, ids: Vec<u32>, width: usize) {
        let (words, part_words) = answer_words(wants, width);
        wants.first_listed = self.ids.len() as u32;
        wants.listed_at = self.answer_words as u32;
        wants.largest_at = wants.listed_at + wants.listed;
        wants.parts_at = self.part_words as u32;
        self.answer_words += words;
        self.part_words += part_words;
        self.ids.extend(ids);
    }

    /// Places for rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Word offsets of wants and ids behind the rows, for as many places.
    pub(crate) fn offsets(places: usize) -> (usize, usize) {
        (places, places * (1 + WANTS_WORDS))
    }

    /// Writes what is copied to the GPU; returns its words.
    pub(crate) fn write(&self, to: &mut Pinned) -> usize {
        let (wants_at, ids_at) = Self::offsets(self.len());
        let words = &mut to.words_mut()[..ids_at + self.ids.len()];
        words[..wants_at].copy_from_slice(&self.rows);
        for (to, wants) in words[wants_at..ids_at].chunks_exact_mut(WANTS_WORDS).zip(&self.wants) {
            let RowWants { wanted, k, listed, first_listed, leave_out, scale, listed_at, largest_at, parts_at, .. } =
                *wants;
            let scale = scale.to_bits();
            let words = [wanted, k, listed, first_listed, leave_out, scale, listed_at, largest_at, parts_at, 0];
            to.copy_from_slice(&words);
        }
        words[ids_at..].copy_from_slice(&self.ids);
        words.len()
    }

    /// The answer in place `place` of what came back.
    pub(crate) fn answer(&self, words: &[u32], place: usize, wants: &Wants, vocab: &Range<usize>) -> RowSlice {
        let head = &words[place * HEAD_WORDS..][..HEAD_WORDS];
        let double = |at: usize| f64::from_bits(u64::from(head[at + 1]) << 32 | u64::from(head[at]));
        let asked = &self.wants[place];
        let listed = &words[asked.listed_at as usize..][..asked.listed as usize];
        let ids = &self.ids[asked.first_listed as usize..][..asked.listed as usize];
        let largest = &words[asked.largest_at as usize..][..2 * asked.k as usize];
        let global = |index: u32| index + vocab.start as TokenId;
        let mut top: Vec<(TokenId, f32)> =
            largest.chunks_exact(2).map(|pair| (global(pair[0]), f32::from_bits(pair[1]))).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if matches!(wants, Wants::Candidates { .. }) {
            top.retain(|&(_, logit)| logit > f32::NEG_INFINITY);
        }
        RowSlice {
            all: LogSumExp { max: f32::from_bits(head[4]), sum: double(0) },
            rest: LogSumExp { max: f32::from_bits(head[5]), sum: double(2) },
            top,
            likeliest: Vec::new(),
            listed: ids.iter().zip(listed).map(|(&id, &bits)| (global(id), f32::from_bits(bits))).collect(),
        }
    }
}

/// What is wanted of a row, still without places, and the ids of this slice that it lists.
fn question(wants: &Wants, vocab: &Range<usize>) -> (RowWants, Vec<u32>) {
    let (ids, k, scale, leave_out) = match wants {
        Wants::Targets { ids, top } => (ids, *top, 1.0, 0),
        // Answered by the host, from the whole row.
        Wants::Candidates { masked: Some(_), .. } => (&Vec::new(), 0, 1.0, 0),
        Wants::Candidates { k, temperature, adjusted, masked: None } => (adjusted, *k, temperature.recip(), 1),
    };
    let local = |&id: &TokenId| (id as usize).checked_sub(vocab.start).filter(|&i| i < vocab.len());
    let ids: Vec<u32> = ids.iter().filter_map(local).map(|i| i as u32).collect();
    let (k, listed) = (k.min(vocab.len() as u32), ids.len() as u32);
    (RowWants { wanted: 1, k, scale, leave_out, listed, ..RowWants::default() }, ids)
}

/// Words of the answer beside its head, and of what is between, for a slice of so many logits.
fn answer_words(wants: &RowWants, width: usize) -> (usize, usize) {
    let (k, listed) = (wants.k as usize, wants.listed as usize);
    (listed + 2 * k, width.div_ceil(PART) * (HEAD_WORDS + 2 * PART.min(k)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(k: u32, adjusted: &[TokenId]) -> Wants {
        Wants::Candidates { k, temperature: 0.5, adjusted: adjusted.to_vec(), masked: None }
    }

    #[test]
    fn questions_are_as_long_as_what_is_asked() {
        let vocab = 100..300;
        let (first, second) = (wants(3, &[99, 100, 299, 300]), Wants::Targets { ids: vec![150, 150], top: 0 });
        let asked = [
            Wanted { answer: 0, row: 7, wants: &first },
            Wanted { answer: 1, row: 2, wants: &second },
            Wanted { answer: 2, row: 3, wants: &first },
        ];
        let questions = Questions::of(&asked, 2, &vocab, Words::ENDLESS);
        assert_eq!(
            (questions.len(), questions.answer_words, questions.part_words),
            (2, 2 * 6 + (2 + 6) + 2, (6 + 6) + 6)
        );
        assert_eq!((&questions.rows[..], &questions.ids[..]), (&[7, 2][..], &[0, 199, 50, 50][..]));
        let expected = RowWants {
            wanted: 1,
            k: 3,
            listed: 2,
            leave_out: 1,
            scale: 2.0,
            listed_at: 12,
            largest_at: 14,
            ..RowWants::default()
        };
        assert_eq!(questions.wants[0], expected);
        assert_eq!(
            (questions.wants[1].listed_at, questions.wants[1].first_listed, questions.wants[1].leave_out),
            (20, 2, 0)
        );
        // What does not fit waits; one row always fits.
        assert_eq!(questions.wants[1].parts_at, 12);
        assert_eq!(Questions::of(&asked, 3, &vocab, Words { answers: 3 * 6 + 9, ..Words::ENDLESS }).len(), 1);
        assert_eq!(Questions::of(&asked, 3, &vocab, Words { parts: 12 + 5, ..Words::ENDLESS }).len(), 1);
        assert_eq!(Questions::of(&asked, 3, &vocab, Words { answers: 0, ..Words::ENDLESS }).len(), 1);
    }

    #[test]
    fn a_batch_has_a_place_for_every_row() {
        let wants = wants(1, &[]);
        let asked = [Wanted { answer: 0, row: 2, wants: &wants }];
        let questions = Questions::of_batch(&asked, 4, &(0..50), Words::of(4, 50)).unwrap();
        assert_eq!(questions.wants.iter().map(|wants| wants.wanted).collect::<Vec<_>>(), [0, 0, 1, 0]);
        assert_eq!((questions.wants[2].listed_at, questions.answer_words), (24, 26));
        assert!(Questions::of_batch(&asked, 4, &(0..50), Words { answers: 25, ..Words::ENDLESS }).is_none());
        // No more is asked for than there is.
        let greedy = Wants::Candidates { k: 1000, temperature: 1.0, adjusted: Vec::new(), masked: None };
        let questions = Questions::of(&[Wanted { answer: 0, row: 0, wants: &greedy }], 1, &(0..50), Words::ENDLESS);
        assert_eq!(questions.wants[0].k, 50);
    }

    #[test]
    fn answers_are_read_from_where_they_were_asked_for() {
        let vocab = 10..20;
        let wants = wants(2, &[11]);
        let questions = Questions::of(&[Wanted { answer: 0, row: 0, wants: &wants }], 1, &vocab, Words::ENDLESS);
        let mut words = vec![0; questions.answer_words];
        let sums = [1.5f64, 2.5].map(f64::to_bits);
        for (i, sum) in sums.into_iter().enumerate() {
            words[2 * i] = sum as u32;
            words[2 * i + 1] = (sum >> 32) as u32;
        }
        (words[4], words[5]) = (3f32.to_bits(), 4f32.to_bits());
        words[6] = 0.25f32.to_bits();
        words[7..].copy_from_slice(&[7, 1f32.to_bits(), 3, 2f32.to_bits()]);
        let answer = questions.answer(&words, 0, &wants, &vocab);
        assert_eq!(answer.all, LogSumExp { max: 3.0, sum: 1.5 });
        assert_eq!(answer.rest, LogSumExp { max: 4.0, sum: 2.5 });
        assert_eq!((answer.top, answer.listed), (vec![(13, 2.0), (17, 1.0)], vec![(11, 0.25)]));
    }
}
