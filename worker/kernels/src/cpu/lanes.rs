//! Sixteen f32 lanes, the unit in which every kernel is written, for each instruction set.
//!
//! Functions here are `inline(always)`: they become instructions of the `target_feature` function that [`versions!`] makes
//! around a kernel's body.

use crate::cpu::packed::{from_bf16, to_bf16};

/// Lanes of a vector on every instruction set.
pub(crate) const LANES: usize = 16;

/// Instruction sets with a version of every kernel, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; the compiler vectorises it for the baseline of the target. The truth in tests.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// The same with products of bytes: Alder Lake, Zen 5 and later, also where AVX-512 is missing.
    AvxVnni,
    /// AVX-512 F, BW, VL and VNNI: Ice Lake, Zen 4 and later.
    Avx512,
    /// The same with products of bf16 pairs: Sapphire Rapids, Zen 4 and later.
    Avx512Bf16,
}

impl Isa {
    /// The best that this CPU runs.
    pub fn detect() -> Self {
        Self::available().pop().expect("portable is always there")
    }

    /// All that this CPU runs, in ascending order.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Every level, in ascending order.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Avx512Bf16];

    /// The level of this name, whether or not this CPU has it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
        }
    }
}

/// A vector of [`LANES`] f32.
///
/// # Safety
/// Methods may only be called where the type's instruction set is available.
pub(crate) trait Lanes: Copy {
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// From 16 floats at `from`, of any alignment.
    unsafe fn load(from: *const f32) -> Self;
    /// From 16 pairs of bf16 at `from`, of any alignment: the first of each pair, and the second.
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self);
    /// From 16 bf16 at `from`, of any alignment.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// From 16 bytes at `from`, of any alignment.
    unsafe fn load_bytes(from: *const i8) -> Self;
    /// To 16 floats at `to`, of any alignment.
    unsafe fn store(self, to: *mut f32);
    /// `self * by + to`; one rounding where the instruction set can.
    unsafe fn mul_add(self, by: Self, to: Self) -> Self;
    /// Lane by lane.
    unsafe fn add(self, other: Self) -> Self;
    /// Lane by lane.
    unsafe fn sub(self, other: Self) -> Self;
    /// Lane by lane.
    unsafe fn mul(self, other: Self) -> Self;
    /// Lane by lane.
    unsafe fn div(self, other: Self) -> Self;
    /// The larger of each lane.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of each lane.
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// Without the sign.
    unsafe fn abs(self) -> Self;
    /// To the nearest bf16, ties to even, as an f32; a NaN stays one.
    unsafe fn round_to_bf16(self) -> Self;
    /// The upper halves, to 16 numbers at `to`, of any alignment: of what was rounded, the bf16.
    unsafe fn store_upper_halves(self, to: *mut u16);
    /// Whole numbers of −127..=127, to 16 bytes at `to`, of any alignment.
    unsafe fn store_bytes(self, to: *mut i8);
    /// `2^n` for whole `n` in −127..=127, where 2^−127 counts as 0.
    unsafe fn exp2_whole(self) -> Self;

    /// Chains of multiply-adds that hide its latency, and fit the registers with two to spare.
    const CHAINS: usize;

    /// Sixteen i32 sums of products of bytes.
    type Sums: Copy;
    /// What [`Lanes::load_weights`] adds to each weight; sums begin with what takes that back.
    const WEIGHT_OFFSET: i32;
    /// Sums that begin with `*offset`: −[`Lanes::WEIGHT_OFFSET`] times the sum of the `x` to come.
    unsafe fn start_sums(offset: *const i32) -> Self::Sums;
    /// Four bytes a lane, as `dot4` takes them.
    type Weights: Copy;
    /// From 64 bytes of −127..=127, of any alignment, four for each lane.
    unsafe fn load_weights(from: *const i8) -> Self::Weights;
    /// Adds to each lane the four products of its weights with the four bytes of `x` (−127..=127).
    unsafe fn dot4(sums: Self::Sums, weights: Self::Weights, x: i32) -> Self::Sums;
    /// The sums, once every product is added, as floats.
    unsafe fn sums_to_f32(sums: Self::Sums) -> Self;

    /// The lanes in memory.
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has 16 floats; the instruction set is the caller's promise.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// Sum of the lanes, in one order on every instruction set: halves are added to halves.
    unsafe fn sum(self) -> f32;

    /// Largest lane.
    unsafe fn largest(self) -> f32;

    /// The nearest whole numbers of −127..=127, ties to even, as [`Lanes::store_bytes`] takes them.
    #[inline(always)]
    unsafe fn round_to_bytes(self) -> Self {
        // SAFETY: the instruction set is the caller's promise.
        unsafe { self.round().max(Self::splat(-127.0)).min(Self::splat(127.0)) }
    }

    /// `e^x` of each lane, within 2 units in the last place; 0 below −87.7, +∞-free (clamped) above 88.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the instruction set is the caller's promise.
        unsafe {
            let x = self.max(Self::splat(-88.5)).min(Self::splat(88.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round().max(Self::splat(-127.0));
            // ln 2 in two parts, so that n · ln 2 is subtracted almost exactly (Cody and Waite).
            let r = n.mul_add(Self::splat(-355.0 / 512.0), x);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            // Taylor series to r^6: |r| ≤ 0.35, so the rest is below 1.2e-7.
            let mut p = Self::splat(1.0 / 720.0);
            for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = p.mul_add(r, Self::splat(c));
            }
            p.mul(n.exp2_whole())
        }
    }
}

