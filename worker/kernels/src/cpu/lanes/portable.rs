//! Sixteen lanes in plain Rust.

use crate::cpu::{
    lanes::{LANES, Lanes, methods},
    rounding::{from_bf16, to_bf16},
};

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

    #[inline(always)]
    fn fold(self, combine: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = combine(lanes[i], lanes[i + width]);
            }
            width /= 2;
        }
        lanes[0]
    }
}

impl Lanes for Portable {
    const CHAINS: usize = 2;
    const WEIGHT_OFFSET: i32 = 0;
    type Sums = [i32; LANES];
    type Weights = [[i8; 4]; LANES];

    methods! { unsafe:
        fn load(from: *const f32) -> Self = Self(from.cast::<[f32; LANES]>().read_unaligned());
        fn load_bf16_pairs(from: *const u16) -> (Self, Self) = {
            let pairs = from.cast::<[[u16; 2]; LANES]>().read_unaligned();
            let widen = |i: usize| Self(std::array::from_fn(|lane| from_bf16(pairs[lane][i])));
            (widen(0), widen(1))
        };
        fn load_bf16(from: *const u16) -> Self = Self(from.cast::<[u16; LANES]>().read_unaligned().map(from_bf16));
        fn load_bytes(from: *const i8) -> Self = Self(from.cast::<[i8; LANES]>().read_unaligned().map(f32::from));
        fn load_i32(from: *const i32) -> Self =
            Self(from.cast::<[i32; LANES]>().read_unaligned().map(|sum| sum as f32));
        fn load_weights(from: *const i8) -> Self::Weights = from.cast::<Self::Weights>().read_unaligned();
        fn load_signed_weights(from: *const i8) -> Self::Weights = Self::load_weights(from);
        fn store(self, to: *mut f32) = to.cast::<[f32; LANES]>().write_unaligned(self.0);
        fn store_upper_halves(self, to: *mut u16) =
            to.cast::<[u16; LANES]>().write_unaligned(self.0.map(|x| (x.to_bits() >> 16) as u16));
        fn store_bytes(self, to: *mut i8) = to.cast::<[i8; LANES]>().write_unaligned(self.0.map(|x| x as i8));
    }

    methods! {
        fn store_rounded(self, sums: Self::Sums, to: *mut i8) -> Self::Sums = {
            let whole = self.0.map(|x| x.round_ties_even() as i32);
            // SAFETY: the caller has 16 bytes there.
            unsafe { to.cast::<[i8; LANES]>().write_unaligned(whole.map(|x| x as i8)) };
            std::array::from_fn(|i| sums[i] + whole[i])
        };
        fn splat(x: f32) -> Self = Self([x; LANES]);
        fn start_sums(_: *const i32) -> Self::Sums = [0; LANES];
        fn dot4(sums: Self::Sums, weights: Self::Weights, x: i32) -> Self::Sums = {
            let x = x.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
            std::array::from_fn(|lane| {
                weights[lane].iter().zip(x).fold(sums[lane], |sum, (&weight, x)| sum + i32::from(weight) * x)
            })
        };
        fn sums_to_f32(sums: Self::Sums) -> Self = Self(sums.map(|sum| sum as f32));
        fn mul_add(self, by: Self, to: Self) -> Self = Self(std::array::from_fn(|i| self.0[i] * by.0[i] + to.0[i]));
        fn add(self, other: Self) -> Self = self.zip(other, |a, b| a + b);
        fn sub(self, other: Self) -> Self = self.zip(other, |a, b| a - b);
        fn mul(self, other: Self) -> Self = self.zip(other, |a, b| a * b);
        fn div(self, other: Self) -> Self = self.zip(other, |a, b| a / b);
        fn max(self, other: Self) -> Self = self.zip(other, f32::max);
        fn min(self, other: Self) -> Self = self.zip(other, f32::min);
        fn above(self, other: Self) -> u16 = (0..LANES).map(|i| u16::from(self.0[i] > other.0[i]) << i).sum();
        fn round(self) -> Self = self.map(f32::round_ties_even);
        fn abs(self) -> Self = self.map(f32::abs);
        fn round_to_bf16(self) -> Self = self.map(|x| from_bf16(to_bf16(x)));
        fn sum(self) -> f32 = self.fold(|a, b| a + b);
        fn largest(self) -> f32 = self.fold(f32::max);
        fn exp2_whole(self) -> Self = self.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32));
    }
}
