//! Uniform numbers from a counter-based generator: a draw is a pure function of what it is for.
//!
//! Does not know what is drawn. Invariant: no state, so replaying a sequence, alone or beside others, preempted or
//! not, replays its draws.
//! Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); Random123's `philox4x32-10`.

/// A number in `[0, 1)` with 53 random bits, for the token at `position` of one choice of one prompt.
pub(crate) fn uniform(seed: u64, prompt_index: u32, choice: u32, position: u32) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let [a, b, ..] = philox4x32([position, choice, prompt_index, 0], key);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// Ten rounds of Philox over four 32-bit words.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let wide = u64::from(a) * u64::from(b);
        ((wide >> 32) as u32, wide as u32)
    };
    for _ in 0..10 {
        let (high_0, low_0) = product(0xD251_1F53, counter[0]);
        let (high_1, low_1) = product(0xCD9E_8D57, counter[2]);
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let expected = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox4x32(counter, [0xa409_3822, 0x299f_31d0]), expected);
    }

    #[test]
    fn draws_are_spread_evenly_and_each_part_of_the_key_counts() {
        let draws: Vec<f64> = (0..10_000).map(|position| uniform(7, 0, 0, position)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mut bins = [0f64; 20];
        draws.iter().for_each(|u| bins[(u * 20.0) as usize] += 1.0);
        let chi_square: f64 = bins.iter().map(|n| (n - 500.0).powi(2) / 500.0).sum();
        assert!(chi_square < 43.8, "19 degrees of freedom, 0.1 %: {chi_square}");

        let base = uniform(7, 1, 2, 3);
        for other in [uniform(8, 1, 2, 3), uniform(7 | 1 << 32, 1, 2, 3), uniform(7, 2, 1, 3), uniform(7, 1, 2, 4)] {
            assert_ne!(base, other);
        }
    }
}
