//! The chain against a straightforward one over whole rows, and candidates against whole rows.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::engine::{explanation::Narrowing, fake_rank, request::BadWords};

fn shape(vocab_size: usize) -> ModelShape {
    ModelShape::from_config_json(&format!(r#"{{"vocab_size":{vocab_size},"eos_token_id":0}}"#)).unwrap()
}

fn request(prompt: Vec<TokenId>, sampling: SamplingParams) -> Request {
    Request { sampling: SamplingParams { logprobs: Some(3), ..sampling }, ..Request::greedy(prompt, 100) }
}

fn explained(prompt: Vec<TokenId>, sampling: SamplingParams) -> Request {
    request(prompt, SamplingParams { explain: true, ..sampling })
}

/// What `world` ranks answer to `draw`.
fn slices(draw: &Draw, row: &[f32], cuts: &[usize]) -> Vec<RowSlice> {
    let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % (row.len() + 1)).chain([0, row.len()]).collect();
    edges.sort_unstable();
    let ranges = edges.windows(2).map(|edge| Range { start: edge[0], end: edge[1] });
    let mask_of = |range: &Range<usize>| -> Option<TokenMask> {
        let here = |id: &usize| draw.adjustments.is_unmasked(*id as TokenId);
        draw.is_masked().then(|| range.clone().filter(here).map(|id| (id - range.start) as TokenId).collect())
    };
    let slice = |range: Range<usize>| fake_rank::slice(row, range.clone(), &draw.wants(), mask_of(&range).as_ref());
    ranges.map(slice).collect()
}

/// Every so many tokens, as a grammar may let come.
fn every(step: usize, vocab_size: usize) -> TokenMask {
    (0..vocab_size as TokenId).step_by(step).collect()
}

/// The draw of a request whose grammar lets these come.
fn masked(draw: Draw, mask: TokenMask) -> Draw {
    let mut draw = Draw { masked: true, ..draw };
    draw.set_mask(Ok(mask));
    draw
}

/// The chain over a whole row as one would write it first, with every processor a mask.
fn reference(request: &Request, tokens: &[TokenId], row: &[f32], uniform: f64, mask: Option<&TokenMask>) -> TokenId {
    let s = &request.sampling;
    let generated = &tokens[request.prompt.len()..];
    let mut logits = row.to_vec();
    for &(id, bias) in &*s.logit_bias {
        logits[id as usize] += bias;
    }
    let window = s.repetition_window.unwrap_or(tokens.len()).min(tokens.len());
    for (id, logit) in (0..).zip(&mut logits) {
        if tokens[tokens.len() - window..].contains(&id) {
            *logit = if *logit < 0.0 { *logit * s.repetition_penalty } else { *logit / s.repetition_penalty };
        }
        let count = generated.iter().filter(|&&token| token == id).count() as f32;
        if count > 0.0 {
            *logit -= s.presence_penalty + s.frequency_penalty * count;
        }
        let too_early = id == 0 && generated.len() < request.sampling.min_tokens;
        let bad =
            s.bad_words.iter().any(|word| word.last() == Some(&id) && generated.ends_with(&word[..word.len() - 1]));
        let left_out = mask.is_some_and(|mask| !mask.allows(id as usize));
        if left_out || too_early || bad || s.allowed_token_ids.as_ref().is_some_and(|allowed| !allowed.contains(id)) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let mut order: Vec<usize> = (0..row.len()).collect();
    // −0 ties with 0.
    order.sort_by(|&a, &b| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)).then(a.cmp(&b)));
    if s.temperature == 0.0 {
        return order[0] as TokenId;
    }
    let scores: Vec<f64> = order.iter().map(|&id| f64::from(logits[id]) / f64::from(s.temperature)).collect();
    let mut keep = vec![true; order.len()];
    let softmax = |keep: &[bool]| {
        let kept = || scores.iter().zip(keep).map(|(score, &keep)| if keep { *score } else { f64::NEG_INFINITY });
        let max = kept().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = kept().map(|score| (score - max).exp()).sum();
        kept().map(|score| (score - max).exp() / sum).collect::<Vec<f64>>()
    };
    if s.top_k > 0 {
        let threshold = scores[(s.top_k as usize).min(scores.len()) - 1];
        keep.iter_mut().zip(&scores).for_each(|(keep, score)| *keep &= *score >= threshold);
    }
    if s.top_p < 1.0 {
        // Ascending, dropped while the sum stays within 1 − p.
        let p = softmax(&keep);
        let mut sum = 0.0;
        for at in (1..p.len()).rev() {
            sum += p[at];
            keep[at] &= sum > 1.0 - f64::from(s.top_p);
        }
    }
    if s.min_p > 0.0 {
        let p = softmax(&keep);
        keep.iter_mut().zip(&p).for_each(|(keep, &q)| *keep &= q >= f64::from(s.min_p) * p[0]);
    }
    if s.typical_p < 1.0 {
        let p = softmax(&keep);
        let entropy: f64 = p.iter().filter(|&&q| q > 0.0).map(|q| -q * q.ln()).sum();
        let distance: Vec<f64> = p.iter().map(|q| (-q.ln() - entropy).abs()).collect();
        let mut by_distance: Vec<usize> = (0..p.len()).collect();
        by_distance.sort_by(|&a, &b| distance[a].total_cmp(&distance[b]));
        let mut sum = 0.0;
        let last = by_distance.iter().position(|&at| {
            sum += p[at];
            sum >= f64::from(s.typical_p)
        });
        let threshold = distance[by_distance[last.unwrap_or(p.len() - 1)]];
        keep.iter_mut().zip(&distance).for_each(|(keep, d)| *keep &= *d <= threshold);
    }
    let p = softmax(&keep);
    let mut sum = 0.0;
    let at = p.iter().position(|q| {
        sum += q;
        sum > uniform
    });
    order[at.unwrap_or_else(|| keep.iter().rposition(|&keep| keep).unwrap())] as TokenId
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let off = |neutral: f32, range: Range<f32>| prop_oneof![1 => Just(neutral), 1 => range];
    let penalties = (off(1.0, 0.5..2.0), prop::option::of(0usize..9), off(0.0, -1.0..1.0), off(0.0, -0.5..0.5));
    let filters = (
        prop_oneof![1 => Just(0u32), 1 => 1u32..60],
        off(1.0, 0.05..0.999),
        off(0.0, 0.001..0.6),
        prop_oneof![4 => Just(1f32), 1 => 0.05f32..0.99],
    );
    let bias = prop::collection::vec((0u32..400, -4f32..4.0), 0..4);
    (bias, penalties, prop_oneof![1 => Just(0f32), 5 => 0.2f32..3.0], filters, any::<u64>()).prop_map(
        |(bias, penalties, temperature, (top_k, top_p, min_p, typical_p), seed)| SamplingParams {
            allowed_token_ids: None,
            bad_words: BadWords::default(),
            logit_bias: bias.into_iter().collect(),
            repetition_penalty: penalties.0,
            repetition_window: penalties.1,
            presence_penalty: penalties.2,
            frequency_penalty: penalties.3,
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            ..SamplingParams::neutral(seed)
        },
    )
}

