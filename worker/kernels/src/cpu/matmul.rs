//! Products of a few rows with a packed weight matrix.
//!
//! Tasks are groups of panels, so that each weight is read by one thread; where these are too few for the threads, as in long prompts
//! on many cores, their rows are dealt out too. K is never split. With bf16 weights the rows are
//! rounded to bf16 first, with int8 weights they are quantised.

use std::ops::Range;

use crate::cpu::{
    activation::{Activation, activate},
    ahead::{Ahead, Expected, LINE, Wanted},
    bands::{self, Form, Scratch},
    inputs::{Bands, Inputs, Split},
    isa::Isa,
    kernels::Kernels,
    lanes::{LANES, Lanes},
    packed::{PackedMatrix, Shape},
    pool::{Shards, first_behind},
    registers::{TileRegisters, with_registers},
    tiles,
    versions::versions,
};

/// Bytes of rows that are multiplied with a group of panels before the next rows: they stay in a core's second-level cache.
const ROWS_BYTES: usize = 512 << 10;

/// Tasks for each thread, from which on all end at about one time.
const TASKS_A_THREAD: usize = 4;
/// Rows that are worth reading weights once more for: arithmetic takes longer by then.
const ROWS_A_TASK: usize = 64;

/// What happens to a product before it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// Nothing: a partial sum, or logits.
    None,
    /// Plus a bias `[N]`.
    Bias(&'a [f32]),
    /// Plus a bias `[N]`, then the activation.
    BiasActivation(&'a [f32], Activation),
}

impl Kernels {
    /// `out[m, n] = epilogue(Σ_k x[m, k] · w[k, n])`: `x` is `[M, K]`, `out` is `[M, N]`, both dense and f32; sums are f32.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn matmul(&mut self, x: &[f32], weights: &PackedMatrix, epilogue: Epilogue<'_>, out: &mut [f32]) {
        let (k, n) = (weights.rows(), weights.columns());
        if n == 0 {
            assert!(out.is_empty(), "no columns, no output");
            return;
        }
        let rows = out.len() / n;
        assert!(out.len() == rows * n && x.len() == rows * k, "x is [M, K] and out is [M, N]");
        if let Epilogue::Bias(bias) | Epilogue::BiasActivation(bias, _) = epilogue {
            assert_eq!(bias.len(), n, "one bias a column");
        }
        let mut buffers = std::mem::take(&mut self.inputs);
        let (shape, expected) = (weights.shape(), self.expected.take());
        let x = self.inputs(x, rows, shape, &mut buffers);
        let (isa, tiles, threads) = (self.isa, self.tiles, self.pool.threads());
        let product = Product { isa, x, weights, epilogue };
        let out = Shards::new(out);
        let cut = Cut::new(isa, threads, shape, x.split());
        let groups = cut.tasks;
        let parts = (threads * TASKS_A_THREAD).div_ceil(groups).max(threads).min(rows / ROWS_A_TASK).max(1);
        let tasks = groups * parts;
        let then = expected.filter(|_| parts == 1).map(|next| (next, Cut::new(isa, threads, next.shape, x.split())));
        // Those of one part follow one another: a thread's rows stay in its own cache, from one phase to the next.
        self.pool.run(tasks, &|task| {
            let (part, group) = (task / groups, task % groups);
            let panels = group * cut.panels..((group + 1) * cut.panels).min(shape.panels());
            // The last two stay together: the last band begins within the one before.
            let cut = |len: usize, part: usize| if part == parts { len } else { len.saturating_sub(1) * part / parts };
            let share = |len: usize| cut(len, part)..cut(len, part + 1);
            let then =
                then.and_then(|(next, cut)| Some(next.group(cut, first_behind(threads, task, tasks, cut.tasks)?)));
            match (x, tiles) {
                (Inputs::Bands(x), Some(unit)) => {
                    with_registers!(unit, product.bands(x, panels, share(x.split.bands), then, &out));
                }
                _ => product.panels(panels, share(rows), then, &out),
            }
        });
        self.inputs = buffers;
    }

    /// Says that the product behind the next one is with `weights`: the next one's last tiles ask memory for what each thread
    /// reads first of them. Changes no result.
    pub fn expect(&mut self, weights: &PackedMatrix) {
        // A rank may have no share of it.
        let expected = Expected { from: weights.address(0), shape: weights.shape() };
        self.expected = Some(expected).filter(|_| weights.columns() > 0);
    }
}

