//! Fields of a `config.json`, for families to read, and why one cannot be used.
//!
//! Does not know which fields a family has. Whoever read the file names it.

use serde_json::Value;

use super::shape::ModelShape;
use crate::json::show;

/// Why a `config.json` is not one that this server can run.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// Not JSON at all, or not an object.
    #[error("not a JSON object: {0}")]
    NotJson(String),
    /// Another architecture.
    #[error("it describes a `{model_type}` model, which is not served: {why}")]
    NotServed {
        /// What `model_type` says.
        model_type: String,
        /// What sets it apart.
        why: &'static str,
    },
    /// A field is missing or of the wrong kind.
    #[error("`{field}` should be {expected}, got {got}")]
    Field {
        /// Name of the field as it stands in the file.
        field: &'static str,
        /// What is accepted.
        expected: String,
        /// What the file has.
        got: String,
    },
    /// Heads do not divide what they share.
    #[error("{of} {sum} is not a multiple of {heads_of} {heads}")]
    NotMultiple {
        /// What is shared.
        of: &'static str,
        /// How much.
        sum: usize,
        /// Which heads.
        heads_of: &'static str,
        /// How many.
        heads: usize,
    },
}

/// That a field has not what is `expected`.
pub(super) fn wrong<T>(
    field: &'static str,
    expected: impl Into<String>,
    got: impl Into<String>,
) -> Result<T, ShapeError> {
    Err(ShapeError::Field { field, expected: expected.into(), got: got.into() })
}

/// What `read` makes of the first of `names` that is present and not null.
fn field<T>(
    config: &Value,
    names: &[&'static str],
    default: T,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<T, ShapeError> {
    match names.iter().find_map(|&name| Some((name, present(config, name)?))) {
        None => Ok(default),
        Some((name, value)) => read(value).map_or_else(|| wrong(name, expected, show(value)), Ok),
    }
}

/// A positive whole number.
pub(super) fn size(config: &Value, names: &[&'static str], default: usize) -> Result<usize, ShapeError> {
    field(config, names, default, "a whole number from 1 to 16777216", one_size)
}

/// A list of such numbers; empty where there is none.
pub(super) fn sizes(config: &Value, name: &'static str) -> Result<Vec<usize>, ShapeError> {
    let all = |value: &Value| value.as_array()?.iter().map(one_size).collect();
    field(config, &[name], Vec::new(), "a list of whole numbers from 1 to 16777216", all)
}

/// A number that can be one, where it stands.
pub fn one_size(value: &Value) -> Option<usize> {
    /// No model has a dimension near this; a larger one is a corrupt file, and products of two stay in 64 bits.
    const LIMIT: u64 = 1 << 24;
    value.as_u64().filter(|n| (1..=LIMIT).contains(n)).map(|n| n as usize)
}

/// A switch.
pub(super) fn flag(config: &Value, name: &'static str, default: bool) -> Result<bool, ShapeError> {
    field(config, &[name], default, "true or false", Value::as_bool)
}

/// A small number.
pub(super) fn fraction(config: &Value, name: &'static str, default: f32) -> Result<f32, ShapeError> {
    let small = |value: &Value| value.as_f64().filter(|&n| n > 0.0 && n < 1.0).map(|n| n as f32);
    field(config, &[name], default, "a number between 0 and 1", small)
}

/// One of `names`, as a text.
pub(super) fn choice<T>(
    config: &Value,
    field: &'static str,
    default: &str,
    names: impl Iterator<Item = &'static str>,
    of: impl Fn(&str) -> Option<T>,
) -> Result<T, ShapeError> {
    let value = present(config, field);
    let name = value.map_or(Some(default), Value::as_str);
    if let Some(chosen) = name.and_then(of) {
        return Ok(chosen);
    }
    let got = name.map_or_else(|| value.map_or_else(String::new, show), str::to_owned);
    wrong(field, format!("one of {}", names.collect::<Vec<_>>().join(", ")), got)
}

/// A number above 0.
pub(super) fn number(config: &Value, name: &'static str, default: Option<f64>) -> Result<f64, ShapeError> {
    let expected = "a number above 0";
    let positive = |value: &Value| value.as_f64().filter(|&n| n > 0.0 && n.is_finite());
    match (present(config, name), default) {
        (None, Some(default)) => Ok(default),
        (None, None) => wrong(name, expected, "none"),
        (Some(value), _) => positive(value).map_or_else(|| wrong(name, expected, show(value)), Ok),
    }
}

/// As a configuration has it: 1e-5, not 9.999999747378752e-6.
pub(super) fn as_written(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// Ends of text as a configuration has them.
pub(super) fn ends_as_written(shape: &ModelShape) -> Value {
    match shape.eos_token_ids[..] {
        [] => Value::Null,
        [one] => one.into(),
        _ => shape.eos_token_ids.clone().into(),
    }
}

/// Ids of tokens: none, one or a list. An id that no vocabulary can have, like −1, is left out with a warning.
pub(super) fn token_ids(config: &Value, field: &'static str, default: Option<u32>) -> Result<Vec<u32>, ShapeError> {
    let Some(value) = config.get(field) else { return Ok(default.into_iter().collect()) };
    let Some(ids) = whole_numbers(value) else { return wrong(field, "a token id or a list of them", show(value)) };
    // How many rows the vocabulary has is not known yet.
    let known = ids.into_iter().filter(|&id| is_known_end("config.json", id, 1 << 32));
    Ok(known.filter_map(|id| id.try_into().ok()).collect())
}

/// A field that is there and not null.
pub fn present<'a>(config: &'a Value, field: &str) -> Option<&'a Value> {
    config.get(field).filter(|value| !value.is_null())
}

/// A field that holds token ids: none, one or a list of them. Negative ones and too large ones are whole numbers too;
/// those that no integer can hold count as the largest. `None` where it is of another kind.
pub fn whole_numbers(value: &Value) -> Option<Vec<i64>> {
    let one = |value: &Value| value.as_i64().or_else(|| value.as_u64().map(|_| i64::MAX));
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(one).collect(),
        value => Some(vec![one(value)?]),
    }
}

/// Whether an end of text is in a vocabulary of so many tokens; says so where it is not.
pub fn is_known_end(file: &str, id: i64, vocab_size: usize) -> bool {
    let known = usize::try_from(id).is_ok_and(|id| id < vocab_size);
    if !known {
        tracing::warn!("{file}: eos_token_id {id} is not in the model's vocabulary, so no text ends by it");
    }
    known
}
