//! What an answer must be, and the bounds of that.
//!
//! Does not know how it is compiled.

use std::iter;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

/// Longest text of a grammar.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Most levels of a schema.
pub const MAX_SCHEMA_DEPTH: usize = 64;
/// Most levels that a grammar leads down, by what is nested in it and by what it refers to. The library follows both with its stack.
pub(super) const MAX_LEVELS: usize = 10_000;
/// Most calls behind the first in one answer.
pub(in crate::text) const MAX_CALLS: usize = 15;
/// White space between the tokens of JSON: a space, or a line break and an indent. A model that is fond of it comes to its end.
const WHITE_SPACE: &str = r"(\x20|\x0A[\x20\x09]{0,20})";

/// What an answer must be, and which field of a request says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// As errors name it.
    pub field: String,
    /// What.
    pub grammar: Grammar,
}

/// What an answer must be, from its first character to its last.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that a schema describes.
    Json(Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a grammar in the library's dialect of Lark.
    Lark(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::Json(json!({"type": "object"}))
    }

    /// The schema, where it is JSON.
    pub fn schema(&self) -> Option<&Value> {
        match self {
            Self::Json(schema) => Some(schema),
            _ => None,
        }
    }

    /// How many levels it may lead down, at most.
    pub(super) fn levels(&self) -> usize {
        match self {
            Self::Json(schema) => {
                let (objects, references) = count(schema);
                // Each reference is followed once, from as deep as anything stands.
                objects.min((references + 1) * depth(schema))
            }
            // Rules, groups and schemas; keys of these end with a quote.
            Self::Lark(text) => {
                let pairs = text.bytes().zip(iter::once(b' ').chain(text.bytes()));
                pairs.filter(|&(byte, before)| b"([{".contains(&byte) || (byte == b':' && before != b'"')).count()
            }
            // These are walked level by level.
            Self::Regex(_) | Self::Choice(_) => 1,
        }
    }

    pub(super) fn top_level(&self) -> TopLevelGrammar {
        match self {
            Self::Json(schema) => TopLevelGrammar::from_json_schema(with_options(schema)),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        }
    }
}

/// Levels of a value.
pub(super) fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Objects in a value, and references.
fn count(value: &Value) -> (usize, usize) {
    let sum = |(objects, references): (usize, usize), inner: &Value| {
        let (more_objects, more_references) = count(inner);
        (objects + more_objects, references + more_references)
    };
    match value {
        Value::Array(list) => list.iter().fold((0, 0), sum),
        Value::Object(map) => map.values().fold((1, usize::from(map.contains_key("$ref"))), sum),
        _ => (0, 0),
    }
}

/// A schema with our options in place of whatever it says of them.
pub(in crate::text) fn with_options(schema: &Value) -> Value {
    let mut schema = match schema {
        // The schema of everything.
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".into(), json!({"whitespace_pattern": WHITE_SPACE}));
    }
    schema
}