/// Logits of `vocab` tokens around a few likely ones; in steps of a quarter where `coarse`, so that many tie.
fn logits(vocab: usize) -> impl Strategy<Value = Vec<f32>> {
    (prop::collection::vec(-3f32..3.0, vocab), 0f32..6.0, 1usize..40, any::<bool>()).prop_map(
        |(mut row, height, every, coarse)| {
            row.iter_mut().step_by(every).for_each(|logit| *logit += height);
            if coarse {
                row.iter_mut().for_each(|logit| *logit = (*logit * 4.0).round() / 4.0);
            }
            row
        },
    )
}

/// Which tokens are allowed of a vocabulary of that size: none to say so, a few, or most, and what completes bad words.
#[derive(Clone, Debug)]
struct Constraints {
    few: Option<Vec<TokenId>>,
    most: bool,
    bad: Vec<TokenId>,
}

fn constraints() -> impl Strategy<Value = Constraints> {
    let few = prop::option::weighted(0.3, prop::collection::vec(0u32..400, 1..30));
    (few, prop::bool::weighted(0.2), prop::collection::vec(0u32..400, 0..4)).prop_map(|(few, most, bad)| Constraints {
        few,
        most,
        bad,
    })
}

impl Constraints {
    fn put(self, sampling: &mut SamplingParams, vocab: usize, tokens: &[TokenId]) {
        let most = self.most.then(|| (0..vocab as TokenId).filter(|id| id % 7 != 2).collect());
        sampling.allowed_token_ids = most.or(self.few.map(|ids| ids.into_iter().collect()));
        let last = tokens.last().copied();
        let word = |(i, id): (usize, TokenId)| last.filter(|_| i % 2 == 1).into_iter().chain([id]).collect();
        sampling.bad_words = self.bad.into_iter().enumerate().map(word).collect();
    }
}

