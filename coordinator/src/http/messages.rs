//! The messages of a chat, as OpenAI's and Ollama's clients send them.
//!
//! Text only: images, audio and tools are refused, because leaving them out would change the answer in silence.

use serde_json::Value;

use super::{
    error::Failure,
    fields::{Fields, short, show},
};
use crate::text::{Message, Role};

/// Takes the field `messages`.
pub(super) fn take(fields: &mut Fields) -> Result<Vec<Message>, Failure> {
    let list = fields.list("messages")?.unwrap_or_default();
    list.into_iter().enumerate().map(|(i, value)| message(i, &value)).collect()
}

fn message(i: usize, value: &Value) -> Result<Message, Failure> {
    let path = |name: &str| format!("messages[{i}].{name}");
    if !value.is_object() {
        return Err(Failure::field("messages", format!("`messages[{i}]` should be an object, got {}", show(value))));
    }
    let is_set = |name: &str| match &value[name] {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    for name in ["images", "audio", "tool_calls", "function_call"] {
        if is_set(name) {
            return Err(Failure::unsupported(
                path(name),
                format!("`{}` is not supported: this model knows text only", path(name)),
            ));
        }
    }
    let role = match value["role"].as_str() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(role @ ("tool" | "function")) => {
            return Err(Failure::unsupported(path("role"), format!("messages of role '{role}' are not supported")));
        }
        _ => {
            let expected = "should be 'system', 'user' or 'assistant'";
            return Err(Failure::field(
                path("role"),
                format!("`{}` {expected}, got {}", path("role"), show(&value["role"])),
            ));
        }
    };
    let content = match &value["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(|part| text_of(part, &path("content"))).collect::<Result<_, _>>()?,
        Value::Null if role == Role::Assistant => String::new(),
        other => {
            return Err(Failure::field(
                path("content"),
                format!("`{}` should be a string, got {}", path("content"), show(other)),
            ));
        }
    };
    Ok(Message { role, content })
}

/// One part of a content that is a list.
fn text_of(part: &Value, path: &str) -> Result<String, Failure> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text" | "input_text"), Some(text)) => Ok(text.to_owned()),
        (Some(kind), _) if kind != "text" => {
            let kind = short(kind);
            Err(Failure::unsupported(path, format!("`{path}` has a part of type '{kind}': this model knows text only")))
        }
        _ => Err(Failure::field(
            path,
            format!("`{path}` should have parts like {{\"type\": \"text\", \"text\": \"…\"}}"),
        )),
    }
}
