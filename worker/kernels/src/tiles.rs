//! The inner loops of products: M rows × one panel of 16 columns, held in registers while the panel streams by once, front to
//! back.
//!
//! Every element of a result is one chain over K in ascending order, whatever M is: a row's result does not depend on its batch.
//! Does not know where rows come from or where results go.

use crate::{
    Isa,
    inputs::Inputs,
    lanes::{AHEAD, LANES, Lanes, bf16_pairs_tile, prefetch, versions},
    packed::{Panels, Shape},
};

/// Calls the version of a tile function for the tile's height.
macro_rules! by_height {
    ($tile:ident, $name:ident($($arg:expr),*)) => {
        match $tile.len() {
            1 => $name::<1>($($arg),*),
            2 => $name::<2>($($arg),*),
            3 => $name::<3>($($arg),*),
            4 => $name::<4>($($arg),*),
            5 => $name::<5>($($arg),*),
            6 => $name::<6>($($arg),*),
            8 => $name::<8>($($arg),*),
            10 => $name::<10>($($arg),*),
            12 => $name::<12>($($arg),*),
            height => unreachable!("no tile of {height} rows"),
        }
    };
}

/// Rows of the highest tile there is.
pub(crate) const MOST_ROWS: usize = 12;

/// Rows of the highest tile that an instruction set has registers for.
pub(crate) fn most_rows(isa: Isa, inputs: &Inputs<'_>) -> usize {
    match (isa, inputs) {
        (Isa::Avx512 | Isa::Avx512Bf16, _) => MOST_ROWS,
        (_, Inputs::Int8 { .. }) => 4,
        _ => 6,
    }
}

/// The height of the next tile where `rows` are left: as few tiles as `most` allows, of about the same height, since a tile of
/// one row streams the panel as long as one of several.
pub(crate) fn tile_height(rows: usize, most: usize) -> usize {
    let even = rows.div_ceil(rows.div_ceil(most));
    [12, 10, 8, 6, 5, 4, 3, 2, 1].into_iter().find(|&height| height <= even).expect("1 always fits")
}

/// `tile[m] = Σ_k x[m, k] · w[k, 16 · panel ..]` for the rows of `x`, as many as `tile` has.
///
/// # Safety
/// The CPU has `isa`, and `x` and `panels` are of `shape`.
pub(crate) unsafe fn run(
    isa: Isa,
    x: Inputs<'_>,
    panels: &Panels,
    shape: Shape,
    panel: usize,
    tile: &mut [[f32; LANES]],
) {
    let range = panel * shape.panel_len()..(panel + 1) * shape.panel_len();
    // SAFETY: the caller's promise.
    unsafe {
        match (panels, x) {
            (Panels::F32(all), Inputs::F32(x)) => by_height!(tile, f32_tile(isa, x, all.get(range), tile)),
            (Panels::Bf16(all), Inputs::F32(x)) => by_height!(tile, bf16_tile(isa, x, all.get(range), tile)),
            (Panels::Bf16(all), Inputs::Bf16(x)) => by_height!(tile, bf16_pairs_tile(x, all.get(range), tile)),
            (Panels::Int8(all), Inputs::Int8 { values, scales, sums }) => {
                let x = Bytes { values, scales, sums };
                by_height!(tile, int8_tile(isa, x, all.get(range), shape, tile));
            }
            _ => unreachable!("rows come in the form of their weights"),
        }
    }
}

/// Quantised rows.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    values: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
}

