//! The inner loops of products on tile registers: bands of rows × panels of 16 columns.
//!
//! Bytes give the bits of the vector loops (`tiles`): sums within a unit are exact, and they are scaled and added up in the same
//! order. Sums of bf16 go as the instruction adds up pairs, from chunk to chunk of 32 of K, whatever the number of rows: a row's
//! result does not depend on its batch. Does not know where rows come from or where results go.

use std::{
    ops::Range,
    sync::atomic::{Ordering::SeqCst, compiler_fence},
};

use crate::cpu::{
    ahead::Ahead,
    inputs::Bands,
    isa::Isa,
    lanes::{LANES, Lanes},
    packed::{Panels, Shape},
    registers::{Line, ROW_BYTES, ROWS, TileRegisters},
    versions::versions,
};

/// Sums of a band and a panel, of which rows that the band lacks are of no meaning.
pub(crate) type Block<T> = [[T; LANES]; ROWS];

/// Bytes of K, for 16 columns, that fill a register.
const CHUNK: usize = ROWS * ROW_BYTES;

/// Sizes of a product's panels and bands, worked out once for all of its tiles.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    shape: Shape,
    /// Rows of a band.
    height: usize,
    /// Units that are scaled.
    units: usize,
    /// Bytes of a column over which a sum runs: of a unit, or all.
    sum_bytes: usize,
    /// Chunks of a column.
    chunks: usize,
    panel_bytes: usize,
    scale_bytes: usize,
}

impl Form {
    pub(crate) fn new(shape: Shape, height: usize) -> Self {
        Self {
            shape,
            height,
            units: shape.units(),
            sum_bytes: shape.sum_bytes(),
            chunks: shape.chunks(),
            panel_bytes: shape.panel_bytes(),
            scale_bytes: shape.scale_bytes(),
        }
    }

    /// The most bands and panels of a tile, where there are so many bands: as many as there are registers for their sums, or, of
    /// bytes, whose panels come one by one, as many as let the next begin while the last is scaled.
    pub(crate) fn most(self, bands: usize) -> (usize, usize) {
        if self.shape.scaled() || bands <= 1 { (1, 4) } else { (2, 2) }
    }
}

/// Memory that the tiles of a task use again and again.
#[repr(align(64))]
pub(crate) struct Scratch {
    /// `[bands, panels]` of a tile, one behind the other.
    pub(crate) tile: [Block<f32>; 4],
    /// Sums of bytes on their way from registers to registers: of two units, and of the two before.
    sums: [[Block<i32>; 2]; 2],
    /// A chunk of weights that does not fill a register.
    chunk: [u8; CHUNK],
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { tile: [[[0.0; LANES]; ROWS]; 4], sums: [[[[0; LANES]; ROWS]; 2]; 2], chunk: [0; CHUNK] }
    }
}

