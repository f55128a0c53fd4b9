//! The short forms of flags: `PATH,ro,serial=NAME`, `tap=NAME,mac=…`, `file=PATH`.
//!
//! A comma separates options; two in a row are one comma of the text itself, so that any path can be written.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use super::{PublishError, SerialSpec, SizeError};

/// Why a flag's short form cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The part that must be there is not.
    #[error("{text:?} names no {what}; write it as {form}")]
    Missing {
        /// The whole text.
        text: String,
        /// What is missing.
        what: &'static str,
        /// How it should look.
        form: &'static str,
    },
    /// An option nobody knows.
    #[error(
        "unknown option {option:?}; {}", instead(.option, .form)
    )]
    Unknown {
        /// The option.
        option: String,
        /// How it should look.
        form: &'static str,
    },
    /// An option given twice.
    #[error("the option {0} is given twice; give it once")]
    Twice(&'static str),
    /// A value that must be text is not.
    #[error("the option {0} is not valid UTF-8; write it in ASCII")]
    NotText(&'static str),
    /// A size that is none.
    #[error(transparent)]
    Size(SizeError),
    /// A number that is none.
    #[error("{0:?} is not a number; give a whole number")]
    Number(String),
    /// Not one of the words that the option takes.
    #[error("{option}={value} is none of {words}; choose one of them")]
    Word {
        /// The option.
        option: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        words: &'static str,
    },
    /// A context id that is none.
    #[error("{0:?} is not a context id; give a whole number, 3 or more")]
    Cid(String),
    /// A published port that is none.
    #[error(transparent)]
    Publish(PublishError),
    /// Seconds that are none.
    #[error("{0:?} is not a number of seconds; give a whole number")]
    Seconds(String),
    /// Not one of the places a serial port can lead to.
    #[error("{0:?} is no place for a serial port; use {SERIAL_FORM}")]
    Serial(String),
}

/// How alike an option and a known one must be for one to be a misspelling of the other.
const ALIKE: f64 = 0.8;

/// What to write instead of an option that `form` does not have.
fn instead(option: &str, form: &str) -> String {
    let key = option.split('=').next().unwrap_or_default();
    let alike = |known: &&str| strsim::normalized_damerau_levenshtein(key, known);
    let known = form.split(|letter: char| !letter.is_ascii_lowercase() && letter != '-');
    match known.max_by(|one, other| alike(one).total_cmp(&alike(other))) {
        Some(known) if alike(&known) >= ALIKE && known != key => format!("did you mean {known}?"),
        _ => format!("it takes {form}, and a comma that is part of a name is written twice"),
    }
}

const SERIAL_FORM: &str = "stdio, null, pty, file=PATH, socket=PATH or kept=FOLDER";

impl SerialSpec {
    /// Reads `stdio`, `null`, `pty`, `file=PATH`, `socket=PATH` or `kept=FOLDER`. A path is taken as it is, commas included.
    pub fn from_option(text: &OsStr) -> Result<Self, OptionError> {
        let path = |value: &[u8]| PathBuf::from(OsStr::from_bytes(value));
        match key_value(text) {
            (b"stdio", None) => Ok(Self::Stdio),
            (b"null", None) => Ok(Self::Null),
            (b"pty", None) => Ok(Self::Pty),
            (b"file", Some(value)) => Ok(Self::File(path(value))),
            (b"socket", Some(value)) => Ok(Self::Socket(path(value))),
            (b"kept", Some(value)) => Ok(Self::Kept(path(value))),
            _ => Err(OptionError::Serial(lossy(text))),
        }
    }
}

pub(super) fn lossy(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

/// The file that `text`, of the form `form`, begins with, and the options behind it.
pub(super) fn path_first(
    text: &OsStr,
    form: &'static str,
) -> Result<(PathBuf, impl Iterator<Item = OsString>), OptionError> {
    let mut parts = split(text).into_iter();
    let path = PathBuf::from(parts.next().unwrap_or_default());
    if path.as_os_str().is_empty() {
        return Err(OptionError::Missing {
            text: lossy(text),
            what: "file",
            form,
        });
    }
    Ok((path, parts))
}

/// `text` cut at single commas; double ones become one.
pub(super) fn split(text: &OsStr) -> Vec<OsString> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = text.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b',' {
            part.push(byte);
        } else if bytes.next_if_eq(&b',').is_some() {
            part.push(b',');
        } else {
            parts.push(OsString::from_vec(std::mem::take(&mut part)));
        }
    }
    parts.push(OsString::from_vec(part));
    parts
}

/// `key=value` at the first `=`, or a key alone.
pub(super) fn key_value(part: &OsStr) -> (&[u8], Option<&[u8]>) {
    let bytes = part.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
        None => (bytes, None),
    }
}

pub(super) fn set(slot: &mut Option<String>, value: &[u8], key: &'static str) -> Result<(), OptionError> {
    let value = String::from_utf8(value.to_vec()).map_err(|_| OptionError::NotText(key))?;
    match slot.replace(value) {
        Some(_) => Err(OptionError::Twice(key)),
        None => Ok(()),
    }
}

/// Raises a flag that stands for itself.
pub(super) fn once(flag: &mut bool, key: &'static str) -> Result<(), OptionError> {
    if std::mem::replace(flag, true) {
        return Err(OptionError::Twice(key));
    }
    Ok(())
}

/// Reads a whole number.
pub(super) fn number<T: FromStr>(text: &str) -> Result<T, OptionError> {
    text.parse().map_err(|_| OptionError::Number(text.to_owned()))
}

/// How many queues a device has unless it is said.
pub(crate) fn one() -> u16 {
    1
}

