//! The fields of a request's body, taken out one by one.
//!
//! Every route reads its fields through [`Fields`], so that a wrong type or range is always a 400 that names the field,
//! `null` always means absent, and what nobody took is known: unknown fields are named in the log, once each. A body is
//! looked through once, for names and where their values stand; a value is read when it is taken, so that what no route knows
//! costs nothing but its text. What a value is to be is [`typed`]'s.

mod typed;

use std::{collections::BTreeMap, fmt, ops::Range};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
};
use serde::{
    Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    App, Failure,
    body::SMALL_BYTES,
    json::{Given, MAX_VALUES, Unread},
    quote::show,
    unknown_fields::{MAX_NAMES, UnknownFields},
};
use crate::{request::Client, spelling::closest, utf8};

/// Most fields of an object.
const MAX_FIELDS: usize = 1024;

/// Fields that hold a request's text. Where they are long they are read where their body is, and not on a thread that serves
/// others.
const TEXTS: [&str; 4] = ["prompt", "prompts", "messages", "tokens"];

/// A JSON object whose fields are taken out.
#[derive(Debug)]
pub(super) struct Fields {
    /// The text of the body: UTF-8, and JSON.
    body: Bytes,
    held: BTreeMap<String, Held>,
    /// Path of this object in the body, with its dot; empty for the body itself.
    prefix: String,
    /// What was left out, in words for the reply.
    warnings: Vec<String>,
    /// Whose request this is.
    pub(super) client: Client,
    /// The body's share of what bodies may take.
    _share: Option<OwnedSemaphorePermit>,
}

/// The value of a field, before it is taken.
#[derive(Debug)]
enum Held {
    /// Where it stands in the body.
    At(Range<usize>),
    /// What it was when it was read.
    Read(Result<Given, Unread>),
}

impl FromRequest<App> for Fields {
    type Rejection = Failure;

    /// Any content type is taken for JSON, as Ollama does: `curl -d` sends forms.
    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        let client = request.extensions().get().copied().unwrap_or_default();
        let body = app.bodies.read(request).await?;
        let is_large = body.bytes.len() > SMALL_BYTES;
        // The share goes with the work, which goes on where its client has gone.
        let parse = move || Ok(Self { client, _share: body.share, ..Self::parse(body.bytes)? });
        if is_large { app.bodies.parse(parse).await? } else { parse() }
    }
}

