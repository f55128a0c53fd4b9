//! Sockets between guest and host in a description.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use berth_devices::virtio::vsock::{FIRST_CID, SERVICE_PATH_MAX};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::options::{OptionError, key_value, lossy, set, split};

const FORM: &str = "[cid=NUMBER,]path=PATH";

/// Sockets between guest and host (virtio-vsock), by Unix sockets on the host's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context id, 3 or more; the host's is 2.
    #[schemars(range(min = 3, max = 4294967294_u32))]
    #[serde(default = "first_cid")]
    pub cid: u32,
    /// The Unix socket that Berth makes and on which host programs reach the guest. Beside it, under this name with `_PORT`
    /// behind it, lie those on which host programs listen for the guest.
    pub path: PathBuf,
}

fn first_cid() -> u32 {
    FIRST_CID
}

impl VsockSpec {
    /// Reads `cid=NUMBER,path=PATH`; the number may be left out.
    pub fn from_option(text: &OsStr) -> Result<Self, OptionError> {
        let (mut cid, mut path) = (None, None);
        for part in split(text) {
            match key_value(&part) {
                (b"cid", Some(value)) => set(&mut cid, value, "cid")?,
                (b"path", Some(value)) => {
                    if path.replace(PathBuf::from(OsStr::from_bytes(value))).is_some() {
                        return Err(OptionError::Twice("path"));
                    }
                }
                (b"", None) => {}
                _ => {
                    return Err(OptionError::Unknown {
                        option: lossy(&part),
                        form: FORM,
                    });
                }
            }
        }
        let cid = match cid {
            Some(text) => text.parse().map_err(|_| OptionError::Cid(text))?,
            None => FIRST_CID,
        };
        let missing = || OptionError::Missing {
            text: lossy(text),
            what: "path",
            form: FORM,
        };
        Ok(Self {
            cid,
            path: path.ok_or_else(missing)?,
        })
    }

    /// What is wrong with its number.
    pub(super) fn cid_fault(&self) -> Option<String> {
        match self.cid {
            cid @ ..FIRST_CID => Some(format!(
                "the cid {cid} is taken (1 is any machine itself, 2 the host); give {FIRST_CID} or more"
            )),
            u32::MAX => Some(format!(
                "the cid {} means any machine; give a smaller one",
                u32::MAX
            )),
            _ => None,
        }
    }

    /// What is wrong with the length of its path.
    pub(super) fn path_fault(&self) -> Option<String> {
        let length = self.path.as_os_str().len();
        (length > SERVICE_PATH_MAX).then(|| {
            format!(
                "the path {} has {length} bytes; with a port behind it Linux allows {SERVICE_PATH_MAX}",
                self.path.display()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<VsockSpec, OptionError> {
        VsockSpec::from_option(text.as_ref())
    }

    #[test]
    fn the_flag_takes_a_path_and_perhaps_a_number() {
        let path = |cid, path: &str| VsockSpec {
            cid,
            path: path.into(),
        };
        assert_eq!(read("cid=42,path=v.sock"), Ok(path(42, "v.sock")));
        assert_eq!(read("path=a,,b=c"), Ok(path(3, "a,b=c")));
        for (text, expected) in [
            (
                "cid=3",
                "\"cid=3\" names no path; write it as [cid=NUMBER,]path=PATH",
            ),
            (
                "cid=x,path=p",
                "\"x\" is not a context id; give a whole number, 3 or more",
            ),
            ("path=p,path=q", "the option path is given twice; give it once"),
            (
                "v.sock",
                "unknown option \"v.sock\"; it takes [cid=NUMBER,]path=PATH, and a comma that is part of a name is written twice",
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected);
        }
    }
}