impl Expected {
    /// The panels that a task reads first.
    fn group(self, cut: Cut, task: usize) -> Wanted {
        let (first, bytes) = (task * cut.panels, self.shape.panel_bytes());
        let count = cut.group.min(self.shape.panels().saturating_sub(first));
        Wanted { from: self.from + first * bytes, bytes: count * bytes }
    }
}

/// How the panels of a product become tasks.
#[derive(Clone, Copy)]
struct Cut {
    /// Panels that are read side by side.
    group: usize,
    /// Panels of a task: several groups where there are many, so that taking tasks costs nothing beside running them.
    panels: usize,
    tasks: usize,
}

impl Cut {
    fn new(isa: Isa, threads: usize, shape: Shape, split: Option<Split>) -> Self {
        let group = match split {
            Some(split) => Form::new(shape, split.height).most(split.bands).1,
            None => tiles::group(isa, shape),
        };
        let group = group.min(shape.panels().div_ceil(threads));
        let panels = shape.panels().div_ceil(threads * 8).next_multiple_of(group);
        Self { group, panels, tasks: shape.panels().div_ceil(panels) }
    }
}

/// One product, but for where it goes.
struct Product<'a> {
    isa: Isa,
    x: Inputs<'a>,
    weights: &'a PackedMatrix,
    epilogue: Epilogue<'a>,
}

