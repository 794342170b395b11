//! Messages to a prompt.
//!
//! Uses the model's chat template, or the plain transcript below where there is none. Knows messages and token ids; does
//! not know how long a prompt may be. Invariant: what users wrote never becomes a special token, while all text between
//! two special tokens of the template is encoded as one, so that seams between template and content leave no trace.
//!
//! ```text
//! {system}\n\n          transcript of a model without a template, a heuristic; the reply ends at "\nUser:"
//! User: …\n
//! Assistant: …\n
//! User: …\n
//! Assistant:
//! ```

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::RangeInclusive,
    path::Path,
};

use nanoinfer_shared::protocol::TokenId;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    files::{TextError, invalid, read_if_there, read_json},
    jinja::JinjaTemplate,
    thinking::{self, Stage},
    tokenizer::Tokenizer,
    tools::CallStyle,
};

/// Ends a reply in the plain transcript.
const TRANSCRIPT_STOP: &str = "\nUser:";
/// DialoGPT's form, which its older copies do not write down: each turn ends with the end of text. It knows no system turn,
/// so that instructions go before the first turn.
const DIALOGUE: &str = "{% for message in messages %}{{ message.content }}{% if message.role == 'system' %}{{ '\n' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}";

/// What a template calls the functions that the model may call.
const TOOLS: &str = "tools";
/// In a template that has a place for it.
const BEFORE: &str = "message.before";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A function that it called.
    Tool,
}

/// One message of a conversation, as templates see it too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said before that, where a calculator was used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Part>,
    /// What is said.
    pub content: String,
    /// What the model thought before it said that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// What the model called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call this answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The function that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A call of a function, as templates see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "function")]
pub struct ToolCall {
    /// As the client knows it.
    pub id: String,
    /// What is called.
    pub function: CalledFunction,
}

/// What is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CalledFunction {
    /// Its name.
    pub name: String,
    /// An object, as a rule.
    pub arguments: Value,
}

/// A piece of what the model said and calculated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Which.
    pub kind: PartKind,
    /// As it was written.
    pub text: String,
}

/// What a piece is, in nanochat's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// Said.
    Text,
    /// Asked of the calculator.
    Python,
    /// Its answer.
    PythonOutput,
}

/// What a template is told beside the messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatLayout {
    /// What the prompt ends in.
    pub ending: Ending,
    /// Further variables; they win over special tokens of those names, and lose against the template's own.
    pub variables: Map<String, Value>,
    /// Functions that the model may call.
    pub tools: Vec<Value>,
}

/// What a prompt made of messages ends in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// The beginning of the model's turn.
    #[default]
    NewTurn,
    /// The end of the last message.
    Closed,
    /// The text of the last message, which the model goes on with.
    Open,
}

/// How a model wants conversations to be written.
#[derive(Debug)]
pub struct ChatFormat {
    template: Option<JinjaTemplate>,
    /// Whether white space before a reply belongs to the format, not to the reply: after `Assistant:`, models say ` Hi`.
    pub(super) trims_reply: bool,
    /// Whether the template leaves system messages out.
    pub(crate) ignores_system: bool,
    /// Whether the template marks what the model thinks.
    pub(crate) thinks: bool,
    /// How the model writes calls of functions, where the template knows of them.
    pub calls: Option<CallStyle>,
}

impl Message {
    /// A message of somebody.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            before: Vec::new(),
            content: content.into(),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }

    /// A message of the person.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// All that it says.
    fn texts(&self) -> impl Iterator<Item = &str> {
        let before = self.before.iter().map(|part| &part.text);
        let texts =
            before.chain([&self.content]).chain(&self.reasoning_content).chain(&self.tool_call_id).chain(&self.name);
        let mut called = Vec::new();
        for ToolCall { id, function } in &self.tool_calls {
            called.extend([id.as_str(), &function.name]);
            strings(&function.arguments, &mut called);
        }
        texts.map(String::as_str).chain(called)
    }

    /// The same with all texts changed.
    fn mapped(&self, change: &dyn Fn(&str) -> String) -> Self {
        let call = |ToolCall { id, function }: &ToolCall| ToolCall {
            id: change(id),
            function: CalledFunction { name: change(&function.name), arguments: mapped(&function.arguments, change) },
        };
        Self {
            role: self.role,
            before: self.before.iter().map(|part| Part { text: change(&part.text), ..*part }).collect(),
            content: change(&self.content),
            reasoning_content: self.reasoning_content.as_deref().map(change),
            tool_calls: self.tool_calls.iter().map(call).collect(),
            tool_call_id: self.tool_call_id.as_deref().map(change),
            name: self.name.as_deref().map(change),
        }
    }

    /// Bytes of all that it says.
    pub(crate) fn bytes(&self) -> usize {
        self.texts().map(str::len).sum()
    }
}

