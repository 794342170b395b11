//! What a client sent, as errors and logs quote it: short.

use serde_json::Value;

/// A value.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".into(),
        Value::Array(_) => "a list".into(),
        value => short(&value.to_string()),
    }
}

/// A text.
pub(super) fn short(text: &str) -> String {
    const MOST_CHARS: usize = 60;
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
