//! YAML as JSON has it: what `core.yaml` needs of it, from a parser's events.
//!
//! Plain scalars that are whole numbers, `true`, `false` or empty become what they look like; everything else is text.
//! Anchors and aliases are refused.

use anyhow::{anyhow, bail};
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// A list or mapping that is still open.
enum Open {
    List(Vec<Value>),
    /// With the key that waits for its value.
    Mapping(Map<String, Value>, Option<String>),
}

/// The first document.
///
/// # Errors
/// When it is no YAML, or has more than JSON can say.
pub(crate) fn parse(text: &str) -> anyhow::Result<Value> {
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, _) = event?;
        let value = match event {
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Mapping(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Some(Value::Array(list)),
                Some(Open::Mapping(map, _)) => Some(Value::Object(map)),
                None => None,
            },
            Event::Scalar(text, style, ..) => Some(scalar(&text, style)),
            Event::Alias(_) => bail!("aliases are not supported"),
            _ => None,
        };
        anyhow::ensure!(open.len() <= MAX_DEPTH, "it is nested more than {MAX_DEPTH} deep");
        let Some(value) = value else { continue };
        match open.last_mut() {
            None => return Ok(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Mapping(map, key)) => match key.take() {
                Some(key) => {
                    map.insert(key, value);
                }
                None => {
                    let name = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    *key = Some(name);
                }
            },
        }
    }
    Err(anyhow!("it has no document"))
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return text.into();
    }
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        text => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_becomes_json() {
        let text = "# a comment\nicl_tasks:\n-\n  label: one\n  num_fewshot: [10, 0]\n  delimiter: \"\\nAnswer: \"\n- {a: '1', b: 1.5, c: true}\nempty:\n";
        let json = json!({
            "icl_tasks": [
                {"label": "one", "num_fewshot": [10, 0], "delimiter": "\nAnswer: "},
                {"a": "1", "b": "1.5", "c": true},
            ],
            "empty": null,
        });
        assert_eq!(parse(text).unwrap(), json);
        for text in ["", "a: [1", "a: &x 1\nb: *x", &"[".repeat(100)] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
