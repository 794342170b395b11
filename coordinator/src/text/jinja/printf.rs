//! Strings with `%` fields, as Python fills them in.
//!
//! Knows one format string and its values; does not know templates. Padding is paid for before it is made.
//! Reference: "printf-style String Formatting" in Python's library reference.

use std::{
    iter::{self, Peekable},
    str::Chars,
};

use minijinja::{Error, State, Value, value::ValueKind};

use super::{
    arguments::{invalid, pay, string, written},
    python_json::with_exponent,
};

/// Most digits of a number: Rust's own formatting knows no more.
const MAX_PRECISION: usize = u16::MAX as usize;

/// What stands between `%` and the letter of a field.
struct Spec {
    flags: String,
    width: usize,
    precision: Option<usize>,
}

/// `format % values`.
pub(super) fn printf(state: &State, format: &str, values: &Value) -> Result<String, Error> {
    let all: Vec<Value> = if values.is_tuple() { values.try_iter()?.collect() } else { vec![values.clone()] };
    let mut unread = all.into_iter();
    let mut chars = format.chars().peekable();
    let mut out = String::new();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let name: String = chars.by_ref().take_while(|&c| c != ')').collect();
            let value = values.get_item(&Value::from(name.as_str()))?;
            if value.is_undefined() {
                return Err(invalid(format!("no value for %({name})")));
            }
            named = Some(value);
        }
        let flags = iter::from_fn(|| chars.next_if(|c| "#0- +".contains(*c))).collect();
        let width = number(&mut chars, &mut unread)?.unwrap_or(0);
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            precision = Some(number(&mut chars, &mut unread)?.unwrap_or(0));
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let spec = Spec { flags, width, precision };
        let letter = chars.next().ok_or_else(|| invalid("incomplete format"))?;
        if letter == '%' {
            out.push('%');
            continue;
        }
        let value = named.map_or_else(|| next(&mut unread), Ok)?;
        pay(state, width.saturating_add(precision.unwrap_or(0).min(MAX_PRECISION)))?;
        out += &spec.fill(state, letter, &value)?;
    }
    // A mapping may have more than is asked for, and so may a list, for CPython's reasons.
    let is_open = !values.is_tuple() && matches!(values.kind(), ValueKind::Map | ValueKind::Seq);
    if unread.next().is_some() && !is_open {
        return Err(invalid("not all arguments converted during string formatting"));
    }
    Ok(out)
}

fn next(unread: &mut impl Iterator<Item = Value>) -> Result<Value, Error> {
    unread.next().ok_or_else(|| invalid("not enough arguments for format string"))
}

/// Digits, or the value that a `*` stands for.
fn number(chars: &mut Peekable<Chars<'_>>, unread: &mut impl Iterator<Item = Value>) -> Result<Option<usize>, Error> {
    if chars.next_if_eq(&'*').is_some() {
        return Ok(Some(usize::try_from(next(unread)?)?));
    }
    let digits: String = iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect();
    Ok((!digits.is_empty()).then(|| digits.parse().unwrap_or(usize::MAX)))
}

impl Spec {
    fn has(&self, flag: char) -> bool {
        self.flags.contains(flag)
    }

    fn fill(&self, state: &State, letter: char, value: &Value) -> Result<String, Error> {
        if self.precision.is_some_and(|precision| precision > MAX_PRECISION) {
            return Err(invalid("the precision of a format is too large"));
        }
        let (sign, prefix, body) = match letter {
            's' | 'r' => {
                let text =
                    if letter == 's' { string(state, value)? } else { written(state, format_args!("{value:?}"))? };
                pay(state, text.len())?;
                ("", "", text.chars().take(self.precision.unwrap_or(usize::MAX)).collect())
            }
            'c' => ("", "", character(value)?.to_string()),
            'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
                let whole = whole(value, matches!(letter, 'd' | 'i' | 'u'))?;
                let magnitude = whole.unsigned_abs();
                let (prefix, digits) = match letter {
                    'o' => ("0o", format!("{magnitude:o}")),
                    'x' => ("0x", format!("{magnitude:x}")),
                    'X' => ("0X", format!("{magnitude:X}")),
                    _ => ("", magnitude.to_string()),
                };
                let digits = format!("{digits:0>0$}", self.precision.unwrap_or(0));
                (self.sign(whole < 0), if self.has('#') { prefix } else { "" }, digits)
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let float = float(value)?;
                let body = self.float(letter.to_ascii_lowercase(), float.abs());
                let body = if letter.is_ascii_uppercase() { body.to_uppercase() } else { body };
                (self.sign(float.is_sign_negative() && !float.is_nan()), "", body)
            }
            _ => return Err(invalid(format!("unsupported format character {letter:?}"))),
        };
        let missing = self.width.saturating_sub(sign.len() + prefix.len() + body.chars().count());
        let is_number = !matches!(letter, 's' | 'r' | 'c');
        Ok(match (self.has('-'), self.has('0') && is_number) {
            (true, _) => format!("{sign}{prefix}{body}{}", " ".repeat(missing)),
            (false, true) => format!("{sign}{prefix}{}{body}", "0".repeat(missing)),
            (false, false) => format!("{}{sign}{prefix}{body}", " ".repeat(missing)),
        })
    }

    fn sign(&self, is_negative: bool) -> &'static str {
        match is_negative {
            true => "-",
            false if self.has('+') => "+",
            false if self.has(' ') => " ",
            false => "",
        }
    }

    /// A number without its sign: `e` with an exponent, `f` without, `g` whichever is shorter.
    fn float(&self, letter: char, value: f64) -> String {
        let precision = self.precision.unwrap_or(6);
        if !value.is_finite() {
            return if value.is_nan() { "nan".into() } else { "inf".into() };
        }
        match letter {
            'f' => format!("{value:.precision$}"),
            'e' => with_exponent(&format!("{value:.precision$e}")),
            _ => {
                let significant = precision.max(1);
                let shorten = |digits: String| match digits.contains('.') && !self.has('#') {
                    true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
                    false => digits,
                };
                let text = format!("{value:.0$e}", significant - 1);
                let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                match exponent.parse::<i32>() {
                    Ok(exponent) if (-4..significant as i32).contains(&exponent) => {
                        shorten(format!("{value:.0$}", (significant as i32 - 1 - exponent) as usize))
                    }
                    _ => with_exponent(&format!("{}e{exponent}", shorten(digits.to_owned()))),
                }
            }
        }
    }
}

fn character(value: &Value) -> Result<char, Error> {
    let numbered = || u32::try_from(value.clone()).ok().and_then(char::from_u32);
    let character = value.as_str().and_then(|text| text.parse().ok()).or_else(numbered);
    character.ok_or_else(|| invalid("%c requires a character or its number"))
}

fn float(value: &Value) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(f64::from(value.is_true())),
        ValueKind::Number => f64::try_from(value.clone()),
        kind => Err(invalid(format!("a number is required, not {kind}"))),
    }
}

/// A whole number; `cut` takes a float's whole part.
fn whole(value: &Value, cut: bool) -> Result<i128, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()),
        ValueKind::Number if cut => {
            let float = float(value)?;
            if float.is_finite() { Ok(float as i128) } else { Err(invalid("no whole number")) }
        }
        kind => Err(invalid(format!("a whole number is required, not {kind}"))),
    }
}