impl Product<'_> {
    /// The columns of some panels, of some rows: as many rows at a time as stay cached while the panels stream by.
    fn panels(&self, panels: Range<usize>, all: Range<usize>, then: Option<Wanted>, out: &Shards<f32>) {
        let shape = self.weights.shape();
        let (most, group) = (tiles::most_rows(self.isa, &self.x), tiles::group(self.isa, shape));
        let cached = (ROWS_BYTES / self.x.row_bytes(shape).max(1) / most).max(1) * most;
        let mut tile = [[0.0; LANES]; tiles::MOST_VECTORS];
        for first in all.clone().step_by(cached) {
            let rows = first..all.end.min(first + cached);
            for panel in panels.clone().step_by(group) {
                let group = panel..panels.end.min(panel + group);
                let wanted = self.wanted(&group, then.filter(|_| group.end == panels.end && rows.end == all.end));
                self.group(group, rows.clone(), most, wanted, &mut tile, out);
            }
        }
    }

    /// What is read behind some panels: `then`, or as many more.
    fn wanted(&self, group: &Range<usize>, then: Option<Wanted>) -> Wanted {
        let shape = self.weights.shape();
        let count = group.len().min(shape.panels() - group.end);
        then.unwrap_or(Wanted { from: self.weights.address(group.end), bytes: count * shape.panel_bytes() })
    }

    /// The same on tile registers, band by band.
    fn bands<T: TileRegisters>(
        &self,
        x: Bands<'_>,
        panels: Range<usize>,
        all: Range<usize>,
        then: Option<Wanted>,
        out: &Shards<f32>,
    ) {
        let (shape, height) = (self.weights.shape(), x.split.height);
        if all.is_empty() {
            return;
        }
        let form = Form::new(shape, height);
        let (weights, (most, group)) = (self.weights.panels(), form.most(x.split.bands));
        let cached = (ROWS_BYTES / (height * self.x.row_bytes(shape)).max(1) / most).max(1) * most;
        // SAFETY: where rows come in bands there are such registers; a task is alone on its thread.
        let mut registers = unsafe { T::with_rows(height) };
        let mut scratch = Scratch::new();
        for first in all.clone().step_by(cached) {
            let end = all.end.min(first + cached);
            for panel in panels.clone().step_by(group) {
                let group = panel..panels.end.min(panel + group);
                let wanted = self.wanted(&group, then.filter(|_| group.end == panels.end && end == all.end));
                let mut ahead = Ahead::new(wanted, shape.steps(), (end - first).div_ceil(most));
                for bands in (first..end).step_by(most).map(|first| first..end.min(first + most)) {
                    // SAFETY: `isa` and the registers as above; `x` was made for these weights.
                    unsafe {
                        let x = (x, bands.clone());
                        bands::run(self.isa, &mut registers, x, (weights, form), group.clone(), ahead, &mut scratch);
                    }
                    let places = bands.flat_map(|band| group.clone().map(move |panel| (band, panel)));
                    for ((band, panel), sums) in places.zip(&mut scratch.tile) {
                        // SAFETY: each task writes its own rows of its own panels' columns only.
                        unsafe { self.finish(&mut sums[..height], height, (x.split.start(band), panel * LANES), out) };
                    }
                    ahead = ahead.behind();
                }
            }
        }
    }

    fn group(
        &self,
        panels: Range<usize>,
        rows: Range<usize>,
        most: usize,
        wanted: Wanted,
        tile: &mut [[f32; LANES]; tiles::MOST_VECTORS],
        out: &Shards<f32>,
    ) {
        let shape = self.weights.shape();
        let weights = (self.weights.panels(), shape);
        // Rows come in tiles of about one height, so that all read the panels in tiles of one width.
        let tiles_of_rows = rows.len().div_ceil(most);
        let width = tiles::tile_panels(rows.len().div_ceil(tiles_of_rows), most, panels.len());
        let tiles = tiles_of_rows * panels.len().div_ceil(width);
        // A step asks for a line of each panel.
        let bytes = wanted.bytes.min(tiles * shape.steps() * width * LINE);
        let mut ahead = Ahead::new(Wanted { bytes, ..wanted }, shape.steps(), tiles);
        let mut row = rows.start;
        while row < rows.end {
            let height = tiles::tile_rows(rows.end - row, most);
            let x = self.x.rows(row, height, shape);
            let mut panel = panels.start;
            while panel < panels.end {
                let width = tiles::tile_panels(height, most, panels.end - panel);
                let tile = &mut tile[..height * width];
                // SAFETY: `isa` was detected or listed as available; `x` was made for these weights. Each task writes its own rows
                // of its own panels' columns only.
                unsafe {
                    tiles::run(self.isa, (&x, height), weights, panel..panel + width, &ahead, tile);
                    self.finish(tile, height, (row, panel * LANES), out);
                }
                ahead = ahead.behind();
                panel += width;
            }
            row += height;
        }
    }

    /// Applies the epilogue to a tile `[panels, height]`, and stores it where its first row and column belong.
    ///
    /// # Safety
    /// No other task writes there; `isa` is available.
    unsafe fn finish(
        &self,
        tile: &mut [[f32; LANES]],
        height: usize,
        (row, column): (usize, usize),
        out: &Shards<f32>,
    ) {
        let (isa, stride) = (self.isa, self.weights.columns());
        let width = (stride - column).min(tile.len() / height * LANES);
        let out = (out.rows(row * stride + column, height, stride, width), stride);
        // SAFETY: the caller's promise; `out` has these rows.
        unsafe {
            match self.epilogue {
                Epilogue::None => put(isa, tile, width, None, out),
                Epilogue::Bias(bias) => put(isa, tile, width, Some(&bias[column..][..width]), out),
                Epilogue::BiasActivation(bias, activation) => {
                    add_to_rows(isa, tile, height, &bias[column..][..width]);
                    activate(isa, activation, tile);
                    put(isa, tile, width, None, out);
                }
            }
        }
    }
}

versions! {
    unsafe fn put(tile: &[[f32; LANES]], width: usize, bias: Option<&[f32]>, out: (*mut f32, usize)) = put_body
}
versions! { unsafe fn add_to_rows(tile: &mut [[f32; LANES]], height: usize, bias: &[f32]) = add_to_rows_body }

