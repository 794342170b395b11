//! GGUF, the files of llama.cpp and Ollama: keys with values, a table of tensors, and their elements.
//!
//! ```text
//! magic, version: u32, tensors: u64, keys: u64
//! per key       name, type: u32, value            text: length: u64, bytes    array: type: u32, count: u64, values
//! per tensor    name, dimensions: u32, sizes: u64 each, the contiguous one first, type: u32, offset: u64
//! to a multiple of the alignment, then elements from their offsets on
//! ```
//! [`blocks`](super::blocks) are how elements are packed; [`config`] and [`tokenizer`] know what keys mean, [`split`] how the parts of a model are
//! called. Does not know which tensors a model has. Invariant: reading costs time and memory linear in the length of what stands
//! before the elements, and every tensor lies inside the file.
//! Reference: `docs/gguf.md` of ggml, the `gguf` package.

pub(super) mod config;
pub(super) mod tokenizer;
pub(super) mod split;

use std::{collections::BTreeMap, str};

use safetensors::Dtype;

use super::{
    blocks::BlockType,
    shown::shown,
    tensor::{ElementType, MAX_TENSORS, Stored},
};

/// How a file begins.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Key of the alignment.
const ALIGNMENT: &str = "general.alignment";
/// Where the key is missing.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Most keys; models have some 40.
const MAX_KEYS: u64 = 1 << 16;
/// Longest name of a key or a tensor, by the format's own word for keys.
const MAX_NAME: usize = (1 << 16) - 1;
/// Most dimensions of a tensor, as ggml has them.
const MAX_DIMENSIONS: u32 = 4;
/// How deep arrays may lie in arrays.
const MAX_DEPTH: u32 = 4;

/// Types that are not read, as ggml numbers and calls them.
const OTHER_TYPES: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum GgufError {
    /// It is broken, or no such file.
    #[error("{0}")]
    Malformed(String),
    /// It holds what is not served.
    #[error("{0}")]
    NotServed(String),
}

impl From<String> for GgufError {
    fn from(reason: String) -> Self {
        Self::Malformed(reason)
    }
}

/// A value of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// Of any width, signed or not: those that no i64 holds count as the largest.
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// Perhaps no UTF-8.
    Text(&'a [u8]),
    Array(Array<'a>),
}

/// Values of one type, which lie inside of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Array<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

/// What stands before the elements.
#[derive(Debug)]
pub(super) struct Header<'a> {
    keys: BTreeMap<&'a str, Value<'a>>,
    /// In the file's order; `file` is left 0.
    pub(super) tensors: Vec<(&'a str, Stored)>,
}

impl<'a> Header<'a> {
    /// Reads all that stands before the elements.
    pub(super) fn read(file: &'a [u8]) -> Result<Self, GgufError> {
        let mut at = Cursor { file, at: MAGIC.len() };
        match at.u32("the version")? {
            2 | 3 => {}
            version if version > 0 && version.trailing_zeros() >= 16 => {
                return Err(GgufError::NotServed("its numbers are big-endian, which is not read".into()));
            }
            version => return Err(GgufError::NotServed(format!("it is of version {version}; 2 and 3 are read"))),
        }
        let (tensors, keys) = (at.u64("the number of tensors")?, at.u64("the number of keys")?);
        if tensors > MAX_TENSORS as u64 || keys > MAX_KEYS {
            return Err(format!("it claims {tensors} tensors and {keys} keys, more than any model has").into());
        }
        let mut header = Header { keys: BTreeMap::new(), tensors: Vec::new() };
        for _ in 0..keys {
            let name = at.name("the name of a key")?;
            let kind = at.u32("the type of a value")?;
            let value = at.value(kind, 0).map_err(|reason| format!("key `{}`: {reason}", shown(name)))?;
            if header.keys.insert(name, value).is_some() {
                return Err(format!("it has key `{}` twice", shown(name)).into());
            }
        }
        let table = (0..tensors).map(|_| at.tensor()).collect::<Result<Vec<_>, _>>()?;
        let alignment = header.unsigned(ALIGNMENT)?.map_or(DEFAULT_ALIGNMENT, |bytes| bytes as u64);
        let elements = Some(alignment).filter(|bytes| bytes.is_power_of_two() && *bytes <= 1 << 30);
        let elements = elements.and_then(|bytes| at.at.checked_next_multiple_of(bytes as usize));
        let elements = elements.ok_or_else(|| format!("key `{ALIGNMENT}` is {alignment}, which is no alignment"))?;
        for (name, offset, mut stored) in table {
            let broken = |what: &str| format!("tensor `{}` {what}", shown(name));
            if offset % alignment != 0 {
                return Err(broken(&format!("begins at {offset}, no multiple of the alignment of {alignment}")).into());
            }
            let start = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(elements));
            let room = start.and_then(|start| file.len().checked_sub(start));
            (stored.start, _) = start.zip(room.filter(|&room| stored.fits(room))).ok_or_else(|| {
                broken(&format!("of {:?} in {} lies past the end of the file", stored.shape, stored.dtype))
            })?;
            header.tensors.push((name, stored));
        }
        Ok(header)
    }

    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.keys.get(key).copied()
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Text(bytes) = value else { return Err(format!("key `{key}` is no text")) };
        str::from_utf8(bytes).map(Some).map_err(|_| format!("key `{key}` is no UTF-8"))
    }

    /// A whole number that is not negative.
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<usize>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => {
                let number = usize::try_from(number).map_err(|_| format!("key `{key}` is {number}"))?;
                Ok(Some(number))
            }
            Some(_) => Err(format!("key `{key}` is no whole number")),
        }
    }

    /// A number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(number)),
            Some(Value::Integer(number)) => Ok(Some(number as f64)),
            Some(_) => Err(format!("key `{key}` is no number")),
        }
    }

    /// A switch.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(format!("key `{key}` is neither true nor false")),
        }
    }

    /// Values of an array.
    pub(super) fn array(&self, key: &str) -> Result<Option<impl Iterator<Item = Value<'a>> + use<'a>>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array.values())),
            Some(_) => Err(format!("key `{key}` is no array")),
        }
    }

    /// Names of all keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.keys.keys().copied()
    }
}