/// `ln Σ exp(logit / temperature)`.
fn normaliser(adjusted: &[f32], temperature: f32) -> f64 {
    let scores = adjusted.iter().map(|&logit| f64::from(logit) / f64::from(temperature));
    let max = scores.clone().fold(f64::NEG_INFINITY, f64::max);
    max + scores.map(|score| (score - max).exp()).sum::<f64>().ln()
}

/// What decides where the whole row is put in order.
fn in_order(adjusted: &[f32]) -> Vec<Ranked> {
    let mut tokens: Vec<Ranked> = (0..).zip(adjusted).map(|(id, &logit)| Ranked::new(id, logit)).collect();
    tokens.sort_unstable();
    tokens
}

/// `draw` with another random number.
fn at(draw: &Draw, other: f64) -> Draw {
    let mut draw = draw.clone();
    if !draw.greedy {
        draw.uniform = other.clamp(0.0, 1.0);
    }
    draw
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn candidates_whole_rows_and_the_reference_agree(
        row in prop_oneof![logits(400), logits(2100)],
        sampling in sampling(),
        tokens in prop::collection::vec(0u32..400, 1..20),
        generated in 0usize..10,
        min_tokens in 0usize..12,
        cuts in prop::collection::vec(any::<usize>(), 0..3),
        constraints in constraints(),
        step in prop::option::of(1usize..30),
    ) {
        let prompt = tokens[..tokens.len().saturating_sub(generated).max(1)].to_vec();
        let mut request = request(prompt, sampling);
        constraints.put(&mut request.sampling, row.len(), &tokens);
        request.sampling.min_tokens = min_tokens;
        let mask = step.map(|step| every(step, row.len()));
        let draw = Draw::new(&request, &tokens, &shape(row.len()));
        let draw = match &mask {
            Some(mask) => masked(draw, mask.clone()),
            None => draw,
        };
        let slices = slices(&draw, &row, &cuts);
        let slices: Vec<_> = slices.iter().collect();
        let mut adjusted = Vec::new();
        draw.adjust(&[&row], &mut adjusted);
        let by_row = draw.by_row(&slices, &[&row], &mut RowScratch::default());
        if mask.is_some() && adjusted.iter().all(|&logit| logit == f32::NEG_INFINITY) {
            prop_assert!(by_row.is_none(), "there is nothing to draw");
            return Ok(());
        }
        let by_row = by_row.unwrap();
        if adjusted.iter().all(|&logit| logit == f32::NEG_INFINITY) {
            let first = request.sampling.allowed_token_ids.as_ref().map_or(0, |allowed| allowed[0]);
            prop_assert_eq!(by_row.id, first);
            prop_assert!(draw.by_candidates(&slices).is_none_or(|drawn| drawn.id == first));
            return Ok(());
        }
        let normaliser = if draw.adjustments.needs_row() {
            normaliser(&adjusted, draw.temperature)
        } else {
            draw.normaliser(&slices)
        };
        let order = in_order(&adjusted);
        let by_order = draw.decide(&order, true, normaliser).unwrap();
        let uniform = random::uniform(request.sampling.seed, 0, 0, tokens.len() as u32);
        prop_assert_eq!(by_order, reference(&request, &tokens, &row, uniform, mask.as_ref()));
        if let Some(drawn) = draw.by_candidates(&slices) {
            prop_assert_eq!(drawn, draw.drawn(by_order, row[by_order as usize], &slices, || (Vec::new(), normaliser)));
        } else {
            let decided = request.sampling.temperature == 0.0 || draw.adjustments.is_selective();
            let all_left_out = mask.is_some() && draw.adjustments.is_selective();
            prop_assert!(!decided || draw.adjustments.needs_row() || all_left_out, "candidates always decide the most likely, and the named");
        }
        // Sums of f32 are a little different: at a border between tokens either may be drawn.
        let near = |off: f64| at(&draw, uniform + off).decide(&order, true, normaliser).unwrap();
        prop_assert!([0.0, 1e-5, -1e-5].into_iter().any(|off| near(off) == by_row.id));
    }

    #[test]
    fn what_is_told_of_a_whole_row_is_what_the_sorted_row_would_tell(
        row in prop_oneof![logits(400), logits(2100)],
        sampling in sampling(),
        min_tokens in 0usize..12,
        cut in any::<usize>(),
        constraints in constraints(),
    ) {
        let mut request = explained(vec![1, 2, 3, 2], sampling);
        request.sampling.min_tokens = min_tokens;
        constraints.put(&mut request.sampling, row.len(), &[9]);
        let draw = Draw::new(&request, &[1, 2, 3, 2, 9, 9], &shape(row.len()));
        let slices = slices(&draw, &row, &[cut]);
        let slices: Vec<_> = slices.iter().collect();
        let drawn = draw.by_row(&slices, &[&row], &mut RowScratch::default()).unwrap();
        let mut adjusted = Vec::new();
        draw.adjust(&[&row], &mut adjusted);
        prop_assume!(adjusted.iter().any(|&logit| logit > f32::NEG_INFINITY));
        let normaliser = normaliser(&adjusted, draw.temperature);
        let left = draw.left(draw.known(&in_order(&adjusted), true, normaliser));
        let expected = draw.narrowing((drawn.id, row[drawn.id as usize]), &left, normaliser, &slices);
        let told = drawn.narrowing.unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-5;
        prop_assert_eq!(told.chain.len(), expected.chain.len());
        for (a, b) in told.chain.iter().zip(&expected.chain) {
            prop_assert_eq!((a.processor, a.value, a.changed, a.removed), (b.processor, b.value, b.changed, b.removed));
            prop_assert!(close(a.removed_mass, b.removed_mass), "{a:?} {b:?}");
        }
        prop_assert_eq!(told.alternatives.len(), expected.alternatives.len());
        for (a, b) in told.alternatives.iter().zip(&expected.alternatives) {
            prop_assert_eq!((a.id, a.logprob, a.removed_by), (b.id, b.logprob, b.removed_by));
            prop_assert!(close(a.probability, b.probability), "{a:?} {b:?}");
        }
    }
}

