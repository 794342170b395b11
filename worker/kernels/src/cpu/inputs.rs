//! The rows that a product multiplies, in the form that its weights want: as they are, rounded to bf16, or quantised.
//!
//! ```text
//! for vectors         one row behind the other, [rows][depth], and scales [rows][units]
//! for tile registers  in bands of at most 16:  band 0: [chunk 0: 64 bytes of each row][chunk 1] …  │ band 1 │ …
//!                     a chunk is of one unit, filled up with zeros; scales [bands][units][16]
//! ```
//! A row's form depends on that row alone, and its int8 scales on one unit of K each. Does not know panels or tiles.

use crate::{
    Element,
    cpu::{
        buffer::Plain,
        isa::Isa,
        kernels::{InputBuffers, Kernels},
        lanes::{LANES, Lanes, byte_scale},
        packed::Shape,
        pool::Shards,
        registers::{Line, ROW_BYTES, ROWS},
        rounding::{from_bf16, to_bf16, to_int8},
        versions::versions,
    },
};

/// Rows from which on bytes go through tile registers: fewer are faster on vectors, with the same bits.
pub(crate) const BANDED_BYTES: usize = 8;

/// Rows of a product, `[rows, depth]`, where `depth` is K as it lies in the weights' memory.
#[derive(Clone, Copy)]
pub(crate) enum Inputs<'a> {
    /// f32, for f32 weights; or bf16 values widened, for bf16 weights on instruction sets that multiply f32.
    F32(&'a [f32]),
    /// bf16, for the instruction that multiplies pairs.
    Bf16(&'a [u16]),
    /// Bytes.
    Int8(Bytes<'a>),
    /// bf16 or bytes for tile registers.
    Bands(Bands<'a>),
}

/// Quantised rows, with a scale and what sums begin with for each row and unit, `[rows, units]`.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    pub(crate) values: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) offsets: &'a [i32],
}

/// Rows in bands, with scales where they are bytes.
#[derive(Clone, Copy)]
pub(crate) struct Bands<'a> {
    pub(crate) split: Split,
    lines: &'a [Line],
    band_lines: usize,
    scales: &'a [[f32; ROWS]],
    units: usize,
}

/// How rows are split into bands: all of one height, so that registers keep their shape; the last begins within the one before
/// it where they do not divide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    rows: usize,
    pub(crate) bands: usize,
    pub(crate) height: usize,
}

impl Inputs<'_> {
    /// How they come in bands, where they do.
    pub(crate) fn split(self) -> Option<Split> {
        if let Self::Bands(bands) = self { Some(bands.split) } else { None }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(self, shape: Shape) -> usize {
        match self {
            Self::F32(_) => 4 * shape.depth(),
            Self::Bf16(_) => 2 * shape.depth(),
            Self::Int8(_) => shape.depth(),
            Self::Bands(_) => shape.chunks() * ROW_BYTES,
        }
    }

    /// Of `count` rows from `row` on.
    pub(crate) fn rows(self, row: usize, count: usize, shape: Shape) -> Self {
        let (depth, units) = (shape.depth(), shape.units());
        match self {
            Self::F32(x) => Self::F32(&x[row * depth..][..count * depth]),
            Self::Bf16(x) => Self::Bf16(&x[row * depth..][..count * depth]),
            Self::Int8(x) => Self::Int8(Bytes {
                values: &x.values[row * depth..][..count * depth],
                scales: &x.scales[row * units..][..count * units],
                offsets: &x.offsets[row * units..][..count * units],
            }),
            Self::Bands(_) => unreachable!("bands are not cut"),
        }
    }
}

impl Bands<'_> {
    /// `[chunks][height]` of a band.
    pub(crate) fn lines(&self, band: usize) -> &[Line] {
        &self.lines[band * self.band_lines..][..self.band_lines]
    }

    /// `[units][16]` of a band of bytes, of which rows that it lacks are of no meaning.
    pub(crate) fn scales(&self, band: usize) -> &[[f32; ROWS]] {
        &self.scales[band * self.units..][..self.units]
    }
}