impl Fields {
    pub(super) fn parse(bytes: Bytes) -> Result<Self, Failure> {
        // RFC 8259 lets a parser leave off a byte-order mark.
        let text = utf8::text(&bytes).map_err(|error| not_json(&error))?;
        let body = bytes.slice_ref(text.as_bytes());
        match text.trim_ascii().bytes().next() {
            None => Err(Failure::no_request("the request has no body; a JSON object is expected")),
            Some(b'{') => {
                let mut fields = Self::object_at(body.clone(), 0..text.len(), String::new())?;
                fields.read_texts();
                Ok(fields)
            }
            Some(_) => {
                let value = text.trim_ascii();
                serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| not_json(&error))?;
                let shown = Given::read(value, 0..value.len()).map_or_else(|_| "a list".into(), |given| given.show());
                Err(Failure::no_request(format!("the request's body should be a JSON object, not {shown}")))
            }
        }
    }

    /// The fields of the object that stands in `range` of a body.
    fn object_at(body: Bytes, range: Range<usize>, prefix: String) -> Result<Self, Failure> {
        let text = text_of(&body);
        let mut json = serde_json::Deserializer::from_str(&text[range]);
        let found = json.deserialize_map(Names { body: text });
        let held = found.and_then(|held| json.end().map(|()| held)).map_err(|error| not_json(&error))?;
        if held.len() > MAX_FIELDS {
            let path = prefix.strip_suffix('.').map(|path| format!("`{path}`"));
            let of = path.as_deref().unwrap_or("the request's body");
            return Err(Failure::no_request(format!("{of} has more than {MAX_FIELDS} fields")));
        }
        Ok(Self { body, held, prefix, warnings: Vec::new(), client: Client::Local, _share: None })
    }

    /// Reads the long fields of which every route knows one.
    fn read_texts(&mut self) {
        for name in TEXTS {
            if let Some(held @ Held::At(_)) = self.held.get_mut(name)
                && let Held::At(range) = &*held
                && range.len() > SMALL_BYTES
            {
                *held = Held::Read(Given::read(text_of(&self.body), range.clone()));
            }
        }
    }

    /// Whether a field is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.held.get(name).is_some_and(|held| match held {
            Held::At(range) => &text_of(&self.body)[range.clone()] != "null",
            Held::Read(_) => true,
        })
    }

    /// A field of any type.
    pub(super) fn given(&mut self, name: &str) -> Result<Option<Given>, Failure> {
        let is_set = self.has(name);
        let read = self.held.remove(name).filter(|_| is_set).map(|held| match held {
            Held::At(range) => Given::read(text_of(&self.body), range),
            Held::Read(read) => read,
        });
        read.transpose().map_err(|unread| self.failure(name, &unread))
    }

    /// A field of any type, as it is.
    pub(super) fn value(&mut self, name: &str) -> Result<Option<Value>, Failure> {
        let value = self.given(name)?.map(Given::into_value).transpose();
        value.map_err(|unread| self.failure(name, &unread))
    }

    /// A field as it is, which stays to be taken; null if absent.
    pub(super) fn peek(&self, name: &str) -> Result<Value, Failure> {
        let read = match self.held.get(name) {
            None => return Ok(Value::Null),
            Some(Held::At(range)) => Given::read(text_of(&self.body), range.clone()),
            Some(Held::Read(read)) => read.clone(),
        };
        read.and_then(Given::into_value).map_err(|unread| self.failure(name, &unread))
    }

    /// Fields that may be there and change nothing, with spaces between them.
    pub(super) fn ignore(&mut self, names: &str) {
        for name in names.split(' ') {
            self.held.remove(name);
        }
    }

    /// A field that must not be there, unless its value asks for nothing: `false`, an empty text or list.
    pub(super) fn refuse(&mut self, name: &str) -> Result<(), Failure> {
        match self.given(name)? {
            None | Some(Given::Other(Value::Bool(false))) => Ok(()),
            Some(Given::Other(Value::String(text))) if text.is_empty() => Ok(()),
            Some(Given::Other(Value::Array(list))) if list.is_empty() => Ok(()),
            Some(given) => {
                Err(Failure::field(self.path(name), format!("is not supported, got {}", given.show())).unsupported())
            }
        }
    }

    /// A field that must not be there, unless its value is `nothing`, in JSON.
    pub(super) fn refuse_unless(&mut self, name: &str, nothing: &str) -> Result<(), Failure> {
        let Some(value) = self.asked(name, nothing)? else { return Ok(()) };
        let what = format!("is not supported unless it is {nothing}, got {}", show(&value));
        Err(Failure::field(self.path(name), what).unsupported())
    }

    /// Takes a field; its value, unless that is `nothing`, in JSON.
    pub(super) fn asked(&mut self, name: &str, nothing: &str) -> Result<Option<Value>, Failure> {
        let is_nothing = |value: &Value| serde_json::from_str(nothing).is_ok_and(|nothing: Value| *value == nothing);
        Ok(self.value(name)?.filter(|value| !is_nothing(value)))
    }

    /// Names of fields that begin so.
    pub(super) fn beginning(&self, prefix: &str) -> Vec<String> {
        self.held.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// Something was left out: the reply says so.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// An object; an empty one if absent.
    pub(super) fn object(&mut self, name: &str) -> Result<Self, Failure> {
        let prefix = format!("{}.", self.path(name));
        let (body, range) = match self.held.get(name) {
            Some(Held::At(range)) if self.body[range.start] == b'{' => (self.body.clone(), range.clone()),
            _ => {
                self.take::<()>(name, "an object", |_| None)?;
                (Bytes::from_static(b"{}"), 0..2)
            }
        };
        self.held.remove(name);
        Ok(Self { client: self.client, ..Self::object_at(body, range, prefix)? })
    }

    /// Refuses a request that lacks a field and has, among what is left, a slip of the keyboard for it.
    pub(super) fn refuse_slip(&self, name: &str) -> Result<(), Failure> {
        // Bounded, as comparing takes the time of both lengths.
        let short = self.held.keys().take(MAX_NAMES).filter(|key| *key != name && key.len() <= 2 * name.len());
        let Some(slip) = short.into_iter().find(|key| closest(key, [name]).is_some()) else { return Ok(()) };
        let failure = Failure::field(name, format!("is missing, and `{slip}` is unknown"));
        Err(failure.with_hint(format!("did you mean `{name}`?")))
    }

    /// What is left is unknown: named in the log, once. Returns what the reply is to say of those that were left out.
    #[must_use]
    pub(super) fn finish(self, unknown: &UnknownFields) -> Vec<String> {
        for name in self.held.keys() {
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
        read: impl FnOnce(&mut Given) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(mut given) = self.given(name)? else {
            return Ok(None);
        };
        read(&mut given).map(Some).ok_or_else(|| self.wrong(name, expected, &given.show()))
    }

    /// A field is not what it should be.
    pub(super) fn wrong(&self, name: &str, expected: &str, got: &str) -> Failure {
        Failure::wrong(self.path(name), expected, got)
    }

    fn failure(&self, name: &str, unread: &Unread) -> Failure {
        match unread {
            Unread::TooMany => Failure::field(self.path(name), format!("holds more than {MAX_VALUES} values")),
            Unread::NoJson(why) => not_json(why),
        }
    }
}

/// Finds the fields of an object, but no more than one too many.
struct Names<'a> {
    /// What the object stands in.
    body: &'a str,
}

