//! Why a grammar is refused, and where in it: the library says what it cannot do, not where that stands.
//!
//! The smallest schema within a schema that is refused for the same reason is looked for, and the keyword without which it is not.
//! Bounded: so many schemas are tried.

use std::cell::Cell;

use serde_json::Value;

use super::constraint::{Grammar, MAX_GRAMMAR_BYTES, MAX_LEVELS, MAX_SCHEMA_DEPTH, depth};

/// Most schemas that are tried, and most bytes of all of them: a millisecond for a small one, tens of them for the largest.
const MAX_TRIES: usize = 200;
const MAX_TRIED_BYTES: usize = 4 << 20;

/// Why a grammar is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {reason}")]
pub struct GrammarError {
    /// What says the grammar.
    pub field: String,
    /// In words that go on behind its name.
    pub reason: String,
}

impl GrammarError {
    pub(super) fn new(field: &str, reason: &str) -> Self {
        Self { field: field.to_owned(), reason: format!("cannot be used: {}", one_line(reason)) }
    }

    fn over(field: &str, reason: String) -> Self {
        Self { field: field.to_owned(), reason }
    }
}

/// Refuses what is not worth compiling.
pub(super) fn check_size(field: &str, grammar: &Grammar) -> Result<(), GrammarError> {
    let bytes = match grammar {
        Grammar::Json(schema) => schema.to_string().len(),
        Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
        Grammar::Choice(texts) => texts.iter().map(String::len).sum(),
    };
    if bytes > MAX_GRAMMAR_BYTES {
        return Err(GrammarError::over(
            field,
            format!("has {bytes} bytes, over the limit of {MAX_GRAMMAR_BYTES}; hint: simplify it"),
        ));
    }
    if grammar.schema().is_some_and(|schema| depth(schema) > MAX_SCHEMA_DEPTH) {
        let reason = format!("is nested deeper than {MAX_SCHEMA_DEPTH} levels; hint: name parts of it in `$defs`");
        return Err(GrammarError::over(field, reason));
    }
    let levels = grammar.levels();
    if levels > MAX_LEVELS {
        let reason = format!("may lead {levels} levels down, over the limit of {MAX_LEVELS}; hint: simplify it");
        return Err(GrammarError::over(field, reason));
    }
    Ok(())
}

/// Says where a grammar is refused; `works` is asked of schemas, and says why not.
pub(super) fn explain(
    field: &str,
    grammar: &Grammar,
    reason: &str,
    works: &dyn Fn(&Value) -> Option<String>,
) -> GrammarError {
    let Grammar::Json(root) = grammar else {
        return GrammarError::new(field, reason);
    };
    let (tries, most) = (Cell::new(0), MAX_TRIES.min(MAX_TRIED_BYTES / root.to_string().len()));
    // The same words behind another path.
    let is_same = |other: &str| other.lines().next() == reason.lines().next();
    let fails = |schema: &Value| {
        tries.set(tries.get() + 1);
        tries.get() <= most && works(&in_root(schema, root)).is_some_and(|other| is_same(&other))
    };
    let (mut place, mut schema) = (String::new(), root);
    while let Some((name, inner)) = children(schema).into_iter().find(|(_, inner)| fails(inner)) {
        place += &name;
        schema = inner;
    }
    let without = |keyword: &str| {
        let mut schema = schema.clone();
        if let Some(schema) = schema.as_object_mut() {
            schema.shift_remove(keyword);
        }
        schema
    };
    let keywords = schema.as_object().into_iter().flat_map(|schema| schema.keys());
    let keyword = keywords.filter(|keyword| !DEFINITIONS.contains(&keyword.as_str())).find(|keyword| {
        tries.set(tries.get() + 1);
        tries.get() <= most && !works(&in_root(&without(keyword), root)).is_some_and(|other| is_same(&other))
    });
    let place = if place.is_empty() { "its root".to_owned() } else { format!("#{place}") };
    let keyword = keyword.map(|keyword| format!("`{keyword}` at ")).unwrap_or_default();
    GrammarError::over(field, format!("cannot be used: {keyword}{place}: {}", one_line(reason)))
}

/// Where schemas have names.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// A schema from within `root`, with the names that it may refer to.
fn in_root(schema: &Value, root: &Value) -> Value {
    let mut schema = schema.clone();
    if let (Some(schema), Some(root)) = (schema.as_object_mut(), root.as_object()) {
        for (name, of_root) in root.iter().filter(|(name, _)| DEFINITIONS.contains(&name.as_str())) {
            schema.entry(name.clone()).or_insert_with(|| of_root.clone());
        }
    }
    schema
}

/// The schemas within a schema, with the ends of their paths.
fn children(schema: &Value) -> Vec<(String, &Value)> {
    let Some(schema) = schema.as_object() else { return Vec::new() };
    let mut found = Vec::new();
    for (keyword, value) in schema {
        match (keyword.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                Value::Object(named),
            ) => {
                let pointer = |name: &str| name.replace('~', "~0").replace('/', "~1");
                found.extend(named.iter().map(|(name, inner)| (format!("/{keyword}/{}", pointer(name)), inner)));
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(list)) => {
                found.extend(list.iter().enumerate().map(|(i, inner)| (format!("/{keyword}/{i}"), inner)));
            }
            (
                "items" | "additionalProperties" | "not" | "if" | "then" | "else" | "contains" | "propertyNames",
                Value::Object(_),
            ) => found.push((format!("/{keyword}"), value)),
            _ => {}
        }
    }
    found
}

/// The library's words as they fit in a sentence.
fn one_line(reason: &str) -> String {
    let line = reason.lines().find(|line| !line.trim().is_empty()).unwrap_or("it is not understood");
    line.trim().trim_end_matches(['.', ':']).chars().take(300).collect()
}
