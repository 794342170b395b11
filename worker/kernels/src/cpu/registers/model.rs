//! Tile registers in plain Rust, as Intel's manual describes the instructions (volume 2, TDPBSSD and TDPBF16PS).

use crate::cpu::{
    registers::{ROW_BYTES, ROWS, TileRegisters},
    rounding::from_bf16,
};

/// Eight registers.
pub(crate) struct Model {
    rows: usize,
    registers: [[[u8; ROW_BYTES]; ROWS]; 8],
}

impl Model {
    fn rows(&self, register: usize) -> usize {
        if register < 6 { self.rows } else { ROWS }
    }

    /// Calls `new` with each sum, the row of inputs and the column of weights that belong to it.
    fn update(&mut self, (c, a, w): (usize, usize, usize), new: impl Fn([u8; 4], &[[u8; 4]], &[[u8; 4]]) -> [u8; 4]) {
        for row in 0..self.rows(c) {
            let inputs = self.registers[a][row];
            for column in 0..ROW_BYTES / 4 {
                let at = column * 4..column * 4 + 4;
                let weights: [[u8; 4]; ROWS] = std::array::from_fn(|k| four(&self.registers[w][k][at.clone()]));
                let sum = four(&self.registers[c][row][at.clone()]);
                self.registers[c][row][at].copy_from_slice(&new(sum, inputs.as_chunks().0, &weights));
            }
        }
    }
}

fn four(bytes: &[u8]) -> [u8; 4] {
    bytes.try_into().expect("four bytes")
}

/// Denormals are zeros.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// `a · b + c` with one rounding. Whether the result is denormal is decided as if exponents had no end: what rounds up to the
/// smallest normal number only for lack of digits is one.
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    const SCALE: f32 = 18_446_744_073_709_551_616.0;
    let (a, b, c) = (flushed(a), flushed(b), flushed(c));
    let sum = a.mul_add(b, c);
    if sum.abs() == f32::MIN_POSITIVE {
        let (small, large) = if a.abs() < b.abs() { (a, b) } else { (b, a) };
        let scaled = (small * SCALE).mul_add(large, c * SCALE);
        if scaled.abs() < f32::MIN_POSITIVE * SCALE {
            return 0.0_f32.copysign(sum);
        }
    }
    flushed(sum)
}

fn add(a: f32, b: f32) -> f32 {
    // Sums of floats are exact where they are small.
    flushed(flushed(a) + flushed(b))
}

impl TileRegisters for Model {
    unsafe fn with_rows(rows: usize) -> Self {
        assert!((1..=ROWS).contains(&rows), "a register has 1 to 16 rows");
        Self { rows, registers: [[[0; ROW_BYTES]; ROWS]; 8] }
    }

    unsafe fn zero<const T: usize>(&mut self) {
        self.registers[T] = [[0; ROW_BYTES]; ROWS];
    }

    unsafe fn load<const T: usize>(&mut self, from: *const u8) {
        let rows = self.rows(T);
        // SAFETY: the caller promises the rows at `from`.
        let from = unsafe { std::slice::from_raw_parts(from.cast::<[u8; ROW_BYTES]>(), rows) };
        self.registers[T][..rows].copy_from_slice(from);
        self.registers[T][rows..].fill([0; ROW_BYTES]);
    }

