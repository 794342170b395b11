//! What nanochat's calculator makes of an expression: arithmetic, or how often a text is in another, spelled as Python spells it.
//!
//! ```text
//! sum      product (("+" | "-") product)*                  counted  value (".count(" value ")")*
//! product  signed (("*" | "/" | "//") signed)*             value    "(" counted ")" | string string …
//! signed   ("+" | "-")* ("(" sum ")" | digits | float)     string   '…' | "…"
//! ```
//! Commas go first, wherever they stand. Numbers are Python's: integers of any size, floats; `/` makes floats, `//` rounds down. What
//! else Python would make of such a text (`()`, `...`, another method) has no result here, nor has an error of any kind.
//! Invariant: one pass over at most [`MAX_BYTES`], and as deep as Python's brackets go, so no integer has more than that many digits.
//! Reference: CPython 3.11, whose answers `tests/golden/calculator.json` holds.

use super::integer::{Integer, spelled};

/// Most bytes of an expression.
pub(super) const MAX_BYTES: usize = 1024;
/// Most brackets around one another, as in CPython.
const MAX_DEPTH: usize = 200;
/// Texts with one of these are no expression to nanochat, whatever they say.
const REFUSED: &str =
    "__ import exec eval compile open file input globals locals vars dir getattr setattr delattr hasattr";

/// The text of its result, if it has one.
pub(super) fn value(expression: &str) -> Option<String> {
    if expression.len() > MAX_BYTES {
        return None;
    }
    let text = expression.replace(',', "");
    let mut parser = Parser { rest: &text, depth: 0 };
    let result = if text.bytes().all(|byte| b"0123456789*+-/.() ".contains(&byte)) {
        match parser.sum()? {
            Number::Integer(integer) => integer.to_string(),
            Number::Float(float) => spelled(float),
        }
    } else if counts(&text) {
        let Value::Count(count) = parser.counted()? else { return None };
        count.to_string()
    } else {
        return None;
    };
    parser.rest.trim_matches(' ').is_empty().then_some(result)
}

/// Whether it may ask how often a text is in another.
fn counts(text: &str) -> bool {
    let small = text.to_ascii_lowercase();
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"'\"()._ ".contains(&byte))
        && !REFUSED.split(' ').any(|word| small.contains(word))
        && text.contains(".count(")
}

enum Number {
    Integer(Integer),
    Float(f64),
}

enum Value {
    Text(String),
    Count(usize),
}

/// What is left of a text, and how many brackets are open before it.
struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    /// Takes a token if it comes next.
    fn take(&mut self, token: &str) -> bool {
        let behind = self.rest.trim_start_matches(' ').strip_prefix(token);
        self.rest = behind.unwrap_or(self.rest);
        behind.is_some()
    }

    /// What stands between a bracket that was taken and its end.
    fn bracketed<T>(&mut self, inner: impl Fn(&mut Self) -> Option<T>) -> Option<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let inner = inner(self)?;
        self.depth -= 1;
        self.take(")").then_some(inner)
    }

    fn sum(&mut self) -> Option<Number> {
        let mut sum = self.product()?;
        loop {
            sum = if self.take("+") {
                sum.plus(&self.product()?)?
            } else if self.take("-") {
                sum.plus(&self.product()?.negated())?
            } else {
                return Some(sum);
            }
        }
    }

    fn product(&mut self) -> Option<Number> {
        let mut product = self.signed()?;
        loop {
            product = if self.take("*") {
                product.times(&self.signed()?)?
            } else if self.take("//") {
                product.divided_down(&self.signed()?)?
            } else if self.take("/") {
                product.over(&self.signed()?)?
            } else {
                return Some(product);
            }
        }
    }

    fn signed(&mut self) -> Option<Number> {
        let mut is_negative = false;
        loop {
            if self.take("-") {
                is_negative = !is_negative;
            } else if !self.take("+") {
                break;
            }
        }
        let number = if self.take("(") { self.bracketed(Self::sum) } else { self.number() }?;
        Some(if is_negative { number.negated() } else { number })
    }

    fn number(&mut self) -> Option<Number> {
        let rest = self.rest.trim_start_matches(' ');
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (literal, behind) = rest.split_at(end);
        self.rest = behind;
        if literal.contains('.') {
            return literal.parse().ok().map(Number::Float);
        }
        // Python leaves no doubt of octal numbers.
        let is_one = !literal.is_empty() && (!literal.starts_with('0') || literal.bytes().all(|digit| digit == b'0'));
        is_one.then(|| Number::Integer(Integer::read(literal)))
    }

    fn counted(&mut self) -> Option<Value> {
        let mut value = if self.take("(") { self.bracketed(Self::counted)? } else { Value::Text(self.strings()?) };
        while self.take(".") {
            let is_count = self.take("count") && self.take("(");
            value = match (value, self.bracketed(Self::counted)?) {
                (Value::Text(text), Value::Text(part)) if is_count => Value::Count(text.matches(&*part).count()),
                _ => return None,
            };
        }
        Some(value)
    }

    /// One string or more, joined.
    fn strings(&mut self) -> Option<String> {
        let mut joined = None;
        loop {
            let rest = self.rest.trim_start_matches(' ');
            let Some(quote) = rest.chars().next().filter(|c| matches!(c, '\'' | '"')) else { return joined };
            let (string, behind) = rest[1..].split_once(quote)?;
            // Three of them begin another kind.
            if string.is_empty() && behind.starts_with(quote) {
                return None;
            }
            joined.get_or_insert_with(String::new).push_str(string);
            self.rest = behind;
        }
    }
}

