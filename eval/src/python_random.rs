//! CPython's `random.Random`, as far as nanochat's CORE uses it: `shuffle` and `sample`.
//!
//! MT19937 seeded by `init_by_array`, and CPython's ways to draw an index below a bound and to sample without
//! replacement. The order of a data set and the choice of its examples depend on every bit of it.
//! References: Matsumoto and Nishimura 1998; CPython 3.11 `Modules/_randommodule.c` and `Lib/random.py`.

/// Words of state.
const N: usize = 624;
/// How far ahead the recurrence looks.
const M: usize = 397;

/// A generator in CPython's state after `Random(seed)`.
#[derive(Clone, Debug)]
pub(crate) struct PythonRandom {
    state: [u32; N],
    /// The next word of `state` to temper; `N` where a new block is due.
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)` for a seed that is not negative.
    pub(crate) fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let both = [low, high];
        let key = if high == 0 { &both[..1] } else { &both[..] };
        let mut state = [0; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = 1_812_433_253_u32.wrapping_mul(mixed(state[i - 1])).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            state[i] =
                (state[i] ^ mixed(state[i - 1]).wrapping_mul(1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            i = advanced(&mut state, i);
            j = (j + 1) % key.len();
        }
        for _ in 1..N {
            state[i] = (state[i] ^ mixed(state[i - 1]).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i = advanced(&mut state, i);
        }
        state[0] = 1 << 31;
        Self { state, next: N }
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
        let mut set_size = 21;
        if k > 5 {
            set_size += 1_usize << (2 * ceil_log4(3 * k));
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let drawn = pool[j];
                    pool[j] = pool[n - i - 1];
                    drawn
                })
                .collect()
        } else {
            let mut drawn = Vec::with_capacity(k);
            while drawn.len() < k {
                let j = self.below(n);
                if !drawn.contains(&j) {
                    drawn.push(j);
                }
            }
            drawn
        }
    }

    /// An index below `n`, which is at least 1 and below 2³¹.
    fn below(&mut self, n: usize) -> usize {
        // Bits of n, not of n − 1: that is CPython's.
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let r = (self.word() >> (32 - bits)) as usize;
            if r < n {
                return r;
            }
        }
    }

    /// 32 bits.
    fn word(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

fn mixed(word: u32) -> u32 {
    word ^ (word >> 30)
}

/// The place after `i` while seeding; past the end the last word becomes the first.
fn advanced(state: &mut [u32; N], i: usize) -> usize {
    if i + 1 < N {
        return i + 1;
    }
    state[0] = state[N - 1];
    1
}

/// The least e with 4ᵉ ≥ x.
fn ceil_log4(x: usize) -> u32 {
    (0..).find(|&e| 1_usize << (2 * e) >= x).expect("x is small")
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
            let words: Vec<usize> = (0..4).map(|_| random.word() as usize).collect();
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
