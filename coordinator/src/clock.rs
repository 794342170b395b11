//! The date and time of day in UTC, as replies and chat templates spell it.
//!
//! Knows how Python pads and flags the fields of a date; the calendar is the library's.

use std::time::SystemTime;

use jiff::Timestamp;

/// Longest field of a date: widths beyond it are cut to it.
pub(crate) const MAX_FIELD_BYTES: usize = 1024;

/// Directives that are numbers, with their least width and what fills it.
const NUMBERS: [(&str, usize, char); 5] =
    [("YGuw", 0, '0'), ("s", 0, ' '), ("CygVUWmdHIMS", 2, '0'), ("ekl", 2, ' '), ("j", 3, '0')];
/// Directives that the library has as they are.
const TEXTS: &str = "pPBbhAant%";
/// Directives that stand for others.
const COMPOSED: [(&str, &str); 6] = [
    ("c", "%a %b %e %H:%M:%S %Y"),
    ("Dx", "%m/%d/%y"),
    ("F", "%Y-%m-%d"),
    ("R", "%H:%M"),
    ("r", "%I:%M:%S %p"),
    ("TX", "%H:%M:%S"),
];

/// A moment since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UtcTime(Timestamp);

impl UtcTime {
    pub(crate) fn now() -> Self {
        Self::of(SystemTime::now())
    }

    pub(crate) fn of(time: SystemTime) -> Self {
        // A clock before 1970 is a broken host; 1970 in a reply is better than no reply.
        Self(Timestamp::try_from(time).unwrap_or_default().max(Timestamp::UNIX_EPOCH))
    }

    /// Seconds since 1970.
    pub(crate) fn unix_seconds(&self) -> u64 {
        self.0.as_second().cast_unsigned()
    }

    /// `2026-11-23T22:56:01.123456789Z`.
    pub(crate) fn rfc3339(&self) -> String {
        format!("{:.9}", self.0)
    }

    /// Python's `strftime` of a time without a zone, which is glibc's in the C locale: flags (`%-d`), widths and the modifiers
    /// `E` and `O` too. What is no directive stays as it is; `%z` and `%Z` are empty. A field has at most
    /// [`MAX_FIELD_BYTES`].
    pub(crate) fn strftime(&self, format: &str) -> String {
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let (length, field) = self.field(&rest[at..]);
            out.push_str(&field);
            rest = &rest[at + length..];
        }
        out + rest
    }

    /// The directive at the start of a text, how long it is and what it stands for.
    fn field(&self, directive: &str) -> (usize, String) {
        let flags = &directive[1..];
        let width = flags.trim_start_matches(['_', '-', '0', '^', '#']);
        let modifier = width.trim_start_matches(|c: char| c.is_ascii_digit());
        let code = modifier.strip_prefix(['E', 'O']).unwrap_or(modifier);
        let flags = &flags[..flags.len() - width.len()];
        let asked: Option<usize> = width[..width.len() - modifier.len()].parse().ok();
        let length = directive.len() - code.len() + code.chars().next().map_or(0, char::len_utf8);

        // In the C locale the modifiers change nothing, but stand before some directives only.
        let barred = match modifier.chars().next() {
            Some('E') => "aAbBhDdeHIkljMmSUVgGWwF%",
            Some('O') => "aAcxXDFY%",
            _ => "",
        };
        if code.starts_with(|c| barred.contains(c)) {
            return (length, directive[..length].to_owned());
        }
        let Some((mut field, least, pad)) = code.chars().next().and_then(|code| self.value(code)) else {
            return (length, directive[..length].to_owned());
        };
        match flags.rfind(['^', '#']).map(|at| &flags[at..=at]) {
            Some("#") if code.starts_with('p') => field.make_ascii_lowercase(),
            Some(_) => field.make_ascii_uppercase(),
            None => {}
        }
        let (least, pad) = match flags.rfind(['_', '-', '0']).map(|at| &flags[at..=at]) {
            Some("-") => (0, pad),
            Some("_") => (least, ' '),
            Some(_) => (least, '0'),
            None => (least, pad),
        };
        let missing = asked.unwrap_or(least).min(MAX_FIELD_BYTES).saturating_sub(field.len());
        (length, std::iter::repeat_n(pad, missing).chain(field.chars()).collect())
    }

    /// What a directive stands for without flags: its text, the least width, and what fills it.
    fn value(&self, code: char) -> Option<(String, usize, char)> {
        let text = |format: &str| Some((self.0.strftime(format).to_string(), 0, ' '));
        if let Some(&(_, least, pad)) = NUMBERS.iter().find(|(codes, ..)| codes.contains(code)) {
            return Some((self.0.strftime(&format!("%-{code}")).to_string(), least, pad));
        }
        if let Some((_, format)) = COMPOSED.iter().find(|(codes, _)| codes.contains(code)) {
            return text(format);
        }
        match code {
            'f' => Some(((self.0.subsec_nanosecond() / 1000).to_string(), 6, '0')),
            'z' | 'Z' => text(""),
            _ if TEXTS.contains(code) => text(&format!("%{code}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(since_epoch: Duration) -> UtcTime {
        UtcTime::of(UNIX_EPOCH + since_epoch)
    }

    #[test]
    fn dates_agree_with_gnu_date() {
        // date -u -d @N '+%Y-%m-%d %H:%M:%S %a %j'
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu 001"),
            (951_782_400, "2000-02-29 00:00:00 Tue 060"),
            (951_868_800, "2000-03-01 00:00:00 Wed 061"),
            (1_078_012_799, "2004-02-28 23:59:59 Sat 059"),
            (1_767_225_599, "2025-12-31 23:59:59 Wed 365"),
            (1_735_603_200, "2024-12-31 00:00:00 Tue 366"),
            (4_107_542_400, "2100-03-01 00:00:00 Mon 060"),
        ] {
            let time = at(Duration::from_secs(seconds));
            assert_eq!(time.strftime("%Y-%m-%d %H:%M:%S %a %j"), expected);
        }
        let time = at(Duration::new(951_782_400 + 13 * 3600, 5_000));
        assert_eq!(time.rfc3339(), "2000-02-29T13:00:00.000005000Z");
        assert_eq!(time.strftime("100%% %q %Ek% %é %"), "100% %q %Ek% %é %");
        assert_eq!(time.strftime("%99999999999999999999d|%9999d").len(), 2 + 1 + MAX_FIELD_BYTES);
    }

    #[test]
    fn dates_are_written_as_python_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/vectors/chat_templates.json");
        let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in vectors["dates"].as_array().unwrap() {
            let time = at(Duration::new(case["seconds"].as_u64().unwrap(), 123_456_789));
            let format = case["format"].as_str().unwrap();
            assert_eq!(time.strftime(format), case["text"].as_str().unwrap(), "{format} {}", case["seconds"]);
        }
    }
}