    unsafe fn store<const T: usize>(&mut self, to: *mut u8) {
        let rows = self.rows(T);
        // SAFETY: the caller promises the rows at `to`.
        let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<[u8; ROW_BYTES]>(), rows) };
        to.copy_from_slice(&self.registers[T][..rows]);
    }

    unsafe fn dot_bytes<const C: usize, const A: usize, const W: usize>(&mut self) {
        let signed = |bytes: [u8; 4]| bytes.map(|byte| i32::from(byte.cast_signed()));
        self.update((C, A, W), |sum, inputs, weights| {
            let products = inputs.iter().zip(weights).flat_map(|(&x, &w)| signed(x).into_iter().zip(signed(w)));
            products.fold(i32::from_le_bytes(sum), |sum, (x, w)| sum.wrapping_add(x * w)).to_le_bytes()
        });
    }

    unsafe fn dot_pairs<const C: usize, const A: usize, const W: usize>(&mut self) {
        let number = |bytes: [u8; 4], i: usize| from_bf16(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
        self.update((C, A, W), |sum, inputs, weights| {
            let chain =
                |i| inputs.iter().zip(weights).fold(0.0, |sum, (&x, &w)| multiply_add(number(x, i), number(w, i), sum));
            add(f32::from_le_bytes(sum), add(chain(0), chain(1))).to_le_bytes()
        });
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::cpu::{Isa, registers::amx::Amx};

    #[repr(align(64))]
    #[derive(Clone, Copy, PartialEq, Debug)]
    struct Register([[u32; 16]; ROWS]);

    /// What registers make of sums, inputs and weights, of bytes and of pairs.
    fn products<T: TileRegisters>(
        rows: usize,
        sums: &Register,
        inputs: &Register,
        weights: &Register,
    ) -> [Register; 2] {
        let start = |register: &Register| std::ptr::from_ref(register).cast::<u8>();
        let mut to = [*sums; 2];
        // SAFETY: the registers are there; all arrays have 16 rows.
        unsafe {
            let mut registers = T::with_rows(rows);
            registers.load::<0>(start(sums));
            registers.load::<3>(start(sums));
            registers.load::<5>(start(inputs));
            registers.load::<6>(start(weights));
            registers.dot_bytes::<0, 5, 6>();
            registers.dot_pairs::<3, 5, 6>();
            registers.store::<0>(std::ptr::from_mut(&mut to[0]).cast());
            registers.store::<3>(std::ptr::from_mut(&mut to[1]).cast());
        }
        to
    }

    /// Of bits, so that what is not a number equals itself; its payload is the CPU's affair.
    fn numbers(register: Register) -> Vec<u32> {
        let quiet = |bits: u32| if f32::from_bits(bits).is_nan() { 0x7fc0_0000 } else { bits };
        register.0.as_flattened().iter().map(|&bits| quiet(bits)).collect()
    }

    #[test]
    fn the_assembly_does_what_the_model_says_also_with_extremes() {
        if !Isa::Amx.is_available() {
            return;
        }
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        // Zeros, the smallest, around the smallest normal number, 1, the largest, what is none.
        const EXTREMES: [u16; 14] =
            [0, 0x8000, 1, 0x8001, 0x7f, 0x80, 0x8080, 0x3f80, 0xbf80, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc1];
        for round in 0..3000_u32 {
            // Exponents around one another, or around where products become denormal, or any bits, or extremes.
            let mut half = |side: u32| -> u16 {
                let bits = random();
                let near = |exponent: u32| ((bits & 0x807f) | (exponent + (bits >> 16) % 12) << 7) as u16;
                match round % 5 {
                    0 => near(120),
                    1 => near(if side == 0 { 20 } else { 102 }),
                    2 => bits as u16,
                    3 if bits >> 28 < 3 => EXTREMES[(bits & 0xffff) as usize % EXTREMES.len()],
                    3 => near(118),
                    // Few powers of two: sums that lack just a little of the smallest normal number.
                    _ if bits >> 16 & 3 > 0 => 0,
                    _ => (bits & 0x8000) as u16 | [64, 63, 52, 51][(bits & 3) as usize] << 7,
                }
            };
            let mut register = |side| {
                Register(std::array::from_fn(|_| {
                    std::array::from_fn(|_| u32::from(half(side)) << 16 | u32::from(half(side)))
                }))
            };
            let (inputs, weights, mut sums) = (register(0), register(1), register(0));
            match round % 3 {
                0 => sums = Register([[0; 16]; ROWS]),
                1 => {}
                _ => sums.0.as_flattened_mut().iter_mut().for_each(|sum| *sum &= 0x80ff_ffff),
            }
            let rows = 1 + round as usize % ROWS;
            let [bytes, pairs] = products::<Amx>(rows, &sums, &inputs, &weights);
            let [model_bytes, model_pairs] = products::<Model>(rows, &sums, &inputs, &weights);
            assert_eq!(bytes, model_bytes, "round {round}");
            assert_eq!(numbers(pairs), numbers(model_pairs), "round {round}");
        }
    }
}