impl<'a> Array<'a> {
    fn values(self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut at = Cursor { file: self.bytes, at: 0 };
        (0..self.count).map(move |_| at.value(self.kind, 0).expect("it was read before"))
    }
}

/// Where reading is.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn bytes(&mut self, len: u64, what: &str) -> Result<&'a [u8], String> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let bytes = end.and_then(|end| self.file.get(self.at..end));
        let bytes =
            bytes.ok_or_else(|| format!("it ends within {what}, at byte {} of {}", self.at, self.file.len()))?;
        self.at += bytes.len();
        Ok(bytes)
    }

    fn word<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        Ok(self.bytes(N as u64, what)?.try_into().expect("so many were asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.word(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.word(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &str) -> Result<&'a [u8], String> {
        let len = self.u64(what)?;
        self.bytes(len, what)
    }

    fn name(&mut self, what: &str) -> Result<&'a str, String> {
        let (at, name) = (self.at, self.text(what)?);
        let name = Some(name).filter(|name| name.len() <= MAX_NAME).and_then(|name| str::from_utf8(name).ok());
        name.ok_or_else(|| format!("{what} at byte {at} is none"))
    }

    /// A value that lies in so many arrays.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Value<'a>, String> {
        let what = "a value";
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.word(what)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.word(what)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.word(what)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.word(what)?).into()),
            4 => Value::Integer(self.u32(what)?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.word(what)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.word(what)?).into()),
            7 => match self.word(what)? {
                [bit @ (0 | 1)] => Value::Bool(bit == 1),
                [other] => return Err(format!("{other} is neither true nor false")),
            },
            8 => Value::Text(self.text(what)?),
            9 => Value::Array(self.array(depth)?),
            10 => Value::Integer(self.u64(what)?.try_into().unwrap_or(i64::MAX)),
            11 => Value::Integer(i64::from_le_bytes(self.word(what)?)),
            12 => Value::Float(f64::from_le_bytes(self.word(what)?)),
            other => return Err(format!("there is no type of values {other}")),
        })
    }

    fn array(&mut self, depth: u32) -> Result<Array<'a>, String> {
        let (kind, count) = (self.u32("an array")?, self.u64("an array")?);
        let start = self.at;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => 0,
        };
        if width > 0 && kind != 7 {
            self.bytes(count.saturating_mul(width), "an array")?;
        } else if kind == 9 && depth + 1 >= MAX_DEPTH {
            return Err(format!("arrays lie in arrays, {MAX_DEPTH} deep"));
        } else {
            // Each takes bytes of the file, whatever their number is said to be.
            for _ in 0..count {
                self.value(kind, depth + 1)?;
            }
        }
        let count = usize::try_from(count).expect("so many take bytes of the file");
        Ok(Array { kind, count, bytes: &self.file[start..self.at] })
    }

    /// A line of the table: name, offset, and the tensor, whose start is not known yet.
    fn tensor(&mut self) -> Result<(&'a str, u64, Stored), GgufError> {
        let name = self.name("the name of a tensor")?;
        let broken = |what: String| GgufError::Malformed(format!("tensor `{}` {what}", shown(name)));
        let dimensions = self.u32("a tensor's sizes")?;
        if dimensions > MAX_DIMENSIONS {
            return Err(broken(format!("has {dimensions} dimensions")));
        }
        let size = |_| self.u64("a tensor's sizes").map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let mut shape = (0..dimensions).map(size).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let (kind, offset) = (self.u32("a tensor's type")?, self.u64("a tensor's offset")?);
        let dtype = element_type(kind).ok_or_else(|| {
            let known = OTHER_TYPES.iter().find(|(number, _)| *number == kind);
            let kind = known.map_or_else(|| format!("{kind}, which is unknown"), |(_, name)| (*name).to_owned());
            GgufError::NotServed(format!(
                "tensor `{}` is of type {kind}; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are read\n  \
                 hint: take a file of another quantisation, mostly there is one called Q4_K_M or Q8_0",
                shown(name)
            ))
        })?;
        let row = shape.last().copied().unwrap_or(1);
        if row % dtype.block() != 0 {
            return Err(broken(format!("has rows of {row}, but {dtype} comes in blocks of {}", dtype.block())));
        }
        let strides = Stored::contiguous(&shape);
        Ok((name, offset, Stored { file: 0, start: 0, dtype, shape, strides, paired: None }))
    }
}

fn element_type(kind: u32) -> Option<ElementType> {
    let plain = |dtype| Some(ElementType::Plain(dtype));
    let blocks = |blocks| Some(ElementType::Blocks(blocks));
    match kind {
        0 => plain(Dtype::F32),
        1 => plain(Dtype::F16),
        2 => blocks(BlockType::Q4_0),
        3 => blocks(BlockType::Q4_1),
        6 => blocks(BlockType::Q5_0),
        7 => blocks(BlockType::Q5_1),
        8 => blocks(BlockType::Q8_0),
        12 => blocks(BlockType::Q4K),
        13 => blocks(BlockType::Q5K),
        14 => blocks(BlockType::Q6K),
        24 => plain(Dtype::I8),
        25 => plain(Dtype::I16),
        26 => plain(Dtype::I32),
        27 => plain(Dtype::I64),
        28 => plain(Dtype::F64),
        30 => plain(Dtype::BF16),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