/// Stores a tile `[panels, height]` plus a bias as rows of `width` from `out` on, one every `stride`.
///
/// # Safety
/// These are there, and nobody else's; the instruction set of `V` is available.
#[inline(always)]
unsafe fn put_body<V: Lanes>(
    tile: &[[f32; LANES]],
    width: usize,
    bias: Option<&[f32]>,
    (out, stride): (*mut f32, usize),
) {
    let height = tile.len() / width.div_ceil(LANES);
    assert!(bias.is_none_or(|bias| bias.len() == width));
    for (panel, sums) in tile.chunks_exact(height).enumerate() {
        let (first, mut to) = (panel * LANES, out.wrapping_add(panel * LANES));
        let there = LANES.min(width - first);
        for sums in sums {
            // SAFETY: rows are the caller's promise; of whole vectors the bias has 16 from `first` on.
            unsafe {
                let sums = V::load(sums.as_ptr());
                let sums = match bias {
                    Some(bias) if there == LANES => sums.add(V::load(bias.as_ptr().add(first))),
                    Some(bias) => {
                        let mut lanes = [0.0; LANES];
                        lanes[..there].copy_from_slice(&bias[first..]);
                        sums.add(V::load(lanes.as_ptr()))
                    }
                    None => sums,
                };
                match there {
                    LANES => sums.store(to),
                    there => to.copy_from_nonoverlapping(sums.to_array().as_ptr(), there),
                }
            }
            to = to.wrapping_add(stride);
        }
    }
}

