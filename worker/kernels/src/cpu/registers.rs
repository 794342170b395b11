//! Tile registers: products of 16 rows with 16 columns by one instruction.
//!
//! ```text
//! eight registers of up to 16 rows × 64 bytes      0 … 3 hold sums, 4 and 5 rows of inputs, 6 and 7 weights
//!   sums [rows][16 columns]  +=  inputs [rows][16 fours of bytes, or pairs of bf16]  ·  weights [the same 16][16 columns]
//! ```
//! A chunk of a packed panel, 64 bytes of K for each of 16 columns, is such a register of weights as it lies in memory. Of rows
//! a product takes as many as it has; weights always fill their register. Does not know panels, units or scales.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(test)]
mod model;

/// Bytes of a row of a register.
pub(crate) const ROW_BYTES: usize = 64;
/// Rows of a register.
pub(crate) const ROWS: usize = 16;

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Line(#[expect(dead_code, reason = "read as other numbers")] [u8; ROW_BYTES]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; ROW_BYTES]);
}

/// Whose registers a product uses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TileUnit {
    /// The CPU's.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// Plain Rust, the truth in tests.
    #[cfg(test)]
    Model,
}

/// Calls a generic function with the registers of a unit.
macro_rules! with_registers {
    ($unit:expr, $object:ident.$name:ident($($arg:expr),*)) => {
        match $unit {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::registers::TileUnit::Amx => $object.$name::<$crate::cpu::registers::amx::Amx>($($arg),*),
            #[cfg(test)]
            $crate::cpu::registers::TileUnit::Model => $object.$name::<$crate::cpu::registers::Model>($($arg),*),
        }
    };
}
pub(crate) use with_registers;

#[cfg(test)]
pub(crate) use model::Model;

/// A thread's registers, for as long as the value lives.
///
/// # Safety
/// Registers of sums and inputs have the rows that the value was made with, those of weights 16. Addresses that a method is given
/// are of so many rows of 64 bytes, one behind the other.
pub(crate) trait TileRegisters {
    /// All of them, with `rows` of 1..=16 rows for sums and inputs.
    ///
    /// # Safety
    /// The CPU and the system have them; the thread has no other such value.
    unsafe fn with_rows(rows: usize) -> Self;
    /// Fills register `T` with zeros.
    unsafe fn zero<const T: usize>(&mut self);
    /// Fills register `T` from memory.
    unsafe fn load<const T: usize>(&mut self, from: *const u8);
    /// Copies register `T` to memory.
    unsafe fn store<const T: usize>(&mut self, to: *mut u8);
    /// Adds to each i32 of `C` sixteen times the four products of signed bytes of `A` with those of `W`; sums wrap around.
    unsafe fn dot_bytes<const C: usize, const A: usize, const W: usize>(&mut self);
    /// Adds to each f32 of `C` the products of `A` and `W`: in two chains of multiply-adds from zero on, of the first and of
    /// the second of each pair, in ascending order, which are added up, and then to `C`. Every step rounds to nearest even;
    /// denormals count as zeros, before and after it; there are no exceptions.
    unsafe fn dot_pairs<const C: usize, const A: usize, const W: usize>(&mut self);
}
