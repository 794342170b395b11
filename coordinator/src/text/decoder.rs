//! Text of tokens by a decoder that is not byte-level, as a whole and piece by piece.
//!
//! The library's decoders work on whole sequences: Metaspace drops the first space, WordPiece joins words, ByteFallback
//! makes characters of runs of `<0xNN>`, Fuse and Strip see all of the text. Knows tokens as strings; does not know ids.
//! Invariant, which [`Decoder::new`] refuses decoders for the sake of: the text of some tokens, less what
//! [`Decoder::settled`] holds back, begins the text of the same tokens with any others behind them.

use tokenizers::{
    Decoder as _,
    decoders::{DecoderWrapper, sequence::Sequence},
};

/// The decoder of a tokenizer.json.
#[derive(Debug)]
pub(super) struct Decoder {
    /// In their order; `None` if the file names no decoder, which sets spaces between tokens.
    stages: Option<Sequence>,
    /// What comes before runs of byte tokens are put together; `None` if they are not.
    before_bytes: Option<Sequence>,
    /// The last token has a form of its own.
    last_differs: bool,
    /// Half a character at the end shows as U+FFFD.
    lossy: bool,
}

impl Decoder {
    /// `None` where each token stands for bytes, whatever is around it.
    ///
    /// # Errors
    /// Why text cannot be streamed through it, or the library would fail on some tokens.
    pub(super) fn new(wrapper: Option<&DecoderWrapper>) -> Result<Option<Self>, String> {
        let mut stages = Vec::new();
        wrapper.into_iter().for_each(|wrapper| flatten(wrapper, &mut stages));
        if let [DecoderWrapper::ByteLevel(_), others @ ..] = &stages[..]
            && others.iter().all(|stage| matches!(stage, DecoderWrapper::Fuse(_)))
        {
            return Ok(None);
        }
        let mut decoder = Self { stages: None, before_bytes: None, last_differs: false, lossy: false };
        let mut fused = false;
        for (i, stage) in stages.iter().enumerate() {
            let (name, local) = match stage {
                DecoderWrapper::ByteLevel(_) => ("ByteLevel", false),
                DecoderWrapper::ByteFallback(_) => ("ByteFallback", false),
                DecoderWrapper::BPE(_) => ("BPEDecoder", false),
                DecoderWrapper::CTC(_) => ("CTC", false),
                DecoderWrapper::WordPiece(pieces) => ("WordPiece with `cleanup`", !pieces.cleanup),
                DecoderWrapper::Replace(_) => ("Replace of more than one character", replaces_one_character(stage)),
                DecoderWrapper::Strip(strip) if strip.stop > 0 => {
                    return Err("a decoder Strip with `stop` fails on tokens that it leaves nothing of".into());
                }
                DecoderWrapper::Strip(_) | DecoderWrapper::Metaspace(_) | DecoderWrapper::Fuse(_) => ("", true),
                DecoderWrapper::Sequence(_) => unreachable!("flattened above"),
            };
            if fused && !local {
                return Err(format!(
                    "a decoder {name} behind Fuse sees all of the text, so that nothing can be streamed"
                ));
            }
            match stage {
                DecoderWrapper::ByteLevel(_) => (fused, decoder.lossy) = (true, true),
                DecoderWrapper::Fuse(_) => fused = true,
                DecoderWrapper::BPE(_) => decoder.last_differs = true,
                DecoderWrapper::ByteFallback(_) if decoder.before_bytes.is_none() => {
                    decoder.before_bytes = Some(Sequence::new(stages[..i].to_vec()));
                }
                _ => {}
            }
        }
        decoder.stages = wrapper.map(|_| Sequence::new(stages));
        Ok(Some(decoder))
    }

    /// The text of a whole sequence.
    pub(super) fn text(&self, tokens: Vec<String>) -> String {
        // The library's BPE decoder counts on a last token.
        if tokens.is_empty() {
            return String::new();
        }
        match &self.stages {
            None => tokens.join(" "),
            Some(stages) => apply(stages, tokens).concat(),
        }
    }

    /// How many bytes of the text of `tokens` stay, whatever comes behind them.
    pub(super) fn settled(&self, tokens: &[String], text: &str) -> usize {
        let run = tokens.iter().rev().take_while(|token| self.byte(token).is_some()).count();
        let other = if run > 0 {
            // The library decides over a run as a whole whether it is text.
            self.text(tokens[..tokens.len() - run].to_vec())
        } else if self.last_differs {
            self.text(tokens.iter().chain(tokens.last()).cloned().collect())
        } else {
            let cut = text.strip_suffix(char::REPLACEMENT_CHARACTER).filter(|_| self.lossy);
            return cut.unwrap_or(text).len();
        };
        let same = text.char_indices().zip(other.chars()).find(|((_, a), b)| a != b);
        same.map_or(text.len().min(other.len()), |((at, _), _)| at)
    }

    /// What a token adds to a text, in the middle of one; `None` where that is no text of its own.
    pub(super) fn text_between(&self, token: &str) -> Option<String> {
        // Any other token will do for a neighbour.
        let neighbour = if token == "a" { "b" } else { "a" }.to_owned();
        let alone = self.text(vec![neighbour.clone()]);
        self.text(vec![neighbour, token.to_owned()]).strip_prefix(&alone).map(str::to_owned)
    }

    /// The byte that a token `<0xNN>` stands for.
    pub(super) fn byte(&self, token: &str) -> Option<u8> {
        let before = self.before_bytes.as_ref()?;
        // At the start of a text, and behind another token.
        let places = [vec![token.to_owned()], vec![String::new(), token.to_owned()]];
        places.into_iter().flat_map(|tokens| apply(before, tokens)).find_map(|form| {
            let digits = form.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
            u8::from_str_radix(digits, 16).ok()
        })
    }
}

fn apply(stages: &Sequence, tokens: Vec<String>) -> Vec<String> {
    stages.decode_chain(tokens).expect("no decoder of the library returns an error")
}

fn flatten(wrapper: &DecoderWrapper, stages: &mut Vec<DecoderWrapper>) {
    match wrapper {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().for_each(|inner| flatten(inner, stages)),
        stage => stages.push(stage.clone()),
    }
}

fn replaces_one_character(stage: &DecoderWrapper) -> bool {
    // The pattern is private to the library.
    let json = serde_json::to_value(stage).unwrap_or_default();
    json["pattern"]["String"].as_str().is_some_and(|pattern| pattern.chars().count() == 1)
}
