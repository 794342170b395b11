//! What an answer must be, as requests of each dialect say it.
//!
//! Knows the names of fields; what they mean is [`Grammar`]'s. Invariant: a request says it once, or is refused.

use serde_json::Value;

use super::{Failure, Fields, quote::show};
use crate::text::{Constraint, Grammar};

/// Most texts to choose from.
const MAX_CHOICES: usize = 1024;

/// vLLM's names of today within `structured_outputs`, and its older ones of fields of their own.
const KINDS: [(&str, &str); 4] =
    [("json", "guided_json"), ("regex", "guided_regex"), ("choice", "guided_choice"), ("grammar", "guided_grammar")];

/// Settings of vLLM's that are no grammar, and change nothing here.
const BESIDE: &str = "disable_fallback disable_any_whitespace disable_additional_properties backend _backend";

/// OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_json` and its kin.
pub(super) fn openai(fields: &mut Fields) -> Result<Option<Constraint>, Failure> {
    let mut said = vec![response_format(fields)?];
    said.extend(vllm(fields)?);
    one(said)
}

/// Ollama's `format`.
pub(super) fn ollama(fields: &mut Fields) -> Result<Option<Constraint>, Failure> {
    one(vec![format(fields)?])
}

/// Both, for the short form.
pub(super) fn short_form(fields: &mut Fields) -> Result<Option<Constraint>, Failure> {
    let mut said = vec![format(fields)?];
    said.extend(vllm(fields)?);
    one(said)
}

/// `text` of `/v1/responses`, whose `format` is flatter than a `response_format`.
pub(super) fn of_responses(text: &mut Fields) -> Result<Option<Constraint>, Failure> {
    let mut format = text.object("format")?;
    let field = format.path("schema");
    match format.string("type")?.as_deref() {
        None | Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint { field: text.path("format"), grammar: Grammar::json_object() })),
        Some("json_schema") => {
            let schema = format.value("schema")?.ok_or_else(|| Failure::field(&field, "is missing"))?;
            Ok(Some(json(field, schema)?))
        }
        Some(other) => Err(format.wrong("type", "'text', 'json_object' or 'json_schema'", &show(&other.into()))),
    }
}

/// The one that is said.
pub(super) fn one(said: Vec<Option<Constraint>>) -> Result<Option<Constraint>, Failure> {
    let mut said = said.into_iter().flatten();
    let first = said.next();
    match (&first, said.next()) {
        (Some(first), Some(second)) => {
            Err(Failure::field(&second.field, format!("and `{}` exclude one another", first.field)))
        }
        _ => Ok(first),
    }
}

fn response_format(fields: &mut Fields) -> Result<Option<Constraint>, Failure> {
    const NAME: &str = "response_format";
    if !fields.has(NAME) {
        return Ok(None);
    }
    let mut format = fields.object(NAME)?;
    let kind = format.string("type")?;
    let constraint = match kind.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(Constraint { field: NAME.into(), grammar: Grammar::json_object() }),
        Some("json_schema") => {
            let mut named = format.object("json_schema")?;
            let field = named.path("schema");
            let schema = named.value("schema")?.ok_or_else(|| Failure::field(&field, "is missing"))?;
            Some(json(field, schema)?)
        }
        other => {
            let got = other.map_or_else(|| "none".into(), |other| show(&other.into()));
            return Err(format.wrong("type", "'text', 'json_object' or 'json_schema'", &got));
        }
    };
    Ok(constraint)
}

fn format(fields: &mut Fields) -> Result<Option<Constraint>, Failure> {
    const NAME: &str = "format";
    match fields.value(NAME)? {
        None => Ok(None),
        Some(Value::String(none)) if none.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => {
            Ok(Some(Constraint { field: NAME.into(), grammar: Grammar::json_object() }))
        }
        Some(schema @ Value::Object(_)) => Ok(Some(json(NAME.into(), schema)?)),
        Some(other) => Err(fields.wrong(NAME, "\"json\" or a JSON schema", &show(&other))),
    }
}

fn vllm(fields: &mut Fields) -> Result<Vec<Option<Constraint>>, Failure> {
    let mut said = Vec::new();
    let mut outputs = fields.object("structured_outputs")?;
    outputs.ignore(BESIDE);
    for (kind, old_name) in KINDS {
        for (fields, name) in [(&mut outputs, kind), (&mut *fields, old_name)] {
            let field = fields.path(name);
            let Some(value) = fields.value(name)? else { continue };
            said.push(Some(of_kind(kind, field, value)?));
        }
    }
    if outputs.boolean("json_object")? == Some(true) {
        said.push(Some(Constraint { field: outputs.path("json_object"), grammar: Grammar::json_object() }));
    }
    for name in outputs.beginning("") {
        outputs.refuse(&name)?;
    }
    Ok(said)
}

fn of_kind(kind: &str, field: String, value: Value) -> Result<Constraint, Failure> {
    let text = |field: &str, value: Value| match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(Failure::wrong(field, "a text with something in it", &show(&other))),
    };
    let grammar = match kind {
        "json" => return json(field, value),
        "regex" => Grammar::Regex(text(&field, value)?),
        "grammar" => {
            let grammar = text(&field, value)?;
            if grammar.contains("::=") {
                let failure = Failure::field(field, "is a grammar of the form `name ::= …`, which is not supported");
                return Err(failure.unsupported().with_hint("write it in Lark: `start: …`, `name: …`"));
            }
            Grammar::Lark(grammar)
        }
        _ => Grammar::Choice(choices(&field, value)?),
    };
    Ok(Constraint { field, grammar })
}

/// A schema, which may come as its text.
fn json(field: String, schema: Value) -> Result<Constraint, Failure> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| Failure::field(&field, format!("should be a JSON schema: {error}")))?,
        schema => schema,
    };
    match schema {
        Value::Object(_) | Value::Bool(true) => Ok(Constraint { field, grammar: Grammar::Json(schema) }),
        Value::Bool(false) => Err(Failure::field(field, "allows nothing: there is no answer to it")),
        other => Err(Failure::wrong(field, "a JSON schema", &show(&other))),
    }
}

fn choices(field: &str, value: Value) -> Result<Vec<String>, Failure> {
    let expected = format!("a list of 1 to {MAX_CHOICES} texts with something in them");
    let wrong = |got: &str| Failure::wrong(field, &expected, got);
    let list = value.as_array().ok_or_else(|| wrong(&show(&value)))?;
    if list.is_empty() || list.len() > MAX_CHOICES {
        return Err(wrong(&format!("{} of them", list.len())));
    }
    let text = |value: &Value| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(wrong(&format!("{} among them", show(value)))),
    };
    list.iter().map(text).collect()
}
