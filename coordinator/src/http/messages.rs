//! The messages of a chat, as OpenAI's and Ollama's clients send them.
//!
//! Text only: images, audio and tools are refused, because leaving them out would change the answer in silence. What the model had
//! calculated before may be said as nanochat says it, in parts `python` and `python_output` of a content that is a list.

use serde_json::Value;

use super::{
    Failure, Fields,
    quote::{short, show},
    unknown_fields::UnknownFields,
};
use crate::text::{ChatLayout, Ending, Message, Part, PartKind, Role};

/// What messages may have, looked at or not.
const KNOWN: &str = "role content name images audio tool_calls function_call tool_call_id tool_name refusal \
    annotations thinking reasoning reasoning_content reasoning_details id cache_control";

/// What the model had thought before it said something: vLLM's and llama.cpp's name for it, vLLM's newer one, Ollama's.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// What a template is given by the server: nothing else may have these names.
const RESERVED: [&str; 5] = ["messages", "add_generation_prompt", "continue_final_message", "tools", "documents"];

/// Takes the field `messages`.
pub(super) fn take(fields: &mut Fields, unknown: &UnknownFields) -> Result<Vec<Message>, Failure> {
    let list = fields.list("messages")?.unwrap_or_default();
    for name in list.iter().filter_map(Value::as_object).flat_map(|message| message.keys()) {
        if !KNOWN.split(' ').any(|known| known == name) {
            unknown.report(&format!("messages[].{}", short(name)));
        }
    }
    list.into_iter().enumerate().map(|(i, value)| message(i, &value)).collect()
}

/// Takes what a request may say of the prompt that its messages become.
pub(super) fn layout(fields: &mut Fields, messages: &mut Vec<Message>) -> Result<ChatLayout, Failure> {
    let new_turn = fields.boolean("add_generation_prompt")?;
    let continues = fields.boolean("continue_final_message")?;
    let last_is_the_models = messages.last().is_some_and(|message| message.role == Role::Assistant);
    let wrong = |what| Err(Failure::field("continue_final_message", what));
    let ending = match (continues, new_turn) {
        (Some(true), Some(true)) => return wrong("and `add_generation_prompt` exclude one another"),
        (Some(true), _) if !last_is_the_models => return wrong("needs a last message of the assistant"),
        (Some(true), _) => Ending::Open,
        (_, Some(false)) => Ending::Closed,
        (Some(false), None) | (_, Some(true)) => Ending::NewTurn,
        (None, None) => natural_ending(messages),
    };
    let variables = match fields.value("chat_template_kwargs")? {
        None => serde_json::Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.wrong("chat_template_kwargs", "an object", &show(&other))),
    };
    if let Some(name) = RESERVED.into_iter().find(|name| variables.contains_key(*name)) {
        let failure =
            Failure::field(format!("chat_template_kwargs.{name}"), "is what the server itself gives to the template");
        return Err(failure.with_hint("leave it out"));
    }
    Ok(ChatLayout { ending, variables })
}

/// Where a request says nothing of it: a turn of the assistant that it ends with is continued.
pub(super) fn natural_ending(messages: &mut Vec<Message>) -> Ending {
    match messages.last() {
        Some(Message { role: Role::Assistant, before, content, .. })
            if before.is_empty() && content.trim().is_empty() && messages.len() > 1 =>
        {
            // Nothing of it was said yet.
            messages.pop();
            Ending::NewTurn
        }
        Some(Message { role: Role::Assistant, .. }) => Ending::Open,
        _ => Ending::NewTurn,
    }
}

fn message(i: usize, value: &Value) -> Result<Message, Failure> {
    let path = |name: &str| format!("messages[{i}].{name}");
    if !value.is_object() {
        return Err(Failure::at("messages", format!("`messages[{i}]` should be an object, got {}", show(value))));
    }
    let is_set = |name: &str| match &value[name] {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    if let Some(name) = ["images", "audio", "tool_calls", "function_call"].into_iter().find(|name| is_set(name)) {
        return Err(Failure::field(path(name), "is not supported: this model knows text only").unsupported());
    }
    let role = match value["role"].as_str() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(role @ ("tool" | "function")) => {
            let message = format!("messages of role '{role}' are not supported");
            return Err(Failure::at(path("role"), message).unsupported());
        }
        _ => return Err(Failure::wrong(path("role"), "'system', 'user' or 'assistant'", &show(&value["role"]))),
    };
    let (before, content) = match &value["content"] {
        Value::String(text) => (Vec::new(), text.clone()),
        Value::Array(parts) => contents(parts, role, &path("content"))?,
        Value::Null if role == Role::Assistant => Default::default(),
        other => return Err(Failure::wrong(path("content"), "a string", &show(other))),
    };
    Ok(Message { before, reasoning_content: reasoning(value, path)?, ..Message::new(role, content) })
}

