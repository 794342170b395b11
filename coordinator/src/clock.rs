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

    /// C's `strftime` in the C locale, for the directives that templates use; others stay as they are.
    pub(crate) fn strftime(&self, format: &str) -> String {
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let month = MONTHS[self.month - 1];
            let weekday = WEEKDAYS[self.weekday];
            match rest.next() {
                Some('Y') => out.push_str(&format!("{:04}", self.year)),
                Some('y') => out.push_str(&format!("{:02}", self.year % 100)),
                Some('m') => out.push_str(&format!("{:02}", self.month)),
                Some('d') => out.push_str(&format!("{:02}", self.day)),
                Some('e') => out.push_str(&format!("{:2}", self.day)),
                Some('H') => out.push_str(&format!("{:02}", self.hour())),
                Some('I') => out.push_str(&format!("{:02}", (self.hour() + 11) % 12 + 1)),
                Some('p') => out.push_str(if self.hour() < 12 { "AM" } else { "PM" }),
                Some('M') => out.push_str(&format!("{:02}", self.minute())),
                Some('S') => out.push_str(&format!("{:02}", self.second())),
                Some('f') => out.push_str(&format!("{:06}", self.nanos / 1000)),
                Some('j') => out.push_str(&format!("{:03}", self.day_of_year)),
                Some('B') => out.push_str(month),
                Some('b' | 'h') => out.push_str(&month[..3]),
                Some('A') => out.push_str(weekday),
                Some('a') => out.push_str(&weekday[..3]),
                Some('F') => out.push_str(&self.strftime("%Y-%m-%d")),
                Some('T') => out.push_str(&self.strftime("%H:%M:%S")),
                Some('Z') => out.push_str("UTC"),
                Some('z') => out.push_str("+0000"),
                Some('%') => out.push('%'),
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            }
        }
        out
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
        assert_eq!(time.strftime("%e %B %y %I %p 100%% %q %"), "29 February 00 01 PM 100% %q %");
    }
}
