//! The inner loops of products: M rows × P panels of 16 columns, held in registers while the panels stream by once, front to
//! back.
//!
//! Every element of a result is one chain over K in ascending order, whatever M and P are: a row's result does not depend on
//! its batch. A tile is `[P, M]` vectors of 16 columns. Does not know where rows come from or where results go.

use std::ops::Range;

use crate::cpu::{
    ahead::Ahead,
    inputs::{Bytes, Inputs},
    isa::Isa,
    lanes::{LANES, Lanes},
    packed::{Panels, Shape},
    versions::versions,
};

#[cfg(target_arch = "x86_64")]
mod bf16_pairs;

#[cfg(target_arch = "x86_64")]
use bf16_pairs::bf16_pairs_tile;

/// Calls the version of a tile function for the tile's rows and panels.
macro_rules! by_size {
    ($size:expr, $name:ident $args:tt) => {
        by_size!($size, $name $args,
            1 4, 2 4, 3 4, 4 4, 5 4, 6 4,
            5 2, 6 2, 7 2, 8 2, 9 2, 10 2, 11 2, 12 2,
            1 1, 2 1, 3 1, 4 1, 5 1, 6 1, 7 1, 8 1, 9 1, 10 1, 11 1, 12 1)
    };
    ($size:expr, $name:ident $args:tt, $($m:literal $p:literal),*) => {
        match $size {
            $(($m, $p) => by_size!(@call $name $m $p $args),)*
            (rows, panels) => unreachable!("no tile of {rows} rows and {panels} panels"),
        }
    };
    (@call $name:ident $m:literal $p:literal ($($arg:expr),*)) => { $name::<$m, $p>($($arg),*) };
}

/// The same for the tiles that there are of bytes.
macro_rules! by_size_of_bytes {
    ($size:expr, $name:ident $args:tt) => {
        by_size!($size, $name $args,
            1 4, 2 4, 3 4, 4 4,
            5 2, 6 2, 7 2, 8 2,
            1 1, 2 1, 3 1, 4 1, 5 1, 6 1, 7 1, 8 1)
    };
}

/// Vectors of the largest tile there is.
pub(crate) const MOST_VECTORS: usize = 24;

/// Rows of the highest tile that an instruction set has registers for. Bytes take two sums each, of the unit and of all.
pub(crate) fn most_rows(isa: Isa, inputs: &Inputs<'_>) -> usize {
    match (isa, inputs) {
        (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, Inputs::Int8(_)) => 8,
        (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, _) => 12,
        (_, Inputs::Int8(_)) => 4,
        _ => 6,
    }
}

/// Panels that are best read side by side: a tile of few rows needs several to hide the latency of its sums. As the next are
/// fetched meanwhile, both must stay in a core's second-level cache.
pub(crate) fn group(isa: Isa, shape: Shape) -> usize {
    const BYTES: usize = 256 << 10;
    match isa {
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx if 4 * shape.panel_bytes() <= BYTES => 4,
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => 2,
        Isa::AvxVnni | Isa::Avx2 | Isa::Portable => 1,
    }
}

/// The rows of the next tile where `rows` are left: as few tiles as `most` allows, of about the same height.
pub(crate) fn tile_rows(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most))
}

/// The panels of the next tile of so many rows, of at most `most`, where `panels` of a group are left.
pub(crate) fn tile_panels(rows: usize, most: usize, panels: usize) -> usize {
    match panels {
        4 if 2 * rows <= most => 4,
        2.. if 2 * rows > most => 2,
        _ => 1,
    }
}

