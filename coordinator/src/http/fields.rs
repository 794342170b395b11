//! The fields of a request's body, taken out one by one.
//!
//! Every route reads its fields through [`Fields`], so that a wrong type or range is always a 400 that names the field,
//! `null` always means absent, and what nobody took is known: unknown fields are named in the log, once each.

use std::{
    collections::HashSet,
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
    response::IntoResponse,
};
use nanoinfer_shared::protocol::TokenId;
use serde_json::{Map, Value};

use super::{App, error::Failure};
use crate::{
    names::closest,
    request::{Client, TokenSet},
    utf8,
};

/// Most stop strings of a request; OpenAI takes 4.
const MAX_STOPS: usize = 64;
/// Most bytes of all stop strings together.
const MAX_STOP_BYTES: usize = 16 << 10;
/// Most tokens of a request that end its texts.
const MAX_STOP_TOKEN_IDS: usize = 64;

/// Most names of unknown fields to remember; further ones are not logged.
const MAX_UNKNOWN_NAMES: usize = 256;

/// Longest name of an unknown field in the log, in characters.
const MAX_NAME_CHARS: usize = 64;

/// A JSON object whose fields are taken out.
#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
    /// Path of this object in the body, with its dot; empty for the body itself.
    prefix: String,
    /// What was left out, in words for the reply.
    warnings: Vec<String>,
    /// Whose they are.
    client: Client,
}

/// Names of unknown fields that were logged already.
#[derive(Debug, Default)]
pub(super) struct UnknownFields {
    /// Locked for a look-up, and only when a request has an unknown field.
    names: Mutex<HashSet<String>>,
}

impl FromRequest<App> for Fields {
    type Rejection = Failure;

    /// Any content type is taken for JSON, as Ollama does: `curl -d` sends forms.
    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        let encodings = request.headers().get_all(header::CONTENT_ENCODING).iter();
        let encodings = encodings.map(|encoding| String::from_utf8_lossy(encoding.as_bytes()));
        for encoding in encodings {
            if !encoding.trim().is_empty() && !encoding.trim().eq_ignore_ascii_case("identity") {
                return Err(Failure::encoded_body(&encoding));
            }
        }
        let read = tokio::time::timeout(app.read_deadline, Bytes::from_request(request, app)).await;
        let read = read.map_err(|_| Failure::body_too_slow(app.read_deadline))?;
        let bytes = read.map_err(|rejection| {
            let message = rejection.body_text();
            if rejection.into_response().status() == StatusCode::PAYLOAD_TOO_LARGE {
                Failure::body_too_large(app.max_body_bytes)
            } else {
                Failure::no_request(format!("the request's body could not be read: {message}"))
            }
        })?;
        Self::parse(&bytes)
    }
}

