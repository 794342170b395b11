//! The kernels for GPUs: their PTX, what they take, and how they are launched. Runs nothing itself.
//!
//! Sources are in `cuda/`; `cuda/build_ptx.py` compiles them. Every kernel takes one struct, which stands here and in
//! `cuda/arguments.h` field by field: pointers are addresses on the device, `T` rows of a step, `C` the model's width. Shapes and
//! meanings are in that header.
//!
//! Invariant: sums are f32 in one order that a row's neighbours do not change.

use crate::Element;

/// All kernels for weights of it, as text that the driver compiles: PTX 8.0 for compute capability 8.0 and later.
pub fn ptx(element: Element) -> &'static str {
    match element {
        Element::F32 => include_str!("../cuda/ptx/decoder_f32.ptx"),
        Element::F16 => include_str!("../cuda/ptx/decoder_f16.ptx"),
        Element::Bf16 => include_str!("../cuda/ptx/decoder_bf16.ptx"),
        Element::Int8 => include_str!("../cuda/ptx/decoder_int8.ptx"),
    }
}

/// What queries, keys and values are, beside weights of `element`.
pub fn element_of_heads(element: Element) -> Element {
    if element == Element::Int8 { Element::Bf16 } else { element }
}

/// Bytes of what products take from the kernels before them: bytes are made of f32 where they are multiplied.
pub fn carried_bytes(element: Element) -> usize {
    if element == Element::Int8 { size_of::<f32>() } else { element.bytes() }
}

/// The same for GPUs whose kernels may begin while the one before ends: what says so stands in comments, as others do not know it.
pub fn overlapping(ptx: &str) -> String {
    ptx.replacen(".target sm_80", ".target sm_90", 1).replace("//overlap ", "")
}

/// Least compute capability that the PTX is for.
pub const LEAST_COMPUTE_CAPABILITY: (i32, i32) = (8, 0);
/// From which on kernels may overlap.
pub const LEAST_OVERLAPPING: (i32, i32) = (9, 0);
/// Widest head that attention has registers for.
pub const MAX_HEAD_DIM: usize = 128;
/// Positions of a block of the KV cache.
pub const BLOCK: usize = 16;
/// Rows of one sequence that attend together in a prompt, of as many positions that divide.
pub const TILE_ROWS: usize = 16;
/// Positions that a block of attention takes at a time.
const ROUND: usize = 256;
/// Most parts that a history comes in.
const MOST_PARTS: usize = 16;
/// Rows that a block of `project_rows` and `project_normed` takes.
const GROUP_ROWS: usize = 16;
/// From more rows on `project_many` is faster on paper: each group reads all weights again, if from the cache.
const FEW_ROWS: usize = 4 * GROUP_ROWS;
/// Slices of a tile that `project_many` has in shared memory or on their way.
const STAGES: usize = 4;
/// Logits that `answer_parts` answers for together.
pub const PART: usize = 4096;

const ROW_THREADS: u32 = 256;
const ATTENTION_THREADS: u32 = 256;
const ANSWER_THREADS: u32 = 512;
/// Elements that a warp multiplies at once.
const SLICE: usize = 32;
/// The same of bytes, which have a scale each.
pub const BYTE_SLICE: usize = 64;
/// Elements that a lane loads at once.
const LOAD: usize = 8;
/// Outputs of a layer that a block computes at once.
const OUTPUTS: usize = 8;
/// Heads up to this width have a kernel of their own.
const NARROW_HEAD_DIM: usize = 64;

/// Elements from one row of what is carried to the next, of rows of `width`: whole slices.
pub fn row_stride(width: usize) -> usize {
    width.next_multiple_of(SLICE)
}

/// Elements from one row of weights to the next, of so many inputs: whole slices, of bytes in each unit of inputs.
pub fn weight_stride(inputs: usize, unit: usize, element: Element) -> usize {
    match element {
        Element::Int8 => inputs.div_ceil(unit) * unit.next_multiple_of(BYTE_SLICE),
        Element::F32 | Element::Bf16 | Element::F16 => row_stride(inputs),
    }
}