#[test]
fn top_k_needs_a_row_only_for_ties() {
    let sampling = SamplingParams { top_k: 40, top_p: 0.9, ..SamplingParams::neutral(3) };
    let request = request(vec![1], sampling);
    let distinct: Vec<f32> = (0..500).map(|id| ((id * 7919) % 500) as f32 * 0.01).collect();
    let tied = vec![1.0; 500];
    for (row, decided) in [(distinct, true), (tied, false)] {
        let draw = Draw::new(&request, &[1], &shape(500));
        let slices = slices(&draw, &row, &[200]);
        assert_eq!(draw.by_candidates(&slices.iter().collect::<Vec<_>>()).is_some(), decided);
    }
}

#[test]
fn what_candidates_cannot_decide_asks_for_one() {
    let asked = |change: fn(&mut SamplingParams)| {
        let mut sampling = SamplingParams::neutral(3);
        change(&mut sampling);
        let plain = Request { sampling, ..Request::greedy(vec![1], 100) };
        let Wants::Candidates { k, .. } = Draw::new(&plain, &[1], &shape(5000)).wants() else {
            panic!("a draw asks for candidates")
        };
        k as usize
    };
    assert_eq!(asked(|s| s.top_k = 2047), MAX_CANDIDATES);
    // All of these would be needed, and the one behind them.
    assert_eq!([asked(|s| s.top_k = 2048), asked(|s| s.top_k = 3000), asked(|s| s.top_k = u32::MAX)], [1; 3]);
    assert_eq!(asked(|s| s.typical_p = 0.5), 1);
    assert_eq!(asked(|s| (s.top_k, s.typical_p) = (3000, 0.5)), 1);
    assert_eq!(asked(|s| (s.top_k, s.typical_p) = (20, 0.5)), 21);
    assert_eq!(asked(|s| (s.top_p, s.typical_p) = (0.5, 0.5)), OPEN_CANDIDATES);
}