impl Fields {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        // RFC 8259 lets a parser leave off a byte-order mark.
        let text = utf8::text(bytes).map_err(|error| not_json(&error))?;
        if text.trim_ascii().is_empty() {
            return Err(Failure::no_request("the request has no body; a JSON object is expected"));
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => {
                Ok(Self { map, prefix: String::new(), warnings: Vec::new(), client: Client::Local })
            }
            Ok(other) => {
                Err(Failure::no_request(format!("the request's body should be a JSON object, not {}", show(&other))))
            }
            Err(error) => Err(not_json(&error)),
        }
    }

    /// Whose request this is.
    pub(super) fn client(&self) -> Client {
        self.client
    }

    /// Whether a field is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field of any type.
    pub(super) fn value(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Fields that may be there and change nothing.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.map.remove(*name);
        }
    }

    /// A field that must not be there, unless its value asks for nothing: `false`, an empty text or list.
    pub(super) fn refuse(&mut self, name: &str) -> Result<(), Failure> {
        let path = self.path(name);
        match self.value(name) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::String(text)) if text.is_empty() => Ok(()),
            Some(Value::Array(list)) if list.is_empty() => Ok(()),
            Some(value) => Err(Failure::unsupported(&path, format!("`{path}` is not supported, got {}", show(&value)))),
        }
    }

    /// A field that must not be there, unless its value is `nothing`, in JSON.
    pub(super) fn refuse_unless(&mut self, name: &str, nothing: &str) -> Result<(), Failure> {
        let path = self.path(name);
        match self.asked(name, nothing) {
            None => Ok(()),
            Some(value) => {
                let message = format!("`{path}` is not supported unless it is {nothing}, got {}", show(&value));
                Err(Failure::unsupported(&path, message))
            }
        }
    }

    /// Takes a field; its value, unless that is `nothing`, in JSON.
    pub(super) fn asked(&mut self, name: &str, nothing: &str) -> Option<Value> {
        self.value(name).filter(|value| !serde_json::from_str(nothing).is_ok_and(|nothing: Value| *value == nothing))
    }

    /// Names of fields that begin so.
    pub(super) fn beginning(&self, prefix: &str) -> Vec<String> {
        self.map.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// Something was left out: the reply says so.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        self.take(name, "true or false", |value| value.as_bool())
    }

    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Failure> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.take(name, &expected, |value| value.as_f64().filter(|x| range.contains(x)))
    }

    /// A number that a processor of logits takes.
    pub(super) fn factor(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, Failure> {
        Ok(self.number(name, range)?.map(|x| x as f32))
    }

    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Failure> {
        let expected = match (*range.start(), *range.end()) {
            (i64::MIN, i64::MAX) => "an integer".to_owned(),
            (low, i64::MAX) => format!("an integer of at least {low}"),
            (low, high) => format!("an integer from {low} to {high}"),
        };
        let saturated = |value: &Value| integer(value).map(|x| i64::try_from(x).unwrap_or(i64::MAX));
        self.take(name, &expected, |value| saturated(value).filter(|x| range.contains(x)))
    }

    /// A seed: any 64 bits, with or without a sign.
    pub(super) fn seed(&mut self) -> Result<Option<i128>, Failure> {
        self.take("seed", "an integer of 64 bits", integer)
    }

    /// A count from `least` on.
    pub(super) fn count(&mut self, name: &str, least: i64) -> Result<Option<usize>, Failure> {
        Ok(self.integer(name, least..=i64::MAX)?.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, Failure> {
        self.take(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, Failure> {
        self.take(name, "a list", |value| value.as_array().cloned())
    }

    /// Stop strings: one, or a list; none if absent. Bounded, as every one is looked for in every token of every choice.
    pub(super) fn stops(&mut self) -> Result<Vec<String>, Failure> {
        let expected = format!("a string or a list of at most {MAX_STOPS} strings of {MAX_STOP_BYTES} bytes together");
        let stops = self.take("stop", &expected, |value| {
            let stops: Vec<String> = match value {
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
    pub(super) fn stop_token_ids(&mut self) -> Result<TokenSet, Failure> {
        let expected = format!("a list of at most {MAX_STOP_TOKEN_IDS} token ids");
        let few = |value: &Value| value.as_array().is_some_and(|list| list.len() <= MAX_STOP_TOKEN_IDS);
        let ids = self.take("stop_token_ids", &expected, |value| few(value).then(|| tokens(value))?)?;
        Ok(ids.unwrap_or_default().into_iter().collect())
    }

    /// A list of token ids; none if absent.
    pub(super) fn tokens(&mut self, name: &str) -> Result<Vec<TokenId>, Failure> {
        Ok(self.take(name, "a list of token ids", tokens)?.unwrap_or_default())
    }

    /// An object; an empty one if absent.
    pub(super) fn object(&mut self, name: &str) -> Result<Self, Failure> {
        let map = self.take(name, "an object", |value| value.as_object().cloned())?.unwrap_or_default();
        Ok(Self { map, prefix: format!("{}.", self.path(name)), warnings: Vec::new(), client: self.client })
    }

    /// Refuses a request that lacks a field and has, among what is left, a slip of the keyboard for it.
    pub(super) fn refuse_slip(&self, name: &str) -> Result<(), Failure> {
        // Bounded, as comparing takes the time of both lengths.
        let short = self.map.keys().take(MAX_UNKNOWN_NAMES).filter(|key| key.len() <= 2 * name.len());
        match short.into_iter().find(|key| closest(key, [name]).is_some()) {
            Some(slip) => Err(Failure::field(name, format!("`{name}` is missing, and `{slip}` is unknown"))
                .with_hint(format!("did you mean `{name}`?"))),
            None => Ok(()),
        }
    }

    /// What is left is unknown: named in the log, once. Returns what the reply is to say of those that were left out.
    #[must_use]
    pub(super) fn finish(self, unknown: &UnknownFields) -> Vec<String> {
        for name in self.map.keys() {
            unknown.report(&self.path(name));
        }
        self.warnings
    }

    /// A field's name as errors say it.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let path = self.path(name);
        let failure = || Failure::field(&path, format!("`{path}` should be {expected}, got {}", show(&value)));
        read(&value).map(Some).ok_or_else(failure)
    }
}

impl UnknownFields {
    fn report(&self, path: &str) {
        let name: String = path.chars().take(MAX_NAME_CHARS).collect();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() < MAX_UNKNOWN_NAMES && names.insert(name.clone()) {
            tracing::warn!(field = ?name, "unknown field in a request: ignored, and not mentioned again");
        }
    }
}

/// Token ids of a JSON list.
pub(super) fn tokens(value: &Value) -> Option<Vec<TokenId>> {
    let id = |value: &Value| integer(value).and_then(|id| TokenId::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

fn not_json(why: &dyn std::fmt::Display) -> Failure {
    Failure::no_request(format!("the request's body is not JSON: {why}"))
}

/// A JSON number without a fraction, of at most 64 bits.
fn integer(value: &Value) -> Option<i128> {
    let float = || value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i128);
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)).or_else(float)
}

/// A value as errors quote it: short.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".into(),
        Value::Array(_) => "a list".into(),
        value => short(&value.to_string()),
    }
}

/// A client's text as errors quote it.
pub(super) fn short(text: &str) -> String {
    const MOST_CHARS: usize = 60;
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
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
            let mut body = Fields::parse(format!("{{\"seed\": {refused}}}").as_bytes()).unwrap();
            let message = body.seed().unwrap_err().message;
            assert!(message.contains("`seed` should be an integer of 64 bits"), "{message}");
        }
    }

    #[test]
    fn values_of_refused_fields_that_ask_for_nothing_pass() {
        for nothing in [json!(null), json!(false), json!([]), json!("")] {
            fields(&json!({"f": nothing})).refuse("f").unwrap();
        }
        for asked in [json!(0), json!({}), json!("x"), json!(true), json!([0])] {
            assert!(fields(&json!({"f": asked})).refuse("f").is_err(), "{asked}");
        }
        let text = json!({"type": "text"});
        for nothing in [&json!(null), &text] {
            fields(&json!({"f": nothing})).refuse_unless("f", &text.to_string()).unwrap();
        }
        for asked in [json!(false), json!([]), json!({"type": "json"})] {
            assert!(fields(&json!({"f": asked})).refuse_unless("f", &text.to_string()).is_err(), "{asked}");
        }
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        for (body, expected) in [
            ("", "no body"),
            ("{\"a\": }", "line 1 column 7"),
            ("[1]", "should be a JSON object, not a list"),
            ("{} x", "trailing characters"),
            ("\u{feff} ", "no body"),
        ] {
            let failure = Fields::parse(body.as_bytes()).unwrap_err();
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn a_byte_order_mark_changes_nothing_and_other_encodings_are_named() {
        let fields = Fields::parse("\u{feff}{\"prompt\": \"Hi\"}".as_bytes()).unwrap();
        assert_eq!(fields.map["prompt"], "Hi");
        for (body, expected) in
            [(&b"\xff\xfe{\0}\0"[..], "not JSON: UTF-16"), (b"{\"a\": \"\xe9\"}", "byte 0xe9 at offset 7")]
        {
            let failure = Fields::parse(body).unwrap_err();
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn slips_for_a_missing_field_are_refused() {
        for slip in ["prompts", "Prompt", "promt", "porMpt"] {
            let failure = fields(&json!({"x": 1, (slip): 2})).refuse_slip("prompt").unwrap_err();
            assert!(failure.message.contains(&format!("`{slip}`")), "{}", failure.message);
        }
        let long = "prompt".repeat(1 << 20);
        for other in ["messages", "user", "pro", long.as_str()] {
            fields(&json!({(other): 1})).refuse_slip("prompt").unwrap();
        }
    }

    #[test]
    fn unknown_fields_are_remembered_within_bounds() {
        let unknown = UnknownFields::default();
        for i in 0..1000 {
            let _ = fields(&json!({(format!("{i}").repeat(100)): 1})).finish(&unknown);
        }
        let names = unknown.names.lock().unwrap();
        assert_eq!(names.len(), MAX_UNKNOWN_NAMES);
        assert!(names.iter().all(|name| name.chars().count() <= MAX_NAME_CHARS));
    }
}