/// Scales of a row of weights or inputs of such a stride.
pub fn scales(stride: usize, element: Element) -> usize {
    if element == Element::Int8 { stride / BYTE_SLICE } else { 0 }
}

/// Elements from one head to the next, of heads of `head_dim`: whole loads.
pub fn head_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LOAD)
}

/// Of a row that sees all positions before its own.
pub const NO_WINDOW: u32 = i32::MAX as u32;

/// Outputs of a gated layer of so many pairs, as `ProjectArguments` counts them: whole eights.
pub fn gated_outputs(pairs: usize) -> usize {
    pairs.div_ceil(OUTPUTS / 2) * OUTPUTS
}

/// How many blocks share the history of each of `heads` heads of `rows` rows, each of which sees up to `positions`: as many as a GPU of
/// so many multiprocessors has idle.
pub fn sharing(rows: usize, heads: usize, positions: usize, multiprocessors: usize) -> usize {
    (multiprocessors / (rows * heads).max(1)).clamp(1, positions.div_ceil(ROUND).clamp(1, MOST_PARTS))
}

/// Floats of what of attention is still to be merged: of `rows` rows that go through their history by themselves, and of any that
/// blocks share, on a GPU of so many multiprocessors.
pub fn part_floats(rows: usize, heads: usize, head_dim: usize, positions: usize, multiprocessors: usize) -> usize {
    if positions <= ROUND {
        return 0;
    }
    (rows * heads * head_dim).max(multiprocessors * MOST_PARTS * (2 + head_dim))
}

/// How many blocks of how many threads, with how much shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks, in x and y.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory beside what the kernel declares.
    pub shared_bytes: u32,
}

/// What a kernel takes.
///
/// # Safety
/// The implementor has the layout of the struct of the same name in `cuda/arguments.h`, which `NAME` takes.
pub unsafe trait Arguments: Copy {
    /// The kernel's name; of attention the one for narrow heads and single rows.
    const NAME: &'static str;
}

