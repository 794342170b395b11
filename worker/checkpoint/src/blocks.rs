//! Elements in blocks, as llama.cpp quantises them: 32 or 256 weights of a row share scales.
//!
//! ```text
//! Q8_0   scale, 32 bytes                                        x = d · q
//! Q4_0   scale, 32 nibbles                                      x = d · (q − 8)
//! Q4_1   scale, least, 32 nibbles                               x = d · q + m
//! Q5_0   scale, 32 fifth bits, 32 nibbles                       x = d · (q − 16)
//! Q5_1   scale, least, 32 fifth bits, 32 nibbles                x = d · q + m
//! Q4_K   two scales of 8 scales and 8 leasts of 6 bits, 256 nibbles             x = d s · q − e m
//! Q5_K   the same with 256 fifth bits                                           x = d s · q − e m
//! Q6_K   256 nibbles, 256 pairs of bits, 16 scales of 8 bits, a scale of these  x = d s · (q − 32)
//! ```
//! Each is a row of pieces of 32, which are made one by one. All is computed in f32, each product and sum rounded, in the order
//! written here, which is the `gguf` package's: the numbers are its to the last bit. Scales are f16.
//! Reference: `gguf/quants.py`; `ggml/src/ggml-common.h` of llama.cpp.

use std::{array, fmt};

use half::f16;

/// Elements that are made at once.
pub(crate) const PIECE: usize = 32;
/// Bytes of the packed scales and leasts of a block of 256.
const K_SCALES: usize = 12;

/// How blocks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockType {
    /// 8 bits and a scale.
    Q8_0,
    /// 4 bits and a scale.
    Q4_0,
    /// 4 bits, a scale and a least.
    Q4_1,
    /// 5 bits and a scale.
    Q5_0,
    /// 5 bits, a scale and a least.
    Q5_1,
    /// 4 bits, scales and leasts in two steps.
    Q4K,
    /// 5 bits, scales and leasts in two steps.
    Q5K,
    /// 6 bits, scales in two steps.
    Q6K,
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

impl BlockType {
    /// Elements of a block.
    pub(crate) fn elements(self) -> usize {
        match self {
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q4K => 4 + K_SCALES + 128,
            Self::Q5K => 4 + K_SCALES + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Makes `out` the elements from `at` on, of a row of blocks.
    pub(crate) fn read(self, blocks: &[u8], at: usize, out: &mut [f32]) {
        let mut rest = out;
        let mut at = at;
        while !rest.is_empty() {
            let (piece, skipped) = (self.piece(blocks, at / PIECE), at % PIECE);
            let (now, later) = rest.split_at_mut(rest.len().min(PIECE - skipped));
            now.copy_from_slice(&piece[skipped..][..now.len()]);
            at += now.len();
            rest = later;
        }
    }

    /// Elements `32 · index` to `32 · index + 31` of a row of blocks.
    fn piece(self, blocks: &[u8], index: usize) -> [f32; PIECE] {
        let pieces = self.elements() / PIECE;
        let block = &blocks[index / pieces * self.bytes()..][..self.bytes()];
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let piece = index % pieces;
        match self {
            Self::Q8_0 => {
                let (d, quants) = (half(0), bytes::<32>(block, 2));
                quants.map(|q| f32::from(q.cast_signed()) * d)
            }
            Self::Q4_0 => {
                let d = half(0);
                nibbles(bytes(block, 2)).map(|q| d * (f32::from(q) - 8.0))
            }
            Self::Q4_1 => {
                let (d, m) = (half(0), half(2));
                nibbles(bytes(block, 4)).map(|q| d * f32::from(q) + m)
            }
            Self::Q5_0 => {
                let d = half(0);
                fives(bytes(block, 2), bytes(block, 6)).map(|q| d * (f32::from(q) - 16.0))
            }
            Self::Q5_1 => {
                let (d, m) = (half(0), half(2));
                fives(bytes(block, 4), bytes(block, 8)).map(|q| d * f32::from(q) + m)
            }
            Self::Q4K | Self::Q5K => {
                let (scale, least) = scale_and_least(bytes(block, 4), piece);
                let (d, m) = (half(0) * f32::from(scale), half(2) * f32::from(least));
                let high = |i: usize| if self == Self::Q5K { (block[4 + K_SCALES + i] >> piece & 1) << 4 } else { 0 };
                let quants = self.bytes() - 128 + piece / 2 * 32;
                let low = bytes::<32>(block, quants).map(|byte| byte >> (4 * (piece % 2)) & 15);
                array::from_fn(|i| d * f32::from(low[i] | high(i)) - m)
            }
            Self::Q6K => {
                // Halves of 128; in each, four pieces share 32 bytes of pairs of bits, and two share 32 bytes of nibbles.
                let (of_half, quarter) = (piece / 4, piece % 4);
                let low =
                    bytes::<32>(block, of_half * 64 + quarter % 2 * 32).map(|byte| byte >> (quarter / 2 * 4) & 15);
                let high = bytes::<32>(block, 128 + of_half * 32).map(|byte| (byte >> (2 * quarter) & 3) << 4);
                let d = half(208);
                let scales: [f32; 2] = array::from_fn(|i| d * f32::from(block[192 + 2 * piece + i].cast_signed()));
                array::from_fn(|i| scales[i / 16] * (f32::from(low[i] | high[i]) - 32.0))
            }
        }
    }
}

fn bytes<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    *block[at..].first_chunk().expect("it lies inside the block")
}

/// The lower halves of all bytes, then the upper ones.
fn nibbles(bytes: [u8; 16]) -> [u8; PIECE] {
    array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// Nibbles with a fifth bit each.
fn fives(high: [u8; 4], low: [u8; 16]) -> [u8; PIECE] {
    let (high, low) = (u32::from_le_bytes(high), nibbles(low));
    array::from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4)
}

/// Number `i` of 8 scales and 8 leasts of 6 bits: four of each by themselves, whose upper two bits are those of the others.
fn scale_and_least(packed: [u8; K_SCALES], i: usize) -> (u8, u8) {
    if i < 4 {
        return (packed[i] & 63, packed[i + 4] & 63);
    }
    let upper = |byte: u8| byte >> 6 << 4;
    (packed[i + 4] & 15 | upper(packed[i - 4]), packed[i + 4] >> 4 | upper(packed[i]))
}
