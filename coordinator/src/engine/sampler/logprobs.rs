//! Log-probabilities as they are reported: raw, before any processor.
//!
//! Does not know how a token was drawn.

use nanoinfer_shared::protocol::{LogSumExp, RowSlice, TokenId};

use super::ranked::orderly;
use crate::engine::request::TokenLogprobs;

/// The log-probability of `id` with raw logit `logit`, and of the `top` most likely tokens.
pub(crate) fn report(id: TokenId, logit: f32, top: u32, slices: &[&RowSlice]) -> TokenLogprobs {
    let all = slices.iter().fold(LogSumExp::EMPTY, |sum, slice| sum.merge(slice.all)).value();
    let logprob = |logit: f32| (f64::from(logit) - all) as f32;
    let mut likeliest: Vec<(TokenId, f32)> = known(slices).collect();
    likeliest.sort_by(|a, b| orderly(b.1).total_cmp(&orderly(a.1)).then(a.0.cmp(&b.0)));
    // A target may be listed and among the highest.
    likeliest.dedup_by_key(|&mut (id, _)| id);
    likeliest.truncate(top as usize);
    // Collected anew: in place it would keep the room of all that ranks named, for as long as the answer is held.
    let top = likeliest.iter().map(|&(id, logit)| (id, logprob(logit))).collect();
    TokenLogprobs { id, logprob: logprob(logit), top }
}

/// The raw logit of `id`, if a rank named it.
pub(crate) fn raw_logit(id: TokenId, slices: &[&RowSlice]) -> Option<f32> {
    known(slices).find(|&(known, _)| known == id).map(|(_, logit)| logit)
}

/// Every token that a rank named; one may appear more than once.
fn known(slices: &[&RowSlice]) -> impl Iterator<Item = (TokenId, f32)> {
    slices.iter().flat_map(|slice| slice.listed.iter().chain(&slice.top).chain(&slice.likeliest).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_take_no_more_room_than_they_need() {
        let top = (0..2000).map(|id| (id, -(id as f32))).collect();
        let all = LogSumExp { max: 0.0, sum: 2.0 };
        let slice = RowSlice { all, rest: all, top, likeliest: Vec::new(), listed: vec![(7, -7.0)] };
        let reported = report(7, -7.0, 5, &[&slice]);
        assert_eq!((reported.top.len(), reported.top.capacity()), (5, 5));
    }
}