/// What the bytes of `x` are to be multiplied by, and what `x` is multiplied by to become them; of zeros both are 0. What is NaN
/// counts as nothing, on every instruction set.
///
/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
pub(crate) unsafe fn byte_scale<V: Lanes>(x: &[f32]) -> (f32, f32) {
    let (whole, tail) = x.as_chunks::<LANES>();
    // SAFETY: arrays of 16; the instruction set is the caller's promise.
    let largest = unsafe {
        let mut largest = V::splat(0.0);
        for x in whole {
            // In this order: of a NaN and a number the instruction gives the second, whatever that is.
            largest = V::load(x.as_ptr()).abs().max(largest);
        }
        tail.iter().fold(largest.largest(), |largest, x| largest.max(x.abs()))
    };
    (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 })
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Plain Rust lanes.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    const CHAINS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises 16 readable floats.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self) {
        // SAFETY: the caller promises 32 readable numbers.
        let pairs = unsafe { from.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        let widen = |i: usize| Self(std::array::from_fn(|lane| f32::from_bits(u32::from(pairs[lane][i]) << 16)));
        (widen(0), widen(1))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller promises 16 readable numbers.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: the caller promises 16 readable bytes.
        Self(unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from))
    }
    type Sums = [i32; LANES];
    const WEIGHT_OFFSET: i32 = 0;
    #[inline(always)]
    unsafe fn start_sums(_: *const i32) -> [i32; LANES] {
        [0; LANES]
    }
    type Weights = [[i8; 4]; LANES];
    #[inline(always)]
    unsafe fn load_weights(from: *const i8) -> [[i8; 4]; LANES] {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { from.cast::<[[i8; 4]; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot4(sums: [i32; LANES], weights: [[i8; 4]; LANES], x: i32) -> [i32; LANES] {
        let x = x.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        std::array::from_fn(|lane| {
            weights[lane].iter().zip(x).fold(sums[lane], |sum, (&weight, x)| sum + i32::from(weight) * x)
        })
    }
    #[inline(always)]
    unsafe fn sums_to_f32(sums: [i32; LANES]) -> Self {
        Self(sums.map(|sum| sum as f32))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises 16 writable floats.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, by: Self, to: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * by.0[i] + to.0[i]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, f32::max)
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, f32::min)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        self.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn round_to_bf16(self) -> Self {
        self.map(|x| from_bf16(to_bf16(x)))
    }
    #[inline(always)]
    unsafe fn store_upper_halves(self, to: *mut u16) {
        // SAFETY: the caller promises 16 writable numbers.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(self.0.map(|x| (x.to_bits() >> 16) as u16)) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8) {
        // SAFETY: the caller promises 16 writable bytes.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(self.0.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        fold(self.0, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        fold(self.0, f32::max)
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        self.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
}

#[cfg(target_arch = "x86_64")]
#[path = "lanes_x86.rs"]
mod native;
#[cfg(not(target_arch = "x86_64"))]
#[path = "lanes_other.rs"]
mod native;

#[cfg(target_arch = "x86_64")]
pub(crate) use native::{Avx2, Avx512, AvxVnni};
pub(crate) use native::{bf16_pairs_tile, prefetch, prefetch_far, versions};

#[cfg(test)]
mod tests {
    use super::*;

    versions! {
        unsafe fn exp_of(x: &[f32; LANES]) -> [f32; LANES] = exp_body
    }

    #[inline(always)]
    unsafe fn exp_body<V: Lanes>(x: &[f32; LANES]) -> [f32; LANES] {
        // SAFETY: arrays of 16; the instruction set is the caller's promise.
        unsafe { V::load(x.as_ptr()).exp().to_array() }
    }

    versions! {
        unsafe fn byte_scale_of(x: &[f32]) -> (f32, f32) = byte_scale
    }

    #[test]
    fn a_number_that_is_none_hides_no_other_from_the_scale_of_bytes() {
        let x: Vec<f32> = (0..3 * LANES + 5).map(|i| i as f32 - 20.0).collect();
        for isa in Isa::available() {
            for at in 0..x.len() {
                let mut spoiled = x.clone();
                spoiled[at] = f32::NAN;
                let largest = spoiled.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
                // SAFETY: the ISA is available.
                let scale = unsafe { byte_scale_of(isa, &spoiled) };
                assert_eq!(scale, (largest / 127.0, 127.0 / largest), "{isa:?} {at}");
            }
        }
    }

    #[test]
    fn exp_is_within_two_units_and_reaches_zero() {
        for isa in Isa::available() {
            let mut worst = 0f64;
            for step in 0..20_000 {
                let x = -87.0 + step as f32 * (174.0 / 20_000.0);
                // SAFETY: the ISA is available.
                let y = unsafe { exp_of(isa, &[x; LANES]) }[7];
                let exact = f64::from(x).exp();
                worst = worst.max((f64::from(y) - exact).abs() / exact);
            }
            assert!(worst < 2.4e-7, "{isa:?}: relative error {worst}");
            // SAFETY: the ISA is available.
            let zeros = unsafe { exp_of(isa, &[f32::NEG_INFINITY; LANES]) };
            assert_eq!(zeros, [0.0; LANES]);
            // SAFETY: the ISA is available.
            assert_eq!(unsafe { exp_of(isa, &[0.0; LANES]) }, [1.0; LANES]);
        }
    }
}
