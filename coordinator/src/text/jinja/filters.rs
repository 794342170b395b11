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
    arguments::{Given, arguments, given, integer_or, invalid, pairs, pay, string, text, value_or},
    methods,
    methods::pad,
    printf::printf,
    python_json::{JsonStyle, repr, to_json},
};

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
    add(environment, "center", ["value", "width"], |state, [value, width]| {
        pad(state, &string(state, &value)?, integer_or(&width, 80)?, ' ', "center")
    });
    for name in ["d", "default"] {
        add(environment, name, ["value", "default_value", "boolean"], |_, [value, default, boolean]| {
            let is_missing = value.is_undefined() || boolean.is_true() && !value.is_true();
            Ok(if is_missing { value_or(default, "") } else { value })
        });
    }
    add(environment, "dictsort", ["value", "case_sensitive", "by", "reverse"], |_, [value, options @ ..]| {
        let options = ["case_sensitive", "by", "reverse"].into_iter().zip(options);
        filters::dictsort(&value, options.filter(|(_, option)| !option.is_undefined()).collect())
    });
    for name in ["e", "escape"] {
        environment.add_filter(name, |state: &mut State, value: Value| match value.is_safe() {
            true => Ok(value),
            false => escape(state, &value),
        });
    }
    add(environment, "filesizeformat", ["value", "binary"], |_, [value, binary]| {
        let bytes = f64::try_from(value)?;
        let base = if binary.is_true() { 1024.0 } else { 1000.0 };
        let bytes = if bytes.abs() < base { bytes.trunc() } else { bytes };
        Ok(contrib::filesizeformat(bytes, Some(binary.is_true())))
    });
    add(environment, "float", ["value", "default"], float);
    environment.add_filter("forceescape", |state: &mut State, value: Value| escape(state, &value));
    environment.add_filter("format", |state: &mut State, args: Given| {
        let (format, values) = args.split_first().ok_or(ErrorKind::MissingArgument)?;
        let values = match values {
            [named] if named.is_kwargs() => Value::from_pairs(pairs(named)),
            _ => Value::from(Tuple::from(values.iter().map(|value| Value::clone(value)).collect::<Vec<_>>())),
        };
        printf(state, &string(state, format)?, &values)
    });
    add(environment, "indent", ["s", "width", "first", "blank"], indent);
    add(environment, "int", ["value", "default", "base"], int);
    add(environment, "join", ["value", "d", "attribute"], join);
    environment.add_filter("random", contrib::random);
    add(environment, "replace", ["s", "old", "new", "count"], |state, [s, old, new, count]| {
        let (s, old, new) = (string(state, &s)?, string(state, &old)?, string(state, &new)?);
        let count = usize::try_from(integer_or(&count, -1)?).unwrap_or(usize::MAX);
        pay(state, s.len().saturating_add(s.matches(&old).count().min(count).saturating_mul(new.len())))?;
        Ok(s.replacen(&old, &new, count))
    });
    environment.add_filter("striptags", strip_tags);
    add(environment, "tojson", ["x", "ensure_ascii", "indent", "separators", "sort_keys"], tojson);
    add(environment, "trim", ["value", "chars"], |state, [value, chars]| {
        let value = string(state, &value)?;
        Ok(match chars.as_str() {
            Some(chars) => value.trim_matches(|c| chars.contains(c)).to_owned(),
            None => value.trim().to_owned(),
        })
    });
    add(environment, "truncate", ["s", "length", "killwords", "end", "leeway"], truncate);
    environment.add_filter("urlencode", url_encode);
    environment.add_filter("wordcount", |state: &mut State, value: &Value| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        Ok::<_, Error>(string(state, value)?.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count())
    });
    add(environment, "xmlattr", ["d", "autospace"], xmlattr);
    // Where the library goes through nothing, Python refuses.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::Iterable => value.len().is_some(),
        kind => matches!(kind, ValueKind::Seq | ValueKind::String | ValueKind::Map),
    });
}