impl Split {
    fn new(rows: usize) -> Self {
        let bands = rows.div_ceil(ROWS);
        Self { rows, bands, height: rows.div_ceil(bands.max(1)) }
    }

    /// The first row of a band.
    pub(crate) fn start(self, band: usize) -> usize {
        (band * self.height).min(self.rows - self.height)
    }
}

/// Where rows go in a product's buffers.
#[derive(Clone, Copy)]
enum Places {
    Rows(usize),
    Bands(Split),
}

/// A row's pieces in a slice: `len` elements every `stride`.
struct Pieces<'a, T> {
    all: &'a Shards<T>,
    first: usize,
    len: usize,
    stride: usize,
}

impl Places {
    /// Places; a row that two bands share has two.
    fn count(self) -> usize {
        match self {
            Self::Rows(rows) => rows,
            Self::Bands(split) => split.bands * split.height,
        }
    }

    /// The row of a place.
    fn row(self, place: usize) -> usize {
        match self {
            Self::Rows(_) => place,
            Self::Bands(split) => split.start(place / split.height) + place % split.height,
        }
    }

    /// Cache lines of all places.
    fn lines(self, shape: Shape) -> usize {
        match self {
            Self::Rows(rows) => (rows * shape.depth() * shape.element().bytes()).div_ceil(ROW_BYTES),
            Self::Bands(split) => split.bands * split.height * shape.chunks(),
        }
    }

    /// Scales of all places.
    fn scales(self, shape: Shape) -> usize {
        match self {
            Self::Rows(rows) => rows * shape.units(),
            Self::Bands(split) => split.bands * shape.units() * ROWS,
        }
    }

    /// A place's values: a piece for each stretch over which sums run, or more where it takes several chunks.
    fn values<T>(self, place: usize, shape: Shape, all: &Shards<T>) -> Pieces<'_, T> {
        let (first, len, stride) = match self {
            Self::Rows(_) => (place * shape.depth() * shape.element().bytes(), shape.sum_bytes(), shape.sum_bytes()),
            Self::Bands(Split { height, .. }) => {
                let line = place / height * height * shape.chunks() + place % height;
                (line * ROW_BYTES, ROW_BYTES, height * ROW_BYTES)
            }
        };
        let bytes = size_of::<T>();
        Pieces { all, first: first / bytes, len: len / bytes, stride: stride / bytes }
    }

    /// A place's scale of each unit.
    fn of_units<T>(self, place: usize, shape: Shape, all: &Shards<T>) -> Pieces<'_, T> {
        match self {
            Self::Rows(_) => Pieces { all, first: place * shape.units(), len: 1, stride: 1 },
            Self::Bands(Split { height, .. }) => {
                Pieces { all, first: place / height * shape.units() * ROWS + place % height, len: 1, stride: ROWS }
            }
        }
    }
}

impl<T> Pieces<'_, T> {
    /// # Safety
    /// Nobody else has the piece meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get(&self, piece: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.all.slice(self.first + piece * self.stride, self.len) }
    }
}

/// As many numbers as whole lines have; all bits are some number.
fn numbers<T: Plain>(lines: &mut [Line]) -> &mut [T] {
    let len = size_of_val(lines) / size_of::<T>();
    // SAFETY: as many bytes, of a higher alignment, that are borrowed as the lines were.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) }
}

