//! One value of a request's body, read within bounds.
//!
//! What a value takes in memory has little to do with its length: `{}` are two bytes of text, and an object is some hundred.
//! So values are counted, and lists of token ids, the only long ones that there is a use for, take four bytes each. Does
//! not know fields.
//! Invariant: whatever the text says, a value takes some [`MAX_VALUES`] objects of memory and the length of its text.

use std::{cell::Cell, fmt, mem::take, ops::Range};

use nanoinfer_shared::protocol::TokenId;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::quote::show;

/// Most values within one, lists of token ids left aside.
pub(super) const MAX_VALUES: usize = 1 << 15;

/// A value that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    /// A list of token ids, at least one.
    Tokens(Vec<TokenId>),
    /// A list of such lists, of which some may be empty.
    TokenLists(Vec<Vec<TokenId>>),
    /// Anything else.
    Other(Value),
}

/// Why a value was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It holds more than [`MAX_VALUES`] values.
    TooMany,
    /// It is no JSON: what is wrong, and where in the body.
    NoJson(String),
}

impl Given {
    /// Reads the value that stands in `range` of a body.
    pub(super) fn read(body: &str, range: Range<usize>) -> Result<Self, Unread> {
        let text = &body[range.clone()];
        let begins = text.strip_prefix('[').and_then(|list| list.trim_ascii_start().bytes().next());
        let tokens = match begins {
            Some(b'-' | b'0'..=b'9') => serde_json::from_str(text).ok().map(|Ids(ids)| Self::Tokens(ids)),
            Some(b'[') => serde_json::from_str(text).ok().map(|IdLists(lists)| Self::TokenLists(lists)),
            _ => None,
        };
        if let Some(tokens) = tokens {
            return Ok(tokens);
        }
        let left = Cell::new(Some(MAX_VALUES));
        let mut json = serde_json::Deserializer::from_str(text);
        let read = Counted(&left).deserialize(&mut json).and_then(|value| json.end().map(|()| value));
        match read {
            Ok(value) => Ok(Self::Other(value)),
            Err(_) if left.get().is_none() => Err(Unread::TooMany),
            Err(error) => Err(Unread::NoJson(in_body(&error, &body[..range.start]))),
        }
    }

    /// What it is where it is no list of tokens.
    pub(super) fn other(&self) -> Option<&Value> {
        match self {
            Self::Other(value) => Some(value),
            Self::Tokens(_) | Self::TokenLists(_) => None,
        }
    }

    /// Takes the token ids of a list.
    pub(super) fn tokens(&mut self) -> Option<Vec<TokenId>> {
        match self {
            Self::Tokens(ids) => Some(take(ids)),
            Self::Other(Value::Array(list)) if list.is_empty() => Some(Vec::new()),
            Self::TokenLists(_) | Self::Other(_) => None,
        }
    }

    /// The same as JSON.
    pub(super) fn into_value(self) -> Result<Value, Unread> {
        let within = match &self {
            Self::Tokens(ids) => ids.len(),
            Self::TokenLists(lists) => lists.iter().map(|list| 1 + list.len()).sum(),
            Self::Other(_) => 0,
        };
        match self {
            _ if within >= MAX_VALUES => Err(Unread::TooMany),
            Self::Tokens(ids) => Ok(ids.into()),
            Self::TokenLists(lists) => Ok(lists.into()),
            Self::Other(value) => Ok(value),
        }
    }

    /// It as errors quote it: short.
    pub(super) fn show(&self) -> String {
        self.other().map_or_else(|| "a list".into(), show)
    }
}

/// An error as if the whole body had been read at once.
fn in_body(error: &serde_json::Error, before: &str) -> String {
    let (line, column) = (error.line(), error.column());
    let what = error.to_string();
    let what = what.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&what);
    let last_line = before.rsplit('\n').next().unwrap_or(before);
    let column = if line == 1 { column + last_line.len() } else { column };
    let line = line + before.matches('\n').count();
    format!("{what} at line {line} column {column}")
}

/// A JSON number without a fraction, of at most 64 bits.
pub(super) fn integer(value: &Value) -> Option<i128> {
    let float = || value.as_f64().and_then(whole);
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)).or_else(float)
}

fn whole(x: f64) -> Option<i128> {
    (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i128)
}

/// Reads a value and counts those in it; what is left is gone once there were too many.
#[derive(Clone, Copy)]
struct Counted<'a>(&'a Cell<Option<usize>>);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.0.get().and_then(|left| left.checked_sub(1));
        self.0.set(left);
        match left {
            Some(_) => deserializer.deserialize_any(self),
            None => Err(D::Error::custom("too many values")),
        }
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, it: bool) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            values.insert(name, object.next_value_seed(self)?);
        }
        Ok(values.into())
    }
}

