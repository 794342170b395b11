//! Filters, tests and the operators `%` and `~`, beyond and in place of the library's.
//!
//! Knows values; does not know messages. What the library has and Jinja2 has not is taken out, and so is what it writes
//! otherwise (`pprint`): a template that names it is told of at the start.
//! Reference: `jinja2/filters.py` and `jinja2/tests.py`.

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value, escape_formatter, filters,
    value::{Kwargs, Tuple, ValueKind},
};
use minijinja_contrib::filters as contrib;

use super::{
    arguments::{Given, arguments, integer_or, invalid, pay, string, text},
    methods::pad,
    printf::printf,
};
use crate::text::python_json::{JsonStyle, repr, to_json};

/// Names of operators among the filters.
pub(super) const REM: &str = "%";
pub(super) const CONCAT: &str = "~";

pub(super) fn add_to(environment: &mut Environment<'static>) {
    for name in ["attr", "bool", "chain", "lines", "pprint", "split", "zip"] {
        environment.remove_filter(name);
    }
    for name in ["startingwith", "endingwith"] {
        environment.remove_test(name);
    }
    environment.set_formatter(write_value);
    environment.add_filter(REM, rem);
    environment.add_filter(CONCAT, concat);
    environment.add_filter("string", |state: &mut State, value: Value| match value.as_str() {
        Some(_) => Ok(value),
        None => string(state, &value).map(Value::from),
    });
    environment
        .add_filter("upper", |state: &mut State, value: &Value| Ok::<_, Error>(string(state, value)?.to_uppercase()));
    environment
        .add_filter("lower", |state: &mut State, value: &Value| Ok::<_, Error>(string(state, value)?.to_lowercase()));
    environment.add_filter("tojson", tojson);
    environment.add_filter("center", |state: &mut State, args: Given| {
        let [value, width] = arguments(["value", "width"], &args.into_values())?;
        pad(state, &string(state, &value)?, integer_or(&width, 80)?, ' ', "center")
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("dictsort", |args: Given| {
        let names = ["value", "case_sensitive", "by", "reverse"];
        let given = arguments(names, &args.into_values())?;
        let options = names.into_iter().zip(given.clone()).skip(1).filter(|(_, value)| !value.is_undefined());
        filters::dictsort(&given[0], options.collect())
    });
    for name in ["e", "escape"] {
        environment.add_filter(name, |state: &mut State, value: Value| match value.is_safe() {
            true => Ok(value),
            false => escape(state, &value),
        });
    }
    environment.add_filter("filesizeformat", |args: Given| {
        let [value, binary] = arguments(["value", "binary"], &args.into_values())?;
        let bytes = f64::try_from(value)?;
        let base = if binary.is_true() { 1024.0 } else { 1000.0 };
        let bytes = if bytes.abs() < base { bytes.trunc() } else { bytes };
        Ok::<_, Error>(contrib::filesizeformat(bytes, Some(binary.is_true())))
    });
    environment.add_filter("float", float);
    environment.add_filter("forceescape", |state: &mut State, value: Value| escape(state, &value));
    environment.add_filter("format", |state: &mut State, args: Given| {
        let (format, values) = args.split_first().ok_or(ErrorKind::MissingArgument)?;
        let values: Vec<Value> = values.iter().map(|value| Value::clone(value)).collect();
        let values = match &values[..] {
            [named] if named.is_kwargs() => {
                Value::from_pairs(named.as_object().and_then(|o| o.try_iter_pairs()).into_iter().flatten())
            }
            _ => Value::from(Tuple::from(values)),
        };
        printf(state, &string(state, format)?, &values)
    });
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("join", join);
    environment.add_filter("random", contrib::random);
    environment.add_filter("replace", |state: &mut State, args: Given| {
        let [s, old, new, count] = arguments(["s", "old", "new", "count"], &args.into_values())?;
        let (s, old, new) = (string(state, &s)?, string(state, &old)?, string(state, &new)?);
        let count = usize::try_from(integer_or(&count, -1)?).unwrap_or(usize::MAX);
        pay(state, s.len().saturating_add(s.matches(&old).count().min(count).saturating_mul(new.len())))?;
        Ok::<_, Error>(s.replacen(&old, &new, count))
    });
    environment.add_filter("striptags", strip_tags);
    environment.add_filter("trim", |state: &mut State, args: Given| {
        let [value, chars] = arguments(["value", "chars"], &args.into_values())?;
        let value = string(state, &value)?;
        Ok::<_, Error>(match chars.as_str() {
            Some(chars) => value.trim_matches(|c| chars.contains(c)).to_owned(),
            None => value.trim().to_owned(),
        })
    });
    environment.add_filter("truncate", truncate);
    environment.add_filter("urlencode", url_encode);
    environment.add_filter("wordcount", |state: &mut State, value: &Value| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        Ok::<_, Error>(string(state, value)?.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count())
    });
    environment.add_filter("xmlattr", xmlattr);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::Iterable => value.len().is_some(),
        kind => matches!(kind, ValueKind::Seq | ValueKind::String | ValueKind::Map),
    });
}

