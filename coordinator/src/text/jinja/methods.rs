//! Methods of Python's strings, lists and dictionaries, beyond and in place of those of minijinja-contrib.
//!
//! Places are counted in characters. Knows values; does not know templates. Those that change a value in place do not
//! exist, as in Jinja2's immutable sandbox.
//! Reference: the built-in types in Python's library reference.

use std::{iter, mem};

use minijinja::{
    Error, State, Value,
    value::{Tuple, ValueKind},
};
use minijinja_contrib::pycompat;

use super::arguments::{arguments, given, integer_or, invalid, pay, text, value_or};

/// Methods of what is no string, list or dictionary: `loop`, `cycler`, `dict`.
pub(super) const OF_OBJECTS: [&str; 5] = ["cycle", "changed", "next", "reset", "fromkeys"];

/// Calls a method by its name.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let ours = match (value.as_str(), value.kind()) {
        (Some(string), _) => string_method(state, string, method, args)?,
        (None, ValueKind::Map | ValueKind::Seq | ValueKind::Iterable) if method == "copy" && !value.is_tuple() => {
            let [] = arguments([], args)?;
            Some(value.clone())
        }
        (None, ValueKind::Seq | ValueKind::Iterable) => list_method(value, method, args)?,
        _ => None,
    };
    ours.map_or_else(|| pycompat::unknown_method_callback(state, value, method, args), Ok)
}

fn string_method(state: &State, s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "center" | "ljust" | "rjust" => {
            let [width, fill] = arguments(["width", "fillchar"], args)?;
            let fill = value_or(fill, " ");
            let fill = text(&fill)?.parse();
            let fill = fill.map_err(|_| invalid("the fill character must be exactly one character long"))?;
            let width = i64::try_from(width)?;
            Value::from(pad(state, s, width, fill, method)?)
        }
        "zfill" => {
            let [width] = arguments(["width"], args)?;
            let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            let width = i64::try_from(width)?.saturating_sub(sign.len() as i64);
            Value::from(format!("{sign}{}", pad(state, digits, width, '0', "rjust")?))
        }
        "expandtabs" => {
            let [size] = arguments(["tabsize"], args)?;
            let size = usize::try_from(integer_or(&size, 8)?).unwrap_or(0);
            pay(state, s.matches('\t').count().saturating_mul(size))?;
            let (mut out, mut column) = (String::with_capacity(s.len()), 0);
            for c in s.chars() {
                let width = match c {
                    '\t' if size == 0 => 0,
                    '\t' => size - column % size,
                    _ => 1,
                };
                let shown = if c == '\t' { ' ' } else { c };
                out.extend(iter::repeat_n(shown, width));
                column = if matches!(c, '\n' | '\r') { 0 } else { column + width };
            }
            Value::from(out)
        }
        "count" | "find" | "rfind" | "index" | "rindex" | "startswith" | "endswith" => search(s, method, args)?,
        "split" | "rsplit" => {
            let [separator, most] = arguments(["sep", "maxsplit"], args)?;
            // A negative number is no limit.
            let most = usize::try_from(integer_or(&most, -1)?).unwrap_or(usize::MAX);
            split(state, s, &separator, most, method == "rsplit")?
        }
        "splitlines" => {
            let [keep] = arguments(["keepends"], args)?;
            split_lines(state, s, keep.is_true())?
        }
        "partition" | "rpartition" => {
            let [separator] = arguments(["sep"], args)?;
            let separator = nonempty(&separator)?;
            let found = if method == "partition" { s.split_once(separator) } else { s.rsplit_once(separator) };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if method == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = arguments(["affix"], args)?;
            let affix = text(&affix)?;
            let rest = if method == "removeprefix" { s.strip_prefix(affix) } else { s.strip_suffix(affix) };
            Value::from(rest.unwrap_or(s))
        }
        "swapcase" => {
            let [] = arguments([], args)?;
            Value::from(s.chars().map(|c| cased(c, !c.is_uppercase())).collect::<String>())
        }
        "title" => {
            let [] = arguments([], args)?;
            let mut in_word = false;
            let title = s.chars().map(|c| {
                let begins = !mem::replace(&mut in_word, c.is_lowercase() || c.is_uppercase());
                cased(c, begins)
            });
            Value::from(title.collect::<String>())
        }
        "join" => {
            let [items] = arguments(["iterable"], args)?;
            Value::from(join(state, s, &items, |item| text(item).map(str::to_owned))?)
        }
        "format" => {
            pay(state, widths(s))?;
            return Ok(None);
        }
        _ => return Ok(None),
    }))
}

fn cased(c: char, upper: bool) -> String {
    if upper { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
}

/// A string in the middle (`center`), to the left (`ljust`) or to the right of a field.
pub(super) fn pad(state: &State, s: &str, width: i64, fill: char, method: &str) -> Result<String, Error> {
    let missing = width.saturating_sub(s.chars().count() as i64);
    let Ok(missing) = usize::try_from(missing) else {
        return Ok(s.to_owned());
    };
    pay(state, s.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // CPython gives the odd character to the left where the width is odd too.
        _ => missing / 2 + (missing & width as usize & 1),
    };
    let run = |n| iter::repeat_n(fill, n);
    Ok(run(left).chain(s.chars()).chain(run(missing - left)).collect())
}

/// Items between separators, each as `string` has it.
pub(super) fn join(
    state: &State,
    separator: &str,
    items: &Value,
    string: impl Fn(&Value) -> Result<String, Error>,
) -> Result<String, Error> {
    let mut out = String::new();
    for (i, item) in items.try_iter()?.checked().enumerate() {
        let item = string(&item?)?;
        pay(state, separator.len() + item.len())?;
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(&item);
    }
    Ok(out)
}

/// Upper bound of the padding that a format string asks for: all numbers within its braces.
fn widths(format: &str) -> usize {
    let fields = format.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or(rest));
    let numbers = fields.flat_map(|field| field.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()));
    numbers.fold(0, |sum, number| sum.saturating_add(number.parse().unwrap_or(usize::MAX)))
}