impl ChatFormat {
    /// Reads `chat_template.jinja`, else `chat_template` of tokenizer_config.json (a string, or a list of named ones of
    /// which `default` is taken), else DialoGPT's where config.json says that the model converses, else falls back to the
    /// transcript.
    ///
    /// # Errors
    /// When a template is there but is no Jinja.
    pub fn load(folder: &Path, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let config = folder.join("tokenizer_config.json");
        let file = folder.join("chat_template.jinja");
        let (path, source) = match read_if_there(&file)? {
            Some(source) => (file, Some(source)),
            None => {
                let value = read_json(&config)?.unwrap_or_default();
                let template = &value["chat_template"];
                let named = template.as_array().and_then(|named| {
                    let default = named.iter().find(|entry| entry["name"] == "default");
                    default.or(named.first()).map(|entry| &entry["template"])
                });
                let source = named.unwrap_or(template).as_str().map(str::to_owned);
                (config, source.map_or_else(|| dialogue_template(folder), |source| Ok(Some(source)))?)
            }
        };
        let template = source.map(|source| JinjaTemplate::new(&source)).transpose();
        let template = template.map_err(|reason| invalid(&path, format!("chat template: {reason}")))?;
        if template.is_none() {
            tracing::info!("the model has no chat template: chats become a plain User/Assistant transcript");
        }
        let (format, doubts) = Self::probe(template, tokenizer);
        for doubt in doubts {
            tracing::warn!("the model's chat template {doubt}");
        }
        Ok(format)
    }

    /// Finds out two habits of a template by trying it, and what chats will fail at.
    fn probe(template: Option<JinjaTemplate>, tokenizer: &Tokenizer) -> (Self, Vec<String>) {
        let thinks = template.as_ref().is_some_and(|template| thinking::is_marked(&template.written));
        let calls = template.as_ref().and_then(|template| CallStyle::of(&template.written));
        let format = Self { template, trims_reply: false, ignores_system: false, thinks, calls };
        let message = |role, content: &str| Message::new(role, content);
        let render = |messages: &[Message], generate| format.render(messages, generate, &Map::new(), tokenizer);
        let mut doubts = Vec::new();
        let mut try_out = |messages: &[Message], generate, what: &str| {
            render(messages, generate).unwrap_or_else(|reason| {
                doubts.push(format!("fails at {what}: {reason}"));
                String::new()
            })
        };
        let question = message(Role::User, "question");
        let dialogue = [question.clone(), message(Role::Assistant, "answer")];
        let asked = try_out(&dialogue[..1], true, "a single question, so that chats do, while completions work");
        let answered = try_out(&dialogue, false, "a question with its answer, so that chats end after one turn");
        let lead = answered.strip_prefix(&asked).and_then(|rest| rest.split_once("answer")).map(|(lead, _)| lead);
        // Many a template refuses instructions by design: whoever sends some is told.
        let instructed = render(&[message(Role::System, "instruction"), question], true).unwrap_or_default();
        let trims_reply = lead.is_some_and(|lead| !lead.is_empty() && lead.trim().is_empty());
        let ignores_system = !instructed.is_empty() && !instructed.contains("instruction");
        let unknown = format.template.as_ref().map(JinjaTemplate::unknown).unwrap_or_default();
        if !unknown.is_empty() {
            doubts.push(format!("names what is not known here: {}; chats that reach it fail", unknown.join(", ")));
        }
        (Self { trims_reply, ignores_system, ..format }, doubts)
    }

    /// Where the model's thinking is when it goes on behind `ids`, the prompt that these messages became; `None` if it never thinks.
    pub(super) fn stage(
        &self,
        messages: &[Message],
        ending: Ending,
        ids: &[TokenId],
        tokenizer: &Tokenizer,
    ) -> Option<Stage> {
        /// So many tokens hold a mark and the white space behind it.
        const TAIL: usize = 16;
        let stage = || match (ending, messages.last()) {
            (Ending::Open, Some(last)) => Stage::within(&last.content),
            _ => Stage::behind_prompt(&tokenizer.decode(&ids[ids.len().saturating_sub(TAIL)..])),
        };
        self.thinks.then(stage)
    }

