//! Jinja in the dialect of Hugging Face's chat templates.
//!
//! `trim_blocks` and `lstrip_blocks` are on; Python's string and dictionary methods work; there are `raise_exception`,
//! `strftime_now` and a `tojson` that escapes nothing for HTML; `{% generation %}` marks, which only matter in training,
//! are neutral. Knows strings; does not know tokens.
//! Reference: `_compile_jinja_template` of transformers' utils/chat_template_utils.py.

use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::clock::UtcTime;

/// Name of the one template in the environment; without a suffix, so that nothing is escaped for HTML.
const NAME: &str = "chat";

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
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| UtcTime::now().strftime(&format));
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, neutralise_generation(source)).map_err(|e| explain(&e))?;
        Ok(Self { environment, source: source.to_owned() })
    }

    /// The template as it was written.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; the error is what the template, or Jinja, has against it.
    pub(super) fn render(
        &self,
        messages: &[TemplateMessage],
        add_generation_prompt: bool,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<String, String> {
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => (),
            documents => (),
            add_generation_prompt,
            bos_token => bos_token.unwrap_or_default(),
            eos_token => eos_token.unwrap_or_default(),
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

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonStyle)),
    };
    let failed = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}"));
    written.map_err(|e| failed(&e))?;
    String::from_utf8(out).map(Value::from).map_err(|e| failed(&e))
}

/// `{"a": 1, "b": [1, 2]}`: a space after every comma and colon.
struct PythonStyle;

impl Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let message = |role, content: &str| TemplateMessage { role, content: content.into() };
        let messages = [message("system", "Be <kind>."), message("user", " Hi 'you' ")];
        JinjaTemplate::new(source)?.render(&messages, true, Some("<s>"), None)
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
    fn json_is_pythons_and_not_escaped_for_html() {
        assert_eq!(
            render("{{ [messages[0].content, messages[1].content, {'a<b': 1.5}] | tojson }}").unwrap(),
            r#"["Be <kind>.", " Hi 'you' ", {"a<b": 1.5}]"#
        );
        assert_eq!(
            render("{{ {'é': [1, true]} | tojson(indent=2) }}").unwrap(),
            "{\n  \"é\": [\n    1,\n    true\n  ]\n}"
        );
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