fn search(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [what, start, end] = arguments(["sub", "start", "end"], args)?;
    let length = s.chars().count() as i64;
    let place = |value: &Value, default| {
        let at = integer_or(value, default)?;
        Ok::<_, Error>(if at < 0 { (at + length).max(0) } else { at })
    };
    let (start, end) = (place(&start, 0)?, place(&end, length)?.min(length));
    let byte = |at: i64| s.char_indices().nth(at as usize).map_or(s.len(), |(byte, _)| byte);
    // Where the window ends before it begins, not even the empty string is in it.
    let window = (start <= end).then(|| &s[byte(start)..byte(end)]);
    if let "startswith" | "endswith" = method {
        let affixes = if what.is_tuple() { what.try_iter()?.collect() } else { vec![what] };
        for affix in &affixes {
            let affix = text(affix)?;
            if window.is_some_and(|w| if method == "startswith" { w.starts_with(affix) } else { w.ends_with(affix) }) {
                return Ok(Value::from(true));
            }
        }
        return Ok(Value::from(false));
    }
    let what = text(&what)?;
    if method == "count" {
        return Ok(Value::from(window.map_or(0, |w| w.matches(what).count())));
    }
    let found = window.and_then(|w| {
        let at = if method.starts_with('r') { w.rfind(what) } else { w.find(what) };
        at.map(|at| start + w[..at].chars().count() as i64)
    });
    let found = if method.ends_with("find") { found.or(Some(-1)) } else { found };
    found.map(Value::from).ok_or_else(|| invalid("substring not found"))
}

fn nonempty(separator: &Value) -> Result<&str, Error> {
    Some(text(separator)?).filter(|s| !s.is_empty()).ok_or_else(|| invalid("empty separator"))
}

/// The pieces between separators, or between white space; `backwards` counts the splits from the end.
fn split(state: &State, s: &str, separator: &Value, most: usize, backwards: bool) -> Result<Value, Error> {
    let mut pieces = match (given(separator), backwards) {
        (None, _) => list(state, words(s, most, backwards)),
        (Some(separator), false) => list(state, s.splitn(most.saturating_add(1), nonempty(separator)?)),
        (Some(separator), true) => list(state, s.rsplitn(most.saturating_add(1), nonempty(separator)?)),
    }?;
    if backwards {
        pieces.reverse();
    }
    Ok(Value::from(pieces))
}

/// The pieces between white space, from the end if `backwards`; the last one is all that is left after `most` splits.
fn words<'s>(s: &'s str, most: usize, backwards: bool) -> impl Iterator<Item = &'s str> {
    let trim = if backwards { str::trim_end } else { str::trim_start };
    let cut = move |rest: &'s str| match backwards {
        false => rest.split_once(char::is_whitespace),
        true => rest.rsplit_once(char::is_whitespace).map(|(rest, piece)| (piece, rest)),
    };
    let mut rest = trim(s);
    (0..).map_while(move |splits| {
        let (piece, left) = cut(rest).filter(|_| splits < most).unwrap_or((rest, ""));
        rest = trim(left);
        (!piece.is_empty()).then_some(piece)
    })
}

fn list<'s>(state: &State, pieces: impl Iterator<Item = &'s str>) -> Result<Vec<Value>, Error> {
    pieces.map(|piece| state.consume_fuel(1).map(|()| Value::from(piece))).collect()
}

fn split_lines(state: &State, s: &str, keep_ends: bool) -> Result<Value, Error> {
    let is_end = |c| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut lines, mut rest) = (Vec::new(), s);
    while !rest.is_empty() {
        state.consume_fuel(1)?;
        let line = rest.find(is_end).unwrap_or(rest.len());
        let end = match &rest[line..] {
            crlf if crlf.starts_with("\r\n") => 2,
            other => other.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(Value::from(&rest[..if keep_ends { line + end } else { line }]));
        rest = &rest[line + end..];
    }
    Ok(Value::from(lines))
}

fn list_method(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "index" => {
            let [what, start, end] = arguments(["value", "start", "stop"], args)?;
            let items: Vec<Value> = list.try_iter()?.checked().collect::<Result<_, _>>()?;
            let place =
                |at: i64| if at < 0 { at + items.len() as i64 } else { at }.clamp(0, items.len() as i64) as usize;
            let (start, end) = (place(integer_or(&start, 0)?), place(integer_or(&end, i64::MAX)?));
            let found = (start..end).find(|&i| items[i] == what).map(Value::from);
            found.map(Some).ok_or_else(|| invalid(format!("{what} is not in the list")))
        }
        "count" => {
            let [what] = arguments(["value"], args)?;
            Ok(Some(Value::from(list.try_iter()?.filter(|item| *item == what).count())))
        }
        _ => Ok(None),
    }
}
