//! Jinja in the dialect of Hugging Face's chat templates.
//!
//! `trim_blocks` and `lstrip_blocks` are on; Python's string and dictionary methods work; there are `raise_exception`,
//! `strftime_now` and a `tojson` that escapes nothing for HTML; `{% generation %}` marks, which only matter in training,
//! are neutral. Knows strings; does not know tokens.
//! Reference: `_compile_jinja_template` of transformers' utils/chat_template_utils.py.

use std::collections::BTreeMap;

use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde::Serialize;

use super::python_json::{JsonStyle, to_json};
use crate::clock::UtcTime;

/// Name of the one template in the environment; without a suffix, so that nothing is escaped for HTML.
const NAME: &str = "chat";
/// Instructions that a template may take, and 64-byte pieces of text that it may make: 64 MB. A long conversation takes
/// some ten thousand.
const FUEL: u64 = 1 << 20;

/// A compiled chat template.
#[derive(Debug)]
pub(super) struct JinjaTemplate {
    environment: Environment<'static>,
    source: String,
}

/// What a template sees of one message.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TemplateMessage {
    pub(super) role: &'static str,
    pub(super) content: String,
}

impl JinjaTemplate {
    /// Compiles a template; the error says where it is wrong.
    pub(super) fn new(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| e.to_string())?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| UtcTime::now().strftime(&format));
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, neutralise_generation(source)).map_err(|e| explain(&e))?;
        Ok(Self { environment, source: source.to_owned() })
    }

    /// The template as it was written.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; the error is what the template, or Jinja, has against it. `tokens` are the special tokens
    /// by the names that templates know them by, like `eos_token`.
    pub(super) fn render(
        &self,
        messages: &[TemplateMessage],
        add_generation_prompt: bool,
        tokens: &BTreeMap<String, String>,
    ) -> Result<String, String> {
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => (),
            documents => (),
            add_generation_prompt,
            ..Value::from(Serde(tokens))
        };
        let template = self.environment.get_template(NAME).map_err(|e| explain(&e))?;
        template.render(context).map_err(|e| explain(&e))
    }
}

/// A template's own message where there is one, without the name of the file that it is not.
fn explain(error: &Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{}{line}", error.detail().map_or_else(|| error.kind().to_string(), str::to_owned))
}

/// `{% generation %}` → `{% if true %}`, `{% endgeneration %}` → `{% endif %}`, with their whitespace control.
fn neutralise_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let word = tag[2..end].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// transformers' filter: `json.dumps` with its options, nothing escaped for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let style = JsonStyle {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: options.get("indent")?,
        separators: match separators.as_deref() {
            None => None,
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: `separators` are two")),
        },
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let failed = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}"));
    to_json(value, &style).map(Value::from).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let message = |role, content: &str| TemplateMessage { role, content: content.into() };
        let messages = [message("system", "Be <kind>."), message("user", " Hi 'you' ")];
        let tokens = BTreeMap::from([("bos_token".into(), "<s>".into()), ("eos_token".into(), String::new())]);
        JinjaTemplate::new(source)?.render(&messages, true, &tokens)
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        let source = "{% for m in messages %}\n    {% if m['role'] == 'user' %}\n{{ m.content | trim }}\n    {% endif %}\n{% endfor %}\nend";
        assert_eq!(render(source).unwrap(), "Hi 'you'\nend");
    }

    #[test]
    fn python_methods_and_variables_work() {
        assert_eq!(render("{{ messages[1].content.strip().upper() }}").unwrap(), "HI 'YOU'");
        assert_eq!(render("{{ bos_token }}{{ eos_token }}{{ messages[1:] | length }}").unwrap(), "<s>1");
        assert_eq!(render("{{ messages[0].get('name', 'none') }}").unwrap(), "none");
        assert_eq!(render("{% if tools is none and not missing %}ok{% endif %}").unwrap(), "ok");
        assert_eq!(render("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}").unwrap(), "2");
        assert_eq!(
            render("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}").unwrap(),
            "x"
        );
    }

    #[test]
    fn templates_render_as_in_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/vectors/chat_templates.json");
        let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let tokens: BTreeMap<String, String> = serde_json::from_value(vectors["tokens"].clone()).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let messages: Vec<TemplateMessage> = case["messages"]
                .as_array()
                .unwrap()
                .iter()
                .map(|message| TemplateMessage {
                    role: ["system", "user", "assistant"].into_iter().find(|role| message["role"] == *role).unwrap(),
                    content: message["content"].as_str().unwrap().into(),
                })
                .collect();
            let template = JinjaTemplate::new(case["template"].as_str().unwrap()).unwrap();
            let text = template.render(&messages, case["add_generation_prompt"] == true, &tokens);
            assert_eq!(text.as_deref(), Ok(case["text"].as_str().unwrap()), "{}", case["name"]);
        }
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let error =
            render("{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}").unwrap_err();
        assert!(error.contains("fuel"), "{error}");
        let doubling = "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
        render(doubling).unwrap_err();
        render("{{ 'x' * 9999999999 }}").unwrap_err();
    }

    #[test]
    fn generation_marks_are_neutral() {
        let source = "a{% generation %}b{%- endgeneration -%} c{% if add_generation_prompt %}d{% endif %}";
        assert_eq!(render(source).unwrap(), "abcd");
        assert_eq!(neutralise_generation("x {% unfinished"), "x {% unfinished");
    }

    #[test]
    fn errors_say_what_and_where() {
        assert_eq!(render("\n{{ raise_exception('No system role!') }}").unwrap_err(), "No system role! (line 2)");
        assert!(render("{% if %}").unwrap_err().contains("line 1"));
        assert!(render("{{ strftime_now('%Y') }}").unwrap().parse::<u32>().unwrap() >= 2024);
    }
}