    /// Stop strings that the format itself needs.
    pub fn stops(&self) -> &'static [&'static str] {
        if self.template.is_some() { &[] } else { &[TRANSCRIPT_STOP] }
    }

    /// The model's own template, as it is written in its files.
    pub fn template(&self) -> Option<&str> {
        self.template.as_ref().map(|template| template.written.as_str())
    }

    /// The prompt after which the model's reply follows.
    ///
    /// # Errors
    /// What the template has against these messages; that it would make special tokens of what they say.
    pub fn encode(
        &self,
        messages: &[Message],
        layout: &ChatLayout,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<TokenId>, String> {
        if messages.iter().any(|m| !m.before.is_empty()) && !self.template().is_some_and(|t| t.contains(BEFORE)) {
            return Err("this model's chat template has no place for what a calculator was asked".into());
        }
        let uses_tools = |m: &Message| m.role == Role::Tool || !m.tool_calls.is_empty();
        if self.calls.is_none() && messages.iter().any(uses_tools) {
            return Err("this model's chat template knows of no tools, nor of what they answered".into());
        }
        let mut contents: Vec<&str> = messages.iter().flat_map(Message::texts).collect();
        layout.variables.values().chain(&layout.tools).for_each(|value| strings(value, &mut contents));
        let shield = Shield::new(&contents, tokenizer, self.template().unwrap_or_default());
        let mark = Mark::new(&contents, self.template().unwrap_or_default());
        let render = |hide: &dyn Fn(&str) -> String| {
            let mut hidden: Vec<_> = messages.iter().map(|message| message.mapped(hide)).collect();
            let variables = layout.variables.iter().map(|(name, value)| (name.clone(), mapped(value, hide)));
            let tools =
                (!layout.tools.is_empty()).then(|| layout.tools.iter().map(|tool| mapped(tool, hide)).collect());
            let variables = variables.chain(tools.map(|tools| (TOOLS.to_owned(), Value::Array(tools)))).collect();
            if layout.ending != Ending::Open {
                return self.render(&hidden, layout.ending == Ending::NewTurn, &variables, tokenizer);
            }
            if let Some(last) = hidden.last_mut() {
                mark.set_behind(&mut last.content);
            }
            mark.cut(self.render(&hidden, false, &variables, tokenizer)?)
        };
        let mut text = render(&|content| shield.hide_all(content))?;
        let plain = render(&|content| content.to_owned())?;
        if shield.reveal(&text) != plain {
            // The template looks into what is said: it has to see it.
            let own = special_ids(&text, tokenizer);
            text = render(&|content| shield.hide(content))?;
            if special_ids(&text, tokenizer) != own {
                return Err(
                    "the chat template makes special tokens of what a message says; hint: leave their texts out \
                            of it"
                        .into(),
                );
            }
        }
        tokenizer.encode_rendered(&text, |piece| shield.reveal(piece)).map_err(|error| error.to_string())
    }

    fn render(
        &self,
        messages: &[Message],
        generate: bool,
        variables: &Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<String, String> {
        if let Some(template) = &self.template {
            let tokens = tokenizer.named.iter().map(|(name, text)| (name.clone(), text.as_str().into()));
            let mut named: Map<String, Value> = tokens.collect();
            named.extend(variables.clone());
            return template.render(messages, generate, &named);
        }
        let mut text = String::new();
        for Message { role, content, .. } in messages {
            text += &match role {
                Role::System => format!("{content}\n\n"),
                Role::User => format!("User: {content}\n"),
                Role::Assistant => format!("Assistant: {content}\n"),
                Role::Tool => unreachable!("a transcript knows of no tools"),
            };
        }
        if generate {
            text.push_str("Assistant:");
        }
        Ok(text)
    }
}

/// DialoGPT's template, for a model that is of its kind: its config.json has settings for conversations.
fn dialogue_template(folder: &Path) -> Result<Option<String>, TextError> {
    let config = read_json(&folder.join("config.json"))?.unwrap_or_default();
    Ok(config["task_specific_params"]["conversational"].is_object().then(|| DIALOGUE.to_owned()))
}

/// All strings in a value.
fn strings<'a>(value: &'a Value, all: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => all.push(text),
        Value::Array(list) => list.iter().for_each(|value| strings(value, all)),
        Value::Object(map) => map.values().for_each(|value| strings(value, all)),
        _ => {}
    }
}

/// A value with all its strings changed.
fn mapped(value: &Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => change(text).into(),
        Value::Array(list) => list.iter().map(|value| mapped(value, change)).collect(),
        Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), mapped(value, change))).collect(),
        value => value.clone(),
    }
}

/// Stands behind a message while its template is rendered, to show where the text of the message ends: a character that occurs
/// nowhere else, and a space, which a template that trims takes away.
struct Mark(char);

impl Mark {
    fn new(contents: &[&str], template: &str) -> Self {
        let plane = '\u{100000}'..='\u{10fffd}';
        let last = *plane.end();
        Self(unused(plane, contents.iter().copied().chain([template])).next().unwrap_or(last))
    }