versions! {
    unsafe fn f32_tile<const M: usize>(x: &[f32], panel: &[f32], tile: &mut [[f32; LANES]]) = f32_body
}
versions! {
    unsafe fn bf16_tile<const M: usize>(x: &[f32], panel: &[u16], tile: &mut [[f32; LANES]]) = bf16_body
}
versions! {
    unsafe fn int8_tile<const M: usize>(x: Bytes<'_>, panel: &[i8], shape: Shape, tile: &mut [[f32; LANES]]) = int8_body
}

#[inline(always)]
unsafe fn f32_body<V: Lanes, const M: usize>(x: &[f32], panel: &[f32], tile: &mut [[f32; LANES]]) {
    let depth = panel.len() / LANES;
    assert!(x.len() == M * depth && tile.len() == M);
    // SAFETY: offsets are below the lengths just checked; the instruction set is the caller's promise.
    unsafe {
        let mut sums = [V::splat(0.0); M];
        let (x, panel) = (x.as_ptr(), panel.as_ptr());
        for k in 0..depth {
            prefetch(panel.wrapping_add(k * LANES + AHEAD / 4));
            let weights = V::load(panel.add(k * LANES));
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = V::splat(*x.add(m * depth + k)).mul_add(weights, *sum);
            }
        }
        for (sum, row) in sums.iter().zip(tile) {
            sum.store(row.as_mut_ptr());
        }
    }
}

/// The same over pairs of bf16.
#[inline(always)]
unsafe fn bf16_body<V: Lanes, const M: usize>(x: &[f32], panel: &[u16], tile: &mut [[f32; LANES]]) {
    let depth = panel.len() / LANES;
    assert!(x.len() == M * depth && depth.is_multiple_of(2) && tile.len() == M);
    // SAFETY: offsets are below the lengths just checked; the instruction set is the caller's promise.
    unsafe {
        let mut sums = [V::splat(0.0); M];
        let (x, panel) = (x.as_ptr(), panel.as_ptr());
        for k in (0..depth).step_by(2) {
            prefetch(panel.wrapping_add(k * LANES + AHEAD / 2));
            let (first, second) = V::load_bf16_pairs(panel.add(k * LANES));
            for (m, sum) in sums.iter_mut().enumerate() {
                let x = x.add(m * depth + k);
                *sum = V::splat(*x).mul_add(first, *sum);
                *sum = V::splat(*x.add(1)).mul_add(second, *sum);
            }
        }
        for (sum, row) in sums.iter().zip(tile) {
            sum.store(row.as_mut_ptr());
        }
    }
}

/// The same over fours of bytes: exact sums within a unit, scaled and added up in f32 across units.
#[inline(always)]
unsafe fn int8_body<V: Lanes, const M: usize>(x: Bytes<'_>, panel: &[i8], shape: Shape, tile: &mut [[f32; LANES]]) {
    let (depth, units, unit) = (shape.depth(), shape.units(), shape.padded_unit());
    assert!(x.values.len() == M * depth && x.scales.len() == M * units && x.sums.len() == M * units && tile.len() == M);
    assert!(panel.len() == shape.scale_bytes() + depth * LANES);
    tile.fill([0.0; LANES]);
    // SAFETY: offsets are below the lengths just checked: `depth = units · unit`, and `unit` is a multiple of 4; scales are read
    // from the first `units · 32` bytes. The instruction set is the caller's promise.
    unsafe {
        let (values, scales) = (x.values.as_ptr(), panel.as_ptr().cast::<u16>());
        let weights = panel.as_ptr().add(shape.scale_bytes());
        for u in 0..units {
            let mut sums: [V::Sums; M] = std::array::from_fn(|m| V::start_sums(*x.sums.get_unchecked(m * units + u)));
            for k in (u * unit..(u + 1) * unit).step_by(4) {
                let at = weights.add(k * LANES);
                prefetch(at.wrapping_add(AHEAD));
                for (m, sums) in sums.iter_mut().enumerate() {
                    let x = values.add(m * depth + k).cast::<i32>().read_unaligned();
                    *sums = V::dot4(*sums, at, i32::from_le(x));
                }
            }
            let weight_scales = V::load_bf16(scales.add(u * LANES));
            for (m, (row, sums)) in tile.iter_mut().zip(sums).enumerate() {
                let scale = weight_scales.mul(V::splat(*x.scales.get_unchecked(m * units + u)));
                V::sums_to_f32(sums).mul_add(scale, V::load(row.as_ptr())).store(row.as_mut_ptr());
            }
        }
    }
}
