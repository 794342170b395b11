//! Calls of functions, told apart from the text of an answer, as the model writes them.
//!
//! ```text
//! text ─► <tool_call>  ─► {"name": "f", "arguments":  ─► {…} ─► }\n</tool_call> ─► white space ─► <tool_call> …
//!         held back       until the name is whole        given out as it comes
//! ```
//! Knows the styles of calls; their grammar has seen to it that a call that begins is written so. Invariant: however a text is cut into
//! pieces, what comes of it is the same; nothing that may become a mark, or white space before one, is given out as text.

use super::{
    stop::overlap,
    tools::{CLOSE, CallStyle, OPEN},
};

/// A piece of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallPiece {
    /// Which call of the answer, from 0.
    pub index: usize,
    /// Whom it calls; in its first piece.
    pub name: Option<String>,
    /// What follows of its arguments, in JSON.
    pub arguments: String,
    /// Whether they are whole.
    pub is_whole: bool,
}

/// Tells calls apart.
#[derive(Clone, Debug)]
pub(super) struct CallSplitter {
    style: CallStyle,
    stage: Stage,
    held: String,
    /// Calls that have begun.
    begun: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing came yet.
    Start,
    /// Text, and what may become a mark.
    Text,
    /// The beginning of a call, up to its arguments.
    Head,
    /// Arguments, so deep in objects and lists; whether in a string, and behind a backslash in one.
    Arguments { depth: usize, in_string: bool, escaped: bool },
    /// What ends it.
    Tail,
    /// Between calls, and behind the last.
    Behind,
}

impl CallSplitter {
    pub(super) fn new(style: CallStyle) -> Self {
        Self { style, stage: Stage::Start, held: String::new(), begun: 0 }
    }

    /// Adds text, the last of it if `ends`. Returns what is text, and pieces of calls.
    pub(super) fn push(&mut self, text: &str, ends: bool) -> (String, Vec<CallPiece>) {
        self.held.push_str(text);
        let (mut said, mut calls) = (String::new(), Vec::new());
        while self.step(&mut said, &mut calls) {}
        if ends && matches!(self.stage, Stage::Start | Stage::Text) {
            said += &std::mem::take(&mut self.held);
        }
        (said, calls)
    }

    /// Takes what can be taken of what is held; whether there may be more.
    fn step(&mut self, said: &mut String, calls: &mut Vec<CallPiece>) -> bool {
        match self.stage {
            Stage::Start => self.start(),
            Stage::Text => self.text(said),
            Stage::Head => self.head(calls),
            Stage::Arguments { .. } => self.arguments(calls),
            Stage::Tail => {
                if self.style == CallStyle::Llama {
                    return false;
                }
                self.take_mark(CLOSE, Stage::Behind)
            }
            Stage::Behind => self.style == CallStyle::Hermes && self.take_mark(OPEN, Stage::Head),
        }
    }

    /// In Llama's style the answer's first characters decide.
    fn start(&mut self) -> bool {
        let (before, _) = self.style.around_name();
        let start = self.held.trim_start();
        let next = match self.style {
            CallStyle::Hermes => Stage::Text,
            CallStyle::Llama if start.starts_with(before) => Stage::Head,
            CallStyle::Llama if before.starts_with(start) => return false,
            CallStyle::Llama => Stage::Text,
        };
        self.stage = next;
        true
    }

    fn text(&mut self, said: &mut String) -> bool {
        if self.style == CallStyle::Llama {
            *said += &std::mem::take(&mut self.held);
            return false;
        }
        if let Some(at) = self.held.find(OPEN) {
            *said += self.held[..at].trim_end();
            self.held.drain(..at + OPEN.len());
            self.stage = Stage::Head;
            return true;
        }
        let mark = self.held.len() - overlap(&self.held, OPEN);
        let safe = self.held[..mark].trim_end().len();
        said.extend(self.held.drain(..safe));
        false
    }

    fn head(&mut self, calls: &mut Vec<CallPiece>) -> bool {
        let (before, between) = self.style.around_name();
        let Some(at) = self.held.find(between) else { return false };
        let head = self.held[..at].trim_start();
        let name = head.strip_prefix(before).unwrap_or(head).to_owned();
        self.held.drain(..at + between.len());
        calls.push(CallPiece { index: self.begun, name: Some(name), ..CallPiece::default() });
        self.begun += 1;
        self.stage = Stage::Arguments { depth: 0, in_string: false, escaped: false };
        true
    }

