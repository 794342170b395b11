//! Sixteen f32 lanes, the unit in which every kernel is written, for each instruction set.
//!
//! Functions here are `inline(always)`: they become instructions of the `target_feature` function that `versions!` makes
//! around a kernel's body.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

/// Lanes of a vector on every instruction set.
pub(crate) const LANES: usize = 16;

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
    /// From 16 i32 at `from`, of any alignment.
    unsafe fn load_i32(from: *const i32) -> Self;
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
    /// A bit for each lane that is larger than the other's.
    unsafe fn above(self, other: Self) -> u16;
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
    /// What was added to each weight as [`Lanes::load_weights`] takes it; sums begin with what takes that back.
    const WEIGHT_OFFSET: i32;
    /// Sums that begin with `*offset`: −[`Lanes::WEIGHT_OFFSET`] times the sum of the `x` to come.
    unsafe fn start_sums(offset: *const i32) -> Self::Sums;
    /// Four bytes a lane, as `dot4` takes them.
    type Weights: Copy;
    /// From 64 bytes with the offset added, of any alignment, four for each lane.
    unsafe fn load_weights(from: *const i8) -> Self::Weights;
    /// The same from 64 bytes of −127..=127, as tile registers want them.
    unsafe fn load_signed_weights(from: *const i8) -> Self::Weights;
    /// Adds to each lane the four products of its weights (−127..=127, but for the offset) with the four bytes of `x` (−127..=127).
    unsafe fn dot4(sums: Self::Sums, weights: Self::Weights, x: i32) -> Self::Sums;
    /// To the nearest whole numbers, ties to even, of which none is beyond ±127: to 16 bytes at `to`, of any alignment, and added to `sums`.
    unsafe fn store_rounded(self, sums: Self::Sums, to: *mut i8) -> Self::Sums;
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

/// Methods of a trait as a table. All are inlined; behind `unsafe:`, what they do is the caller's promise.
macro_rules! methods {
    (unsafe: $(fn $name:ident $(<$v:ident: $bound:ident>)? ($($arg:tt)*) $(-> $ret:ty)? = $body:expr;)*) => {
        $crate::cpu::lanes::methods! {
            // SAFETY: the caller promises the instruction set, and as many numbers behind a pointer as the trait says.
            $(fn $name $(<$v: $bound>)? ($($arg)*) $(-> $ret)? = unsafe { $body };)*
        }
    };
    ($(fn $name:ident $(<$v:ident: $bound:ident>)? ($($arg:tt)*) $(-> $ret:ty)? = $body:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name $(<$v: $bound>)? ($($arg)*) $(-> $ret)? {
            $body
        })*
    };
}
pub(crate) use methods;
