//! What a request makes of an answer: what it says itself, and the calls of its tools.
//!
//! Does not know how that is followed.

use std::sync::Arc;

use nanoinfer_shared::protocol::TokenId;

use super::{
    compiler::Grammars,
    constraint::Constraint,
    follower::{Follower, Opening},
    refusal::GrammarError,
};
use crate::text::{CallStyle, GenerateRequest, ModelText, Tools, tools};

/// What an answer must be, and how it comes to that.
pub(in crate::text) struct Wanted {
    constraint: Constraint,
    opening: Opening,
    tools: Option<Tools>,
}

impl Wanted {
    /// Takes it from a request, whose model writes calls in this style.
    pub(in crate::text) fn take(request: &mut GenerateRequest, style: Option<CallStyle>) -> Option<Self> {
        let constraint = request.constraint.take();
        let (Some(tools), Some(style)) = (request.tools.take(), style) else {
            return constraint.map(|constraint| Self { constraint, opening: Opening::AtOnce, tools: None });
        };
        let instead = constraint.as_ref().and_then(|constraint| constraint.grammar.schema());
        let opening = match style {
            _ if tools.is_required() || instead.is_some() => Opening::AtOnce,
            CallStyle::Hermes => Opening::Behind(tools::OPEN),
            CallStyle::Llama => Opening::Perhaps,
        };
        let constraint = Constraint { field: "tools".into(), grammar: tools.grammar(style, instead) };
        Some(Self { constraint, opening, tools: Some(tools) })
    }

    /// What follows such answers. Takes milliseconds: not for an async thread. `ends` end a text.
    ///
    /// # Errors
    /// Where it is refused.
    pub(in crate::text) fn follower(
        &self,
        grammars: &Grammars,
        text: Arc<ModelText>,
        ends: &[TokenId],
    ) -> Result<Follower, GrammarError> {
        let compiled = grammars.compile(&text, ends, &self.constraint).map_err(|error| {
            // A tool's own schema says where it is wrong.
            let mut of_tools = self.tools.iter().flat_map(Tools::schemas);
            of_tools.find_map(|schema| grammars.compile(&text, ends, &schema).err()).unwrap_or(error)
        })?;
        Ok(Follower::new(text, compiled, self.opening))
    }
}