impl Kernels {
    /// Brings `x`, `[rows, K]`, into the form for weights of `shape`, in `buffers`.
    pub(crate) fn inputs<'a>(
        &mut self,
        x: &'a [f32],
        rows: usize,
        shape: Shape,
        buffers: &'a mut InputBuffers,
    ) -> Inputs<'a> {
        let (isa, depth, k) = (self.isa, shape.depth(), x.len() / rows.max(1));
        let row_of = |row: usize| &x[row * k..][..k];
        // Of no K vectors make the zeros.
        let banded = self.tiles.is_some() && k > 0 && rows >= if shape.scaled() { BANDED_BYTES } else { 1 };
        let places = if banded { Places::Bands(Split::new(rows)) } else { Places::Rows(rows) };
        let InputBuffers { floats, lines, scales, offsets } = buffers;
        match shape.element() {
            Element::F32 | Element::F16 => return Inputs::F32(x),
            Element::Bf16 if banded || isa == Isa::Avx512Bf16 => {
                lines.resize(places.lines(shape), Line::ZERO);
                scales.clear();
                let pairs = Shards::new(numbers::<u16>(lines));
                self.pool.run(places.count(), &|place| {
                    // SAFETY: each task writes its own place; the instruction set is available.
                    unsafe { halves(isa, row_of(places.row(place)), &places.values(place, shape, &pairs)) };
                });
            }
            Element::Bf16 => {
                floats.resize(rows * depth, 0.0);
                let all = Shards::new(floats);
                self.pool.run(rows, &|row| {
                    // SAFETY: each task writes its own row; the instruction set is available.
                    unsafe { rounded(isa, row_of(row), all.slice(row * depth, depth)) };
                });
                return Inputs::F32(floats);
            }
            Element::Int8 => {
                lines.resize(places.lines(shape), Line::ZERO);
                scales.resize(places.scales(shape), 0.0);
                offsets.resize(if banded { 0 } else { places.scales(shape) }, 0);
                let (bytes, scales, offsets) =
                    (Shards::new(numbers::<i8>(lines)), Shards::new(scales), Shards::new(offsets));
                self.pool.run(places.count(), &|place| {
                    let to = Quantised {
                        values: places.values(place, shape, &bytes),
                        scales: places.of_units(place, shape, &scales),
                        offsets: (!banded).then(|| places.of_units(place, shape, &offsets)),
                    };
                    // SAFETY: each task writes its own place; the instruction set is available.
                    unsafe { quantise(isa, row_of(places.row(place)), shape, &to) };
                });
            }
        }
        match places {
            Places::Bands(split) => Inputs::Bands(Bands {
                split,
                lines,
                band_lines: shape.chunks() * split.height,
                scales: scales.as_chunks().0,
                units: shape.units(),
            }),
            Places::Rows(_) if shape.scaled() => {
                Inputs::Int8(Bytes { values: &numbers(lines)[..rows * depth], scales, offsets })
            }
            Places::Rows(_) => Inputs::Bf16(&numbers(lines)[..rows * depth]),
        }
    }
}