    fn arguments(&mut self, calls: &mut Vec<CallPiece>) -> bool {
        let Stage::Arguments { mut depth, mut in_string, mut escaped } = self.stage else { return false };
        let mut end = None;
        for (at, byte) in self.held.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && byte == b'}' && !in_string {
                end = Some(at + 1);
                break;
            }
        }
        let taken: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        self.stage = if end.is_some() { Stage::Tail } else { Stage::Arguments { depth, in_string, escaped } };
        if !taken.is_empty() {
            let (index, is_whole) = (self.begun - 1, end.is_some());
            calls.push(CallPiece { index, name: None, arguments: taken, is_whole });
        }
        end.is_some()
    }

    /// Drops all up to a mark, and the mark.
    fn take_mark(&mut self, mark: &str, next: Stage) -> bool {
        let Some(at) = self.held.find(mark) else { return false };
        self.held.drain(..at + mark.len());
        self.stage = next;
        true
    }
}

/// The calls that pieces are of, each in one.
pub(crate) fn merged(pieces: &[CallPiece]) -> Vec<CallPiece> {
    let mut calls: Vec<CallPiece> = Vec::new();
    for piece in pieces {
        match calls.last_mut().filter(|call| call.index == piece.index) {
            Some(call) => {
                call.arguments += &piece.arguments;
                call.is_whole |= piece.is_whole;
            }
            None => calls.push(piece.clone()),
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(style: CallStyle, pieces: &[&str]) -> (String, Vec<(String, String, bool)>) {
        let mut splitter = CallSplitter::new(style);
        let (mut said, mut calls) = (String::new(), Vec::new());
        for piece in pieces.iter().copied().map(Some).chain([None]) {
            let (text, more) = splitter.push(piece.unwrap_or_default(), piece.is_none());
            said += &text;
            calls.extend(more);
        }
        let call = |call: CallPiece| (call.name.unwrap(), call.arguments, call.is_whole);
        (said, merged(&calls).into_iter().map(call).collect())
    }

    #[test]
    fn calls_are_told_apart_however_they_are_cut() {
        use CallStyle::{Hermes, Llama};
        let call = |name: &str, arguments: &str, is_whole| (name.to_owned(), arguments.to_owned(), is_whole);
        for (style, answer, said, calls) in [
            (Hermes, "Two. <tool_cal", "Two. <tool_cal", vec![]),
            (
                Hermes,
                "Well,\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [{}]}}\n</tool_call>",
                "Well,",
                vec![call("f", "{\"a\": \"}\\\"{\", \"b\": [{}]}", true)],
            ),
            (
                Hermes,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {\"x\": 1}}\n</tool_call>",
                "",
                vec![call("f", "{}", true), call("g", "{\"x\": 1}", true)],
            ),
            (
                Hermes,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"}",
                "",
                vec![call("f", "{\"x\": \"}", false)],
            ),
            (Hermes, "<tool_call>\n{\"name\": \"f\"", "", vec![]),
            (Llama, "{\"name\": \"f\", \"parameters\": {\"é\": \"日\"}}", "", vec![call("f", "{\"é\": \"日\"}", true)]),
            (Llama, "{\"nome\": 1}", "{\"nome\": 1}", vec![]),
            (Llama, "{\"na", "{\"na", vec![]),
            (Llama, "Call <tool_call>.", "Call <tool_call>.", vec![]),
        ] {
            let expected = (said.to_owned(), calls);
            assert_eq!(split(style, &[answer]), expected, "{answer}");
            let characters: Vec<&str> = answer.split("").collect();
            assert_eq!(split(style, &characters), expected, "{answer}, by characters");
            for (cut, _) in answer.char_indices() {
                assert_eq!(split(style, &[&answer[..cut], &answer[cut..]]), expected, "{answer}, cut at {cut}");
            }
        }
    }

    #[test]
    fn arguments_are_given_out_as_they_come() {
        let mut splitter = CallSplitter::new(CallStyle::Hermes);
        let given = [
            "a",
            " ",
            "b\n",
            "<tool_call>\n{\"name\": \"f",
            "\", \"arguments\": {\"a",
            "\": 1}",
            "}\n</tool",
            "_call>",
        ]
        .map(|piece| {
            let (said, calls) = splitter.push(piece, false);
            let calls = calls.into_iter().map(|call| call.name.unwrap_or_default() + &call.arguments);
            format!("{said}|{}", calls.collect::<Vec<_>>().join(","))
        });
        assert_eq!(given, ["a|", "|", " b|", "|", "|f,{\"a", "|\": 1}", "|", "|"]);
    }
}