macro_rules! structs {
    ($($(#[$meta:meta])* $name:ident $(for $kernel:literal)? { $($type:ty: $($field:ident),+;)+ })+) => {
        $($(#[$meta])*
        #[allow(missing_docs)]
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $name { $($(pub $field: $type,)+)+ }

        // SAFETY: the fields of `cuda/arguments.h` in its order; the tests below compare names and sizes.
        $(unsafe impl Arguments for $name { const NAME: &'static str = $kernel; })?)+

        #[cfg(test)]
        const FIELDS: &[(&str, &[&str])] = &[$((stringify!($name), &[$($(stringify!($field),)+)+]),)+];
    };
}

structs! {
    /// Of `begin`, one warp a row.
    BeginArguments for "begin" {
        Norm: norm;
        u64: positions, sequences, gate, x;
        u32: count, channels;
        f32: scale;
        u32: padding;
    }

    /// Of `mix`, one block a row.
    MixArguments for "mix" { u64: x, other, kept; f32: factor, other_factor; u32: width, padding; }

    /// Where rows stand in the KV cache.
    Placement { u64: positions, sequences, tables; }

    /// Weights, a row for each output, and where they are bytes their scales.
    WeightRows { u64: rows, scales; }

    /// What is multiplied with them, likewise.
    InputRows { u64: rows, scales; }

    /// What is normalised.
    Norm { u64: x, gain, shift, rows; u32: width; f32: epsilon; u32: is_centred, padding; }

    /// Where queries, keys and values of rows go.
    QkvPlaces { u64: queries, cache; Placement: at; u32: heads, kv_heads, head_dim, head_stride, table_blocks, padding; }

    /// Of `angles`, one thread for each.
    TurnsArguments for "angles" {
        u64: positions, frequencies, turns;
        u32: count, half;
        f32: factor;
        u32: is_backwards, is_rounded, padding;
    }

    /// What a table adds to values.
    AddedValues { Norm: norm; u64: tokens; WeightRows: table; u64: gates; u32: stride, channels; f32: factor; u32: rows; }

    /// Of `turn`, one warp for each head of a row.
    TurnArguments for "turn" {
        QkvPlaces: to;
        u64: sums, bias, turns, query_gain, key_gain;
        f32: factor, epsilon;
        AddedValues: added;
    }

    /// Of `embed`, one block a row.
    EmbedArguments for "embed" {
        u64: tokens, positions;
        WeightRows: embedding;
        u64: position_embedding, x;
        u32: first_token, tokens_local, width, stride;
    }

    /// Of `layer_norm`, one warp a row.
    NormArguments for "layer_norm" { Norm: norm; u64: out, scales; u32: count, stride; }

    /// Of `quantise`, one warp a unit of a row.
    QuantiseArguments for "quantise" { u64: x, out, scales; u32: count, width, x_stride, stride, unit, padding; }

    /// Of the attention kernels, one block a head of a tile.
    AttendArguments for "attend_64" {
        QkvPlaces: from;
        u64: out, parts, arrived, tiles;
        u32: tile_rows, out_stride;
        f32: scale;
        u32: group, skipped, window, sharing, padding;
    }

    /// Of `project_rows` and `project_normed`, whose blocks take outputs in turns, and of `project_many`.
    ProjectArguments for "project_rows" {
        Norm: norm;
        InputRows: inputs;
        WeightRows: weights;
        u64: bias;
        QkvPlaces: to;
        u64: out, sums;
        u32: rows, outputs, pairs, stride, out_stride, finish, activation;
        f32: cap;
    }

    /// Of `answer`, one block a row, and of `answer_parts`, one a part of a row.
    AnswerArguments for "answer" { u64: logits, wants, ids, parts, answers; u32: width, padding; }

    /// What is wanted of one row of logits.
    RowWants {
        u32: wanted, k, listed, first_listed, leave_out;
        f32: scale;
        u32: listed_at, largest_at, parts_at, padding;
    }

    /// The head of one row's answer.
    RowAnswer { f64: sum_all, sum_rest; f32: max_all, max_rest; }
}

/// What a layer does with its sums, as `project.h` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Adds the bias; queries, keys and values go to their places.
    Qkv,
    /// Adds the bias, applies the activation, rounds.
    Activation,
    /// Adds them to what is there, with the bias, where there is one.
    Added,
    /// Adds the bias, multiplies the activation of each gate with what it is for, rounds.
    Gated,
    /// Adds the bias, where there is one.
    Sums,
}

/// Names of the kernels for weights of `element`.
pub fn kernels(element: Element) -> impl Iterator<Item = &'static str> {
    KERNELS.into_iter().chain((element == Element::Int8).then_some(QuantiseArguments::NAME))
}

/// Of every element, in the order of the sources.
const KERNELS: [&str; 13] = [
    "embed",
    "layer_norm",
    "begin",
    "mix",
    "angles",
    "turn",
    "attend_64",
    "attend_128",
    "project_rows",
    "project_normed",
    "project_many",
    "answer_parts",
    "answer",
];

impl Launch {
    /// One block for each of `rows` rows: `embed`, `mix`.
    pub fn rows(rows: usize) -> Self {
        Self { grid: (rows as u32, 1), threads: ROW_THREADS, shared_bytes: 0 }
    }

    /// One thread for each of `count` angles: `angles`.
    pub fn angles(count: usize) -> Self {
        Self::rows(count.div_ceil(ROW_THREADS as usize))
    }

    /// One warp for each of `heads` heads of queries, keys and values of `rows` rows: `turn`.
    pub fn turn(rows: usize, heads: usize) -> Self {
        Self { grid: (rows as u32, heads.div_ceil(ROW_THREADS as usize / 32) as u32), ..Self::rows(rows) }
    }

    /// One warp for each of `rows` rows: `layer_norm`, `begin`.
    pub fn warps(rows: usize) -> Self {
        Self::rows(rows.div_ceil(ROW_THREADS as usize / 32))
    }

    /// One warp for each of `units` units of `rows` rows: `quantise`.
    pub fn quantise(rows: usize, units: usize) -> Self {
        Self { grid: (rows as u32, units.div_ceil(ROW_THREADS as usize / 32) as u32), ..Self::rows(rows) }
    }

    /// One block for each part of `rows` rows of `width` logits: `answer_parts`.
    pub fn answer_parts(rows: usize, width: usize) -> Self {
        Self { grid: (rows as u32, width.div_ceil(PART) as u32), ..Self::answers(rows) }
    }

    /// One block for each of `rows` rows of logits: `answer`.
    pub fn answers(rows: usize) -> Self {
        Self { grid: (rows as u32, 1), threads: ANSWER_THREADS, shared_bytes: 0 }
    }

    /// One block for each eight outputs of each group of `rows` rows; and the name of the kernel for inputs that are `normed` from rows of
    /// that width, or else lie ready.
    pub fn project(rows: usize, outputs: usize, normed: Option<usize>, element: Element) -> (&'static str, Self) {
        let grid = (outputs.div_ceil(OUTPUTS) as u32, rows.div_ceil(GROUP_ROWS) as u32);
        let shared_bytes = normed.map_or(0, |width| rows.min(GROUP_ROWS) * normed_row_bytes(width, element)) as u32;
        let name = if normed.is_some() { "project_normed" } else { "project_rows" };
        (name, Self { grid, threads: ROW_THREADS, shared_bytes })
    }

    /// The same with no more than `blocks` blocks in all, which take outputs in turns.
    pub fn in_turns(self, blocks: usize) -> Self {
        let (of_group, groups) = self.grid;
        Self { grid: (of_group.min((blocks as u32 / groups.max(1)).max(1)), groups), ..self }
    }

    /// Most rows of `width` that `project_normed` and `project_rows` take with so much shared memory.
    pub fn few_rows(width: usize, element: Element, shared_bytes: usize) -> usize {
        let fitting = shared_bytes / normed_row_bytes(width, element);
        if fitting < GROUP_ROWS { fitting } else { FEW_ROWS }
    }

    /// One block for each tile of rows and outputs: `project_many`.
    pub fn project_many(rows: usize, outputs: usize, element: Element) -> Self {
        let (tile_rows, tile_outputs) = if element == Element::F32 { (32, 64) } else { (128, 128) };
        let grid = (rows.div_ceil(tile_rows) as u32, outputs.div_ceil(tile_outputs) as u32);
        let line_bytes = if element == Element::Int8 { BYTE_SLICE } else { SLICE * element.bytes() };
        Self { grid, threads: ROW_THREADS, shared_bytes: (STAGES * (tile_rows + tile_outputs) * line_bytes) as u32 }
    }

    /// `sharing` blocks for each head of `tiles` tiles, single rows unless `tiled`; and the name of the kernel for such heads.
    pub fn attention(tiles: usize, heads: usize, head_dim: usize, tiled: bool, sharing: usize) -> (&'static str, Self) {
        let name = if head_dim <= NARROW_HEAD_DIM { "attend_64" } else { "attend_128" };
        let rows = if tiled { TILE_ROWS } else { 1 };
        // Of each warp and row the largest score, the sum and the mixed values.
        let floats = (ATTENTION_THREADS / 32) as usize * rows * (2 + head_dim);
        let shared_bytes = (floats * size_of::<f32>()) as u32;
        (name, Self { grid: (tiles as u32, (heads * sharing) as u32), threads: ATTENTION_THREADS, shared_bytes })
    }
}

/// A slice more than the row, so that rows side by side begin in other banks; of bytes with their scales.
fn normed_row_bytes(width: usize, element: Element) -> usize {
    match element {
        Element::Int8 => {
            let stride = weight_stride(width, BYTE_SLICE, element);
            stride + BYTE_SLICE + scales(stride, element) * size_of::<f32>()
        }
        Element::F32 | Element::Bf16 | Element::F16 => (row_stride(width) + SLICE) * element.bytes(),
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    const ELEMENTS: [(Element, &str); 4] =
        [(Element::F32, "f32"), (Element::F16, "f16"), (Element::Bf16, "bf16"), (Element::Int8, "int8")];

    const HEADER: &str = include_str!("../cuda/arguments.h");

    #[test]
    fn ptx_is_of_the_sources_that_stand_beside_it() {
        let sources = [
            include_str!("../cuda/decoder.cu"),
            include_str!("../cuda/device.h"),
            HEADER,
            include_str!("../cuda/tiles.h"),
            include_str!("../cuda/rows.h"),
            include_str!("../cuda/stream.h"),
            include_str!("../cuda/cache.h"),
            include_str!("../cuda/attention.h"),
            include_str!("../cuda/project.h"),
            include_str!("../cuda/answer.h"),
        ];
        let digest: String = Sha256::digest(sources.concat()).iter().map(|byte| format!("{byte:02x}")).collect();
        for (element, name) in ELEMENTS {
            let first = ptx(element).lines().next().unwrap();
            assert_eq!(first, format!("// {name}, sources {digest}"), "run worker/kernels/cuda/build_ptx.py");
        }
    }

    /// Bytes of the one parameter of a kernel.
    fn parameter_bytes(ptx: &str, kernel: &str) -> usize {
        let entry = ptx.split(".visible .entry ").find_map(|entry| entry.strip_prefix(&format!("{kernel}(")));
        let parameters = entry.unwrap_or_else(|| panic!("no kernel {kernel}")).split(')').next().unwrap();
        assert_eq!(parameters.matches(".param").count(), 1, "{kernel} takes one struct");
        parameters.split('[').nth(1).unwrap().split(']').next().unwrap().parse().unwrap()
    }

    #[test]
    fn kernels_take_as_many_bytes_as_they_are_given() {
        for (element, _) in ELEMENTS {
            let ptx = ptx(element);
            let count = kernels(element).count();
            assert!(ptx.contains("\n.version 8.0\n.target sm_80\n"));
            assert_eq!(ptx.matches(".visible .entry ").count(), count);
            // Each kernel says when the next may begin, and waits for the one before.
            assert_eq!(ptx.matches("\t//overlap griddepcontrol.").count(), 2 * count);
            let overlapping = overlapping(ptx);
            assert!(overlapping.contains("\n.version 8.0\n.target sm_90\n") && !overlapping.contains("//overlap"));
            for (kernel, bytes) in [
                (EmbedArguments::NAME, size_of::<EmbedArguments>()),
                (NormArguments::NAME, size_of::<NormArguments>()),
                (BeginArguments::NAME, size_of::<BeginArguments>()),
                (MixArguments::NAME, size_of::<MixArguments>()),
                (TurnsArguments::NAME, size_of::<TurnsArguments>()),
                (TurnArguments::NAME, size_of::<TurnArguments>()),
                (AnswerArguments::NAME, size_of::<AnswerArguments>()),
                ("answer_parts", size_of::<AnswerArguments>()),
                (AttendArguments::NAME, size_of::<AttendArguments>()),
                ("attend_128", size_of::<AttendArguments>()),
                (ProjectArguments::NAME, size_of::<ProjectArguments>()),
                ("project_normed", size_of::<ProjectArguments>()),
                ("project_many", size_of::<ProjectArguments>()),
            ] {
                assert_eq!(parameter_bytes(ptx, kernel), bytes, "{kernel}");
            }
            if element == Element::Int8 {
                assert_eq!(parameter_bytes(ptx, QuantiseArguments::NAME), size_of::<QuantiseArguments>());
            }
        }
    }

    /// Names of the fields of a struct that `end` ends, in order: the last word before each semicolon.
    fn fields(text: &str, end: &str) -> Vec<String> {
        let end = text.find(end).unwrap_or_else(|| panic!("no {end}"));
        let begin = text[..end].rfind("typedef struct {").unwrap();
        let body = &text[begin..end];
        let word = |line: &str| {
            let field = line.split("//").next()?.split_once(';')?.0;
            let name = field.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next()?;
            (!name.is_empty()).then(|| name.trim_start_matches('*').to_owned())
        };
        body.lines().skip(1).filter_map(word).collect()
    }

    #[test]
    fn both_languages_have_the_same_fields() {
        assert_eq!(FIELDS.len(), HEADER.matches("typedef struct {").count());
        for (name, ours) in FIELDS {
            let theirs = fields(HEADER, &format!("}} {name};"));
            let theirs: Vec<_> = theirs.into_iter().filter(|field| field != "unused").collect();
            let ours: Vec<_> = ours.iter().copied().filter(|&field| field != "padding").collect();
            assert_eq!(ours, theirs, "{name}");
        }
    }
}
