//! CPython's `random.Random`, as far as nanochat's CORE uses it: `shuffle` and `sample`.
//!
//! MT19937 seeded by `init_by_array`, and CPython's ways to draw an index below a bound and to sample without
//! replacement. The order of a data set and the choice of its examples depend on every bit of it.
//! References: Matsumoto and Nishimura 1998; CPython 3.11 `Modules/_randommodule.c` and `Lib/random.py`.

use rand_mt::Mt;

/// A generator in CPython's state after `Random(seed)`.
#[derive(Clone, Debug)]
pub(crate) struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.Random(seed)` for a seed that is not negative.
    pub(crate) fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key = if high == 0 { vec![low] } else { vec![low, high] };
        Self(Mt::new_with_key(key))
    }

    /// `shuffle(list)`.
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            let j = self.below(i + 1);
            list.swap(i, j);
        }
    }

    /// `sample(range(n), k)`; `k` is at most `n`.
    pub(crate) fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "{k} of {n} cannot be drawn without replacement");
        // CPython takes a set of what was drawn where that is smaller than a copy of the pool, and draws differently.
        let set_size = 21 + if k > 5 { 4_usize.pow(ceil_log4(3 * k)) } else { 0 };
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k).map(|_| pool.swap_remove(self.below(pool.len()))).collect();
        }
        let mut drawn = Vec::with_capacity(k);
        while drawn.len() < k {
            let j = self.below(n);
            if !drawn.contains(&j) {
                drawn.push(j);
            }
        }
        drawn
    }

    /// An index below `n`, which is at least 1 and below 2³¹.
    fn below(&mut self, n: usize) -> usize {
        // Bits of n, not of n − 1: that is CPython's.
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let r = (self.0.next_u32() >> (32 - bits)) as usize;
            if r < n {
                return r;
            }
        }
    }
}

/// The least e with 4ᵉ ≥ x.
fn ceil_log4(x: usize) -> u32 {
    (0..).find(|&e| 4_usize.pow(e) >= x).expect("x is small")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/data/vectors/rng_vectors.json")).unwrap()
    }

    fn list(value: &Value) -> Vec<usize> {
        value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
    }

    #[test]
    fn words_and_shuffles_are_those_of_cpython() {
        let vectors = vectors();
        for stream in vectors["streams"].as_array().unwrap() {
            let seed = stream["seed"].as_u64().unwrap();
            let mut random = PythonRandom::new(seed);
            let words: Vec<usize> = (0..4).map(|_| random.0.next_u32() as usize).collect();
            assert_eq!(words, list(&stream["u32"]), "seed {seed}");
            let mut order: Vec<usize> = (0..12).collect();
            PythonRandom::new(seed).shuffle(&mut order);
            assert_eq!(order, list(&stream["shuffle12"]), "seed {seed}");
        }
        for shuffle in vectors["shuffles"].as_array().unwrap() {
            let mut order: Vec<usize> = (0..shuffle["n"].as_u64().unwrap() as usize).collect();
            PythonRandom::new(shuffle["seed"].as_u64().unwrap()).shuffle(&mut order);
            assert_eq!(order, list(&shuffle["order"]));
        }
    }

    #[test]
    fn samples_are_those_of_cpython() {
        for sample in vectors()["samples"].as_array().unwrap() {
            let number = |name: &str| sample[name].as_u64().unwrap() as usize;
            let drawn = PythonRandom::new(number("seed") as u64).sample(number("n"), number("k"));
            assert_eq!(drawn, list(&sample["sample"]), "{sample}");
        }
    }
}