    fn set_behind(&self, text: &mut String) {
        text.push(self.0);
        text.push(' ');
    }

    /// The rendered text without the mark and all behind it.
    fn cut(&self, mut text: String) -> Result<String, String> {
        let at = text.rfind(self.0).ok_or("the chat template leaves the last message out: it cannot be continued")?;
        let trims = !text[at + self.0.len_utf8()..].starts_with(' ');
        text.truncate(at);
        if trims {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }
}

/// The special tokens of a rendered text.
fn special_ids(text: &str, tokenizer: &Tokenizer) -> Vec<TokenId> {
    tokenizer.specials_in(text).into_iter().map(|(_, id)| id).collect()
}

/// Keeps special tokens that users wrote from being taken for the template's own.
///
/// Characters of content are replaced by stand-ins from a private-use plane that occur nowhere else; after the rendered text is
/// split at the template's special tokens, the characters come back. There are two ways:
///
/// 1. **All** characters that occur in any special token ([`hide_all`](Self::hide_all)). Then no special token has a
///    character of content in it, whatever the template does. This serves where the template writes the same text as it does
///    of the bare content, which is nearly always.
/// 2. One character of each special token in content, and of what could become part of one at its ends
///    ([`hide`](Self::hide)), so that templates can look for other text, split at it, or change its case. Should that leave
///    other special tokens than the first way gives, the conversation is refused.
///
/// The limit: with the second way, a template that on seeing some content leaves out a special token, and makes the same one
/// of pieces of content that do not touch its ends, is not noticed. And special tokens in content are not seen by templates.
struct Shield<'t> {
    specials: Vec<&'t str>,
    /// The characters of special tokens, each with its stand-in.
    stand_ins: HashMap<char, char>,
    /// The other way round.
    real: HashMap<char, char>,
}

impl<'t> Shield<'t> {
    fn new(contents: &[&str], tokenizer: &'t Tokenizer, template: &str) -> Self {
        let specials: Vec<&str> = tokenizer.special_texts().collect();
        let needed: BTreeSet<char> = specials.iter().flat_map(|special| special.chars()).collect();
        let texts = contents.iter().copied().chain([template]).chain(specials.iter().copied());
        let stand_ins: HashMap<char, char> = needed.into_iter().zip(unused('\u{f0000}'..='\u{ffffd}', texts)).collect();
        let real = stand_ins.iter().map(|(&real, &stand_in)| (stand_in, real)).collect();
        Self { specials, stand_ins, real }
    }

    fn hide_all(&self, content: &str) -> String {
        swap(content, &self.stand_ins)
    }

    fn hide(&self, content: &str) -> String {
        let mut hidden_at = BTreeSet::new();
        for special in &self.specials {
            let first_bytes = special.chars().next().map_or(1, char::len_utf8);
            let last_bytes = special.chars().next_back().map_or(1, char::len_utf8);
            let mut from = 0;
            while let Some(at) = content[from..].find(special) {
                hidden_at.insert(from + at);
                from += at + first_bytes;
            }
            // Templates like to trim, so seams are looked at with and without white space.
            let skipped = content.len() - content.trim_start().len();
            for whole in [content.trim(), content] {
                if !whole.is_empty() && special.contains(whole) {
                    hidden_at.insert(if whole.len() == content.len() { 0 } else { skipped });
                }
            }
            for (cut, _) in special.char_indices().skip(1) {
                let (head, tail) = special.split_at(cut);
                for end in [content, content.trim_end()] {
                    if end.ends_with(head) {
                        hidden_at.insert(end.len() - head.len());
                    }
                }
                for (start, skipped) in [(content, 0), (content.trim_start(), skipped)] {
                    if start.starts_with(tail) {
                        hidden_at.insert(skipped + tail.len() - last_bytes);
                    }
                }
            }
        }
        let hidden = content.char_indices().map(|(at, c)| match hidden_at.contains(&at) {
            true => self.stand_ins.get(&c).copied().unwrap_or(c),
            false => c,
        });
        hidden.collect()
    }

    fn reveal(&self, text: &str) -> String {
        swap(text, &self.real)
    }
}

/// Characters of a private plane that occur in none of the texts. It has 65,534 characters; a text that used nearly all of them is
/// longer than any prompt.
fn unused<'a>(plane: RangeInclusive<char>, texts: impl Iterator<Item = &'a str>) -> impl Iterator<Item = char> {
    let taken: HashSet<char> = texts.flat_map(str::chars).filter(|c| plane.contains(c)).collect();
    plane.filter(move |c| !taken.contains(c))
}

fn swap(text: &str, pairs: &HashMap<char, char>) -> String {
    text.chars().map(|c| pairs.get(&c).copied().unwrap_or(c)).collect()
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
