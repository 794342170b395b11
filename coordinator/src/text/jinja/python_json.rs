//! JSON as Python's `json.dumps` writes it.
//!
//! Knows values; does not know templates. Differs from serde_json in separators, exponents and what may be escaped.
//! Reference: `json/encoder.py` and `float.__repr__` of CPython.

use std::io;

use minijinja::{State, Value, value::ValueKind};
use serde::{Serialize, ser};
use serde_json::ser::{Formatter, Serializer};

use super::arguments::{pairs, pay};

/// Deepest nesting; Python's own limit is near 1,000.
const MAX_DEPTH: usize = 200;

/// The options of `json.dumps`.
#[derive(Debug)]
pub(super) struct JsonStyle {
    /// `ensure_ascii`.
    pub(super) ascii: bool,
    /// `indent`: before each item, which then has a line of its own, once a level.
    pub(super) indent: Option<String>,
    /// `separators`: after an item, after a key.
    pub(super) separators: (String, String),
    /// `sort_keys`.
    pub(super) sort_keys: bool,
}

/// `json.dumps(value, …)`, of which every byte is paid for before it is written.
pub(super) fn to_json(state: &State, value: &Value, style: &JsonStyle) -> Result<String, serde_json::Error> {
    let mut paid = Paid { state, out: Vec::new(), paid: 0 };
    let mut serializer = Serializer::with_formatter(&mut paid, Python { style, depth: 0, is_empty: true });
    match style.sort_keys {
        true => Sorted(value.clone()).serialize(&mut serializer)?,
        false => value.serialize(&mut serializer)?,
    }
    // The serializer writes strings whole or escaped: never half a character.
    Ok(String::from_utf8_lossy(&paid.out).into_owned())
}

/// A buffer whose bytes are paid for in advance.
struct Paid<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    out: Vec<u8>,
    paid: usize,
}

impl io::Write for Paid<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        /// So that small pieces are not each rounded up to a unit of payment.
        const PURCHASE_BYTES: usize = 1 << 10;
        /// A byte of JSON takes more time to make than one that is only copied.
        const COST: usize = 4;
        let needed = self.out.len() + bytes.len();
        if needed > self.paid {
            let bought = (needed - self.paid).max(PURCHASE_BYTES);
            pay(self.state, COST * bought).map_err(io::Error::other)?;
            self.paid += bought;
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same value with the keys of every dictionary in order.
struct Sorted(Value);

impl Serialize for Sorted {
    fn serialize<S: ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.kind() {
            ValueKind::Map => {
                let mut pairs: Vec<_> = pairs(&self.0).map(|(key, value)| (key, Self(value))).collect();
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
                serializer.collect_map(pairs)
            }
            ValueKind::Seq | ValueKind::Iterable => {
                serializer.collect_seq(self.0.try_iter().map_err(ser::Error::custom)?.map(Self))
            }
            _ => self.0.serialize(serializer),
        }
    }
}

struct Python<'s> {
    style: &'s JsonStyle,
    depth: usize,
    /// Whether the innermost container has had no item yet.
    is_empty: bool,
}

impl Python<'_> {
    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(io::Error::other(format!("nested more than {MAX_DEPTH} deep")));
        }
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
            writer.write_all(self.style.separators.0.as_bytes())?;
        }
        self.is_empty = false;
        self.line(writer)
    }

    fn line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.style.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for Python<'_> {
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
        writer.write_all(self.style.separators.1.as_bytes())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(repr(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.style.ascii {
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
}

/// `repr` of a finite float: the shortest digits, with an exponent below 1e-4 and from 1e16 on, as in Rust.
pub(super) fn repr(value: f64) -> String {
    with_exponent(&format!("{value:?}"))
}

/// A number of Rust's, whose exponent, if any, gets a sign and two digits at least.
pub(super) fn with_exponent(number: &str) -> String {
    match number.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
        Some((digits, Ok(exponent))) => format!("{digits}e{exponent:+03}"),
        _ => number.to_owned(),
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
