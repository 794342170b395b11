//! What a model thinks before it answers, told apart from the answer: `<think> … </think>`, as reasoning models write it.
//!
//! ```text
//! reply ─► (white space) <think> ─► thinking ─► </think> (white space) ─► the answer, whatever it has in it
//!           │ anything else: the answer      └ the end: there is none
//! ```
//! Knows text only; its prompt says where in this a reply begins. White space beside a mark is the format's, as it is to llama.cpp.
//! Invariant: nothing that may still turn out to be part of a mark, or white space before one, is given out.

use std::mem;

use super::stop::overlap;

pub(super) const OPEN: &str = "<think>";
pub(super) const CLOSE: &str = "</think>";

/// Where in the format a text goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Thinking may begin.
    Before,
    /// It begins here, whether its mark is repeated or not.
    Begun,
    /// There is some.
    Inside,
    /// It has ended; white space may follow.
    Behind,
    /// All that follows is the answer.
    Answer,
}

/// A text in its two parts, of which either may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) thinking: String,
    pub(super) answer: String,
}

/// Tells the parts of one reply apart.
#[derive(Clone, Debug)]
pub(super) struct ThinkingSplitter {
    stage: Stage,
    /// Text held back.
    held: String,
}

/// Whether a chat template is of a model that thinks.
pub(super) fn is_marked(template: &str) -> bool {
    template.contains(OPEN) && template.contains(CLOSE)
}

/// Whether a token is a mark.
pub(super) fn is_mark(token: &[u8]) -> bool {
    token == OPEN.as_bytes() || token == CLOSE.as_bytes()
}

impl Stage {
    /// Of a reply to a prompt that ends in `tail`.
    pub(super) fn behind_prompt(tail: &str) -> Self {
        match tail.trim_end() {
            tail if tail.ends_with(OPEN) => Self::Begun,
            tail if tail.ends_with(CLOSE) => Self::Answer,
            _ => Self::Before,
        }
    }

    /// Of what continues a message that has `content` so far.
    pub(super) fn within(content: &str) -> Self {
        match content.rsplit_once(OPEN) {
            Some((_, rest)) if rest.trim().is_empty() => Self::Begun,
            Some((_, rest)) if !rest.contains(CLOSE) => Self::Inside,
            _ => Self::Answer,
        }
    }
}

impl ThinkingSplitter {
    pub(super) fn new(stage: Stage) -> Self {
        Self { stage, held: String::new() }
    }

    /// Adds text, the last of it if `ends`. Returns what is safe to give out, at the end all that was held back.
    pub(super) fn push(&mut self, text: &str, ends: bool) -> Parts {
        let mut parts = self.take(text);
        if ends {
            let rest = mem::take(&mut self.held);
            match self.stage {
                Stage::Begun | Stage::Inside => parts.thinking += rest.trim_end(),
                _ => parts.answer += &rest,
            }
        }
        parts
    }

