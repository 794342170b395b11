//! The date and time of day in UTC, as replies and chat templates spell it.
//!
//! Knows the proleptic Gregorian calendar; does not know time zones or leap seconds.
//! Reference: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (`civil_from_days`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Longest field of a date: widths beyond it are cut to it.
pub(crate) const MAX_FIELD_BYTES: usize = 1024;

/// A moment, split into calendar fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UtcTime {
    /// Since 1970.
    seconds: u64,
    year: u64,
    /// 1 to 12.
    month: usize,
    /// 1 to 31.
    day: u64,
    /// 0 is Sunday.
    weekday: usize,
    /// 1 to 366.
    day_of_year: u64,
    second_of_day: u64,
    nanos: u32,
}

impl UtcTime {
    pub(crate) fn now() -> Self {
        Self::of(SystemTime::now())
    }

    pub(crate) fn of(time: SystemTime) -> Self {
        // A clock before 1970 is a broken host; 1970 in a reply is better than no reply.
        Self::from_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// Seconds since 1970.
    pub(crate) fn unix_seconds(&self) -> u64 {
        self.seconds
    }

    fn from_epoch(time: Duration) -> Self {
        let days = time.as_secs() / 86_400;
        // Years start on 1 March here, so that the leap day is the last one.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let january_and_february = if leap { 60 } else { 59 };
        Self {
            seconds: time.as_secs(),
            year,
            month: month as usize,
            day: day_of_march_year - (153 * march_month + 2) / 5 + 1,
            weekday: ((days + 4) % 7) as usize,
            day_of_year: if month > 2 { day_of_march_year + january_and_february + 1 } else { day_of_march_year - 305 },
            second_of_day: time.as_secs() % 86_400,
            nanos: time.subsec_nanos(),
        }
    }

    fn hour(&self) -> u64 {
        self.second_of_day / 3600
    }

    fn minute(&self) -> u64 {
        self.second_of_day / 60 % 60
    }

    fn second(&self) -> u64 {
        self.second_of_day % 60
    }

    /// `2026-11-23T22:56:01.123456789Z`.
    pub(crate) fn rfc3339(&self) -> String {
        format!("{}.{:09}Z", self.strftime("%Y-%m-%dT%H:%M:%S"), self.nanos)
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
        let (month, weekday) = (MONTHS[self.month - 1], WEEKDAYS[self.weekday]);
        let number = |value: u64, width: usize, pad: char| (value.to_string(), width, pad);
        let text = |text: &str| (text.to_owned(), 0, ' ');
        // Weeks of the year, the first one beginning with its first such day; the days before it are in week 0.
        let week_from =
            |first_weekday: usize| (self.day_of_year + 6 - ((self.weekday + 7 - first_weekday) % 7) as u64) / 7;
        let (iso_year, iso_week) = self.iso_week();
        let hour_of_12 = (self.hour() + 11) % 12 + 1;
        let (field, least, pad) = match code.chars().next() {
            Some('Y') => number(self.year, 0, '0'),
            Some('C') => number(self.year / 100, 2, '0'),
            Some('y') => number(self.year % 100, 2, '0'),
            Some('G') => number(iso_year, 0, '0'),
            Some('g') => number(iso_year % 100, 2, '0'),
            Some('V') => number(iso_week, 2, '0'),
            Some('U') => number(week_from(0), 2, '0'),
            Some('W') => number(week_from(1), 2, '0'),
            Some('m') => number(self.month as u64, 2, '0'),
            Some('d') => number(self.day, 2, '0'),
            Some('e') => number(self.day, 2, ' '),
            Some('j') => number(self.day_of_year, 3, '0'),
            Some('u') => number(if self.weekday == 0 { 7 } else { self.weekday as u64 }, 0, '0'),
            Some('w') => number(self.weekday as u64, 0, '0'),
            Some('H') => number(self.hour(), 2, '0'),
            Some('k') => number(self.hour(), 2, ' '),
            Some('I') => number(hour_of_12, 2, '0'),
            Some('l') => number(hour_of_12, 2, ' '),
            Some('M') => number(self.minute(), 2, '0'),
            Some('S') => number(self.second(), 2, '0'),
            Some('s') => number(self.seconds, 0, ' '),
            Some('f') => number(u64::from(self.nanos / 1000), 6, '0'),
            Some('p') => text(if self.hour() < 12 { "AM" } else { "PM" }),
            Some('P') => text(if self.hour() < 12 { "am" } else { "pm" }),
            Some('B') => text(month),
            Some('b' | 'h') => text(&month[..3]),
            Some('A') => text(weekday),
            Some('a') => text(&weekday[..3]),
            Some('c') => text(&self.strftime("%a %b %e %H:%M:%S %Y")),
            Some('D' | 'x') => text(&self.strftime("%m/%d/%y")),
            Some('F') => text(&self.strftime("%Y-%m-%d")),
            Some('R') => text(&self.strftime("%H:%M")),
            Some('r') => text(&self.strftime("%I:%M:%S %p")),
            Some('T' | 'X') => text(&self.strftime("%H:%M:%S")),
            Some('z' | 'Z') => text(""),
            Some('n') => text("\n"),
            Some('t') => text("\t"),
            Some('%') => text("%"),
            _ => return (length, directive[..length].to_owned()),
        };
        let field = match flags.rfind(['^', '#']).map(|at| &flags[at..=at]) {
            Some("#") if code.starts_with('p') => field.to_lowercase(),
            Some(_) => field.to_uppercase(),
            None => field,
        };
        let (least, pad) = match flags.rfind(['_', '-', '0']).map(|at| &flags[at..=at]) {
            Some("-") => (0, pad),
            Some("_") => (least, ' '),
            Some(_) => (least, '0'),
            None => (least, pad),
        };
        let missing = asked.unwrap_or(least).min(MAX_FIELD_BYTES).saturating_sub(field.len());
        (length, std::iter::repeat_n(pad, missing).chain(field.chars()).collect())
    }

    /// Year and week of ISO 8601: weeks begin on Mondays and belong to the year that has their Thursday.
    fn iso_week(&self) -> (u64, u64) {
        let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days = |year| if is_leap(year) { 366 } else { 365 };
        // The day of the year of this week's Thursday; 0 or less is in the year before.
        let thursday = self.day_of_year as i64 + 3 - (self.weekday as i64 + 6) % 7;
        match thursday {
            ..=0 => (self.year - 1, (thursday + days(self.year - 1) - 1) as u64 / 7 + 1),
            _ if thursday > days(self.year) => (self.year + 1, 1),
            _ => (self.year, (thursday - 1) as u64 / 7 + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let time = UtcTime::from_epoch(Duration::from_secs(seconds));
            assert_eq!(time.strftime("%Y-%m-%d %H:%M:%S %a %j"), expected);
        }
        let time = UtcTime::from_epoch(Duration::new(951_782_400 + 13 * 3600, 5_000));
        assert_eq!(time.rfc3339(), "2000-02-29T13:00:00.000005000Z");
        assert_eq!(time.strftime("100%% %q %Ek% %é %"), "100% %q %Ek% %é %");
        assert_eq!(time.strftime("%99999999999999999999d|%9999d").len(), 2 + 1 + MAX_FIELD_BYTES);
    }

    #[test]
    fn dates_are_written_as_python_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/vectors/chat_templates.json");
        let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in vectors["dates"].as_array().unwrap() {
            let time = UtcTime::from_epoch(Duration::new(case["seconds"].as_u64().unwrap(), 123_456_789));
            let format = case["format"].as_str().unwrap();
            assert_eq!(time.strftime(format), case["text"].as_str().unwrap(), "{format} {}", case["seconds"]);
        }
    }
}
