//! How a guest says that it is ready, in a description.

use std::ffi::OsStr;
use std::path::PathBuf;

use berth_devices::virtio::vsock::service_path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::VmSpec;
use super::options::{OptionError, key_value, lossy};
use crate::boot_test::pattern::{Pattern, PatternError};

const FORM: &str = "port, line=REGEX or vsock=PORT";

/// How a guest says that it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReadySpec {
    /// It writes 1 to port 0xf5.
    #[default]
    Port,
    /// This regular expression matches what it writes to the first serial port.
    Line(String),
    /// It connects to this port of the host over its vsock.
    Vsock(u32),
}

impl ReadySpec {
    /// Reads `port`, `line=REGEX` or `vsock=PORT`. The expression is taken as it is, commas included.
    pub fn from_option(text: &OsStr) -> Result<Self, OptionError> {
        match key_value(text) {
            (b"port", None) => Ok(Self::Port),
            (b"line", Some(line)) => match str::from_utf8(line) {
                Ok(line) => Ok(Self::Line(line.to_owned())),
                Err(_) => Err(OptionError::NotText("line")),
            },
            (b"vsock", Some(port)) => {
                let port = String::from_utf8_lossy(port).into_owned();
                port.parse()
                    .map(Self::Vsock)
                    .map_err(|_| OptionError::Number(port))
            }
            _ => Err(OptionError::Unknown {
                option: lossy(text),
                form: FORM,
            }),
        }
    }

    /// What is looked for on the serial line, if that is the sign.
    pub(crate) fn pattern(&self) -> Result<Option<Pattern>, PatternError> {
        match self {
            Self::Line(line) => Pattern::regex(line).map(Some),
            Self::Port | Self::Vsock(_) => Ok(None),
        }
    }

    /// Where the guest of `spec` is listened for, if its sign is a connection.
    pub(crate) fn socket(&self, spec: &VmSpec) -> Option<PathBuf> {
        let (Self::Vsock(port), Some(vsock)) = (self, &spec.vsock) else {
            return None;
        };
        Some(service_path(&vsock.path, *port))
    }

    /// What is wrong with it in the VM `spec`.
    pub(super) fn fault(&self, spec: &VmSpec) -> Option<String> {
        match self {
            Self::Port => None,
            Self::Line(_) => self.pattern().err().map(|error| error.to_string()),
            Self::Vsock(u32::MAX) => Some(format!("the port {} means any port; give another", u32::MAX)),
            Self::Vsock(port) => spec.vsock.is_none().then(|| {
                format!("the guest has no vsock to connect to port {port} of the host by; give it one, as in --vsock path=vm.vsock")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, VsockSpec, validate};
    use super::*;

    #[test]
    fn the_flag_takes_each_sign_and_an_expression_as_it_is() {
        let read = |text: &str| ReadySpec::from_option(text.as_ref());
        assert_eq!(read("port"), Ok(ReadySpec::Port));
        assert_eq!(
            read("line=^a,b=c{1,2}$"),
            Ok(ReadySpec::Line("^a,b=c{1,2}$".to_owned()))
        );
        assert_eq!(read("vsock=1024"), Ok(ReadySpec::Vsock(1024)));
        for (text, expected) in [
            ("vsock=ssh", "\"ssh\" is not a number; give a whole number"),
            (
                "login:",
                "unknown option \"login:\"; it takes port, line=REGEX or vsock=PORT, and a comma that is part of a name is written twice",
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn each_sign_that_cannot_be_has_its_sentence() {
        for (ready, expected) in [
            (
                ReadySpec::Line("(login".to_owned()),
                "ready: \"(login\" is no regular expression: unclosed group",
            ),
            (
                ReadySpec::Line("x*".to_owned()),
                "ready: \"x*\" matches an empty text, so it would match at once; write what the guest must say",
            ),
            (
                ReadySpec::Vsock(1024),
                "ready: the guest has no vsock to connect to port 1024 of the host by; give it one, as in --vsock path=vm.vsock",
            ),
            (
                ReadySpec::Vsock(u32::MAX),
                "ready: the port 4294967295 means any port; give another",
            ),
        ] {
            let spec = VmSpec {
                ready,
                ..VmSpec::default()
            };
            let faults = validate(&spec, Limits::NONE).unwrap_err();
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            assert_eq!(faults, [expected]);
        }
    }

    #[test]
    fn a_connection_is_listened_for_beside_the_vsock() {
        let spec = VmSpec {
            ready: ReadySpec::Vsock(1024),
            vsock: Some(VsockSpec {
                cid: 3,
                path: "v".into(),
            }),
            ..VmSpec::default()
        };
        assert_eq!(spec.ready.socket(&spec), Some("v_1024".into()));
        assert_eq!(ReadySpec::Port.socket(&spec), None);
    }
}
