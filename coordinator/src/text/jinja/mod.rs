//! Jinja in the dialect of Hugging Face's chat templates.
//!
//! minijinja's language with Jinja2's `trim_blocks` and `lstrip_blocks`; what Jinja2's sandbox has and minijinja lacks is in
//! [`methods`], [`filters`] and [`globals`]. There are `raise_exception`, `strftime_now` and a `tojson` that escapes nothing
//! for HTML. Knows strings; does not know tokens.
//! Invariants: what a template makes is paid for in fuel before it is made, and the same messages give the same text, but for
//! the date: `random` draws the same at every rendering.
//! Reference: `_compile_jinja_template` of transformers' utils/chat_template_utils.py.

mod arguments;
mod filters;
mod globals;
mod methods;
mod printf;
mod python_json;
mod source;
mod vet;

use std::{iter, sync::Arc, thread};

use minijinja::{
    AutoEscape, Environment, Error, Value, context,
    machinery::{CompiledTemplate, Instruction, TemplateConfig, eval, make_string_output},
    syntax::SyntaxConfig,
    value::Serde,
};
use serde::Serialize;

/// Name of the one template, in what the library says about it.
const NAME: &str = "chat";
/// Instructions that a template may take, and 64-byte pieces of text that it may make: 64 MB. A long conversation takes
/// some ten thousand.
const FUEL: u64 = 1 << 20;
/// Address space for what a template nests with all its fuel; only what is used becomes memory.
const STACK_BYTES: usize = 256 << 20;

/// A chat template.
pub(super) struct JinjaTemplate {
    environment: Environment<'static>,
    syntax: SyntaxConfig,
    /// As it stands in the model's files.
    pub(super) written: String,
    /// As it is compiled, at each rendering anew: that takes a thousandth of what encoding the text does.
    source: String,
}

impl JinjaTemplate {
    /// Checks that a template is one; the error says where it is wrong.
    pub(super) fn new(written: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(methods::call);
        filters::add_to(&mut environment);
        globals::add_to(&mut environment);
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| e.to_string())?;
        let source = source::prepare(written, &syntax);
        let template = Self { environment, syntax, written: written.to_owned(), source };
        template.compile().map_err(|e| explain(&e))?;
        Ok(template)
    }

    /// What the template names and nobody here knows, like "filter `urlize`": reaching it is an error.
    pub(super) fn unknown(&self) -> Vec<String> {
        self.compile().map(|compiled| vet::unknown(&self.environment, &compiled)).unwrap_or_default()
    }

    /// The text of a conversation; the error is what the template, or Jinja, has against it. `variables` are what else it may
    /// name: special tokens, like `eos_token`, and what a request adds.
    pub(super) fn render(
        &self,
        messages: &[impl Serialize + Sync],
        add_generation_prompt: bool,
        variables: &(impl Serialize + Sync),
    ) -> Result<String, String> {
        let render = || -> Result<String, Error> {
            let context = context! {
                messages => Value::from(Serde(messages)),
                documents => (),
                add_generation_prompt,
                ..context! { ..Value::from(Serde(variables)), ..context! { tools => () } }
            };
            let CompiledTemplate { instructions, blocks, .. } = self.compile()?;
            let mut text = String::new();
            let mut out = make_string_output(&mut text);
            eval(&self.environment, &instructions, context, &blocks, &mut out, AutoEscape::None)?;
            Ok(text)
        };
        // The library drops and writes nested values by recursion, and a template may nest as many as it has fuel for.
        let thread = thread::Builder::new().name("template".into()).stack_size(STACK_BYTES);
        thread::scope(|scope| {
            let rendering = thread.spawn_scoped(scope, || render().map_err(|e| explain(&e)));
            let rendering = rendering.map_err(|error| format!("no thread to render it: {error}"))?;
            rendering.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Instructions in which two operators are filters of ours: the library's `%` knows only numbers, and its `~` is paid for
    /// when it is done.
    fn compile(&self) -> Result<CompiledTemplate<'_>, Error> {
        let syntax_config = self.syntax.clone();
        let config = TemplateConfig { syntax_config, default_auto_escape: Arc::new(|_| AutoEscape::None) };
        let mut compiled = CompiledTemplate::new(NAME, &self.source, &config)?;
        for instructions in iter::once(&mut compiled.instructions).chain(compiled.blocks.values_mut()) {
            for at in 0.. {
                let Some(instruction) = instructions.get_mut(at) else { break };
                let filter = match instruction {
                    Instruction::Rem => filters::REM,
                    Instruction::StringConcat => filters::CONCAT,
                    _ => continue,
                };
                *instruction = Instruction::ApplyFilter(filter, Some(2), u8::MAX);
            }
        }
        Ok(compiled)
    }
}

impl std::fmt::Debug for JinjaTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("JinjaTemplate").field(&self.written).finish()
    }
}

/// A template's own message where there is one, without the name of the file that it is not.
fn explain(error: &Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{}{line}", error.detail().map_or_else(|| error.kind().to_string(), str::to_owned))
}

#[cfg(test)]
mod tests;
