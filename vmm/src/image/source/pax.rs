//! The extended headers of tar (POSIX, pax): records of a length, a key and a value, which may hold any byte.

use std::collections::BTreeMap;
use std::str;

use super::super::tree::Time;

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// What extended headers say about the entry behind them.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: PaxSparse,
}

/// The keys of GNU tar's three ways to write sparse files in extended headers.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxSparse {
    /// Version 1.0: the map stands in front of the data.
    pub(super) map_in_data: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Offsets and lengths in turn.
    pub(super) map: Option<Vec<u64>>,
}

impl Pax {
    /// Takes the records of a header.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), String> {
        let broken = || "its extended header is broken".to_owned();
        while !records.is_empty() && records[0] != 0 {
            let space = records.iter().take(20).position(|byte| *byte == b' ');
            let space = space.ok_or_else(broken)?;
            let len: usize = number(&records[..space]).ok_or_else(broken)? as usize;
            if len > records.len() || len < space + 3 || records[len - 1] != b'\n' {
                return Err(broken());
            }
            let record = &records[space + 1..len - 1];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
            self.take(&record[..equals], &record[equals + 1..])?;
            records = &records[len..];
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let wrong = || {
            format!(
                "its extended header has {} = {:?}, which cannot be",
                String::from_utf8_lossy(key),
                String::from_utf8_lossy(&value[..value.len().min(40)])
            )
        };
        let parsed = || number(value).ok_or_else(wrong);
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(parsed()?),
            b"uid" => self.uid = Some(parsed()?),
            b"gid" => self.gid = Some(parsed()?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(wrong)?),
            b"RHT.security.selinux" => {
                self.xattrs.insert(b"security.selinux".to_vec(), value.to_vec());
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    if name.is_empty() || name.contains(&0) {
                        return Err(wrong());
                    }
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                } else if let Some(key) = key.strip_prefix(SPARSE) {
                    self.sparse.take(key, value).ok_or_else(wrong)?;
                }
            }
        }
        Ok(())
    }
}

impl PaxSparse {
    /// Whether the entry is a sparse file.
    pub(super) fn is_sparse(&self) -> bool {
        self.map_in_data || self.map.is_some()
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => match number(value)? {
                0 => {}
                1 => self.map_in_data = true,
                _ => return None,
            },
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"offset" | b"numbytes" => self.map.get_or_insert_default().push(number(value)?),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(number);
                self.map = Some(numbers.collect::<Option<_>>()?);
            }
            _ => {}
        }
        Some(())
    }
}

/// A decimal number, digits only.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(digits).ok()?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

/// Seconds with a fraction, as in `-1.5`.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut halves = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(number(halves.next()?)?).ok()?;
    let mut nanos = 0;
    let mut unit = 100_000_000;
    for digit in halves.next().unwrap_or_default() {
        if !digit.is_ascii_digit() {
            return None;
        }
        nanos += u32::from(digit - b'0') * unit;
        unit /= 10;
    }
    Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time {
            seconds: -seconds,
            nanos,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970_keep_their_fractions() {
        for (text, seconds, nanos) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("12.0000000019", 12, 1),
            ("-1", -1, 0),
            ("-1.25", -2, 750_000_000),
        ] {
            assert_eq!(time(text.as_bytes()), Some(Time { seconds, nanos }), "{text}");
        }
        for text in ["", "x", "1.x", "--1", "99999999999999999999"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn values_may_hold_line_ends() {
        let mut pax = Pax::default();
        pax.read(b"26 SCHILY.xattr.user.a=\n\n\n11 path=a\n\n").unwrap();
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"\n\n");
        assert_eq!(pax.path.as_deref(), Some(&b"a\n"[..]));
    }

    #[test]
    fn broken_records_are_refused() {
        for records in [
            "11 path=a",
            "99 path=a\n",
            "3 =\n",
            "x",
            " path=a\n",
            "9 path a\n",
            "99999999999999999999 path=a\n",
            "10 size=-1\n",
        ] {
            assert!(Pax::default().read(records.as_bytes()).is_err(), "{records:?}");
        }
    }
}