    fn take(&mut self, text: &str) -> Parts {
        let mut parts = Parts::default();
        self.held.push_str(text);
        if self.stage == Stage::Before {
            let start = self.held.trim_start();
            match start.strip_prefix(OPEN) {
                Some(rest) => (self.stage, self.held) = (Stage::Begun, rest.to_owned()),
                None if OPEN.starts_with(start) => return parts,
                None => self.stage = Stage::Answer,
            }
        }
        if self.stage == Stage::Begun {
            let mut start = self.held.trim_start();
            while let Some(rest) = start.strip_prefix(OPEN) {
                start = rest.trim_start();
            }
            self.held = start.to_owned();
            if OPEN.starts_with(&*self.held) {
                return parts;
            }
            self.stage = Stage::Inside;
        }
        if self.stage == Stage::Inside {
            let (thinking, rest) = match self.held.split_once(CLOSE) {
                Some((thinking, rest)) => {
                    self.stage = Stage::Behind;
                    (thinking, rest.to_owned())
                }
                None => {
                    let open = &self.held[..self.held.len() - overlap(&self.held, CLOSE)];
                    (open, self.held[open.trim_end().len()..].to_owned())
                }
            };
            parts.thinking = thinking.trim_end().to_owned();
            self.held = rest;
        }
        if self.stage == Stage::Behind {
            self.held = self.held.trim_start().to_owned();
            if !self.held.is_empty() {
                self.stage = Stage::Answer;
            }
        }
        if self.stage == Stage::Answer {
            parts.answer = mem::take(&mut self.held);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The parts of a reply that comes in these pieces.
    fn split(stage: Stage, pieces: &[&str]) -> (String, String) {
        let mut splitter = ThinkingSplitter::new(stage);
        let mut all: Vec<Parts> = pieces.iter().map(|piece| splitter.push(piece, false)).collect();
        all.push(splitter.push("", true));
        let join = |part: fn(&Parts) -> &str| -> String { all.iter().map(part).collect() };
        (join(|parts| &parts.thinking), join(|parts| &parts.answer))
    }

    fn parts(thinking: &str, answer: &str) -> (String, String) {
        (thinking.into(), answer.into())
    }

    #[test]
    fn a_reply_has_two_parts_however_it_is_cut() {
        for (stage, reply, thinking, answer) in [
            (Stage::Before, "<think>\nHm, 2.\n</think>\n\nTwo.", "Hm, 2.", "Two."),
            (Stage::Before, "\n <think>a < b </thin > c</think>x </think> y", "a < b </thin > c", "x </think> y"),
            (Stage::Before, "<think>\n\n</think>\n\nTwo.", "", "Two."),
            (Stage::Before, "Two. <think>no</think>", "", "Two. <think>no</think>"),
            (Stage::Before, "  <thin", "", "  <thin"),
            (Stage::Before, " <b>", "", " <b>"),
            (Stage::Before, "<think> on and on \n", "on and on", ""),
            (Stage::Before, "<think>on</thi", "on</thi", ""),
            (Stage::Before, "<think>", "", ""),
            (Stage::Begun, "\nHm.</think> Two.\n", "Hm.", "Two.\n"),
            (Stage::Begun, "<think>\nHm.\n</think>\n", "Hm.", ""),
            (Stage::Begun, "<", "<", ""),
            (Stage::Inside, " goes on </think>Two.", " goes on", "Two."),
            (Stage::Answer, "<think>a</think>", "", "<think>a</think>"),
        ] {
            let expected = parts(thinking, answer);
            assert_eq!(split(stage, &[reply]), expected, "{reply:?}");
            let characters: Vec<&str> = reply.split("").collect();
            assert_eq!(split(stage, &characters), expected, "{reply:?}, by characters");
            for (cut, _) in reply.char_indices() {
                assert_eq!(split(stage, &[&reply[..cut], &reply[cut..]]), expected, "{reply:?}, cut at {cut}");
            }
        }
    }

    #[test]
    fn what_no_mark_can_become_is_given_out_at_once() {
        let mut splitter = ThinkingSplitter::new(Stage::Before);
        let given = ["<th", "ink>", "\n", "Hm", ", 2 <", " 3. ", "\n</", "think>", "\n", "Two", ". "].map(|piece| {
            let Parts { thinking, answer } = splitter.push(piece, false);
            format!("{thinking}|{answer}")
        });
        assert_eq!(given, ["|", "|", "|", "Hm|", ", 2|", " < 3.|", "|", "|", "|", "|Two", "|. "]);
        assert_eq!(ThinkingSplitter::new(Stage::Before).push("Two", false).answer, "Two");
    }

    #[test]
    fn prompts_say_where_a_reply_begins() {
        for (tail, stage) in [
            ("<|im_start|>assistant\n", Stage::Before),
            ("assistant\n<think>\n", Stage::Begun),
            ("assistant\n<think>\n\n</think>\n\n", Stage::Answer),
        ] {
            assert_eq!(Stage::behind_prompt(tail), stage, "{tail:?}");
        }
        for (content, stage) in [
            ("Two", Stage::Answer),
            ("<think>\n", Stage::Begun),
            ("<think>\nHm", Stage::Inside),
            ("<think>a</think>", Stage::Answer),
        ] {
            assert_eq!(Stage::within(content), stage, "{content:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_equal_the_whole(reply in "(<think>|</think>|<|/|think|>|a| |\n){0,12}", cuts in proptest::collection::vec(0usize..60, 0..4)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(reply.len())).chain([0, reply.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &reply[pair[0]..pair[1]]).collect();
            for stage in [Stage::Before, Stage::Begun, Stage::Inside, Stage::Answer] {
                prop_assert_eq!(split(stage, &pieces), split(stage, &[&reply]));
            }
        }
    }
}