/// Floats as Python writes them; what has parts is paid for while it is written; the rest as the library does.
fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match f64::try_from(value.clone()) {
        Ok(float) if value.is_number() && !value.is_integer() && float.is_finite() => {
            out.write_str(&repr(float)).map_err(Error::from)
        }
        _ if value.as_object().is_some() => escape_formatter(out, state, &Value::from(string(state, value)?)),
        _ => escape_formatter(out, state, value),
    }
}

/// `left ~ right`.
fn concat(state: &mut State, left: Value, right: Value) -> Result<String, Error> {
    let (left, right) = (string(state, &left)?, string(state, &right)?);
    pay(state, left.len() + right.len())?;
    Ok(left + &right)
}

/// `left % right`: the rest of a division, or a string with its values filled in.
fn rem(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        return printf(state, format, &right).map(Value::from);
    }
    let is_number = |value: &Value| value.is_number() || value.kind() == ValueKind::Bool;
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    if !is_number(&left) || !is_number(&right) {
        return Err(invalid(format!("`%` has no meaning for {} and {}", left.kind(), right.kind())));
    }
    // The rest has the sign of the divisor.
    if let (Ok(a), Ok(b)) = (i128::try_from(left.clone()), i128::try_from(right.clone()))
        && is_whole(&left)
        && is_whole(&right)
    {
        let rest = a.checked_rem(b).ok_or_else(|| invalid("modulo by zero"))?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let (a, b) = (f64::try_from(left)?, f64::try_from(right)?);
    if b == 0.0 {
        return Err(invalid("modulo by zero"));
    }
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }))
}

fn join(state: &mut State, args: Given) -> Result<String, Error> {
    let [mut items, separator, attribute] = arguments(["value", "d", "attribute"], &args.into_values())?;
    let separator = string(state, &separator)?;
    if !attribute.is_undefined() && !attribute.is_none() {
        let attribute: Kwargs = [("attribute", attribute)].into_iter().collect();
        items = state.apply_filter("map", &[items, Value::from(attribute)])?;
    }
    let mut out = String::new();
    for (i, item) in items.try_iter()?.checked().enumerate() {
        let item = string(state, &item?)?;
        pay(state, separator.len() + item.len())?;
        if i > 0 {
            out.push_str(&separator);
        }
        out.push_str(&item);
    }
    Ok(out)
}

fn default(args: Given) -> Result<Value, Error> {
    let [value, default, boolean] = arguments(["value", "default_value", "boolean"], &args.into_values())?;
    let is_missing = value.is_undefined() || boolean.is_true() && !value.is_true();
    Ok(match is_missing {
        true if default.is_undefined() => Value::from(""),
        true => default,
        false => value,
    })
}

