//! What a rank answers to a row, from its slice of raw logits in the memory of its host.
//!
//! Does not know where logits were computed, nor which request a row belongs to.

use std::borrow::Cow;

use nanoinfer_kernels::{Isa, arg_top_k, log_sum_exp};
use nanoinfer_shared::protocol::{LogSumExp, RowSlice, TokenId, TokenMask, Wants};

/// One row's answer from its slice of logits, whose first is that of token `first`; its mask, where it is masked.
pub(crate) fn answer(isa: Isa, logits: &[f32], first: usize, wants: &Wants, mask: Option<&TokenMask>) -> RowSlice {
    let log_sum_exp = |row: &[f32], scale| {
        let (max, sum) = log_sum_exp(isa, row, scale);
        LogSumExp { max, sum }
    };
    let global = |(i, logit): (usize, f32)| ((first + i) as TokenId, logit);
    let local = |id: &TokenId| (*id as usize).checked_sub(first).filter(|&i| i < logits.len());
    let listed = |ids: &[TokenId]| ids.iter().filter_map(|id| Some((*id, logits[local(id)?]))).collect();
    let all = log_sum_exp(logits, 1.0);
    match wants {
        Wants::Targets { ids, top } => {
            let top = arg_top_k(isa, logits, *top as usize).into_iter().map(global).collect();
            RowSlice { all, rest: all, top, likeliest: Vec::new(), listed: listed(ids) }
        }
        Wants::Candidates { k, temperature, adjusted, masked } => {
            let mut rest = Cow::Borrowed(logits);
            if let Some(mask) = mask {
                mask.fill_others(rest.to_mut(), f32::NEG_INFINITY);
            }
            for i in adjusted.iter().filter_map(local) {
                rest.to_mut()[i] = f32::NEG_INFINITY;
            }
            let same = *temperature == 1.0 && matches!(rest, Cow::Borrowed(_));
            let mut top = arg_top_k(isa, &rest, *k as usize);
            // What is adjusted or left out must not come back as a candidate where there are fewer others than asked for.
            top.retain(|&(_, logit)| logit > f32::NEG_INFINITY);
            RowSlice {
                all,
                rest: if same { all } else { log_sum_exp(&rest, temperature.recip()) },
                top: top.into_iter().map(global).collect(),
                likeliest: arg_top_k(isa, logits, masked.unwrap_or(0) as usize).into_iter().map(global).collect(),
                listed: listed(adjusted),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mask_leaves_out_is_no_candidate_and_in_no_sum_of_the_rest() {
        let logits = [3.0, 2.0, 1.0, 0.0, -1.0];
        let wants = |masked| Wants::Candidates { k: 3, temperature: 1.0, adjusted: vec![12], masked };
        let mask: TokenMask = [1, 2, 4].into_iter().collect();
        let isa = Isa::detect();
        let masked = answer(isa, &logits, 10, &wants(Some(2)), Some(&mask));
        assert_eq!(masked.top, [(11, 2.0), (14, -1.0)]);
        assert_eq!(masked.likeliest, [(10, 3.0), (11, 2.0)]);
        assert_eq!(masked.listed, [(12, 1.0)]);
        let sum = |logits: &[f64]| logits.iter().map(|x| x.exp()).sum::<f64>().ln();
        assert!((masked.rest.value() - sum(&[2.0, -1.0])).abs() < 1e-6);
        assert!((masked.all.value() - sum(&[3.0, 2.0, 1.0, 0.0, -1.0])).abs() < 1e-6);
        let none = answer(isa, &logits, 10, &wants(Some(0)), Some(&TokenMask::default()));
        assert_eq!((none.top.len(), none.likeliest.len(), none.rest), (0, 0, LogSumExp::EMPTY));
    }
}