impl<'de> Visitor<'de> for Names<'_> {
    type Value = BTreeMap<String, Held>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut held = BTreeMap::new();
        while let Some(name) = object.next_key::<String>()? {
            let value = object.next_value::<&RawValue>()?.get();
            // Both are slices of the same text.
            let start = value.as_ptr() as usize - self.body.as_ptr() as usize;
            if held.len() <= MAX_FIELDS {
                // Of several with one name the last counts.
                held.insert(name, Held::At(start..start + value.len()));
            }
        }
        Ok(held)
    }
}

fn text_of(body: &Bytes) -> &str {
    str::from_utf8(body).expect("looked at when the body came")
}

fn not_json(why: &dyn fmt::Display) -> Failure {
    Failure::no_request(format!("the request's body is not JSON: {why}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{
        http::{HttpOptions, body::Bodies},
        testing::saying,
    };

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().into()).unwrap()
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
            let failure = Fields::parse(body.into()).unwrap_err();
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn a_byte_order_mark_changes_nothing_and_other_encodings_are_named() {
        let mut fields = Fields::parse("\u{feff}{\"prompt\": \"Hi\"}".into()).unwrap();
        assert_eq!(fields.string("prompt").unwrap().as_deref(), Some("Hi"));
        for (body, expected) in
            [(&b"\xff\xfe{\0}\0"[..], "not JSON: UTF-16"), (b"{\"a\": \"\xe9\"}", "byte 0xe9 at offset 7")]
        {
            let failure = Fields::parse(body.into()).unwrap_err();
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn what_no_route_knows_is_not_read_and_what_one_knows_is_bounded() {
        let junk = format!("[{}{{}}]", "{\"a\":1},".repeat(1 << 20));
        let mut body =
            Fields::parse(format!("{{\"zz\": {junk}, \"stop\": {junk}, \"o\": {{\"zz\": {junk}}}, \"n\": 3}}").into())
                .unwrap();
        assert_eq!(body.count("n", 1).unwrap(), Some(3));
        assert!(
            body.held.values().all(|held| matches!(held, Held::At(_))),
            "nothing was read of what was not asked for"
        );
        body.ignore("zz");
        assert_eq!(body.stops().unwrap_err().message, "`stop` holds more than 32768 values");
        let mut inner = body.object("o").unwrap();
        assert_eq!(inner.refuse("zz").unwrap_err().message, "`o.zz` holds more than 32768 values");
        let keys: Vec<String> = (0..2000).map(|i| format!("\"{i}\": 1")).collect();
        let object = format!("{{{}}}", keys.join(","));
        let failure = Fields::parse(object.clone().into()).unwrap_err();
        assert_eq!(failure.message, "the request's body has more than 1024 fields");
        let mut body = Fields::parse(format!("{{\"options\": {object}}}").into()).unwrap();
        assert_eq!(body.object("options").unwrap_err().message, "`options` has more than 1024 fields");
    }

    #[test]
    fn long_texts_are_read_at_once_and_their_failure_is_told_when_they_are_taken() {
        let many = format!("[{}1]", "1,".repeat(1 << 18));
        let mut body =
            Fields::parse(format!("{{\"prompt\": {many}, \"messages\": [{}{{}}]}}", "{},".repeat(1 << 18)).into())
                .unwrap();
        assert!(body.held.values().all(|held| matches!(held, Held::Read(_))));
        assert!(body.has("messages"));
        assert_eq!(body.tokens("prompt").unwrap().len(), (1 << 18) + 1);
        assert_eq!(body.list("messages").unwrap_err().message, "`messages` holds more than 32768 values");
    }

    #[tokio::test]
    async fn fields_know_whose_they_are_and_give_their_share_back() {
        let bodies = Bodies::new(&HttpOptions::default());
        let app = App { engine: saying("x"), unknown_fields: Arc::default(), bodies, max_request_memory: usize::MAX };
        let body = format!("{{\"prompt\": \"{}\"}}", "x".repeat(SMALL_BYTES));
        for client in [Client::Local, Client::at([192, 0, 2, 7].into())] {
            let mut request = Request::new(body.clone().into());
            request.extensions_mut().insert(client);
            let fields = Fields::from_request(request, &app).await.unwrap();
            assert_eq!((fields.client, fields._share.is_some()), (client, true));
        }
    }

    #[test]
    fn the_last_of_several_fields_of_one_name_counts() {
        let mut body = Fields::parse("{\"n\": 1, \"n\": 2, \"m\": 1, \"m\": null}".into()).unwrap();
        assert_eq!((body.count("n", 0).unwrap(), body.has("m")), (Some(2), false));
        let mut nested =
            Fields::parse("{\"o\": {\"n\": 1,\n \"n\": \"\\ud800\"}}".into()).unwrap().object("o").unwrap();
        let message = nested.string("n").unwrap_err().message;
        assert!(message.contains("not JSON") && message.contains("line 2 column"), "{message}");
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
}
