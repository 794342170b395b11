//! Whether what a rank answers can be an answer to what it was asked: nothing else is counted with, or becomes an index.
//!
//! Does not know whether it is the right one.

use std::ops::Range;

use nanoinfer_shared::protocol::{LogitSlice, RowSlice, StepOutput, StepPlan, TokenId, Wants};

use super::error::RanksError;

/// Looks at the answer to `plan` of a rank that holds `vocab`; there are as many rows as were asked for.
///
/// # Errors
/// Names the first row with tokens that the rank does not hold, or another number of them.
pub(super) fn check_step(
    rank: usize,
    output: &StepOutput,
    plan: &StepPlan,
    vocab: &Range<usize>,
) -> Result<(), RanksError> {
    let asked = plan.sequences.iter().flat_map(|sequence| &sequence.outputs);
    for (row, (request, slice)) in asked.zip(&output.rows).enumerate() {
        let (ids, most, most_of_all) = match &request.wants {
            Wants::Targets { ids, top } => (ids, *top, 0),
            Wants::Candidates { k, adjusted, masked, .. } => (adjusted, *k, masked.unwrap_or(0)),
        };
        let is_held = |id: TokenId| vocab.contains(&(id as usize));
        let listed = ids.iter().filter(|&&id| is_held(id)).count();
        let RowSlice { top, likeliest, listed: got, .. } = slice;
        let fits = top.len() <= most as usize && likeliest.len() <= most_of_all as usize && got.len() == listed;
        if !fits || !top.iter().chain(likeliest).chain(got).all(|&(id, _)| is_held(id)) {
            return Err(RanksError::Unexpected {
                rank,
                expected: format!("up to {most} of its tokens {vocab:?} and {listed} that were named, in row {row}"),
                got: format!("{} and {}, or tokens that it does not hold", top.len(), got.len()),
            });
        }
    }
    Ok(())
}

/// Looks at whole rows of a rank that holds `vocab`.
///
/// # Errors
/// Names the first row of another length.
pub(super) fn check_rows(rank: usize, rows: &[LogitSlice], vocab: &Range<usize>) -> Result<(), RanksError> {
    match rows.iter().find(|row| row.len() != vocab.len()) {
        Some(row) => Err(RanksError::Unexpected {
            rank,
            expected: format!("its {} logits of each row", vocab.len()),
            got: row.len().to_string(),
        }),
        None => Ok(()),
    }
}
