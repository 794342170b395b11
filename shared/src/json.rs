//! JSON as Python's `json` module writes it, for the configuration files of models.
//!
//! Three things go beyond the standard: a byte order mark at the start, the words `NaN`, `Infinity` and `-Infinity`, and
//! numbers too large for 64-bit floats, which Python reads as infinite. Knows no file and no field. Invariant: a number
//! that is none is refused only by whoever reads its field; nothing takes it for null, text or another number.

use std::borrow::Cow;

use serde_json::Value;

/// The only key of the object that stands for a number which is none.
const NOT_FINITE: &str = "a number that is not finite";

/// Parses the text of a file. Of equal keys in an object the last one counts, as in Python.
///
/// # Errors
/// Where it is no JSON, also by Python's measure.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    // Some editors put a byte order mark before it.
    serde_json::from_slice(&standard(text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)))
}

/// A value as a message shows it.
pub fn show(value: &Value) -> String {
    not_finite(value).map_or_else(|| value.to_string(), str::to_owned)
}

/// Places of numbers that are not finite, as in `model.dropout is NaN`.
pub fn not_finite_fields(value: &Value) -> Vec<String> {
    fn walk(value: &Value, path: &str, found: &mut Vec<String>) {
        let dot = if path.is_empty() { "" } else { "." };
        match value {
            _ if not_finite(value).is_some() => found.push(format!("`{path}` is {}", show(value))),
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, &format!("{path}{dot}{key}"), found)),
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, value)| walk(value, &format!("{path}[{i}]"), found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found
}

fn not_finite(value: &Value) -> Option<&str> {
    value.as_object().filter(|map| map.len() == 1)?.get(NOT_FINITE)?.as_str()
}

/// The same text in standard JSON: outside of strings, numbers that are not finite become objects.
fn standard(text: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let (mut copied, mut at) = (0, 0);
    while at < text.len() {
        if text[at] == b'"' {
            at += string_length(&text[at..]);
            continue;
        }
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let word = text[at..].iter().take_while(|byte| is_part(byte)).count();
        let token = std::str::from_utf8(&text[at..at + word]).unwrap_or_default();
        let name = match token {
            "NaN" | "Infinity" | "-Infinity" => Some(token),
            number if number.ends_with(|c: char| c.is_ascii_digit()) && !number.starts_with('+') => {
                match number.parse::<f64>() {
                    Ok(f64::INFINITY) => Some("Infinity"),
                    Ok(f64::NEG_INFINITY) => Some("-Infinity"),
                    _ => None,
                }
            }
            _ => None,
        };
        if let Some(name) = name {
            out.extend_from_slice(&text[copied..at]);
            out.extend_from_slice(format!("{{\"{NOT_FINITE}\":\"{name}\"}}").as_bytes());
            copied = at + word;
        }
        at += word.max(1);
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.extend_from_slice(&text[copied..]);
    Cow::Owned(out)
}

/// Bytes of the string that `text` begins with, quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_writes_is_read() {
        let read = |text: &str| parse(text.as_bytes()).unwrap();
        let odd =
            read("\u{feff}{\"a\": Infinity, \"b\": [-Infinity, NaN, 1], \"c\":1e999,\"d\":-1E+400, \"e\": 1e-400}");
        let shown: Vec<String> = ["a", "c", "d", "e"].iter().map(|key| show(&odd[*key])).collect();
        assert_eq!(shown, ["Infinity", "Infinity", "-Infinity", "0.0"]);
        assert!(odd["a"].as_f64().is_none() && odd["a"].as_str().is_none() && !odd["a"].is_null());
        assert_eq!(
            not_finite_fields(&odd),
            ["`a` is Infinity", "`b[0]` is -Infinity", "`b[1]` is NaN", "`c` is Infinity", "`d` is -Infinity"]
        );
        assert_eq!(read(r#"{"a": 1, "a": 2}"#), json!({"a": 2}));
        assert_eq!(show(&read("Infinity")), "Infinity");
    }

    #[test]
    fn strings_are_left_alone() {
        let text = r#"{"NaN": "Infinity", "x\"": "\\", "y": "say \"NaN\" 1e999", "z": [1.5e3, -2]}"#;
        assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        assert!(matches!(standard(text.as_bytes()), Cow::Borrowed(_)));
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "",
            "{",
            "nan",
            "+Infinity",
            "Infinity1",
            "--Infinity",
            "{NaN: 1}",
            "[1,]",
            "\"",
            "\"\\",
            "\u{feff}\u{feff}1",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
