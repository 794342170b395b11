//! The messages of a chat, as OpenAI's and Ollama's clients send them.
//!
//! Text only: images and audio are refused, because leaving them out would change the answer in silence. What the model had
//! calculated before may be said as nanochat says it, in parts `python` and `python_output` of a content that is a list.

use serde_json::Value;

use super::{
    Failure, Fields,
    quote::{short, show},
    unknown_fields::UnknownFields,
};
use crate::text::{CalledFunction, ChatLayout, Ending, Message, Part, PartKind, Role, ToolCall};

/// What messages may have, looked at or not.
const KNOWN: &str = "role content name images audio tool_calls function_call tool_call_id tool_name refusal \
    annotations thinking reasoning reasoning_content reasoning_details id cache_control";

/// Where chats have them.
const MESSAGES: &str = "messages";

/// What the model had thought before it said something: vLLM's and llama.cpp's name for it, vLLM's newer one, Ollama's.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// What a template is given by the server: nothing else may have these names.
const RESERVED: [&str; 5] = ["messages", "add_generation_prompt", "continue_final_message", "tools", "documents"];

/// Takes the field `messages`.
pub(super) fn take(fields: &mut Fields, unknown: &UnknownFields) -> Result<Vec<Message>, Failure> {
    of_list(fields.list(MESSAGES)?.unwrap_or_default(), MESSAGES, unknown)
}

/// The messages of a list, which stands in a field of this name.
pub(super) fn of_list(list: Vec<Value>, field: &str, unknown: &UnknownFields) -> Result<Vec<Message>, Failure> {
    for name in list.iter().filter_map(Value::as_object).flat_map(|message| message.keys()) {
        if !KNOWN.split(' ').any(|known| known == name) {
            unknown.report(&format!("messages[].{}", short(name)));
        }
    }
    let mut messages = list
        .into_iter()
        .enumerate()
        .map(|(i, value)| message(&format!("{field}[{i}]"), &value))
        .collect::<Result<Vec<_>, _>>()?;
    name_tools(&mut messages);
    Ok(messages)
}

/// Some templates want the name of the function that answers, which OpenAI's clients say by the id of the call only.
fn name_tools(messages: &mut [Message]) {
    for i in 0..messages.len() {
        let (before, rest) = messages.split_at_mut(i);
        let answer = &mut rest[0];
        if answer.role == Role::Tool && answer.name.is_none() {
            let calls = before.iter().rev().flat_map(|message| &message.tool_calls);
            let mut called = calls.filter(|call| answer.tool_call_id.as_ref() == Some(&call.id));
            answer.name = called.next().map(|call| call.function.name.clone());
        }
    }
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
    Ok(ChatLayout { ending, variables, ..ChatLayout::default() })
}

/// Where a request says nothing of it: a turn of the assistant that it ends with is continued.
pub(super) fn natural_ending(messages: &mut Vec<Message>) -> Ending {
    match messages.last() {
        // What it called is to be answered.
        Some(Message { role: Role::Assistant, tool_calls, .. }) if !tool_calls.is_empty() => Ending::NewTurn,
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

fn message(place: &str, value: &Value) -> Result<Message, Failure> {
    let path = |name: &str| format!("{place}.{name}");
    if !value.is_object() {
        let field = place.split('[').next().unwrap_or_default();
        return Err(Failure::at(field, format!("`{place}` should be an object, got {}", show(value))));
    }
    let is_set = |name: &str| match &value[name] {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    if let Some(name) = ["images", "audio", "function_call"].into_iter().find(|name| is_set(name)) {
        return Err(Failure::field(path(name), "is not supported: this model knows text only").unsupported());
    }
    let role = match value["role"].as_str() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some("function") => {
            let message = "messages of role 'function' are not supported";
            return Err(Failure::at(path("role"), message).unsupported().with_hint("those of role 'tool' are"));
        }
        _ => {
            return Err(Failure::wrong(path("role"), "'system', 'user', 'assistant' or 'tool'", &show(&value["role"])));
        }
    };
    let tool_calls = match &value["tool_calls"] {
        Value::Null => Vec::new(),
        Value::Array(calls) if calls.is_empty() || role == Role::Assistant => {
            let call = |(at, call): (usize, &Value)| tool_call(call, &path(&format!("tool_calls[{at}]")));
            calls.iter().enumerate().map(call).collect::<Result<_, _>>()?
        }
        other => return Err(Failure::wrong(path("tool_calls"), "a list, of the assistant's", &show(other))),
    };
    let text = |name: &str| value[name].as_str().filter(|_| role == Role::Tool).map(str::to_owned);
    let (tool_call_id, name) = (text("tool_call_id"), text("tool_name").or_else(|| text("name")));
    let (before, content) = match &value["content"] {
        Value::String(text) => (Vec::new(), text.clone()),
        Value::Array(parts) => contents(parts, role, &path("content"))?,
        Value::Null if role == Role::Assistant => Default::default(),
        other => return Err(Failure::wrong(path("content"), "a string", &show(other))),
    };
    let reasoning_content = reasoning(value, path)?;
    Ok(Message { before, reasoning_content, tool_calls, tool_call_id, name, ..Message::new(role, content) })
}

/// What the model called. Templates want arguments as an object, OpenAI's clients have them as its text, Ollama's as it is.
fn tool_call(call: &Value, path: &str) -> Result<ToolCall, Failure> {
    let function = &call["function"];
    let name = function["name"].as_str();
    let name =
        name.ok_or_else(|| Failure::wrong(format!("{path}.function.name"), "a string", &show(&function["name"])))?;
    let arguments = match &function["arguments"] {
        Value::Null => Value::Object(serde_json::Map::new()),
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
        other => other.clone(),
    };
    let id = call["id"].as_str().unwrap_or_default().to_owned();
    Ok(ToolCall { id, function: CalledFunction { name: name.to_owned(), arguments } })
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
        (Some("text" | "input_text" | "output_text"), Some(text)) => of(PartKind::Text, text),
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
        let read = |value: Value| message("messages[0]", &value);
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