/// What the model had thought, by any of its names.
fn reasoning(value: &Value, path: impl Fn(&str) -> String) -> Result<Option<String>, Failure> {
    let Some((name, given)) =
        REASONING.into_iter().map(|name| (name, &value[name])).find(|(_, given)| !given.is_null())
    else {
        return Ok(None);
    };
    match given.as_str() {
        Some(text) => Ok(Some(text.to_owned()).filter(|text| !text.is_empty())),
        None => Err(Failure::wrong(path(name), "a string", &show(given))),
    }
}

/// A content that is a list: its last text, and what comes before it.
fn contents(parts: &[Value], role: Role, path: &str) -> Result<(Vec<Part>, String), Failure> {
    let mut parts = parts.iter().map(|part| part_of(part, role, path)).collect::<Result<Vec<_>, _>>()?;
    if parts.iter().all(|part| part.kind == PartKind::Text) {
        let texts: Vec<_> = parts.into_iter().map(|part| part.text).collect();
        // A part is a paragraph of its own, as in vLLM.
        return Ok((Vec::new(), texts.join("\n")));
    }
    let last = parts.pop_if(|last| last.kind == PartKind::Text);
    Ok((parts, last.map(|part| part.text).unwrap_or_default()))
}

/// One part of it.
fn part_of(part: &Value, role: Role, path: &str) -> Result<Part, Failure> {
    let of = |kind, text: &str| Ok(Part { kind, text: text.to_owned() });
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text" | "input_text"), Some(text)) => of(PartKind::Text, text),
        (Some("python"), Some(text)) if role == Role::Assistant => of(PartKind::Python, text),
        (Some("python_output"), Some(text)) if role == Role::Assistant => of(PartKind::PythonOutput, text),
        (Some(kind), _) if kind != "text" => {
            let what = format!("has a part of type '{}': this model knows text only", short(kind));
            Err(Failure::field(path, what).unsupported())
        }
        _ => Err(Failure::field(path, r#"should have parts like {"type": "text", "text": "…"}"#)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_calculated_is_a_part_of_what_the_assistant_said() {
        let read = |value: Value| message(0, &value);
        let part = |kind, text: &str| Part { kind, text: text.into() };
        let parts = json!([
            {"type": "text", "text": "So "}, {"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"},
        ]);
        let said = read(json!({"role": "assistant", "content": parts})).unwrap();
        let calculated =
            [part(PartKind::Text, "So "), part(PartKind::Python, "6*7"), part(PartKind::PythonOutput, "42")];
        assert_eq!((&said.before[..], said.content.as_str()), (&calculated[..], ""));
        assert_eq!(natural_ending(&mut vec![Message::user("x"), said.clone()]), Ending::Open, "it is not empty");
        let mut longer = parts.as_array().unwrap().clone();
        longer.push(json!({"type": "text", "text": "."}));
        let said = read(json!({"role": "assistant", "content": longer})).unwrap();
        assert_eq!((said.before.len(), said.content.as_str()), (3, "."));
        let texts = json!([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]);
        assert_eq!(
            read(json!({"role": "assistant", "content": texts})).unwrap(),
            Message::new(Role::Assistant, "a\nb")
        );
        assert!(read(json!({"role": "user", "content": parts})).is_err());
    }

    #[test]
    fn unknown_fields_of_messages_are_named_once_whatever_their_place() {
        let unknown = UnknownFields::default();
        let messages: Vec<Value> =
            (0..9).map(|i| json!({"role": "user", "content": "x", "name": "n", "colour": i})).collect();
        let body = json!({"messages": messages}).to_string();
        take(&mut Fields::parse(body.into()).unwrap(), &unknown).unwrap();
        assert_eq!(unknown.names(), ["messages[].colour"]);
    }
}
