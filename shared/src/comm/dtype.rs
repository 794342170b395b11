//! What contributions are rounded to. Does not know what is added up, nor over what it goes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What contributions to a sum are rounded to; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommDType {
    /// Nothing: they are f32.
    F32,
    /// The nearest bf16, of two the even one: half the bytes between hosts. Rounded on every link alike, also where nothing is saved.
    Bf16,
}

/// As on the command line.
impl fmt::Display for CommDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// The upper half of the nearest bf16.
pub(super) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    // What is no number stays none, also where only the lower half says so.
    let rounded = if x.is_nan() { bits | 1 << 22 } else { bits + 0x7FFF + (bits >> 16 & 1) };
    (rounded >> 16) as u16
}

/// What it stands for.
pub(super) fn from_bf16_bits(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_the_nearest_and_of_two_the_even_one() {
        let rounded = |bits: u32| bf16_bits(f32::from_bits(bits));
        for (bits, expected) in [
            (0x3F80_7FFF, 0x3F80),
            (0x3F80_8000, 0x3F80),
            (0x3F80_8001, 0x3F81),
            (0x3F81_8000, 0x3F82),
            (0x7F7F_FFFF, 0x7F80),
            (0x8000_0000, 0x8000),
            (0xFF80_0000, 0xFF80),
        ] {
            assert_eq!(rounded(bits), expected, "{bits:08x}");
        }
        assert!(from_bf16_bits(rounded(0x7F80_0001)).is_nan() && from_bf16_bits(rounded(0xFFFF_FFFF)).is_nan());
    }
}
