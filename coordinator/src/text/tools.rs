//! Functions that a model may call: how its chat template wants calls to be written, and the grammar of them.
//!
//! ```text
//! Hermes (Qwen)   text … <tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>\n<tool_call> …
//! Llama 3         {"name": "f", "parameters": {…}}                 or text
//! ```
//! Knows templates and schemas; does not know HTTP, nor how a call is read: that is [`tool_calls`](super::tool_calls)'s. Invariant: what
//! begins as a call is one, of a function that there is, whoever decided that it begins.

use serde_json::{Value, json};

use super::grammar::{Constraint, Grammar, MAX_CALLS, with_options};

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// ASCII letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// Schema of its arguments, an object's.
    pub parameters: Value,
    /// Whether arguments are held to the schema, also where the model may leave it alone.
    pub strict: bool,
    /// As templates are told of it.
    pub told: Value,
}

/// Which of them are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// Those that the model wants to.
    Auto,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// What a chat may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    /// At least one.
    pub list: Vec<Tool>,
    /// Which of them.
    pub choice: ToolChoice,
    /// Whether several at once.
    pub parallel: bool,
}

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStyle {
    /// Between marks, behind what is said, several one behind the other.
    Hermes,
    /// The whole answer is one call, or none.
    Llama,
}

/// Begins a call, and ends it.
pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

impl CallStyle {
    /// That of a chat template; none where it knows of no tools, or of a style that is not known here.
    pub(super) fn of(template: &str) -> Option<Self> {
        let names = |what: &str| template.contains(what);
        match names("tools") {
            true if names(OPEN) && names(CLOSE) => Some(Self::Hermes),
            true if names("\"parameters\": ") && names("ipython") => Some(Self::Llama),
            _ => None,
        }
    }

    /// Whether a message may have several calls.
    pub fn is_parallel(self) -> bool {
        self == Self::Hermes
    }

    /// What stands before the name, and between it and the arguments.
    pub(super) fn around_name(self) -> (&'static str, &'static str) {
        match self {
            Self::Hermes => (r#"{"name": ""#, r#"", "arguments": "#),
            Self::Llama => (r#"{"name": ""#, r#"", "parameters": "#),
        }
    }
}

impl Tools {
    /// Whether an answer must be a call.
    pub(super) fn is_required(&self) -> bool {
        self.choice != ToolChoice::Auto
    }

    /// The schemas of arguments, each by itself.
    pub(super) fn schemas(&self) -> impl Iterator<Item = Constraint> {
        let held = self.list.iter().enumerate().filter(|(_, tool)| tool.strict || self.is_required());
        held.map(|(i, tool)| Constraint {
            field: format!("tools[{i}].function.parameters"),
            grammar: Grammar::Json(tool.parameters.clone()),
        })
    }

    /// What an answer must be; where the model may leave tools alone, from behind the mark of a call, if its style has one. `instead` is the
    /// schema of an answer that calls nothing, where that has one.
    pub(super) fn grammar(&self, style: CallStyle, instead: Option<&Value>) -> Grammar {
        let tools = self.list.iter().enumerate().filter(|(_, tool)| match &self.choice {
            ToolChoice::Named(name) => tool.name == *name,
            ToolChoice::Auto | ToolChoice::Required => true,
        });
        let literal = |text: &str| Value::from(text).to_string();
        let (before, between) = style.around_name();
        let (mut names, mut rules) = (Vec::new(), String::new());
        for (i, tool) in tools {
            let schema = if tool.strict || self.is_required() { &tool.parameters } else { &json!({"type": "object"}) };
            let head = literal(&format!("{before}{}{between}", tool.name));
            rules += &format!("call_{i}: {head} args_{i} \"}}\"\nargs_{i}: %json {}\n", with_options(schema));
            names.push(format!("call_{i}"));
        }
        let (open, close) = (literal(&format!("{OPEN}\n")), literal(&format!("\n{CLOSE}")));
        let next = literal(&format!("\n{OPEN}\n"));
        let any = names.join(" | ");
        // Who names a function wants it called once.
        let is_several = self.parallel && !matches!(self.choice, ToolChoice::Named(_));
        let more = if is_several { format!(" ({next} one){{0,{MAX_CALLS}}}") } else { String::new() };
        let (calls, one) = match style {
            CallStyle::Hermes if self.is_required() || instead.is_some() => {
                (format!("{open} one{more}"), format!("({any}) {close}"))
            }
            CallStyle::Hermes => (format!("\"\\n\" one{more}"), format!("({any}) {close}")),
            CallStyle::Llama => ("one".to_owned(), any),
        };
        let start = match instead.filter(|_| !self.is_required()) {
            Some(schema) => {
                rules += &format!("instead: %json {}\n", with_options(schema));
                format!("({calls}) | instead")
            }
            None => calls,
        };
        Grammar::Lark(format!("start: {start}\none: {one}\n{rules}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_say_how_calls_are_written() {
        let qwen = "{% if tools %}<tool_call>…</tool_call>{% endif %}";
        assert_eq!(CallStyle::of(qwen), Some(CallStyle::Hermes));
        let llama = "{% if tools is not none %}Environment: ipython{% endif %}{{- '\"parameters\": ' }}";
        assert_eq!(CallStyle::of(llama), Some(CallStyle::Llama));
        for other in ["{{ messages }}", "<tool_call></tool_call>", "{% if tools %}[AVAILABLE_TOOLS]{% endif %}"] {
            assert_eq!(CallStyle::of(other), None, "{other}");
        }
    }
}
