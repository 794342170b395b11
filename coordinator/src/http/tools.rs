//! The functions that a chat may call, as OpenAI's and Ollama's clients name them.
//!
//! Knows fields; how calls are written and read is [`text`](crate::text)'s. Who leaves it to the model whether one is called is content with an
//! answer that calls none, and clients do so by default: where the model's template knows of no tools, they are left out, and the reply
//! says so.

use serde_json::{Value, json};

use super::{
    App, Failure, Fields,
    quote::{short, show},
};
use crate::text::{Constraint, Tool, ToolChoice, Tools};

/// Most functions; OpenAI takes as many.
const MAX_TOOLS: usize = 128;
/// Longest name of one.
const MAX_NAME: usize = 64;

/// Takes the tools of a chat; none where none may be called.
pub(super) fn take(app: &App, fields: &mut Fields) -> Result<Option<Tools>, Failure> {
    old_form(fields)?;
    let list = fields.list("tools")?.unwrap_or_default();
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let choice = fields.value("tool_choice")?;
    if list.len() > MAX_TOOLS {
        return Err(Failure::field("tools", format!("are {}, over the limit of {MAX_TOOLS}", list.len())));
    }
    let mut list = list.into_iter().enumerate().map(|(i, tool)| self::tool(i, tool)).collect::<Result<Vec<_>, _>>()?;
    let Some(choice) = choice_of(choice.as_ref(), &mut list)? else { return Ok(None) };
    let knows = app.engine.text().chat.calls;
    match (knows, &choice) {
        _ if list.is_empty() => match choice {
            ToolChoice::Auto => Ok(None),
            _ => Err(Failure::field("tool_choice", "asks for a call, and there are no `tools` to call")),
        },
        (Some(style), _) => Ok(Some(Tools { list, choice, parallel: parallel && style.is_parallel() })),
        (None, ToolChoice::Auto) => {
            fields.warn("`tools` were left out: this model's chat template knows of none".into());
            Ok(None)
        }
        (None, _) => {
            let failure = Failure::field("tool_choice", "is not supported unless it is 'auto' or 'none'");
            Err(failure.unsupported().with_hint("this model's chat template knows of no tools"))
        }
    }
}

/// Refuses what an answer can be no call beside.
pub(super) fn check_beside(tools: Option<&Tools>, constraint: Option<&Constraint>) -> Result<(), Failure> {
    match (tools, constraint) {
        (Some(_), Some(Constraint { field, grammar })) if grammar.schema().is_none() => {
            Err(Failure::field(field, "and `tools` exclude one another: only JSON goes with them"))
        }
        _ => Ok(()),
    }
}

/// `functions`, which nobody has used for years.
fn old_form(fields: &mut Fields) -> Result<(), Failure> {
    let offered = fields.list("functions")?.is_some_and(|functions| !functions.is_empty());
    if let Some(choice) = fields.value("function_call")?
        && !matches!(choice.as_str(), Some("auto" | "none"))
    {
        let what = format!("is not supported unless it is 'auto' or 'none', got {}", show(&choice));
        return Err(Failure::field("function_call", what).unsupported().with_hint("`tools` and `tool_choice` are"));
    }
    if offered {
        fields.warn("`functions` were left out: this server calls `tools`".into());
    }
    Ok(())
}

fn tool(i: usize, mut told: Value) -> Result<Tool, Failure> {
    if told["function"].is_null() && told["type"] == "function" && told["name"].is_string() {
        // As `/v1/responses` has them.
        let mut function = told.take();
        if let Some(function) = function.as_object_mut() {
            function.shift_remove("type");
        }
        told = json!({"type": "function", "function": function});
    }
    let path = |name: &str| format!("tools[{i}]{name}");
    let kind = told["type"].as_str();
    if kind.is_some_and(|kind| kind != "function") || !told["function"].is_object() {
        let expected = r#"{"type": "function", "function": {"name": …}}"#;
        let got = kind.filter(|kind| *kind != "function").map_or_else(|| show(&told), |kind| show(&kind.into()));
        return Err(Failure::wrong(path(""), expected, &got).unsupported());
    }
    let function = &told["function"];
    let is_usual = |name: &&str| {
        (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    let Some(name) = function["name"].as_str().filter(is_usual).map(str::to_owned) else {
        let expected = format!("1 to {MAX_NAME} letters, digits, `_`, `-` and `.`");
        return Err(Failure::wrong(path(".function.name"), &expected, &show(&function["name"])));
    };
    let parameters = match &function["parameters"] {
        Value::Null => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Value::Object(schema) => {
            let mut schema = schema.clone();
            let kind = schema.entry("type").or_insert_with(|| "object".into());
            if kind != "object" {
                return Err(Failure::wrong(path(".function.parameters.type"), "'object'", &show(kind)));
            }
            Value::Object(schema)
        }
        other => return Err(Failure::wrong(path(".function.parameters"), "a JSON schema", &show(other))),
    };
    let strict = match &function["strict"] {
        Value::Null => false,
        Value::Bool(strict) => *strict,
        other => return Err(Failure::wrong(path(".function.strict"), "true or false", &show(other))),
    };
    Ok(Tool { name, parameters, strict, told })
}

/// Which of `list`; those that it leaves out go. None where none may be called.
fn choice_of(choice: Option<&Value>, list: &mut Vec<Tool>) -> Result<Option<ToolChoice>, Failure> {
    const NAME: &str = "tool_choice";
    let Some(choice) = choice else { return Ok(Some(ToolChoice::Auto)) };
    let wrong = || Failure::wrong(NAME, "'none', 'auto', 'required' or a function of `tools`", &show(choice));
    let mode = |mode: Option<&str>| match mode {
        Some("none") => Some(None),
        Some("auto") => Some(Some(ToolChoice::Auto)),
        Some("required" | "any") => Some(Some(ToolChoice::Required)),
        _ => None,
    };
    if let Some(mode) = mode(choice.as_str()) {
        return Ok(mode);
    }
    match choice["type"].as_str() {
        Some("function") => {
            let name = choice["function"]["name"].as_str().or(choice["name"].as_str()).ok_or_else(wrong)?;
            match list.iter().any(|tool| tool.name == name) {
                true => Ok(Some(ToolChoice::Named(name.to_owned()))),
                false => Err(Failure::field(NAME, format!("names '{}', which is none of `tools`", short(name)))),
            }
        }
        Some("allowed_tools") => {
            let allowed = if choice["allowed_tools"].is_object() { &choice["allowed_tools"] } else { choice };
            let names = allowed["tools"].as_array().into_iter().flatten();
            let names: Vec<&str> =
                names.filter_map(|tool| tool["function"]["name"].as_str().or(tool["name"].as_str())).collect();
            list.retain(|tool| names.contains(&tool.name.as_str()));
            mode(allowed["mode"].as_str()).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}