/// `scratch.tile[band, p][row] = Σ_k x[band, row, k] · w[k, 16 · (panels.start + p) ..]` for some bands of `x`.
///
/// # Safety
/// The CPU has `isa`; the registers have the rows of a band; `x` and `weights` are of the form's shape.
pub(crate) unsafe fn run<T: TileRegisters>(
    isa: Isa,
    registers: &mut T,
    (x, bands): (Bands<'_>, Range<usize>),
    (weights, form): (&Panels, Form),
    panels: Range<usize>,
    ahead: Ahead,
    scratch: &mut Scratch,
) {
    let (start, end) = (panels.start * form.panel_bytes, panels.end * form.panel_bytes);
    let (first, last) = (x.lines(bands.start), x.lines(bands.end - 1));
    // SAFETY: the caller's promise.
    unsafe {
        match weights {
            Panels::Bf16(all) => {
                let all = all.get(start / 2..end / 2);
                match (bands.len(), panels.len()) {
                    (1, 1) => pairs::<T, 1, 1>(registers, [first], all, form, ahead, scratch),
                    (1, 2) => pairs::<T, 1, 2>(registers, [first], all, form, ahead, scratch),
                    (1, 3) => pairs::<T, 1, 3>(registers, [first], all, form, ahead, scratch),
                    (1, 4) => pairs::<T, 1, 4>(registers, [first], all, form, ahead, scratch),
                    (2, 1) => pairs::<T, 2, 1>(registers, [first, last], all, form, ahead, scratch),
                    (2, 2) => pairs::<T, 2, 2>(registers, [first, last], all, form, ahead, scratch),
                    (bands, panels) => unreachable!("no tile of {bands} bands and {panels} panels"),
                }
            }
            Panels::Int8(all) => {
                assert!(bands.len() == 1, "a tile of bytes is of one band");
                let (all, x) = (all.get(start..end), (first, x.scales(bands.start)));
                // Rows that a band lacks are scaled for nothing.
                match (form.sum_bytes.is_multiple_of(ROW_BYTES), form.height) {
                    (true, ..=8) => bytes::<T, 8, 1>(isa, registers, x, all, form, ahead, scratch),
                    (true, ..=12) => bytes::<T, 12, 1>(isa, registers, x, all, form, ahead, scratch),
                    (true, _) => bytes::<T, 16, 1>(isa, registers, x, all, form, ahead, scratch),
                    (false, _) => bytes::<T, 16, 0>(isa, registers, x, all, form, ahead, scratch),
                }
            }
            Panels::F32(_) => unreachable!("no registers multiply f32"),
        }
    }
}

/// Fills register `W` with the chunk of weights at `from`, of which there are `bytes` of each column.
///
/// # Safety
/// These can be read; they are at least a chunk's where they are WHOLE.
#[inline(always)]
unsafe fn load_weights<T: TileRegisters, const WHOLE: usize, const W: usize>(
    registers: &mut T,
    (from, bytes): (*const u8, usize),
    chunk: &mut [u8; CHUNK],
) {
    // SAFETY: the caller's promise.
    unsafe {
        if WHOLE == 1 || bytes >= ROW_BYTES {
            registers.load::<W>(from);
        } else {
            let (there, missing) = chunk.split_at_mut(bytes * LANES);
            from.copy_to_nonoverlapping(there.as_mut_ptr(), there.len());
            missing.fill(0);
            registers.load::<W>(chunk.as_ptr());
        }
    }
}

/// Pairs of bf16: sums stay in registers over all of K.
///
/// # Safety
/// As for [`run`].
unsafe fn pairs<T: TileRegisters, const BANDS: usize, const P: usize>(
    registers: &mut T,
    x: [&[Line]; BANDS],
    panels: &[u16],
    form: Form,
    ahead: Ahead,
    scratch: &mut Scratch,
) {
    let Form { height, chunks, sum_bytes, panel_bytes, .. } = form;
    assert!(matches!((BANDS, P), (1, 1..=4) | (2, 1..=2)) && size_of_val(panels) == P * panel_bytes);
    assert!(x.iter().all(|x| x.len() == chunks * height) && panel_bytes == sum_bytes * LANES);
    let (panels, chunk, tile) = (panels.as_ptr().cast::<u8>(), &mut scratch.chunk, &mut scratch.tile);
    // SAFETY: chunks of inputs and weights lie in what was just measured; the registers are the caller's promise.
    unsafe {
        registers.zero::<0>();
        registers.zero::<1>();
        registers.zero::<2>();
        registers.zero::<3>();
        for at in 0..chunks {
            let left = sum_bytes - at * ROW_BYTES;
            let weights = |p: usize| {
                // A share of what is wanted with each, as only so many lines can be on their way.
                ahead.fetch_all(at * ROWS + p * ROWS / P..at * ROWS + (p + 1) * ROWS / P);
                (panels.add(p * panel_bytes + at * CHUNK), left)
            };
            registers.load::<4>(x[0].as_ptr().add(at * height).cast());
            load_weights::<T, 0, 6>(registers, weights(0), chunk);
            registers.dot_pairs::<0, 4, 6>();
            if P > 1 {
                load_weights::<T, 0, 7>(registers, weights(1), chunk);
                registers.dot_pairs::<1, 4, 7>();
            }
            if BANDS > 1 {
                registers.load::<5>(x[1].as_ptr().add(at * height).cast());
                registers.dot_pairs::<2, 5, 6>();
                if P > 1 {
                    registers.dot_pairs::<3, 5, 7>();
                }
            }
            if P > 2 {
                load_weights::<T, 0, 6>(registers, weights(2), chunk);
                registers.dot_pairs::<2, 4, 6>();
            }
            if P > 3 {
                load_weights::<T, 0, 7>(registers, weights(3), chunk);
                registers.dot_pairs::<3, 4, 7>();
            }
        }
        registers.store::<0>(tile[0].as_mut_ptr().cast());
        if P > 1 {
            registers.store::<1>(tile[1].as_mut_ptr().cast());
        }
        if BANDS > 1 || P > 2 {
            registers.store::<2>(tile[if BANDS > 1 { P } else { 2 }].as_mut_ptr().cast());
        }
        if BANDS * P > 3 {
            registers.store::<3>(tile[3].as_mut_ptr().cast());
        }
    }
}

versions! {
    unsafe fn bytes<type T: TileRegisters, const R: usize, const WHOLE: usize>(
        registers: &mut T,
        x: (&[Line], &[[f32; ROWS]]),
        panels: &[i8],
        form: Form,
        ahead: Ahead,
        scratch: &mut Scratch,
    ) = bytes_body
}

/// Bytes: sums of a unit leave their register to be scaled, `R` rows at a time, while others are computed. Where units are WHOLE
/// chunks nothing is copied in the loop: a call in it would drive the totals out of their registers.
///
/// # Safety
/// As for [`run`]; the instruction set of `V` is available.
#[inline(always)]
unsafe fn bytes_body<V: Lanes, T: TileRegisters, const R: usize, const WHOLE: usize>(
    registers: &mut T,
    (x, scales): (&[Line], &[[f32; ROWS]]),
    panels: &[i8],
    form: Form,
    ahead: Ahead,
    scratch: &mut Scratch,
) {
    let Form { height, units, sum_bytes, chunks, panel_bytes, scale_bytes, .. } = form;
    let lines = sum_bytes.div_ceil(ROW_BYTES) * height;
    assert!(x.len() == chunks * height && x.len() == units * lines && scales.len() == units && height <= R);
    assert!(
        panel_bytes == scale_bytes + units * sum_bytes * LANES && panels.len().is_multiple_of(panel_bytes) && R <= ROWS
    );
    let Scratch { tile, sums: [now, before], chunk } = scratch;
    let tile = &mut tile[..panels.len() / panel_bytes];
    let (mut now, mut before) = (now, before);
    let (x, scales, panels) = (x.as_ptr().cast::<u8>(), scales.as_ptr(), panels.as_ptr().cast::<u8>());
    // SAFETY: as measured above, units of inputs, weights and scales are there; the rest is the caller's promise.
    unsafe {
        let mut totals = [V::splat(0.0); R];
        // Two units of a panel at a time, scaled one step later: panel by panel without a pause.
        let steps = tile.len() * units.div_ceil(2);
        let asked = (units * sum_bytes / 4).div_ceil(steps);
        let ((mut panel, mut unit), mut waiting) = ((0, 0), (0, 0));
        for step in 0..=steps {
            if step < steps {
                let weights = panels.add(panel * panel_bytes + scale_bytes);
                let at = |u: usize| (x.add(u * lines * ROW_BYTES), weights.add(u * sum_bytes * LANES));
                ahead.fetch_all(step * asked..(step + 1) * asked);
                unit_sums::<T, WHOLE, 0, 4, 6>(registers, at(unit), (height, sum_bytes), chunk, &mut now[0]);
                if unit + 1 < units {
                    unit_sums::<T, WHOLE, 1, 5, 7>(registers, at(unit + 1), (height, sum_bytes), chunk, &mut now[1]);
                }
            }
            if step > 0 {
                let (panel, unit) = waiting;
                let weight_scales = panels.add(panel * panel_bytes).cast::<u16>();
                let at = |u: usize| (weight_scales.add(u * LANES), scales.add(u));
                add_scaled(&mut totals, &before[0], at(unit));
                if unit + 1 < units {
                    add_scaled(&mut totals, &before[1], at(unit + 1));
                }
                if unit + 2 >= units {
                    for m in 0..R {
                        totals[m].store(tile[panel][m].as_mut_ptr());
                        totals[m] = V::splat(0.0);
                    }
                }
            }
            std::mem::swap(&mut now, &mut before);
            waiting = (panel, unit);
            (panel, unit) = if unit + 2 < units { (panel, unit + 2) } else { (panel + 1, 0) };
        }
    }
}

/// Sums of one unit, by way of registers `C`, `A` and `W`.
///
/// # Safety
/// As for [`run`]: the unit's lines and weights can be read.
#[inline(always)]
unsafe fn unit_sums<T: TileRegisters, const WHOLE: usize, const C: usize, const A: usize, const W: usize>(
    registers: &mut T,
    (x, weights): (*const u8, *const u8),
    (height, unit): (usize, usize),
    chunk: &mut [u8; CHUNK],
    to: &mut Block<i32>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        registers.zero::<C>();
        for at in (0..unit).step_by(ROW_BYTES) {
            registers.load::<A>(x.add(at * height));
            load_weights::<T, WHOLE, W>(registers, (weights.add(at * LANES), unit - at), chunk);
            registers.dot_bytes::<C, A, W>();
        }
        registers.store::<C>(to.as_mut_ptr().cast());
    }
}

/// Adds a unit's sums, scaled, to the totals: as the vector loops do.
///
/// # Safety
/// Scales of 16 columns and of 16 rows can be read; the instruction set of `V` is available.
#[inline(always)]
unsafe fn add_scaled<V: Lanes, const R: usize>(
    totals: &mut [V; R],
    sums: &Block<i32>,
    (weight_scales, scales): (*const u16, *const [f32; ROWS]),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let weight_scales = V::load_bf16(weight_scales);
        for m in 0..R {
            let scale = weight_scales.mul(V::splat((*scales)[m]));
            totals[m] = V::load_i32(sums[m].as_ptr()).mul_add(scale, totals[m]);
            // Row by row: all scales made first would leave no register for the totals.
            compiler_fence(SeqCst);
        }
    }
}
