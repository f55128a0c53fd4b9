//! The serial port's place in files: a word, or a table with a path.

use std::fmt;
use std::path::PathBuf;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::SerialSpec;

const WORDS: &[&str] = &["stdio", "null", "pty"];
const TABLES: &[&str] = &["file", "socket", "kept"];

impl<'de> Deserialize<'de> for SerialSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SerialVisitor)
    }
}

struct SerialVisitor;

impl<'de> Visitor<'de> for SerialVisitor {
    type Value = SerialSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a place for the serial port; name stdio, null or pty, or give a table with file, socket or kept",
        )
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<SerialSpec, E> {
        match word {
            "stdio" => Ok(SerialSpec::Stdio),
            "null" => Ok(SerialSpec::Null),
            "pty" => Ok(SerialSpec::Pty),
            word if TABLES.iter().any(|table| word.starts_with(table)) => Err(E::custom(format_args!(
                "{word:?} needs its path in a table; write {{ file = \"PATH\" }}, {{ socket = \"PATH\" }} or {{ kept = \"FOLDER\" }} in TOML, with colons in JSON"
            ))),
            word => Err(E::unknown_variant(word, WORDS)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SerialSpec, A::Error> {
        let one = "give exactly one of file, socket and kept";
        let Some(key) = map.next_key::<String>()? else {
            return Err(A::Error::custom(one));
        };
        let place = match key.as_str() {
            "file" => SerialSpec::File(map.next_value::<PathBuf>()?),
            "socket" => SerialSpec::Socket(map.next_value::<PathBuf>()?),
            "kept" => SerialSpec::Kept(map.next_value::<PathBuf>()?),
            key => return Err(A::Error::unknown_field(key, TABLES)),
        };
        match map.next_key::<String>()?.as_deref() {
            None => Ok(place),
            Some("file" | "socket" | "kept") => Err(A::Error::custom(one)),
            Some(key) => Err(A::Error::unknown_field(key, TABLES)),
        }
    }
}