#[test]
fn reported_log_probabilities_are_raw_and_include_adjusted_tokens() {
    let mut row = vec![0f32; 300];
    (row[7], row[150], row[299]) = (5.0, 4.0, 3.0);
    let sampling =
        SamplingParams { logit_bias: [(7, -100.0), (9, 50.0)].into_iter().collect(), ..SamplingParams::greedy() };
    let draw = Draw::new(&request(vec![1], sampling), &[1], &shape(300));
    let slices = slices(&draw, &row, &[100, 200]);
    let drawn = draw.by_candidates(&slices.iter().collect::<Vec<_>>()).unwrap();
    let sum = f64::ln(5f64.exp() + 4f64.exp() + 3f64.exp() + 297.0);
    let of = |logit: f64| (logit - sum) as f32;
    assert_eq!(drawn.id, 9);
    let reported = drawn.logprobs.unwrap();
    assert!((reported.logprob - of(0.0)).abs() < 1e-6);
    assert_eq!(reported.top.iter().map(|t| t.0).collect::<Vec<_>>(), [7, 150, 299]);
    assert!(reported.top.iter().zip([5.0, 4.0, 3.0]).all(|(t, logit)| (t.1 - of(logit)).abs() < 1e-6));
}

#[test]
fn draws_follow_the_distribution() {
    let row = [2.0f32, 1.0, 0.5, 0.0, -0.5, -1.0, 3.0, -2.0];
    let sum: f64 = row.iter().map(|&x| f64::from(x / 0.7).exp()).sum();
    let mut counts = [0f64; 8];
    for seed in 0..20_000 {
        let sampling = SamplingParams { temperature: 0.7, ..SamplingParams::neutral(seed) };
        let draw = Draw::new(&request(vec![1], sampling), &[1, 2], &shape(8));
        let slices = slices(&draw, &row, &[3]);
        counts[draw.by_candidates(&slices.iter().collect::<Vec<_>>()).unwrap().id as usize] += 1.0;
    }
    let expected = row.map(|x| 20_000.0 * f64::from(x / 0.7).exp() / sum);
    let chi_square: f64 = counts.iter().zip(expected).map(|(n, e)| (n - e).powi(2) / e).sum();
    assert!(chi_square < 24.3, "7 degrees of freedom, 0.1 %: {chi_square}");
}

#[test]
fn numbers_out_of_order_do_not_stop_a_draw() {
    for row in [[f32::NAN; 4], [f32::NEG_INFINITY; 4], [f32::INFINITY, 0.0, f32::NAN, -0.0]] {
        for temperature in [0.0, 1e-4, 1.0, f32::NAN, f32::INFINITY] {
            let sampling = SamplingParams { temperature, top_p: 0.9, min_p: 0.1, ..SamplingParams::neutral(1) };
            let draw = Draw::new(&request(vec![1], sampling), &[1], &shape(4));
            let slices = slices(&draw, &row, &[2]);
            let slices: Vec<_> = slices.iter().collect();
            let drawn = draw.by_row(&slices, &[&row[..3], &row[3..]], &mut RowScratch::default());
            assert!(drawn.unwrap().id < 4);
        }
    }
}

/// The parts of an explanation that a test can name.
fn told(draw: &Draw, row: &[f32], cuts: &[usize]) -> (TokenId, Narrowing) {
    let slices = slices(draw, row, cuts);
    let slices: Vec<_> = slices.iter().collect();
    let by_row = || draw.by_row(&slices, &[row], &mut RowScratch::default());
    let drawn = draw.by_candidates(&slices).or_else(by_row).unwrap();
    (drawn.id, drawn.narrowing.unwrap())
}

