//! One value of a request's body, read within bounds.
//!
//! What a value takes in memory has little to do with its length: `{}` are two bytes of text, and an object is some hundred.
//! So values are counted, and lists of token ids, the only long ones that there is a use for, take four bytes each. Does
//! not know fields.
//! Invariant: whatever the text says, a value takes some [`MAX_VALUES`] objects of memory and the length of its text.

use std::{mem::take, ops::Range};

use nanoinfer_shared::protocol::TokenId;
use serde::Deserialize;
use serde_json::Value;

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
    /// Reads the value that stands in `range` of a body, which was looked through already.
    pub(super) fn read(body: &str, range: Range<usize>) -> Result<Self, Unread> {
        let text = &body[range.clone()];
        let begins = text.strip_prefix('[').and_then(|list| list.trim_ascii_start().bytes().next());
        let tokens = match begins {
            Some(b'-' | b'0'..=b'9') => serde_json::from_str(text).ok().map(|list| Self::Tokens(ids(list))),
            Some(b'[') if text.matches('[').count() <= MAX_VALUES + 1 => {
                let lists: Option<Vec<Vec<Id>>> = serde_json::from_str(text).ok();
                lists.map(|lists| Self::TokenLists(lists.into_iter().map(ids).collect()))
            }
            _ => None,
        };
        match tokens {
            Some(tokens) => Ok(tokens),
            None if values(text) > MAX_VALUES => Err(Unread::TooMany),
            None => serde_json::from_str(text)
                .map(Self::Other)
                .map_err(|error| Unread::NoJson(in_body(&error, &body[..range.start]))),
        }
    }

    /// What it is where it is no list of tokens.
    pub(super) fn other(&self) -> Option<&Value> {
        if let Self::Other(value) = self { Some(value) } else { None }
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
        let within = |lists: &[Vec<TokenId>]| lists.iter().map(|list| 1 + list.len()).sum::<usize>();
        match self {
            Self::Tokens(ids) if ids.len() < MAX_VALUES => Ok(ids.into()),
            Self::TokenLists(lists) if within(&lists) < MAX_VALUES => Ok(lists.into()),
            Self::Tokens(_) | Self::TokenLists(_) => Err(Unread::TooMany),
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

/// How many values a text of JSON holds, itself included.
fn values(text: &str) -> usize {
    let mut count = 1;
    let mut bytes = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' => count += 1,
            b'[' | b'{' => count += usize::from(!matches!(bytes.peek(), Some(b']' | b'}'))),
            b'"' => {
                while let Some(within) = bytes.next().filter(|&within| within != b'"') {
                    if within == b'\\' {
                        bytes.next();
                    }
                }
            }
            _ => {}
        }
    }
    count
}

/// A token id, written as any number without a fraction.
#[derive(Deserialize)]
#[serde(try_from = "f64")]
struct Id(TokenId);

impl TryFrom<f64> for Id {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        let id = whole(number).and_then(|id| id.try_into().ok());
        id.map(Self).ok_or("no token id")
    }
}

fn ids(list: Vec<Id>) -> Vec<TokenId> {
    list.into_iter().map(|Id(id)| id).collect()
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