/// Adds a filter whose arguments go by place or by these names.
fn add<const N: usize, T: Into<Value>>(
    environment: &mut Environment<'static>,
    name: &'static str,
    parameters: [&'static str; N],
    filter: impl Fn(&mut State, [Value; N]) -> Result<T, Error> + Send + Sync + 'static,
) {
    environment.add_filter(name, move |state: &mut State, args: Given| {
        filter(state, arguments(parameters, &args.into_values())?)
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

fn join(state: &mut State, [mut items, separator, attribute]: [Value; 3]) -> Result<String, Error> {
    let separator = string(state, &separator)?;
    if let Some(attribute) = given(&attribute) {
        let attribute: Kwargs = [("attribute", attribute.clone())].into_iter().collect();
        items = state.apply_filter("map", &[items, Value::from(attribute)])?;
    }
    methods::join(state, &separator, &items, |item| string(state, item))
}

fn int(state: &mut State, [value, default, base]: [Value; 3]) -> Result<Value, Error> {
    let default = value_or(default, 0);
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
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = digits.get(..2).unwrap_or_default().to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(of_base, _)| prefix == *of_base);
    let (base, digits) = match prefixed {
        Some((_, found)) if base == 0 || base == found => (found, &digits[2..]),
        _ if base == 0 => (10, digits),
        _ => (base, digits),
    };
    let is_number = (2..=36).contains(&base) && digits.starts_with(|c: char| c.is_digit(base));
    is_number.then(|| i128::from_str_radix(digits, base).ok())?.map(|n| sign * n)
}

fn float(state: &mut State, [value, default]: [Value; 2]) -> Result<Value, Error> {
    let default = value_or(default, 0.0);
    let Some(text) = value.as_str() else {
        defined(&value)?;
        return Ok(filters::float(state, &value, None, no_options()).unwrap_or(default));
    };
    Ok(text.trim().parse::<f64>().map_or(default, Value::from))
}

fn no_options() -> Kwargs {
    std::iter::empty::<(&str, Value)>().collect()
}

fn defined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() { Err(ErrorKind::UndefinedError.into()) } else { Ok(()) }
}

fn truncate(state: &mut State, [value, length, kill_words, end, leeway]: [Value; 5]) -> Result<String, Error> {
    let (value, length) = (string(state, &value)?, integer_or(&length, 255)?);
    let end = value_or(end, "...");
    let end = text(&end)?;
    let room = usize::try_from(length - end.chars().count() as i64).map_err(|_| invalid("truncate: too short"))?;
    if value.chars().count() as i64 <= length.saturating_add(integer_or(&leeway, 5)?) {
        return Ok(value);
    }
    let cut: String = value.chars().take(room).collect();
    let kept = if kill_words.is_true() { cut.as_str() } else { cut.rsplit_once(' ').map_or(&*cut, |(kept, _)| kept) };
    Ok(format!("{kept}{end}"))
}

fn xmlattr(state: &mut State, [attributes, space]: [Value; 2]) -> Result<String, Error> {
    if attributes.as_object().is_none() {
        return Err(invalid("xmlattr: not a mapping"));
    }
    let mut out = String::new();
    for (key, value) in pairs(&attributes).filter(|(_, value)| given(value).is_some()) {
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
    let names = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&#34;"), ("'", "&#39;")];
    Ok(Value::from_safe_string(names.iter().fold(text, |text, (character, name)| text.replace(character, name))))
}

fn indent(state: &mut State, [value, width, first, blank]: [Value; 4]) -> Result<String, Error> {
    let value = string(state, &value)?;
    let indent = indentation(state, &width, 4)?;
    pay(state, value.len().saturating_add(value.lines().count().saturating_add(1).saturating_mul(indent.len() + 1)))?;
    // In Python a line follows each line end, if an empty one.
    let last = (value.is_empty() || value.ends_with('\n')).then_some("");
    let lines = value.lines().chain(last).enumerate().map(|(i, line)| {
        let is_indented = if i == 0 { first.is_true() } else { blank.is_true() || !line.is_empty() };
        if is_indented { format!("{indent}{line}") } else { line.to_owned() }
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// What goes before a line: a text as it is, or so many spaces.
fn indentation(state: &State, indent: &Value, default: i64) -> Result<String, Error> {
    match indent.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => pad(state, "", integer_or(indent, default)?, ' ', "ljust"),
    }
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
        ValueKind::Map => pairs(value).collect(),
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
fn tojson(state: &mut State, [value, ascii, indent, separators, sort_keys]: [Value; 5]) -> Result<String, Error> {
    let separators = match given(&separators) {
        // With line breaks a comma needs no space.
        None => (if given(&indent).is_some() { "," } else { ", " }.into(), ": ".into()),
        Some(separators) => match &separators.try_iter()?.collect::<Vec<_>>()[..] {
            [item, key] => (text(item)?.to_owned(), text(key)?.to_owned()),
            _ => return Err(invalid("tojson: `separators` are two")),
        },
    };
    let indent = given(&indent).map(|indent| indentation(state, indent, 0)).transpose()?;
    let style = JsonStyle { ascii: ascii.is_true(), indent, separators, sort_keys: sort_keys.is_true() };
    to_json(state, &value, &style).map_err(|e| invalid(format!("tojson: {e}")))
}