/// `tile[p, m] = Σ_k x[m, k] · w[k, 16 · (panels.start + p) ..]` for `rows` of the inputs.
///
/// # Safety
/// The CPU has `isa`, and `x` and `weights` are of `shape`.
pub(crate) unsafe fn run(
    isa: Isa,
    (x, rows): (&Inputs<'_>, usize),
    (weights, shape): (&Panels, Shape),
    panels: Range<usize>,
    ahead: &Ahead,
    tile: &mut [[f32; LANES]],
) {
    let range = panels.start * shape.panel_len()..panels.end * shape.panel_len();
    let size = (rows, panels.len());
    // SAFETY: the caller's promise.
    unsafe {
        match (weights, x) {
            (Panels::F32(all), Inputs::F32(x)) => by_size!(size, f32_tile(isa, x, all.get(range), ahead, tile)),
            (Panels::Bf16(all), Inputs::F32(x)) => by_size!(size, bf16_tile(isa, x, all.get(range), ahead, tile)),
            #[cfg(target_arch = "x86_64")]
            (Panels::Bf16(all), Inputs::Bf16(x)) => by_size!(size, bf16_pairs_tile(x, all.get(range), ahead, tile)),
            #[cfg(target_arch = "x86_64")]
            (Panels::Int8(all), Inputs::Int8(x)) if !shape.is_biased() && isa >= Isa::Avx512 => {
                by_size_of_bytes!(size, signed_tile(x, all.get(range), shape, ahead, tile))
            }
            (Panels::Int8(all), Inputs::Int8(x)) => {
                let fits = shape.units() == 0 || shape.is_biased() == isa.biases_bytes();
                assert!(fits, "weights are packed for their instruction set");
                by_size_of_bytes!(size, int8_tile(isa, x, all.get(range), shape, ahead, tile))
            }
            _ => unreachable!("rows come in the form of their weights"),
        }
    }
}

versions! {
    unsafe fn f32_tile<const M: usize, const P: usize>(x: &[f32], panels: &[f32], ahead: &Ahead, tile: &mut [[f32; LANES]]) = f32_body
}
versions! {
    unsafe fn bf16_tile<const M: usize, const P: usize>(x: &[f32], panels: &[u16], ahead: &Ahead, tile: &mut [[f32; LANES]]) = bf16_body
}
versions! {
    unsafe fn int8_tile<const M: usize, const P: usize>(x: &Bytes<'_>, panels: &[i8], shape: Shape, ahead: &Ahead, tile: &mut [[f32; LANES]]) = int8_body
}

#[inline(always)]
unsafe fn f32_body<V: Lanes, const M: usize, const P: usize>(
    x: &[f32],
    panels: &[f32],
    ahead: &Ahead,
    tile: &mut [[f32; LANES]],
) {
    let len = panels.len() / P;
    let depth = len / LANES;
    assert!(x.len() == M * depth && tile.len() == P * M);
    // SAFETY: offsets are below the lengths just checked; the instruction set is the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); M]; P];
        let (x, panels) = (x.as_ptr(), panels.as_ptr());
        for k in 0..depth {
            ahead.fetch::<P>(k);
            let mut weights = [V::splat(0.0); P];
            for p in 0..P {
                weights[p] = V::load(panels.add(p * len + k * LANES));
            }
            for m in 0..M {
                let x = V::splat(*x.add(m * depth + k));
                for p in 0..P {
                    sums[p][m] = x.mul_add(weights[p], sums[p][m]);
                }
            }
        }
        store(&sums, tile);
    }
}

/// The same over pairs of bf16.
#[inline(always)]
unsafe fn bf16_body<V: Lanes, const M: usize, const P: usize>(
    x: &[f32],
    panels: &[u16],
    ahead: &Ahead,
    tile: &mut [[f32; LANES]],
) {
    let len = panels.len() / P;
    let depth = len / LANES;
    assert!(x.len() == M * depth && depth.is_multiple_of(2) && tile.len() == P * M);
    // SAFETY: offsets are below the lengths just checked; the instruction set is the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); M]; P];
        let (x, panels) = (x.as_ptr(), panels.as_ptr());
        for k in (0..depth).step_by(2) {
            ahead.fetch::<P>(k / 2);
            // A closure might not be inlined, and then lacks the instruction set.
            let (mut first, mut second) = ([V::splat(0.0); P], [V::splat(0.0); P]);
            for p in 0..P {
                (first[p], second[p]) = V::load_bf16_pairs(panels.add(p * len + k * LANES));
            }
            for m in 0..M {
                let x = x.add(m * depth + k);
                for p in 0..P {
                    sums[p][m] = V::splat(*x).mul_add(first[p], sums[p][m]);
                    sums[p][m] = V::splat(*x.add(1)).mul_add(second[p], sums[p][m]);
                }
            }
        }
        store(&sums, tile);
    }
}

/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
unsafe fn store<V: Lanes, const M: usize, const P: usize>(sums: &[[V; M]; P], tile: &mut [[f32; LANES]]) {
    for (sum, row) in sums.as_flattened().iter().zip(tile) {
        // SAFETY: an array of 16; the rest is the caller's promise.
        unsafe { sum.store(row.as_mut_ptr()) };
    }
}