/// A token id, written as any number without a fraction.
struct Id(TokenId);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
                number.try_into().map(Id).map_err(E::custom)
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Id, E> {
                let id = whole(number).and_then(|id| id.try_into().ok());
                id.map(Id).ok_or_else(|| E::custom("no token id"))
            }
        }

        deserializer.deserialize_any(Number)
    }
}

/// A list of them.
struct Ids(Vec<TokenId>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ids = Vec::<Id>::deserialize(deserializer)?;
        Ok(Self(ids.into_iter().map(|Id(id)| id).collect()))
    }
}

/// A list of such lists, of which each counts as a value.
struct IdLists(Vec<Vec<TokenId>>);

impl<'de> Deserialize<'de> for IdLists {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lists;

        impl<'de> Visitor<'de> for Lists {
            type Value = IdLists;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("lists of token ids")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<IdLists, A::Error> {
                let mut lists = Vec::new();
                while let Some(Ids(ids)) = list.next_element()? {
                    if lists.len() == MAX_VALUES {
                        return Err(A::Error::custom("too many lists"));
                    }
                    lists.push(ids);
                }
                Ok(IdLists(lists))
            }
        }

        deserializer.deserialize_seq(Lists)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Given, Unread> {
        Given::read(text, 0..text.len())
    }

    #[test]
    fn values_are_what_serde_json_makes_of_them() {
        let value = json!({"a": [1, -2, 2.5, u64::MAX, i64::MIN, true, null, "é\n", {"b": {}}], "": []});
        assert_eq!(read(&value.to_string()).unwrap(), Given::Other(value));
        assert_eq!(read("{\"a\": 1, \"a\": 2}").unwrap(), Given::Other(json!({"a": 2})), "the last one counts");
    }

    #[test]
    fn lists_of_tokens_take_four_bytes_a_token() {
        assert_eq!(read("[ 1, 2.0,3e2]").unwrap(), Given::Tokens(vec![1, 2, 300]));
        assert_eq!(read("[[1],[],[2,3]]").unwrap(), Given::TokenLists(vec![vec![1], vec![], vec![2, 3]]));
        for other in ["[]", "[1,\"x\"]", "[-1]", "[1.5]", "[4294967296]", "[[1],[\"x\"]]", "[[1],2]"] {
            let value = serde_json::from_str(other).unwrap();
            assert_eq!(read(other).unwrap(), Given::Other(value), "{other}");
        }
        let many = format!("[{}1]", "1,".repeat(1 << 20));
        let Given::Tokens(ids) = read(&many).unwrap() else { panic!("a list of tokens") };
        assert!(ids.len() == (1 << 20) + 1 && ids.capacity() <= 2 * ids.len());
    }

    #[test]
    fn values_within_a_value_are_counted() {
        let list = |of: &str, times: usize| format!("[{}{of}]", format!("{of},").repeat(times - 1));
        assert!(read(&list("{}", MAX_VALUES - 1)).is_ok());
        for (of, times) in
            [("{}", MAX_VALUES), ("\"x\"", 1 << 20), ("[]", 1 << 20), ("{\"a\":1}", 1 << 20), ("null", 1 << 20)]
        {
            assert_eq!(read(&list(of, times)).unwrap_err(), Unread::TooMany, "{of}");
        }
        let keys: Vec<String> = (0..MAX_VALUES).map(|i| format!("\"{i}\":1")).collect();
        assert_eq!(read(&format!("{{{}}}", keys.join(","))).unwrap_err(), Unread::TooMany);
    }

    #[test]
    fn errors_say_where_in_the_body() {
        for body in
            ["{\"a\": [1,\n {\"b\": \"\\ud800\"}]}", "{\n\n \"a\": \"\\ud800\"}", "{\"a\":1e999}", "{\"a\":\"\u{1}\"}"]
        {
            let start = body.find(':').unwrap() + 1;
            let start = start + body[start..].len() - body[start..].trim_start().len();
            let whole = serde_json::from_str::<Value>(body).unwrap_err().to_string();
            assert_eq!(Given::read(body, start..body.len() - 1).unwrap_err(), Unread::NoJson(whole), "{body}");
        }
        let deep = "[".repeat(5000) + &"]".repeat(5000);
        assert!(matches!(read(&deep).unwrap_err(), Unread::NoJson(what) if what.contains("recursion limit")));
    }
}
