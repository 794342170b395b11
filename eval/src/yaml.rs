//! YAML as JSON has it: what `core.yaml` needs of it, from a parser's events.
//!
//! Plain scalars that are whole numbers, `true`, `false` or empty become what they look like; everything else is text.
//! Anchors and aliases are refused.

use anyhow::{Context, bail};
use saphyr_parser::{Event, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Value};

/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// The first document.
///
/// # Errors
/// When it is no YAML, or has more than JSON can say.
pub(crate) fn parse(text: &str) -> anyhow::Result<Value> {
    next_value(&mut Parser::new_from_str(text), 0)?.context("it has no document")
}

/// The next value, in so many lists and mappings; none where the innermost of them ends, or the text.
fn next_value(parser: &mut Parser<'_, StrInput<'_>>, depth: usize) -> anyhow::Result<Option<Value>> {
    anyhow::ensure!(depth <= MAX_DEPTH, "it is nested more than {MAX_DEPTH} deep");
    while let Some(event) = parser.next_event() {
        return Ok(Some(match event?.0 {
            Event::SequenceStart(..) => {
                let mut list = Vec::new();
                while let Some(value) = next_value(parser, depth + 1)? {
                    list.push(value);
                }
                list.into()
            }
            Event::MappingStart(..) => {
                let mut map = Map::new();
                while let Some(key) = next_value(parser, depth + 1)? {
                    let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                    map.insert(key, next_value(parser, depth + 1)?.unwrap_or_default());
                }
                map.into()
            }
            Event::Scalar(text, style, ..) => scalar(&text, style),
            Event::SequenceEnd | Event::MappingEnd => return Ok(None),
            Event::Alias(_) => bail!("aliases are not supported"),
            _ => continue,
        }));
    }
    Ok(None)
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
