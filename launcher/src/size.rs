//! Amounts of memory as people write them.

use std::{fmt, str::FromStr};

/// A number of bytes, written `512MiB`, `2G`, `1.5GB` or `1048576`.
/// `K`, `M`, `G`, `T` and `KiB` … are powers of 1024; `KB`, `MB`, `GB`, `TB` powers of 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// Text that is no amount of memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no amount of memory; write it like 512MiB, 2G or 1048576")]
pub struct ByteSizeError(String);

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let wrong = || ByteSizeError(text.into());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "ki" | "kib" => 1 << 10,
            "m" | "mi" | "mib" => 1 << 20,
            "g" | "gi" | "gib" => 1 << 30,
            "t" | "ti" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(wrong()),
        };
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(unit).ok_or_else(wrong)?,
            // Exact enough: a fraction of a unit is rounded to a byte.
            Err(_) => (number.parse::<f64>().map_err(|_| wrong())? * unit as f64) as u64,
        };
        // No machine has more, and sums of sizes stay within 64 bits.
        if bytes >> 50 == 0 { Ok(Self(bytes)) } else { Err(wrong()) }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let text = match units.into_iter().find(|(_, bits)| self.0 >> bits > 0) {
            Some((unit, bits)) => {
                let digits = if bits < 30 { 1 } else { 2 };
                format!("{:.digits$} {unit}", self.0 as f64 / f64::from(1u32 << (bits / 2)).powi(2))
            }
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("2G", 2 << 30),
            ("1.5G", 3 << 29),
            ("2GB", 2_000_000_000),
            ("64k", 65536),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "G", "-1G", "1.2.3G", "5 bytes", "1X", "99999999999999999999", "9999999T"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit_that_fits() {
        let shown = [5, 2048, 3 << 19, 498 << 20, 6 << 30].map(|bytes| ByteSize(bytes).to_string());
        assert_eq!(shown, ["5 B", "2.0 KiB", "1.5 MiB", "498.0 MiB", "6.00 GiB"]);
    }
}