/// Adds a bias to the rows of a tile `[panels, height]`.
///
/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
unsafe fn add_to_rows_body<V: Lanes>(tile: &mut [[f32; LANES]], height: usize, bias: &[f32]) {
    for (sums, bias) in tile.chunks_exact_mut(height).zip(bias.chunks(LANES)) {
        let mut lanes = [0.0; LANES];
        lanes[..bias.len()].copy_from_slice(bias);
        // SAFETY: arrays of 16; the instruction set is the caller's promise.
        unsafe {
            let bias = V::load(lanes.as_ptr());
            for row in sums {
                V::load(row.as_ptr()).add(bias).store(row.as_mut_ptr());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Arena, Element,
        cpu::{
            inputs::BANDED_BYTES,
            registers::TileUnit,
            rounding::{from_bf16, to_bf16, to_int8},
        },
    };

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    const KINDS: [Element; 3] = [Element::F32, Element::Bf16, Element::Int8];
    /// Of which two are no whole number of lanes, with their padding or without; one fills a row of a tile register, and one more
    /// than that.
    const UNITS: [usize; 4] = [9, 31, 64, 88];

    /// A row of `x` as a product with weights of this type sees it.
    fn rounded(kind: Element, unit_len: usize, x: &[f32]) -> Vec<f64> {
        let unit = |x: &[f32]| {
            let scale = x.iter().fold(0.0f32, |a, b| a.max(b.abs())) / 127.0;
            x.iter().map(|&x| f64::from(to_int8(x / scale)) * f64::from(scale)).collect::<Vec<_>>()
        };
        match kind {
            Element::F32 | Element::F16 => x.iter().map(|&x| f64::from(x)).collect(),
            Element::Bf16 => x.iter().map(|&x| f64::from(from_bf16(to_bf16(x)))).collect(),
            Element::Int8 => x.chunks(unit_len).flat_map(unit).collect(),
        }
    }

    fn packed(isa: Isa, kind: Element, unit_len: usize, k: usize, n: usize) -> PackedMatrix {
        let dense = noise(k * n, 3);
        let mut matrix = PackedMatrix::zeros(&Arena::default(), isa, kind, unit_len, k, n);
        for (unit, values) in dense.chunks(unit_len * n).enumerate() {
            matrix.set_tile(unit, 0..n, values);
        }
        matrix
    }

    fn cases() -> impl Iterator<Item = (Isa, Element, usize)> {
        let kinds = || KINDS.into_iter().flat_map(|kind| UNITS.map(|unit_len| (kind, unit_len)));
        Isa::available().into_iter().flat_map(move |isa| kinds().map(move |(kind, unit_len)| (isa, kind, unit_len)))
    }

    #[test]
    fn products_agree_with_f64_on_odd_sizes_every_isa_and_type() {
        const SIZES: [(usize, usize, usize); 10] = [
            (1, 1, 1),
            (1, 40, 120),
            (5, 77, 33),
            (13, 64, 16),
            (31, 129, 47),
            (2, 0, 5),
            (21, 0, 20),
            (7, 15, 80),
            (9, 31, 70),
            (24, 95, 144),
        ];
        for (isa, kind, unit_len) in cases() {
            for (m, k, n) in SIZES {
                let matrix = packed(isa, kind, unit_len, k, n);
                let (x, bias) = (noise(m * k, 1), noise(n, 2));
                let mut out = vec![f32::NAN; m * n];
                Kernels::new(isa, 2, false).unwrap().matmul(&x, &matrix, Epilogue::Bias(&bias), &mut out);
                let x: Vec<_> = (0..m).map(|row| rounded(kind, unit_len, &x[row * k..][..k])).collect();
                let mut weights = vec![0.0; k];
                for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                    matrix.copy_column(column, &mut weights);
                    let terms = x[row].iter().zip(&weights).map(|(x, &w)| x * f64::from(w));
                    let exact = terms.sum::<f64>() + f64::from(bias[column]);
                    let got = f64::from(out[row * n + column]);
                    // Rounding of K products near 1: K · 2^-24 at worst.
                    assert!(
                        (got - exact).abs() < 1e-6 * (k as f64 + 1.0),
                        "{isa:?} {kind:?} units of {unit_len} {m}x{k}x{n}: {got} {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads() {
        let (k, n) = (77, 150);
        let x = noise(29 * k, 9);
        for (isa, kind, unit_len) in cases() {
            let matrix = packed(isa, kind, unit_len, k, n);
            let nothing = PackedMatrix::zeros(&Arena::default(), isa, kind, unit_len, k, 0);
            let mut whole = vec![0.0; 29 * n];
            Kernels::new(isa, 3, false).unwrap().matmul(&x, &matrix, Epilogue::None, &mut whole);
            for batch in [1, 2, 3, 4, 5, 7, 12, 13] {
                let mut kernels = Kernels::new(isa, 1, false).unwrap();
                for (x, expected) in x.chunks(batch * k).zip(whole.chunks(batch * n)) {
                    let mut out = vec![0.0; expected.len()];
                    kernels.expect(if batch.is_multiple_of(2) { &nothing } else { &matrix });
                    kernels.matmul(x, &matrix, Epilogue::None, &mut out);
                    assert_eq!(out, expected, "{isa:?} {kind:?}, batches of {batch}");
                }
            }
        }
    }

    #[test]
    fn rows_dealt_out_over_many_threads_have_the_bits_of_one() {
        // Three panels, which 24 threads share by rows; 197 rows are no whole number of tiles or bands.
        let (m, k, n) = (197, 77, 33);
        let x = noise(m * k, 9);
        let registers = on_registers().map(|(_, kernels)| (kernels.isa(), kernels.tiles));
        for (isa, tiles) in registers.chain(Isa::available().into_iter().map(|isa| (isa, None))) {
            for kind in KINDS {
                let matrix = packed(if tiles.is_some() { Isa::Amx } else { isa }, kind, 64, k, n);
                let [one, many] = [1, 24].map(|threads| {
                    let mut kernels = Kernels::new(isa, threads, false).unwrap();
                    kernels.tiles = tiles;
                    let mut out = vec![f32::NAN; m * n];
                    kernels.matmul(&x, &matrix, Epilogue::None, &mut out);
                    out
                });
                assert_eq!(one, many, "{isa:?} {tiles:?} {kind:?}");
            }
        }
    }

    /// Kernels that multiply on tile registers where rows are enough: on those of the model, and of this CPU if it has some.
    fn on_registers() -> impl Iterator<Item = (String, Kernels)> {
        let amx = Isa::Amx.is_available().then(|| Kernels::new(Isa::Amx, 2, false).unwrap());
        let modelled = Isa::available().into_iter().map(|isa| {
            let mut kernels = Kernels::new(isa, 2, false).unwrap();
            kernels.tiles = Some(TileUnit::Model);
            kernels
        });
        modelled.chain(amx).map(|kernels| (format!("{} {:?}", kernels.isa().name(), kernels.tiles), kernels))
    }

    /// Rows of one band, of a low one, of several that divide them or do not; columns of one to nine panels.
    const ROWS_AND_COLUMNS: [(usize, usize); 8] =
        [(8, 80), (9, 16), (16, 33), (17, 70), (32, 40), (33, 64), (48, 15), (65, 144)];

    #[test]
    fn bytes_have_the_same_bits_on_tile_registers_as_on_vectors() {
        for (name, mut kernels) in on_registers() {
            // A rank may have no share of K.
            let sizes = UNITS.into_iter().zip([40, 31, 5 * 64, 2 * 88 + 3]).chain([(64, 0)]);
            for ((unit_len, k), (m, n)) in sizes.flat_map(|size| ROWS_AND_COLUMNS.map(|rows| (size, rows))) {
                let [signed, matrix] = [Isa::Amx, kernels.isa()].map(|isa| packed(isa, Element::Int8, unit_len, k, n));
                let x = noise(m * k, 5);
                let (mut expected, mut got) = (vec![0.0; m * n], vec![f32::NAN; m * n]);
                let mut vectors = Kernels::new(kernels.isa(), 1, false).unwrap();
                vectors.tiles = None;
                vectors.matmul(&x, &matrix, Epilogue::None, &mut expected);
                kernels.matmul(&x, &signed, Epilogue::None, &mut got);
                assert_eq!(got, expected, "{name}: units of {unit_len}, {m}x{k}x{n}");
            }
        }
    }

    #[test]
    fn signed_bytes_have_the_bits_of_biased_ones_on_vectors() {
        let (k, n) = (3 * 64 + 5, 150);
        for isa in Isa::available().into_iter().filter(|isa| *isa >= Isa::Avx512) {
            let [signed, matrix] = [Isa::Amx, Isa::Avx512].map(|isa| packed(isa, Element::Int8, 64, k, n));
            let mut kernels = Kernels::new(isa, 1, false).unwrap();
            kernels.tiles = None;
            for m in 1..BANDED_BYTES {
                let x = noise(m * k, 5);
                let [got, expected] = [&signed, &matrix].map(|matrix| {
                    let mut out = vec![0.0; m * n];
                    let biases = matrix.shape().is_biased();
                    kernels.isa = if biases { Isa::Avx512 } else { isa };
                    kernels.matmul(&x, matrix, Epilogue::None, &mut out);
                    out
                });
                assert_eq!(got, expected, "{isa:?}, {m} rows");
            }
        }
    }

    #[test]
    fn pairs_on_tile_registers_are_added_up_in_one_order_whatever_the_rows() {
        for (name, mut kernels) in on_registers() {
            for (k, (m, n)) in [0, 1, 32, 95, 129].into_iter().flat_map(|k| {
                ROWS_AND_COLUMNS.into_iter().chain([(1, 16), (1, 130), (2, 40), (7, 64)]).map(move |rows| (k, rows))
            }) {
                let (matrix, x) = (packed(kernels.isa(), Element::Bf16, 9, k, n), noise(m * k, 5));
                let mut got = vec![f32::NAN; m * n];
                kernels.matmul(&x, &matrix, Epilogue::None, &mut got);
                let mut weights = vec![0.0; k];
                for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                    matrix.copy_column(column, &mut weights);
                    let x: Vec<f32> = x[row * k..][..k].iter().map(|&x| from_bf16(to_bf16(x))).collect();
                    // Chunks of 32, in each the even and the odd ones apart.
                    let expected = x.chunks(32).zip(weights.chunks(32)).fold(0.0, |sum: f32, (x, weights)| {
                        let chain = |first: usize| {
                            let terms = x.iter().zip(weights).skip(first).step_by(2);
                            terms.fold(0.0f32, |sum, (&x, &weight)| x.mul_add(weight, sum))
                        };
                        sum + (chain(0) + chain(1))
                    });
                    let got = got[row * n + column];
                    assert_eq!(got.to_bits(), expected.to_bits(), "{name}: {m}x{k}x{n} [{row}, {column}]");
                }
            }
        }
    }
}
