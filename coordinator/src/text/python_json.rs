//! JSON as Python's `json.dumps` writes it.
//!
//! Knows values; does not know templates. Differs from serde_json in separators, exponents and what may be escaped.
//! Reference: `json/encoder.py` and `float.__repr__` of CPython.

use std::io;

use serde::Serialize;
use serde_json::{
    Value,
    ser::{CharEscape, Formatter, Serializer},
};

/// Widest indentation.
const MAX_INDENT: usize = 16;

/// The options of `json.dumps`.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonStyle {
    /// `ensure_ascii`.
    pub(super) ascii: bool,
    /// `indent`: spaces a level, each item on a line of its own.
    pub(super) indent: Option<usize>,
    /// `separators`: after an item, after a key.
    pub(super) separators: Option<(String, String)>,
    /// `sort_keys`.
    pub(super) sort_keys: bool,
}

/// `json.dumps(value, …)`.
pub(super) fn to_json(value: &impl Serialize, style: &JsonStyle) -> Result<String, serde_json::Error> {
    let (item, key) = style.separators.clone().unwrap_or_else(|| {
        // With line breaks a comma needs no space.
        (if style.indent.is_some() { "," } else { ", " }.into(), ": ".into())
    });
    let python = Python {
        ascii: style.ascii,
        indent: style.indent.map(|width| width.min(MAX_INDENT)),
        item,
        key,
        depth: 0,
        is_empty: true,
    };
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, python);
    match style.sort_keys {
        true => sort(&serde_json::to_value(value)?).serialize(&mut serializer)?,
        false => value.serialize(&mut serializer)?,
    }
    // The serializer writes strings whole or escaped: never half a character.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// The same value with the keys of every object in order.
fn sort(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            pairs.into_iter().map(|(key, value)| (key.clone(), sort(value))).collect()
        }
        Value::Array(items) => items.iter().map(sort).collect(),
        other => other.clone(),
    }
}

struct Python {
    ascii: bool,
    indent: Option<usize>,
    item: String,
    key: String,
    depth: usize,
    /// Whether the innermost container has had no item yet.
    is_empty: bool,
}

impl Python {
    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.is_empty = false;
        self.line(writer)
    }

    fn line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(width) => write!(writer, "\n{}", " ".repeat(width * self.depth)),
            None => Ok(()),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(repr(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for c in fragment.chars() {
            match c.is_ascii() {
                true => write!(writer, "{c}")?,
                false => c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::Quote => writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => writer.write_all(b"\\\\"),
            CharEscape::Solidus => writer.write_all(b"/"),
            CharEscape::Backspace => writer.write_all(b"\\b"),
            CharEscape::FormFeed => writer.write_all(b"\\f"),
            CharEscape::LineFeed => writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => writer.write_all(b"\\r"),
            CharEscape::Tab => writer.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(writer, "\\u{byte:04x}"),
        }
    }
}

/// `repr` of a finite float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn repr(value: f64) -> String {
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (1e-4, "0.0001"),
            (0.000012, "1.2e-05"),
            (0.1, "0.1"),
        ] {
            assert_eq!(repr(value), text);
        }
    }
}