/// The same over fours of bytes: exact sums within a unit, scaled and added up in f32 across units.
#[inline(always)]
unsafe fn int8_body<V: Lanes, const M: usize, const P: usize>(
    x: &Bytes<'_>,
    panels: &[i8],
    shape: Shape,
    ahead: &Ahead,
    tile: &mut [[f32; LANES]],
) {
    // SAFETY: the caller's promise.
    unsafe { add_units::<V, false, M, P>(x, panels, shape, ahead, tile) };
}

/// The same over bytes as tile registers want them, for rows that are too few for those.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn signed_tile<const M: usize, const P: usize>(
    x: &Bytes<'_>,
    panels: &[i8],
    shape: Shape,
    ahead: &Ahead,
    tile: &mut [[f32; LANES]],
) {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { add_units::<crate::cpu::lanes::avx512::Avx512, true, M, P>(x, panels, shape, ahead, tile) };
}

#[inline(always)]
unsafe fn add_units<V: Lanes, const SIGNED: bool, const M: usize, const P: usize>(
    x: &Bytes<'_>,
    panels: &[i8],
    shape: Shape,
    ahead: &Ahead,
    tile: &mut [[f32; LANES]],
) {
    let (depth, units, unit) = (shape.depth(), shape.units(), shape.padded_unit());
    let len = shape.panel_len();
    assert!(x.values.len() == M * depth && x.scales.len() == M * units && x.offsets.len() == M * units);
    assert!(panels.len() == P * len && tile.len() == P * M);
    // SAFETY: offsets are below the lengths just checked: `depth = units · unit`, and `unit` is a multiple of 4; scales are read
    // from the first `units · 32` bytes of each panel. The instruction set is the caller's promise.
    unsafe {
        let (values, panels) = (x.values.as_ptr(), panels.as_ptr());
        let mut totals = [[V::splat(0.0); M]; P];
        for u in 0..units {
            let mut starts = [V::start_sums(x.offsets.as_ptr().add(u)); M];
            for m in 1..M {
                starts[m] = V::start_sums(x.offsets.as_ptr().add(m * units + u));
            }
            let mut sums = [starts; P];
            let weights = panels.add(shape.scale_bytes());
            let (first, end) = (u * unit, (u + 1) * unit);
            // Eight at a time, so that the end of the loop is foreseen.
            let whole = first + unit / 32 * 32;
            for k in (first..whole).step_by(32) {
                for k in (k..k + 32).step_by(4) {
                    ahead.fetch::<P>(k / 4);
                    add_four::<V, SIGNED, M, P>(&mut sums, (values.add(k), depth), (weights.add(k * LANES), len));
                }
            }
            for k in (whole..end).step_by(4) {
                ahead.fetch::<P>(k / 4);
                add_four::<V, SIGNED, M, P>(&mut sums, (values.add(k), depth), (weights.add(k * LANES), len));
            }
            for p in 0..P {
                let weight_scales = V::load_bf16(panels.add(p * len).cast::<u16>().add(u * LANES));
                for m in 0..M {
                    let scale = weight_scales.mul(V::splat(*x.scales.get_unchecked(m * units + u)));
                    totals[p][m] = V::sums_to_f32(sums[p][m]).mul_add(scale, totals[p][m]);
                }
            }
        }
        store(&totals, tile);
    }
}

/// Adds four products to each sum: of the bytes at `x`, a row every `depth`, and those at `weights`, a panel every `len`.
///
/// # Safety
/// All of these can be read; the instruction set of `V` is available.
#[inline(always)]
unsafe fn add_four<V: Lanes, const SIGNED: bool, const M: usize, const P: usize>(
    sums: &mut [[V::Sums; M]; P],
    (x, depth): (*const i8, usize),
    (weights, len): (*const i8, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut four = [V::load_weights(weights); P];
        for p in 0..P {
            let weights = weights.add(p * len);
            four[p] = if SIGNED { V::load_signed_weights(weights) } else { V::load_weights(weights) };
        }
        for m in 0..M {
            let x = i32::from_le(x.add(m * depth).cast::<i32>().read_unaligned());
            for p in 0..P {
                sums[p][m] = V::dot4(sums[p][m], four[p], x);
            }
        }
    }
}