fn int(state: &mut State, args: Given) -> Result<Value, Error> {
    let [value, default, base] = arguments(["value", "default", "base"], &args.into_values())?;
    let default = if default.is_undefined() { Value::from(0) } else { default };
    let Some(text) = value.as_str() else {
        defined(&value)?;
        return Ok(filters::int(state, &value, None, None, no_options()).unwrap_or(default));
    };
    let base = u32::try_from(integer_or(&base, 10)?).map_err(|_| invalid("int: no such base"))?;
    let float = || text.trim().parse::<f64>().ok().filter(|f| f.is_finite()).map(|f| f.trunc() as i128);
    Ok(parse_int(text, base).or_else(float).map_or(default, Value::from))
}

/// Python's `int(text, base)`: with a sign, a prefix that fits, and white space around; in base 0 the prefix decides.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (if text.starts_with('-') { -1 } else { 1 }, digits),
        None => (1, text),
    };
    let prefixed = digits.get(..2).and_then(|prefix| match prefix.to_ascii_lowercase().as_str() {
        "0x" => Some(16),
        "0o" => Some(8),
        "0b" => Some(2),
        _ => None,
    });
    let (base, digits) = match prefixed {
        Some(found) if base == 0 || base == found => (found, &digits[2..]),
        _ if base == 0 => (10, digits),
        _ => (base, digits),
    };
    let is_number = (2..=36).contains(&base) && digits.starts_with(|c: char| c.is_digit(base));
    is_number.then(|| i128::from_str_radix(digits, base).ok())?.map(|n| sign * n)
}

fn float(state: &mut State, args: Given) -> Result<Value, Error> {
    let [value, default] = arguments(["value", "default"], &args.into_values())?;
    let default = if default.is_undefined() { Value::from(0.0) } else { default };
    match value.as_str() {
        Some(text) => Ok(text.trim().parse::<f64>().map_or(default, Value::from)),
        None => {
            defined(&value)?;
            Ok(filters::float(state, &value, None, no_options()).unwrap_or(default))
        }
    }
}

fn no_options() -> Kwargs {
    std::iter::empty::<(&str, Value)>().collect()
}

fn defined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() { Err(ErrorKind::UndefinedError.into()) } else { Ok(()) }
}

fn truncate(state: &mut State, args: Given) -> Result<String, Error> {
    let [value, length, kill_words, end, leeway] =
        arguments(["s", "length", "killwords", "end", "leeway"], &args.into_values())?;
    let (value, length) = (string(state, &value)?, integer_or(&length, 255)?);
    let end = if end.is_undefined() { "..." } else { text(&end)? };
    let room = usize::try_from(length - end.chars().count() as i64).map_err(|_| invalid("truncate: too short"))?;
    if value.chars().count() as i64 <= length.saturating_add(integer_or(&leeway, 5)?) {
        return Ok(value);
    }
    let cut: String = value.chars().take(room).collect();
    let kept = if kill_words.is_true() { cut.as_str() } else { cut.rsplit_once(' ').map_or(&*cut, |(kept, _)| kept) };
    Ok(format!("{kept}{end}"))
}

fn xmlattr(state: &mut State, args: Given) -> Result<String, Error> {
    let [attributes, space] = arguments(["d", "autospace"], &args.into_values())?;
    let map = attributes.as_object().ok_or_else(|| invalid("xmlattr: not a mapping"))?;
    let mut out = String::new();
    for (key, value) in map.try_iter_pairs().into_iter().flatten() {
        if value.is_none() || value.is_undefined() {
            continue;
        }
        if let Some(bad) = string(state, &key)?.chars().find(|c| c.is_whitespace() || "/>=".contains(*c)) {
            return Err(invalid(format!("xmlattr: {bad:?} in the name of an attribute")));
        }
        if !out.is_empty() || space.is_undefined() || space.is_true() {
            out.push(' ');
        }
        out += &format!("{}=\"{}\"", escape(state, &key)?, escape(state, &value)?);
    }
    Ok(out)
}

/// Text for HTML, as markupsafe writes it, marked as such.
fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    let text = string(state, value)?;
    // The longest stand for a character is five long.
    pay(state, text.len().saturating_mul(5))?;
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

