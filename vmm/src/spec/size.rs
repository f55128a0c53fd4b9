//! Sizes in bytes as people write them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
///
/// Written as a number, alone or with K, M, G or T (powers of 1024; `KiB` and so on mean the same).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

/// The units, with the power of two each stands for.
const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error("{0:?} is not a size; write a whole number, alone or with K, M, G or T behind it, as in 512M")]
    Syntax(String),
    /// A number with a fraction.
    #[error("{0:?} is not a whole number; write it in a smaller unit, as in 1536M for 1.5G")]
    Fraction(String),
    /// A unit that means powers of 1000 to some.
    #[error("{text:?} is ambiguous; write {unit} or {unit}iB, which are powers of 1024")]
    Decimal {
        /// What was written.
        text: String,
        /// The unit's letter.
        unit: char,
    },
    /// More than 64 bits.
    #[error("{0:?} is more bytes than any machine can have")]
    TooLarge(String),
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(SizeError::Syntax(text.to_owned()));
        }
        if unit.starts_with(['.', ',']) {
            return Err(SizeError::Fraction(text.to_owned()));
        }
        let shift = shift(unit, text)?;
        let bytes = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift));
        bytes
            .map(Self)
            .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
    }
}

/// The power of two that `unit` stands for.
fn shift(unit: &str, text: &str) -> Result<u32, SizeError> {
    let mut chars = unit.chars();
    let Some(letter) = chars.next() else { return Ok(0) };
    let known = UNITS.iter().find(|(name, _)| letter.eq_ignore_ascii_case(name));
    let suffix = chars.as_str();
    match known {
        Some((_, shift)) if suffix.is_empty() || suffix.eq_ignore_ascii_case("ib") => Ok(*shift),
        Some((unit, _)) if suffix.eq_ignore_ascii_case("b") => Err(SizeError::Decimal {
            text: text.to_owned(),
            unit: *unit,
        }),
        _ => Err(SizeError::Syntax(text.to_owned())),
    }
}

/// The shortest text that means exactly this many bytes.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let largest = UNITS
            .iter()
            .rev()
            .find(|(_, shift)| self.0.trailing_zeros() >= *shift);
        match largest {
            Some((unit, shift)) if self.0 > 0 => write!(f, "{}{unit}", self.0 >> shift),
            _ => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"512M\"")
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<ByteSize, E> {
        let negative = |_| E::custom(SizeError::Syntax(bytes.to_string()));
        u64::try_from(bytes).map(ByteSize).map_err(negative)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes: a number, or a text with K, M, G or T (powers of 1024) behind the number.",
            "oneOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+([KkMmGgTt]([Ii][Bb])?)?$" },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(text: &str) -> Result<u64, String> {
        text.parse()
            .map(|ByteSize(bytes)| bytes)
            .map_err(|error: SizeError| error.to_string())
    }

    #[test]
    fn numbers_and_units_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1 << 10),
            ("512M", 512 << 20),
            (" 512m ", 512 << 20),
            ("2G", 2 << 30),
            ("1GiB", 1 << 30),
            ("3tib", 3 << 40),
            ("18446744073709551615", u64::MAX),
            ("16777215T", 16777215 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_what_to_write() {
        let syntax = "is not a size; write a whole number, alone or with K, M, G or T behind it, as in 512M";
        for text in ["", "M", "lots", "-1", "64X", "1 M", "1MiBB", "１"] {
            assert_eq!(size(text), Err(format!("{text:?} {syntax}")));
        }
        for (text, sentence) in [
            (
                "1.5G",
                "\"1.5G\" is not a whole number; write it in a smaller unit, as in 1536M for 1.5G",
            ),
            (
                "512mb",
                "\"512mb\" is ambiguous; write M or MiB, which are powers of 1024",
            ),
            (
                "16777216T",
                "\"16777216T\" is more bytes than any machine can have",
            ),
            (
                "18446744073709551616",
                "\"18446744073709551616\" is more bytes than any machine can have",
            ),
        ] {
            assert_eq!(size(text), Err(sentence.to_owned()));
        }
    }

    #[test]
    fn a_size_is_shown_in_the_largest_unit_that_is_exact() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1000, "1000"),
            (1 << 10, "1K"),
            (1536 << 20, "1536M"),
            (2 << 30, "2G"),
            (5 << 40, "5T"),
            ((1 << 30) + 1, "1073741825"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn files_take_numbers_and_texts() {
        for json in ["536870912", "\"512M\"", "\"536870912\""] {
            assert_eq!(
                serde_json::from_str::<ByteSize>(json).unwrap(),
                ByteSize(512 << 20)
            );
        }
        for json in ["-1", "1.5", "true", "\"big\"", "[]"] {
            assert!(serde_json::from_str::<ByteSize>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_as_the_same(bytes: u64, shift in 0_u32..50) {
            let size = ByteSize(bytes.checked_shl(shift).unwrap_or(bytes));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<ByteSize>();
        }
    }
}