#[test]
fn an_explanation_counts_what_each_processor_removed() {
    // Probabilities 0.5, 0.25, 0.125 … of 20 tokens, so that each cut is known.
    let row: Vec<f32> = (0..20).map(|i| -(i as f32) * 2f32.ln()).collect();
    let sampling = SamplingParams { top_k: 5, top_p: 0.95, min_p: 0.4, ..SamplingParams::neutral(1) };
    let request = explained(vec![1, 2], sampling);
    let draw = Draw::new(&request, &[1, 2], &shape(20));
    for cuts in [&[][..], &[7], &[1, 13]] {
        let (id, narrowing) = told(&draw, &row, cuts);
        let chain: Vec<_> = narrowing.chain.iter().map(|p| (p.processor, p.removed, p.changed)).collect();
        // Five of 31 / 32: 16, 8, 4, 2, 1; the first four are 30 / 31; of these 8 is at least 0.4 times 16.
        assert_eq!(chain, [("top_k", 15, 0), ("top_p", 1, 0), ("min_p", 2, 0)], "{cuts:?}");
        let close = |a: f64, b: f64| (a - b).abs() < 1e-5;
        assert!(close(narrowing.chain[1].removed_mass, 1.0 / 31.0), "{narrowing:?}");
        assert!(close(narrowing.chain[2].removed_mass, 6.0 / 30.0), "{narrowing:?}");
        let alternatives = &narrowing.alternatives;
        assert!(alternatives.iter().map(|a| a.id).eq(0..8) && alternatives[id as usize].removed_by.is_none());
        assert!(close(alternatives[0].probability, 2.0 / 3.0) && close(alternatives[1].probability, 1.0 / 3.0));
        let by: Vec<_> = alternatives.iter().map(|a| a.removed_by).collect();
        let (k, p, m) = (Some("top_k"), Some("top_p"), Some("min_p"));
        assert_eq!(by, [None, None, m, m, p, k, k, k]);
    }
}

#[test]
fn an_explanation_of_penalties_and_of_a_greedy_draw() {
    let row: Vec<f32> = (0..20).map(|i| if i == 3 { 5.0 } else { 0.0 }).collect();
    let sampling = SamplingParams {
        repetition_penalty: 100.0,
        logit_bias: [(9, 2.0)].into_iter().collect(),
        ..SamplingParams::greedy()
    };
    let mut request = explained(vec![3], sampling);
    request.sampling.min_tokens = 1;
    let (id, narrowing) = told(&Draw::new(&request, &[3], &shape(20)), &row, &[4]);
    assert_eq!(id, 9, "the token of the prompt has lost its lead");
    let chain: Vec<_> = narrowing.chain.iter().map(|p| (p.processor, p.changed, p.removed)).collect();
    let expected = [("min_tokens", 0, 1), ("logit_bias", 1, 0), ("repetition_penalty", 1, 0), ("temperature", 0, 18)];
    assert_eq!(chain, expected);
    let first = &narrowing.alternatives[0];
    assert_eq!((first.id, first.removed_by), (3, Some("temperature")));
    let drawn = narrowing.alternatives.last().unwrap();
    assert_eq!((drawn.id, drawn.removed_by, drawn.probability), (9, None, 1.0));
    let end = narrowing.alternatives.iter().find(|a| a.id == 0).unwrap();
    assert_eq!(end.removed_by, Some("min_tokens"));
}

#[test]
fn an_explanation_tells_of_what_was_not_allowed() {
    let row: Vec<f32> = (0..20).map(|i| -(i as f32)).collect();
    let mut sampling = SamplingParams { top_k: 2, ..SamplingParams::neutral(1) };
    sampling.allowed_token_ids = Some([0, 3, 5, 7, 8].into_iter().collect());
    sampling.bad_words = [vec![5], vec![4, 8], vec![9, 8], vec![4, 6]].into_iter().collect();
    let mut request = explained(vec![9], sampling);
    request.sampling.min_tokens = 2;
    let (id, narrowing) = told(&Draw::new(&request, &[9, 4], &shape(20)), &row, &[6]);
    assert!(id == 3 || id == 7);
    let chain: Vec<_> = narrowing.chain.iter().map(|p| (p.processor, p.removed)).collect();
    // The prompt's 9 is no part of a bad word; 6 was ruled out before.
    assert_eq!(chain, [("allowed_token_ids", 15), ("bad_words", 2), ("min_tokens", 1), ("top_k", 0)]);
    let by: Vec<_> = narrowing.alternatives.iter().map(|a| a.removed_by).collect();
    let (a, b, m) = (Some("allowed_token_ids"), Some("bad_words"), Some("min_tokens"));
    assert_eq!(by, [m, a, a, None, a, b, a, None]);
    let sum: f64 = narrowing.alternatives.iter().map(|a| a.probability).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{narrowing:?}");
}