fn indent(state: &mut State, args: Given) -> Result<String, Error> {
    let [value, width, first, blank] = arguments(["s", "width", "first", "blank"], &args.into_values())?;
    let value = string(state, &value)?;
    let indent = match width.as_str() {
        Some(indent) => indent.to_owned(),
        None => pad(state, "", integer_or(&width, 4)?, ' ', "ljust")?,
    };
    let lines: Vec<&str> = value.lines().collect();
    pay(state, value.len().saturating_add(lines.len().saturating_add(1).saturating_mul(indent.len() + 1)))?;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first.is_true() } else { blank.is_true() || !line.is_empty() } {
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    if lines.is_empty() && first.is_true() {
        out.push_str(&indent);
    }
    if value.ends_with('\n') {
        out.push('\n');
        if blank.is_true() {
            out.push_str(&indent);
        }
    }
    Ok(out)
}

/// Text without comments, tags and entities, its white space folded.
fn strip_tags(state: &mut State, value: &Value) -> Result<String, Error> {
    let text = string(state, value)?;
    let without = |text: &str, open: &str, close: &str| {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, tag)) = rest.split_once(open) {
            let Some((_, after)) = tag.split_once(close) else { break };
            out.push_str(before);
            rest = after;
        }
        out + rest
    };
    let text = without(&without(&text, "<!--", "-->"), "<", ">");
    pay(state, text.matches('<').count().saturating_mul(4))?;
    // What is left of `<` opens nothing; the library reads entities only together with tags.
    Ok(contrib::striptags(text.replace('<', "&lt;")))
}

/// A path, or the pairs of a query.
fn url_encode(state: &mut State, value: &Value) -> Result<String, Error> {
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten().collect(),
        ValueKind::Seq | ValueKind::Iterable => {
            let pair = |pair: Value| Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
            value.try_iter()?.map(pair).collect::<Result<_, Error>>()?
        }
        _ => return quote(state, value),
    };
    let field = |value: &Value| Ok::<_, Error>(quote(state, value)?.replace('/', "%2F").replace("%20", "+"));
    let pairs = pairs.iter().map(|(key, value)| Ok(format!("{}={}", field(key)?, field(value)?)));
    Ok(pairs.collect::<Result<Vec<_>, Error>>()?.join("&"))
}

fn quote(state: &State, value: &Value) -> Result<String, Error> {
    let text = string(state, value)?;
    // A byte becomes three at most.
    pay(state, text.len().saturating_mul(3))?;
    filters::urlencode(&Value::from(text))
}

/// transformers' filter: `json.dumps` with its options, nothing escaped for HTML.
fn tojson(state: &mut State, args: Given) -> Result<Value, Error> {
    let names = ["x", "ensure_ascii", "indent", "separators", "sort_keys"];
    let [value, ascii, indent, separators, sort_keys] = arguments(names, &args.into_values())?;
    let separators = match separators.is_undefined() || separators.is_none() {
        true => None,
        false => match &separators.try_iter()?.collect::<Vec<_>>()[..] {
            [item, key] => Some((text(item)?.to_owned(), text(key)?.to_owned())),
            _ => return Err(invalid("tojson: `separators` are two")),
        },
    };
    let indent = match (indent.as_str(), indent.is_undefined() || indent.is_none()) {
        (Some(indent), _) => Some(indent.to_owned()),
        (None, true) => None,
        (None, false) => {
            let width = usize::try_from(integer_or(&indent, 0)?).unwrap_or(0);
            pay(state, width)?;
            Some(" ".repeat(width))
        }
    };
    let style = JsonStyle { ascii: ascii.is_true(), indent, separators, sort_keys: sort_keys.is_true() };
    /// A byte of JSON takes more time to make than one that is only copied.
    const COST: usize = 4;
    let json = to_json(&value, &style, |bytes| pay(state, COST * bytes).map_err(|e| e.to_string()));
    json.map(Value::from).map_err(|e| invalid(format!("tojson: {e}")))
}