impl Number {
    fn float(&self) -> Option<f64> {
        match self {
            Self::Integer(integer) => integer.as_float(),
            Self::Float(float) => Some(*float),
        }
    }

    fn negated(self) -> Self {
        match self {
            Self::Integer(integer) => Self::Integer(integer.negated()),
            Self::Float(float) => Self::Float(-float),
        }
    }

    fn plus(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Some(Self::Integer(a.plus(b))),
            _ => Some(Self::Float(self.float()? + other.float()?)),
        }
    }

    fn times(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Some(Self::Integer(a.times(b))),
            _ => Some(Self::Float(self.float()? * other.float()?)),
        }
    }

    fn over(&self, other: &Self) -> Option<Self> {
        let quotient = match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.over(b)?,
            _ => self.float()? / other.divisor()?,
        };
        Some(Self::Float(quotient))
    }

    fn divided_down(&self, other: &Self) -> Option<Self> {
        if let (Self::Integer(a), Self::Integer(b)) = (self, other) {
            return a.divided_down(b).map(Self::Integer);
        }
        let (a, b) = (self.float()?, other.divisor()?);
        let rest = a % b;
        let too_large = rest != 0.0 && (rest < 0.0) != (b < 0.0);
        let quotient = (a - rest) / b - if too_large { 1.0 } else { 0.0 };
        // It is whole but for rounding.
        let down = quotient.floor();
        Some(Self::Float(match quotient {
            0.0 => 0f64.copysign(a / b),
            quotient if quotient - down > 0.5 => down + 1.0,
            _ => down,
        }))
    }

    /// As a float by which can be divided.
    fn divisor(&self) -> Option<f64> {
        self.float().filter(|&float| float != 0.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_answer_is_the_one_of_python() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/calculator.json");
        let golden: Vec<(String, Option<String>)> =
            serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
        let wrong: Vec<_> = golden.iter().filter(|(text, result)| value(text) != *result).collect();
        let told = |(text, result): &&(String, Option<String>)| format!("{text:?}: {:?}, not {result:?}", value(text));
        assert!(
            wrong.is_empty(),
            "{} of {}: {:#?}",
            wrong.len(),
            golden.len(),
            wrong.iter().take(9).map(told).collect::<Vec<_>>()
        );
        assert!(golden.len() > 3000 && golden.iter().filter(|(_, result)| result.is_some()).count() > 2000);
    }

    #[test]
    fn what_is_too_long_has_no_result_and_the_longest_has_one() {
        let (longest, more) = ("7".repeat(MAX_BYTES), "7".repeat(MAX_BYTES + 1));
        assert_eq!((value(&longest), value(&more)), (Some(longest.clone()), None));
        for text in
            ["9/".repeat(511) + "9", "9//".repeat(341) + "9", format!("{}*{}", "9".repeat(511), "9".repeat(512))]
        {
            assert!(value(&text).is_some(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "[0-9+*/(). '\"counta-]{0,300}|[0-9]{1,400}(//|/|\\*)[0-9]{1,400}\\.?|\\PC{0,40}") {
            let (result, in_brackets) = (value(&text), value(&format!("({text})*1")));
            prop_assert!(result.is_some() == in_brackets.is_some() || text.contains(')'), "{text:?}: {result:?}");
        }
    }
}
