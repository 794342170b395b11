//! What comes of the rows of a step: scores and tokens, from the ranks' candidates or, where these do not decide, from whole rows.
//!
//! Does not know what becomes of them. Invariant: whatever is missing is asked for before anything is decided, so that a step happens as a
//! whole or, when a rank is lost, not at all.

use std::time::Instant;

use nanoinfer_shared::protocol::{LogSumExp, LogitSlice, RowSlice, StepOutput};

use super::{
    metrics::Metrics,
    ranks::{Ranks, RanksError},
    request::TokenLogprobs,
    sampler::{Draw, Drawn, RowDraw, RowDrawer, logprobs},
    scheduler::PlannedStep,
    sequence::RowUse,
};

/// What comes of a row of a step.
pub(super) enum Outcome {
    /// A token of the prompt is scored.
    Score(TokenLogprobs),
    /// A token is drawn.
    Draw(Drawn),
    /// Nothing may come.
    Stuck(String),
    /// It is not known yet what may come.
    Late,
}

/// What comes of a step.
pub(super) struct Outcomes {
    /// Of each row, in their order.
    pub(super) rows: Vec<Outcome>,
    /// How many of them had to be fetched whole.
    pub(super) rows_fetched: usize,
}

impl Outcomes {
    /// Those of a step that the ranks have just answered.
    ///
    /// # Errors
    /// When a rank is lost that is asked for whole rows, or has answered something else.
    pub(super) fn of<R: Ranks>(
        step: &PlannedStep,
        answers: &[StepOutput],
        ranks: &mut R,
        row_drawer: &mut RowDrawer,
        metrics: &Metrics,
    ) -> Result<Self, RanksError> {
        let begun = Instant::now();
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        let mut undecided: Vec<(usize, &Draw)> = Vec::new();
        for (row, row_use) in step.parts.iter().flat_map(|part| &part.uses).enumerate() {
            let slices = slices(answers, row);
            outcomes.push(match row_use {
                RowUse::Score { target, top } => {
                    let raw = logprobs::raw_logit(*target, &slices).ok_or(RanksError::MissingTarget { id: *target })?;
                    Some(Outcome::Score(logprobs::report(*target, raw, *top, &slices)))
                }
                RowUse::Draw(draw) if draw.is_late() => Some(Outcome::Late),
                RowUse::Draw(draw) if let Some(reason) = draw.stuck() => Some(Outcome::Stuck(reason.to_owned())),
                RowUse::Draw(draw) => {
                    let drawn = draw.by_candidates(&slices);
                    undecided.extend(drawn.is_none().then_some((row, &**draw)));
                    drawn.map(Outcome::Draw)
                }
            });
        }
        let rows: Vec<u32> = undecided.iter().map(|&(row, _)| row as u32).collect();
        let whole_rows = if rows.is_empty() { Vec::new() } else { ranks.fetch_rows(&rows)? };
        let draws: Vec<_> = undecided
            .iter()
            .enumerate()
            .map(|(i, &(row, draw))| RowDraw {
                draw,
                slices: slices(answers, row),
                logits: whole_rows.iter().map(|of_rank| &*of_rank[i]).collect(),
            })
            .collect();
        for (&(row, draw), drawn) in undecided.iter().zip(row_drawer.draw(&draws)) {
            outcomes[row] = Some(drawn.map_or_else(|| Outcome::Stuck(draw.nothing_left()), Outcome::Draw));
        }
        metrics.sampling_seconds.inc_by(begun.elapsed().as_secs_f64());
        metrics.rows_fetched.inc_by(rows.len() as u64);
        metrics.rank_answer_bytes.inc_by(answer_bytes(answers, &whole_rows));
        Ok(Self { rows: outcomes.into_iter().flatten().collect(), rows_fetched: rows.len() })
    }
}

/// The ranks' views of one row.
fn slices(answers: &[StepOutput], row: usize) -> Vec<&RowSlice> {
    answers.iter().map(|answer| &answer.rows[row]).collect()
}

/// Bytes of what the ranks answered, as numbers: eight for a token with its logit, four for a logit of a whole row.
fn answer_bytes(answers: &[StepOutput], whole_rows: &[Vec<LogitSlice>]) -> u64 {
    let rows = answers.iter().flat_map(|answer| &answer.rows);
    let of = |row: &RowSlice| 2 * size_of::<LogSumExp>() + 8 * (row.top.len() + row.listed.len());
    (rows.map(of).sum::<usize>() + whole_rows.iter().flatten().map(|slice| 4 * slice.len()).sum::<usize>()) as u64
}
