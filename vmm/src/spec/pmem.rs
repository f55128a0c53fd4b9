//! Files in the guest's memory: what a file says of one, and the short form of the flag.

use std::ffi::OsStr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limit::FlagLimit;
use super::options::{key_value, lossy, number, once, path_first, set};
use super::{OptionError, RateLimitSpec, table};

pub(super) const FORM: &str = "PATH[,ro][,id=NAME][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]";

/// A file that the guest has in its memory (virtio-pmem).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PmemSpec {
    /// What the API calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The file, or a block device. One that can be written is a multiple of 2M long.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// The I/O thread that it belongs to, counted from 0.
    #[serde(default)]
    pub io_thread: u32,
    /// Limits to flushes, each of which counts as many bytes as the file has.
    #[serde(default, deserialize_with = "table::optional")]
    pub rate_limit: Option<RateLimitSpec>,
}

impl PmemSpec {
    /// Reads `PATH` and the options behind it, each after a comma.
    pub fn from_option(text: &OsStr) -> Result<Self, OptionError> {
        let (path, parts) = path_first(text, FORM)?;
        let mut pmem = Self {
            path,
            ..Self::default()
        };
        let mut io_thread = None;
        let mut limit = FlagLimit::default();
        for part in parts {
            let (key, value) = key_value(&part);
            if limit.take(key, value)? {
                continue;
            }
            match (key, value) {
                (b"ro", None) => once(&mut pmem.read_only, "ro")?,
                (b"id", Some(value)) => set(&mut pmem.id, value, "id")?,
                (b"io-thread", Some(value)) => set(&mut io_thread, value, "io-thread")?,
                _ => {
                    return Err(OptionError::Unknown {
                        option: lossy(&part),
                        form: FORM,
                    });
                }
            }
        }
        if let Some(thread) = io_thread {
            pmem.io_thread = number(&thread)?;
        }
        pmem.rate_limit = limit.finish();
        Ok(pmem)
    }

    /// What it is called as number `number`, from 1: one by a flag may have no id.
    pub fn name(&self, number: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("pmem{number}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PmemSpec, OptionError> {
        PmemSpec::from_option(text.as_ref())
    }

    #[test]
    fn files_with_their_options_in_any_order() {
        let plain = PmemSpec {
            path: "a,b".into(),
            ..PmemSpec::default()
        };
        assert_eq!(read("a,,b"), Ok(plain.clone()));
        let named = PmemSpec {
            id: Some("data".to_owned()),
            read_only: true,
            io_thread: 2,
            ..plain
        };
        assert_eq!(read("a,,b,io-thread=2,ro,id=data"), Ok(named));
        assert!(read("a,ops=5").unwrap().rate_limit.is_some());
    }

    #[test]
    fn each_mistake_has_its_sentence() {
        for (text, expected) in [
            (",ro", format!("\",ro\" names no file; write it as {FORM}")),
            ("a,ro,ro", "the option ro is given twice; give it once".to_owned()),
            (
                "a,rw",
                format!(
                    "unknown option \"rw\"; it takes {FORM}, and a comma that is part of a name is written twice"
                ),
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected, "{text}");
        }
    }
}