versions! { unsafe fn halves(x: &[f32], to: &Pieces<'_, u16>) = halves_body }
versions! { unsafe fn rounded(x: &[f32], to: &mut [f32]) = rounded_body }
versions! { unsafe fn quantise(x: &[f32], shape: Shape, to: &Quantised<'_>) = quantise_body }

/// Zeros from `len` on, which mostly is the end: a call that clears nothing would be most of a piece's time.
#[inline(always)]
fn fill_behind<T: Copy + Default>(len: usize, to: &mut [T]) {
    if len < to.len() {
        to[len..].fill(T::default());
    }
}

/// Rounds a row to bf16, with zeros behind it.
#[inline(always)]
unsafe fn halves_body<V: Lanes>(x: &[f32], to: &Pieces<'_, u16>) {
    for (piece, x) in x.chunks(to.len.max(1)).enumerate() {
        // SAFETY: the caller has these pieces.
        let to = unsafe { to.get(piece) };
        fill_behind(x.len(), to);
        let (whole, tail) = x.as_chunks::<LANES>();
        let (to_whole, to_tail) = to.split_at_mut(whole.len() * LANES);
        for (x, to) in whole.iter().zip(to_whole.chunks_exact_mut(LANES)) {
            // SAFETY: slices of 16; the instruction set is the caller's promise.
            unsafe { V::load(x.as_ptr()).round_to_bf16().store_upper_halves(to.as_mut_ptr()) };
        }
        to_tail.iter_mut().zip(tail).for_each(|(to, &x)| *to = to_bf16(x));
    }
}

/// The same, as f32.
#[inline(always)]
unsafe fn rounded_body<V: Lanes>(x: &[f32], to: &mut [f32]) {
    let (whole, tail) = x.as_chunks::<LANES>();
    to[x.len()..].fill(0.0);
    let (to_whole, to_tail) = to.split_at_mut(whole.len() * LANES);
    for (x, to) in whole.iter().zip(to_whole.chunks_exact_mut(LANES)) {
        // SAFETY: slices of 16; the instruction set is the caller's promise.
        unsafe { V::load(x.as_ptr()).round_to_bf16().store(to.as_mut_ptr()) };
    }
    to_tail.iter_mut().zip(tail).for_each(|(to, &x)| *to = from_bf16(to_bf16(x)));
}

/// A row in bytes: values with zeros behind each unit, and for each unit a scale and, on vectors, what its sums begin with.
struct Quantised<'a> {
    values: Pieces<'a, i8>,
    scales: Pieces<'a, f32>,
    offsets: Option<Pieces<'a, i32>>,
}

/// K of most units: where the compiler knows it, a unit takes fewer instructions.
const USUAL_UNIT: usize = 64;

#[inline(always)]
unsafe fn quantise_body<V: Lanes>(x: &[f32], shape: Shape, to: &Quantised<'_>) {
    let pieces = shape.padded_unit().div_ceil(to.values.len);
    for (unit, x) in x.chunks(shape.unit()).enumerate() {
        // SAFETY: the caller has these pieces; the instruction set is the caller's promise.
        unsafe {
            let usual = if pieces == 1 && to.values.len == USUAL_UNIT { x.as_array::<USUAL_UNIT>() } else { None };
            let (scale, sum) = if let Some(x) = usual {
                let (scale, inverse) = byte_scale::<V>(x);
                let values = to.values.get(unit).as_mut_array::<USUAL_UNIT>();
                (scale, round_to_bytes::<V>(x, inverse, values.expect("a piece has this length")))
            } else {
                let (scale, inverse) = byte_scale::<V>(x);
                let (mut sum, mut rest) = (0, x);
                // A short last unit has its zeros too.
                for piece in unit * pieces..(unit + 1) * pieces {
                    let values = to.values.get(piece);
                    let (x, left) = rest.split_at(rest.len().min(values.len()));
                    sum += round_to_bytes::<V>(x, inverse, values);
                    rest = left;
                }
                (scale, sum)
            };
            to.scales.get(unit)[0] = scale;
            if let Some(offsets) = &to.offsets {
                offsets.get(unit)[0] = -V::WEIGHT_OFFSET * sum;
            }
        }
    }
}

/// `x · inverse` in bytes, with zeros behind; returns their sum.
///
/// # Safety
/// The instruction set of `V` is available.
#[inline(always)]
unsafe fn round_to_bytes<V: Lanes>(x: &[f32], inverse: f32, to: &mut [i8]) -> i32 {
    fill_behind(x.len(), to);
    let (whole, tail) = x.as_chunks::<LANES>();
    let (to_whole, to_tail) = to.split_at_mut(whole.len() * LANES);
    // SAFETY: arrays of 16; sums of whole numbers far below 2^24, which f32 holds exactly; the instruction set is the
    // caller's promise.
    unsafe {
        let mut sums = V::start_sums(&0);
        for (x, to) in whole.iter().zip(to_whole.as_chunks_mut::<LANES>().0) {
            sums = V::load(x.as_ptr()).mul(V::splat(inverse)).store_rounded(sums, to.as_mut_ptr());
        }
        to_tail.iter_mut().zip(tail).for_each(|(to, x)| *to = to_int8(x * inverse));
        let tail_bytes = to_tail[..tail.len()].iter().map(|&byte| i32::from(byte)).sum::<i32>();
        V::sums_to_f32(sums).sum().to_int_unchecked::<i32>() + tail_bytes
    }
}