// By reference, as serde calls it.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(crate) fn is_one(number: &u16) -> bool {
    *number == 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{BandwidthSpec, ByteSize, DiskSpec, NetSpec, OpsSpec, RateLimitSpec};

    fn net(tap: &str, mac: Option<&str>) -> NetSpec {
        NetSpec {
            tap: tap.to_owned(),
            mac: mac.map(str::to_owned),
            ..NetSpec::default()
        }
    }

    #[test]
    fn taps_with_an_address() {
        assert_eq!(NetSpec::from_option("tap=tap0".as_ref()), Ok(net("tap0", None)));
        let text = "mac=02:00:00:00:00:01,tap=tap0";
        let named = net("tap0", Some("02:00:00:00:00:01"));
        assert_eq!(NetSpec::from_option(text.as_ref()), Ok(named.clone()));
        let made = NetSpec {
            create: true,
            ..named
        };
        assert_eq!(NetSpec::from_option(format!("{text},create").as_ref()), Ok(made));
    }

    #[test]
    fn limits_are_so_much_a_second_and_either_way() {
        let limit = RateLimitSpec {
            bandwidth: Some(BandwidthSpec {
                size: ByteSize(10 << 20),
                refill_ms: 1000,
                burst: ByteSize(0),
            }),
            ops: Some(OpsSpec {
                size: 500,
                refill_ms: 1000,
                burst: 0,
            }),
        };
        let disk = DiskSpec::from_option("a,ops=500,ro,bandwidth=10M".as_ref()).unwrap();
        assert_eq!((disk.read_only, disk.rate_limit), (true, Some(limit.clone())));
        let net = NetSpec::from_option("bandwidth=10M,tap=t,ops=500".as_ref()).unwrap();
        assert_eq!(
            (net.rx_rate_limit, net.tx_rate_limit),
            (Some(limit.clone()), Some(limit))
        );
        for (text, expected) in [
            ("a,ops=x", "\"x\" is not a number; give a whole number"),
            ("a,ops=1,ops=1", "the option ops is given twice; give it once"),
            (
                "a,bandwidth=",
                "\"\" is not a size; write a whole number, alone or with K, M, G or T behind it, as in 512M",
            ),
        ] {
            let error = DiskSpec::from_option(text.as_ref()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn places_for_the_serial_port() {
        for (text, expected) in [
            ("stdio", SerialSpec::Stdio),
            ("null", SerialSpec::Null),
            ("pty", SerialSpec::Pty),
            ("file=a,b=c", SerialSpec::File("a,b=c".into())),
            ("socket=/run/s", SerialSpec::Socket("/run/s".into())),
            ("kept=/run/vm", SerialSpec::Kept("/run/vm".into())),
        ] {
            assert_eq!(SerialSpec::from_option(text.as_ref()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn each_mistake_has_its_sentence() {
        let net = |text: &str| NetSpec::from_option(text.as_ref()).unwrap_err().to_string();
        let serial = |text: &str| SerialSpec::from_option(text.as_ref()).unwrap_err().to_string();
        for (sentence, expected) in [
            (
                net(""),
                "\"\" names no tap; write it as tap=NAME[,create][,queues=N][,spread] or user[,publish=HOST:GUEST]…[,loopback], and [,mac=ADDRESS][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]",
            ),
            (
                net("mac=x"),
                "\"mac=x\" names no tap; write it as tap=NAME[,create][,queues=N][,spread] or user[,publish=HOST:GUEST]…[,loopback], and [,mac=ADDRESS][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]",
            ),
            (
                net("tap0"),
                "unknown option \"tap0\"; it takes tap=NAME[,create][,queues=N][,spread] or user[,publish=HOST:GUEST]…[,loopback], and [,mac=ADDRESS][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER], and a comma that is part of a name is written twice",
            ),
            (
                serial("stdout"),
                "\"stdout\" is no place for a serial port; use stdio, null, pty, file=PATH, socket=PATH or kept=FOLDER",
            ),
            (
                serial("file"),
                "\"file\" is no place for a serial port; use stdio, null, pty, file=PATH, socket=PATH or kept=FOLDER",
            ),
        ] {
            assert_eq!(sentence, expected);
        }
    }

    #[test]
    fn a_path_may_be_any_bytes_and_a_serial_number_may_not() {
        let bytes = OsStr::from_bytes(b"\xff.img,ro");
        assert_eq!(
            DiskSpec::from_option(bytes).unwrap().path.as_os_str().as_bytes(),
            b"\xff.img"
        );
        let bytes = OsStr::from_bytes(b"a,serial=\xff");
        assert_eq!(DiskSpec::from_option(bytes), Err(OptionError::NotText("serial")));
    }

    proptest! {
        #[test]
        fn any_path_can_be_written_with_its_commas_doubled(path in "[^\0]+", ro: bool, serial in "[ -~]{0,20}") {
            let double = |text: &str| text.replace(',', ",,");
            let ro_text = if ro { ",ro" } else { "" };
            let text = format!("{}{ro_text},serial={}", double(&path), double(&serial));
            prop_assert_eq!(DiskSpec::from_option(text.as_ref()), Ok(DiskSpec {
                path: path.into(),
                read_only: ro,
                serial: Some(serial),
                ..DiskSpec::default()
            }));
        }

        #[test]
        fn no_bytes_make_a_parser_panic(bytes: Vec<u8>) {
            let text = OsStr::from_bytes(&bytes);
            let _ = (DiskSpec::from_option(text), NetSpec::from_option(text), SerialSpec::from_option(text));
        }
    }
}