#[test]
fn what_must_not_come_is_removed_once_in_an_explanation() {
    let row: Vec<f32> = (0..20).map(|i| -(i as f32)).collect();
    let removed = |sampling, stops: Range<TokenId>| {
        let mut request = explained(vec![3], sampling);
        (request.sampling.min_tokens, request.sampling.stop_token_ids) = (5, stops.collect());
        let (_, narrowing) = told(&Draw::new(&request, &[3], &shape(20)), &row, &[7]);
        narrowing.chain.iter().map(|p| (p.processor, p.removed, p.removed_mass)).collect::<Vec<_>>()
    };
    let wide = SamplingParams { top_k: 5000, ..SamplingParams::neutral(1) };
    assert_eq!(removed(wide.clone(), 0..3), [("min_tokens", 3, 0.0), ("top_k", 0, 0.0)]);
    let narrow = SamplingParams { top_k: 4, top_p: 1e-9, ..wide };
    let told: Vec<_> = removed(narrow.clone(), 0..3).into_iter().map(|(name, count, _)| (name, count)).collect();
    assert_eq!(told, [("min_tokens", 3), ("top_k", 13), ("top_p", 3)]);
    let nothing = removed(SamplingParams::greedy(), 0..20);
    assert_eq!(nothing, [("min_tokens", 20, 0.0), ("temperature", 0, 0.0)]);
    assert!(removed(narrow, 0..20).iter().all(|&(name, count, _)| count == 0 || name == "min_tokens"));
}

#[test]
fn an_explanation_tells_of_a_grammar_what_it_removed_and_what_else_could_have_been() {
    let row: Vec<f32> = (0..40).map(|i| -(i as f32)).collect();
    let mut request = explained(vec![3], SamplingParams::greedy());
    request.sampling.allowed_token_ids = Some((3..25).collect());
    let draw = masked(Draw::new(&request, &[3], &shape(40)), every(7, 40));
    let (id, narrowing) = told(&draw, &row, &[9]);
    assert_eq!(id, 7);
    let chain: Vec<_> = narrowing.chain.iter().map(|p| (p.processor, p.removed)).collect();
    assert_eq!(chain, [("grammar", 34), ("allowed_token_ids", 3), ("temperature", 2)]);
    let removed: Vec<_> = narrowing.alternatives.iter().map(|a| (a.id, a.removed_by)).collect();
    assert_eq!(removed[0], (0, Some("allowed_token_ids")));
    assert_eq!((removed[1], removed[7], removed.len()), ((1, Some("grammar")), (7, None), 8));
}

#[test]
fn an_explained_draw_is_the_same_draw() {
    for seed in 0..300 {
        let noise = |i: u32| random::uniform(seed, 0, 0, i) as f32;
        let row: Vec<f32> = (0..3000).map(|i| 4.0 * (noise(i) + noise(i + 3000))).collect();
        let filters: [fn(&mut SamplingParams); 4] =
            [|_| (), |s| s.top_k = 3, |s| s.top_p = 0.95, |s| s.typical_p = 0.5];
        let mut sampling = SamplingParams::neutral(seed);
        filters[seed as usize % 4](&mut sampling);
        let [plain, explained] =
            [request, explained].map(|request| request(vec![1], sampling.clone())).map(|request| {
                let draw = Draw::new(&request, &[1], &shape(3000));
                let slices = slices(&draw, &row, &[1000]);
                let slices: Vec<_> = slices.iter().collect();
                let drawn = draw
                    .by_candidates(&slices)
                    .or_else(|| draw.by_row(&slices, &[&row], &mut RowScratch::default()))
                    .unwrap();
                (drawn.id, drawn.narrowing.is_some())
            });
        assert_eq!((plain.0, true), (explained.0, explained.1));
        assert!(!plain.1);
    }
}
