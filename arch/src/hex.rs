//! Bytes as hexadecimal digits, in text formats.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt::Write;

use serde::{Deserialize, Deserializer, Serializer, de};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The digits of `bytes`.
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The bytes whose digits `text` is; `None` if it is not pairs of digits.
pub fn parse(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match *pair {
            [high, low] => Some((digit(high)? << 4 | digit(low)?) as u8),
            _ => None,
        })
        .collect()
}

/// For `#[serde(with)]`: a structure as the digits of its bytes.
pub(crate) mod plain {
    use super::{Cow, Deserialize, Deserializer, FromBytes, Immutable, IntoBytes, Serializer, de};

    pub(crate) fn serialize<T: IntoBytes + Immutable, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::text(value.as_bytes()))
    }

    pub(crate) fn deserialize<'de, T: FromBytes, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let bytes =
            super::parse(&text).ok_or_else(|| de::Error::custom("not pairs of hexadecimal digits"))?;
        let (found, expected) = (bytes.len(), size_of::<T>());
        T::read_from_bytes(&bytes)
            .map_err(|_| de::Error::custom(format_args!("{found} bytes where {expected} belong")))
    }
}

/// For `#[serde(with)]`: any number of bytes.
pub(crate) mod bytes {
    use super::{Cow, Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::text(value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        super::parse(&text).ok_or_else(|| de::Error::custom("not pairs of hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_pairs() {
        assert_eq!(text(&[0, 0xa5, 255]), "00a5ff");
        assert_eq!(parse("00a5FF"), Some(vec![0, 0xa5, 255]));
        assert_eq!(parse(""), Some(Vec::new()));
        for wrong in ["0", "0g", "00 1", "é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
