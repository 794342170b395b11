//! Integers of any size, and floats as Python spells and divides them.
//!
//! Nine decimal digits a limb, so that reading and writing them is no arithmetic, and a correctly rounded quotient is the reading of
//! enough of its decimals. Knows no expressions. Invariant: no limb at the end is 0, and 0 is not negative.
//! Reference: Knuth, The Art of Computer Programming, 4.3.1, algorithm D.

use std::{cmp::Ordering, fmt};

/// Decimal digits of a limb.
const DIGITS: usize = 9;
const BASE: i64 = 1_000_000_000;
/// Limbs of decimals of a quotient: 1080 digits. Halfway points between floats have at most 1075, so that what follows them decides by
/// being there.
const DECIMAL_LIMBS: usize = 120;

/// An integer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Integer {
    is_negative: bool,
    /// The least first.
    limbs: Vec<u32>,
}

impl Integer {
    /// `digits` are nothing but that.
    pub(super) fn read(digits: &str) -> Self {
        let limb = |digits: &[u8]| digits.iter().fold(0, |limb, digit| limb * 10 + u32::from(digit - b'0'));
        Self::new(false, digits.as_bytes().rchunks(DIGITS).map(limb).collect())
    }

    fn new(is_negative: bool, mut limbs: Vec<u32>) -> Self {
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
        Self { is_negative: is_negative && !limbs.is_empty(), limbs }
    }

    pub(super) fn negated(self) -> Self {
        Self::new(!self.is_negative, self.limbs)
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        if self.is_negative == other.is_negative {
            return Self::new(self.is_negative, combined(&self.limbs, &other.limbs, 1));
        }
        let (large, small) = match magnitudes(self, other) {
            Ordering::Less => (other, self),
            _ => (self, other),
        };
        Self::new(large.is_negative, combined(&large.limbs, &small.limbs, -1))
    }

    pub(super) fn times(&self, other: &Self) -> Self {
        let mut limbs = vec![0; self.limbs.len() + other.limbs.len()];
        for (at, &limb) in self.limbs.iter().enumerate() {
            add_product(&mut limbs[at..], &other.limbs, limb.into());
        }
        Self::new(self.is_negative != other.is_negative, limbs)
    }

    /// Rounded down; `None` for a division by 0.
    pub(super) fn divided_down(&self, other: &Self) -> Option<Self> {
        let (quotient, has_rest) = divided(&self.limbs, &other.limbs)?;
        let is_negative = self.is_negative != other.is_negative;
        let quotient = Self::new(false, quotient);
        let away = if is_negative && has_rest { quotient.plus(&Self::read("1")) } else { quotient };
        Some(Self::new(is_negative, away.limbs))
    }

    /// The nearest float, ties to even; `None` for a division by 0, or where it is too large for one.
    pub(super) fn over(&self, other: &Self) -> Option<f64> {
        let shifted = [&[0; DECIMAL_LIMBS][..], &self.limbs].concat();
        let (quotient, has_rest) = divided(&shifted, &other.limbs)?;
        let sign = if self.is_negative == other.is_negative { "" } else { "-" };
        let quotient = Self::new(false, quotient);
        let decimals = DECIMAL_LIMBS * DIGITS + 1;
        finite(&format!("{sign}{quotient}{}e-{decimals}", u8::from(has_rest)))
    }

    /// The nearest float, ties to even; `None` where it is too large for one.
    pub(super) fn as_float(&self) -> Option<f64> {
        finite(&self.to_string())
    }
}

impl fmt::Display for Integer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut limbs = self.limbs.iter().rev();
        let sign = if self.is_negative { "-" } else { "" };
        write!(f, "{sign}{}", limbs.next().unwrap_or(&0))?;
        limbs.try_for_each(|limb| write!(f, "{limb:09}"))
    }
}

/// A float as Python's `repr` spells it: the shortest digits that are read as the same; of two as near the even ones, where this
/// language's own formats have the larger.
pub(super) fn spelled(float: f64) -> String {
    if !float.is_finite() {
        return float.to_string().to_lowercase();
    }
    let shortest = format!("{float:e}");
    let (digits, exponent) = shortest.split_once('e').expect("such a format has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    if (-4..16).contains(&exponent) {
        let decimals = (decimals as i32 - exponent).max(1) as usize;
        return format!("{float:.decimals$}");
    }
    let even = format!("{float:.decimals$e}");
    // Below a power of two floats are denser: what is nearest may be another.
    let digits = even.split_once('e').filter(|_| even.parse() == Ok(float)).map_or(digits, |(digits, _)| digits);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The text of a number as a float, unless that is infinite.
fn finite(text: &str) -> Option<f64> {
    text.parse().ok().filter(|float: &f64| float.is_finite())
}

fn magnitudes(a: &Integer, b: &Integer) -> Ordering {
    let highest_first = || a.limbs.iter().rev().cmp(b.limbs.iter().rev());
    a.limbs.len().cmp(&b.limbs.len()).then_with(highest_first)
}

/// `a + sign · b`, which is not negative.
fn combined(a: &[u32], b: &[u32], sign: i64) -> Vec<u32> {
    let mut limbs = a.to_vec();
    limbs.resize(a.len().max(b.len()) + 1, 0);
    add_product(&mut limbs, b, sign);
    limbs
}

/// Adds `factor · b` to the first limbs of `a`, as far as that has room, and returns what is to be carried beyond it. `|factor|` is at
/// most a limb.
fn add_product(a: &mut [u32], b: &[u32], factor: i64) -> i64 {
    let mut carry = 0;
    for (at, limb) in a.iter_mut().enumerate() {
        if at >= b.len() && carry == 0 {
            break;
        }
        carry += i64::from(*limb) + factor * i64::from(b.get(at).copied().unwrap_or(0));
        *limb = carry.rem_euclid(BASE) as u32;
        carry = carry.div_euclid(BASE);
    }
    carry
}

/// The quotient of two magnitudes, and whether there is a rest; `None` for a division by 0.
fn divided(a: &[u32], b: &[u32]) -> Option<(Vec<u32>, bool)> {
    // With a divisor whose first limb is large, the first limbs give a digit that is at most two too large.
    let scale = BASE / (i64::from(*b.last()?) + 1);
    let scaled = |limbs: &[u32], len: usize| {
        let mut product = vec![0; len];
        add_product(&mut product, limbs, scale);
        product
    };
    let (mut rest, divisor) = (scaled(a, a.len().max(b.len()) + 1), scaled(b, b.len()));
    let (width, first) = (divisor.len(), i64::from(divisor[divisor.len() - 1]));
    let mut quotient = vec![0; rest.len() - width];
    for at in (0..quotient.len()).rev() {
        let window = &mut rest[at..=at + width];
        let head = i64::from(window[width]) * BASE + i64::from(window[width - 1]);
        let mut digit = (head / first).min(BASE - 1);
        let mut owed = add_product(window, &divisor, -digit);
        while owed < 0 {
            digit -= 1;
            owed += add_product(window, &divisor, 1);
        }
        quotient[at] = digit as u32;
    }
    Some((quotient, rest.iter().any(|&limb| limb > 0)))
}
