//! Fields by what their values are to be: numbers in a range, texts, lists of tokens, what ends a text.
//!
//! Knows no route. Invariant: a wrong type or range is a 400 that names the field and says what was expected.

use std::{mem::take, ops::RangeInclusive};

use nanoinfer_shared::protocol::TokenId;
use serde_json::Value;

use super::Fields;
use crate::{
    http::{
        Failure,
        json::{Given, integer},
        quote::show,
    },
    request::TokenSet,
};

/// Most stop strings of a request; OpenAI takes 4.
const MAX_STOPS: usize = 64;
/// Most bytes of all stop strings together.
const MAX_STOP_BYTES: usize = 16 << 10;
/// Most tokens of a request that end its texts.
const MAX_STOP_TOKEN_IDS: usize = 64;

impl Fields {
    pub(in crate::http) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        self.take(name, "true or false", |given| given.other()?.as_bool())
    }

    pub(in crate::http) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Failure> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.take(name, &expected, |given| given.other()?.as_f64().filter(|x| range.contains(x)))
    }

    /// A number that a processor of logits takes.
    pub(in crate::http) fn factor(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, Failure> {
        Ok(self.number(name, range)?.map(|x| x as f32))
    }

    pub(in crate::http) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Failure> {
        let expected = match (*range.start(), *range.end()) {
            (i64::MIN, i64::MAX) => "an integer".to_owned(),
            (low, i64::MAX) => format!("an integer of at least {low}"),
            (low, high) => format!("an integer from {low} to {high}"),
        };
        let saturated = |value: &Value| integer(value).map(|x| i64::try_from(x).unwrap_or(i64::MAX));
        self.take(name, &expected, |given| saturated(given.other()?).filter(|x| range.contains(x)))
    }

    /// A seed: any 64 bits, with or without a sign.
    pub(in crate::http) fn seed(&mut self) -> Result<Option<i128>, Failure> {
        self.take("seed", "an integer of 64 bits", |given| integer(given.other()?))
    }

    /// A count from `least` on.
    pub(in crate::http) fn count(&mut self, name: &str, least: i64) -> Result<Option<usize>, Failure> {
        Ok(self.integer(name, least..=i64::MAX)?.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    pub(in crate::http) fn string(&mut self, name: &str) -> Result<Option<String>, Failure> {
        self.take(name, "a string", |given| match given {
            Given::Other(Value::String(text)) => Some(take(text)),
            _ => None,
        })
    }

    pub(in crate::http) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, Failure> {
        match self.value(name)? {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(name, "a list", &show(&other))),
        }
    }

    /// Stop strings: one, or a list; none if absent. Bounded, as every one is looked for in every token of every choice.
    pub(in crate::http) fn stops(&mut self) -> Result<Vec<String>, Failure> {
        let expected = format!("a string or a list of at most {MAX_STOPS} strings of {MAX_STOP_BYTES} bytes together");
        let stops = self.take("stop", &expected, |given| {
            let stops: Vec<String> = match given.other()? {
                Value::String(text) => vec![text.clone()],
                Value::Array(list) => list.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<_>>()?,
                _ => return None,
            };
            let bytes: usize = stops.iter().map(String::len).sum();
            (stops.len() <= MAX_STOPS && bytes <= MAX_STOP_BYTES).then_some(stops)
        })?;
        Ok(stops.unwrap_or_default())
    }

    /// Tokens that end a text; none if absent. Bounded, as every step of every choice looks at them.
    pub(in crate::http) fn stop_token_ids(&mut self) -> Result<TokenSet, Failure> {
        let expected = format!("a list of at most {MAX_STOP_TOKEN_IDS} token ids");
        let few = |given: &mut Given| given.tokens().filter(|ids| ids.len() <= MAX_STOP_TOKEN_IDS);
        let ids = self.take("stop_token_ids", &expected, few)?;
        Ok(ids.unwrap_or_default().into_iter().collect())
    }

    /// A list of token ids; none if absent.
    pub(in crate::http) fn tokens(&mut self, name: &str) -> Result<Vec<TokenId>, Failure> {
        Ok(self.take(name, "a list of token ids", Given::tokens)?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().into()).unwrap()
    }

    #[test]
    fn wrong_types_and_ranges_name_the_field() {
        let message = |failure: Failure| failure.message;
        let mut body =
            fields(&json!({"t": "0.5", "u": -1, "n": 1.5, "b": 1, "s": 3, "o": {"top_p": 2}, "ids": [1, -1]}));
        assert_eq!(
            message(body.number("t", 0.0..=2.0).unwrap_err()),
            "`t` should be a number from 0 to 2, got \"0.5\""
        );
        assert_eq!(message(body.number("u", 0.0..=2.0).unwrap_err()), "`u` should be a number from 0 to 2, got -1");
        assert_eq!(message(body.count("n", 1).unwrap_err()), "`n` should be an integer of at least 1, got 1.5");
        assert!(body.boolean("b").is_err() && body.string("s").is_err() && body.tokens("ids").is_err());
        let error = body.object("o").unwrap().number("top_p", 0.0..=1.0).unwrap_err();
        assert_eq!(message(error), "`o.top_p` should be a number from 0 to 1, got 2");
    }

    #[test]
    fn tokens_that_end_a_text_are_few_and_counted_once() {
        let ids = |ids: Vec<u32>| fields(&json!({"stop_token_ids": ids})).stop_token_ids();
        assert_eq!(*ids(vec![9, 2, 9]).unwrap(), [2, 9]);
        assert_eq!(ids((0..64).collect()).unwrap().len(), 64);
        let message = ids(vec![7; 65]).unwrap_err().message;
        assert_eq!(message, "`stop_token_ids` should be a list of at most 64 token ids, got a list");
        assert!(fields(&json!({})).stop_token_ids().unwrap().is_empty());
    }

    #[test]
    fn integers_pass_for_floats_and_null_for_nothing() {
        let mut body = fields(&json!({"t": 1, "n": 3.0, "x": null, "most": u64::MAX}));
        assert_eq!(body.number("t", 0.0..=2.0).unwrap(), Some(1.0));
        assert_eq!(body.count("n", 0).unwrap(), Some(3));
        assert_eq!(body.string("x").unwrap(), None);
        assert_eq!(body.count("most", 0).unwrap(), Some(i64::MAX as usize));
    }

    #[test]
    fn seeds_are_64_bits_and_what_is_not_is_refused() {
        for seed in [0, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX] {
            assert_eq!(fields(&json!({"seed": seed})).seed().unwrap(), Some(seed.into()));
        }
        assert_eq!(fields(&json!({"seed": i64::MIN})).seed().unwrap(), Some(i64::MIN.into()));
        assert_eq!(fields(&json!({"seed": 7.0})).seed().unwrap(), Some(7));
        for refused in ["18446744073709551616", "-9223372036854775809", "1.5", "\"7\""] {
            let mut body = Fields::parse(format!("{{\"seed\": {refused}}}").into()).unwrap();
            let message = body.seed().unwrap_err().message;
            assert!(message.contains("`seed` should be an integer of 64 bits"), "{message}");
        }
    }
}
